"""Saved comparisons and repairs with known flips, small enough to count by hand.

Of 40 instances the old model answers 17 right, the plain update 19, the repaired one 20. The update makes 4
negative and 6 positive flips; the repair fixes 2, leaves 2 broken, breaks 1 anew, loses 1 gain and adds 1.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from uphold.core.records import Record
from uphold.core.runs import Run, write_run
from uphold.measure.comparison import compare_runs
from uphold.repair.result import Arm, Epoch, Form, Repair
from uphold.report import write_report

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- {{ 7*7 }} | `code` [link](https://evil.test)"
    "\u202egnp.exe\u202c zero\u200bwidth \u2028 line & 'quotes\" \x1b[31m"
)
READY = "#browser[aria-busy=false]"
"""Selects the report's table once every instance is unpacked."""
OPTIONS = ("red", "green", "blue")

# (how many, old right, new right, repaired right)
PLAN = (
    (12, True, True, True),
    (2, True, False, True),
    (2, True, False, False),
    (1, True, True, False),
    (5, False, True, True),
    (1, False, True, False),
    (1, False, False, True),
    (16, False, False, False),
)
OUTCOMES = [flags for count, *flags in PLAN for _ in range(count)]


def write(folder: Path, name: str, records: Sequence[Record], batching: int = 8) -> Run:
    fingerprint = {
        "model": {"name": name, "weights": f"weights of {name}", "dtype": "float32"},
        "task": {"name": "colours", "kind": "choice", "scorer": "choice.v1"},
        "batching": {"size": batching},
        "seed": 0,
        "versions": {"torch": "2.13.0"},
    }
    return write_run(folder, records, fingerprint)


def choice_records(
    column: int, text: str = "", logprobs: bool = True, tags: bool = True, outcomes: Sequence[Sequence[bool]] = OUTCOMES
) -> list[Record]:
    records = []
    for number, flags in enumerate(outcomes):
        right = flags[column]
        gold, other = OPTIONS[number % 3], OPTIONS[(number + 1) % 3]
        answer = (gold if right else other) + text
        values = {gold: -1.0, other: -2.0 if right else -0.5 - 0.01 * number}
        records.append(
            Record(
                id=f"{number:016x}",
                input=f"question {number}{text}",
                target=gold,
                output=answer,
                answer=answer,
                correct=right,
                score=float(right),
                options=OPTIONS,
                option_logprobs=tuple(values.get(option, -4.0) for option in OPTIONS) if logprobs else (),
                tags={"half": "low" if number < 20 else "high", "all": f"yes{text}"} if tags else {},
            )
        )
    return records


def score_records(scores: Sequence[float | None]) -> list[Record]:
    return [
        Record(
            f"{number:016x}",
            f"question {number}",
            "gold",
            f"said {score}",
            f"said {score}",
            None,
            score,
            tags={"half": "low" if 2 * number < len(scores) else "high"},
        )
        for number, score in enumerate(scores)
    ]


def history(shift: float) -> tuple[Epoch, ...]:
    return (
        Epoch(0, {}, {"accuracy": 0.47, "nfr": 0.10 + shift}),
        Epoch(1, {"loss": 1.0, "mask_rate": 0.3}, {"accuracy": 0.49, "nfr": 0.08 + shift}, chosen=True),
        Epoch(2, {"loss": 0.8}, {"accuracy": 0.48, "nfr": 0.09 + shift}),
    )


@pytest.fixture
def save_comparison(tmp_path: Path) -> Callable[..., Path]:
    """Save the 40 instances (or `outcomes`) as a comparison; options go to `choice_records`."""

    def save(name: str = "comparison", again: bool = True, **options: object) -> Path:
        runs = tmp_path / f"{name} runs"
        old = write(runs / "old", "v1", choice_records(0, **options))  # type: ignore[arg-type]
        new = write(runs / "new", "v2", choice_records(1, **options))  # type: ignore[arg-type]
        repeated = write(runs / "again", "v1", choice_records(0, **options), 16) if again else None  # type: ignore[arg-type]
        return compare_runs(old, new, repeated).save(tmp_path / name)

    return save


def make_repair(
    folder: Path,
    text: str = "",
    label: str = "MUSCLE",
    form: Form = "adapter",
    controls: bool = True,
    trained: bool = True,
    **options: Any,
) -> Path:
    runs = folder.parent / f"{folder.name} runs"
    old = write(runs / "old", f"v1{text}", choice_records(0, text, **options))
    new = write(runs / "new", f"v2{text}", choice_records(1, text, **options))
    again = write(runs / "again", f"v1{text}", choice_records(0, text, **options), 16)
    arms = []
    for arm, column, control in (("repaired", 2, False), ("finetuned", 1, True)):
        run = write(runs / arm, f"v2+{arm}", choice_records(column, text, **options))
        title = f"control: {arm}" if control else label
        # The 40 instances serve as the validation split, too.
        measured = compare_runs(old, run, again), compare_runs(old, run)
        arms.append(Arm(arm, title, *measured, history(0.02 * control) if trained else (), control))
    repair = Repair(
        method="muscle",
        paper="arXiv:2407.09435",
        before=compare_runs(old, new, again),
        validation=compare_runs(old, new),
        arms=tuple(arms if controls else arms[:1]),
        config={"rank": 8, "targets": ["q_proj"], "text": text} | ({"epochs": 2} if trained else {}),
        splits={"train": 100, "validation": 20, "test": 40},
        artifact=folder.parent / form,
        form=form,
        notes=(f"a note{text}",),
    )
    return repair.save(folder)


@pytest.fixture
def save_repair(tmp_path: Path) -> Callable[..., Path]:
    """Save the 40 instances as a repair with one control, which is the plain update with other weights."""

    def save(name: str = "repair", **options: Any) -> Path:
        return make_repair(tmp_path / name, **options)

    return save


@pytest.fixture(scope="session")
def repair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the 40 instances as a repair, made once: only to be read."""
    return write_report(make_repair(tmp_path_factory.mktemp("report") / "repair"))


@pytest.fixture
def save_scores(tmp_path: Path) -> Callable[..., Path]:
    """Save two lists of continuous scores as a comparison."""

    def save(old: Sequence[float | None], new: Sequence[float | None], name: str = "scores") -> Path:
        runs = tmp_path / f"{name} runs"
        return compare_runs(
            write(runs / "old", "v1", score_records(old)), write(runs / "new", "v2", score_records(new))
        ).save(tmp_path / name)

    return save


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium. One per module: two that are driven at once from one thread get in each other's way."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = os.environ.get("PLAYWRIGHT_CHROMIUM_EXECUTABLE") or shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium: on the PATH, or named by PLAYWRIGHT_CHROMIUM_EXECUTABLE")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=arguments)
        yield running
        running.close()


class Reader:
    """Opens files and keeps what must not happen: errors, dialogs, requests."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.contexts: list[Any] = []

    def open(self, path: Path, fragment: str = "", init: str = "", ready: str = READY, **options: Any) -> Any:
        context = self.browser.new_context(**options)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("dialog", lambda dialog: self.problems.append("a dialog"))
        page.on("request", lambda request: self.requests.append(request.url.split("#")[0]))
        if init:
            page.add_init_script(init)
        page.goto(path.as_uri() + fragment)
        page.wait_for_selector(ready, state="attached")
        return page

    @staticmethod
    def wait(page: Any, condition: str) -> None:
        """Wait for JavaScript to become true. Playwright's own way evaluates text, which the page's policy forbids."""
        for _ in range(400):
            if page.evaluate(condition):
                return
            page.wait_for_timeout(50)
        raise AssertionError(f"never true: {condition}")


@pytest.fixture
def reader(browser: Any) -> Iterator[Reader]:
    made = Reader(browser)
    yield made
    for context in made.contexts:
        context.close()
    assert made.problems == []
    assert len(set(made.requests)) <= 1
    assert all(url.startswith("file:") for url in made.requests)


@pytest.fixture
def hostile() -> str:
    """Text that would be dangerous, or invisible, if it were shown as it is."""
    return HOSTILE
