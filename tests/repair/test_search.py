from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_task
from tests.repair.search_fakes import (
    NEW_RIGHT,
    OLD_RIGHT,
    Clock,
    Fake,
    Model,
    Right,
    registered,
    setting,
    shuffled,
    task,
)
from uphold.core.errors import CorruptError, DataError, StorageError, UsageError
from uphold.repair import search_ship
from uphold.repair.result import load_repair
from uphold.repair.search import search
from uphold.repair.search_result import Search, SearchConfig, load_search

BOTH = OLD_RIGHT | NEW_RIGHT


def fixes(count: int, loses: int = 0) -> set[int]:
    """The new model's answers with `count` of the five negative flips fixed and `loses` gains lost."""
    return (NEW_RIGHT | set(range(count))) - set(range(29, 29 - loses, -1))


def always(right: set[int]) -> Right:
    return lambda strength: right


@pytest.fixture(autouse=True)
def without_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*args: Any, out: Path, progress: Any, **options: Any) -> Any:
        return replace(setting(Path(out)), progress=progress)

    monkeypatch.setattr("uphold.repair.protocol.begin", begin)
    monkeypatch.setattr("uphold.models.load.load", Model)
    monkeypatch.setattr("uphold.models.adapter.base_name", lambda loaded: loaded.name)


Run = Callable[..., Search]


@pytest.fixture
def look(tmp_path: Path) -> Run:
    """Search among fakes."""
    clock = Clock()

    def run(*fakes: Fake, out: str = "out", progress: Any = None, **options: Any) -> Search:
        more = {"progress": progress} if progress else {}
        with registered(*fakes, clock=clock):
            return search(
                "old",
                "new",
                task(),
                out=tmp_path / out,
                config=SearchConfig(**{"trials": 100, **options}),
                recipe="demo",
                clock=clock,
                **more,
            )

    return run


def labels(result: Search) -> list[str]:
    return [trial.label for trial in result.trials]


def test_the_lowest_validation_nfr_wins_and_is_left_as_a_repair(look: Run, tmp_path: Path) -> None:
    result = look(Fake("weak", always(fixes(1))), Fake("strong", lambda strength: fixes(strength + 1)))
    assert result.winner is not None
    assert result.winner.label == "strong (strength 3)"
    assert result.winner.validation is not None
    assert result.winner.validation.nfr == pytest.approx(1 / 40)
    assert (tmp_path / "out" / "adapter" / "content.txt").read_text() == "strong 3"
    repair = load_repair(tmp_path / "out")
    assert repair.method == "strong"
    assert repair.artifact == tmp_path / "out" / "adapter"
    assert "chosen by validation among 4 trials" in repair.notes[-1]
    assert load_search(tmp_path / "out") == result


def test_defaults_come_first_then_variations_of_the_better_half(look: Run) -> None:
    result = look(*(Fake(name, always(fixes(count))) for name, count in (("a", 1), ("b", 2), ("c", 3), ("d", 0))))
    assert labels(result) == [
        *("a", "b", "c", "d"),
        *("c (strength 2)", "b (strength 2)", "c (strength 3)", "b (strength 3)"),
    ]


def test_fewer_flips_at_a_lower_accuracy_are_not_chosen(look: Run) -> None:
    result = look(Fake("cautious", always(fixes(2))), Fake("copy-of-old", always(fixes(5, loses=6))))
    assert result.winner is not None
    assert result.winner.label == "cautious"


def test_nothing_is_chosen_where_nothing_helps(look: Run, tmp_path: Path) -> None:
    result = look(Fake("useless", always(NEW_RIGHT)), Fake("copy-of-old", always(OLD_RIGHT)))
    assert result.chosen is None
    assert "none to ship" in result.verdict()
    assert not (tmp_path / "out" / "repair.json").exists()
    assert "no repair has fewer negative flips" in str(result)


def test_the_test_split_changes_nothing_in_the_choice(look: Run) -> None:
    """Whatever the repairs do on the test split, the same ones are tried in the same order and the same is chosen."""
    seen = set()
    for seed in range(2):
        fakes = [
            Fake(
                name,
                lambda strength, most=most: fixes(min(5, strength + most)),  # type: ignore[misc]
                test_right=lambda strength, seed=seed: shuffled(fixes(5 - seed), seed),  # type: ignore[misc]
            )
            for name, most in (("a", 0), ("b", 1))
        ]
        result = look(*fakes, out=f"out {seed}")
        seen.add((tuple(labels(result)), result.chosen))
    assert len(seen) == 1


def test_a_repair_with_both_models_is_a_paragon(look: Run, tmp_path: Path) -> None:
    fakes = Fake("single", always(fixes(2))), Fake("ensemble", always(fixes(5)), form="pair")
    result = look(*fakes)
    assert result.winner is not None
    assert result.winner.label == "single"
    assert "not for choosing, because they keep both models at inference: ensemble" in str(result)
    again = look(*fakes, pairs=True)
    assert again.winner is not None
    assert again.winner.label == "ensemble"
    assert (tmp_path / "out" / "pair").is_dir()
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_number_of_trials_is_kept(look: Run) -> None:
    fake = Fake("only", lambda strength: fixes(strength))
    result = look(fake, Fake("other", always(fixes(1))), trials=2)
    assert len(result.trials) == 2
    reasons = {one.label: one.reason for one in result.skipped}
    assert reasons["only (strength 2)"] == "2 trials were asked for"
    grown = look(fake, Fake("other", always(fixes(1))), trials=3)
    assert len(grown.trials) == 3
    assert fake.calls == 2


def test_what_would_not_fit_into_the_time_is_not_started(look: Run) -> None:
    """Two defaults of 60 s leave 60 s of 3 minutes: one variation fits, the next does not."""
    fakes = [Fake("a", always(fixes(1)), seconds=60), Fake("b", always(fixes(2)), seconds=60)]
    result = look(*fakes, trials=None, minutes=3.5, controls=False)
    assert labels(result) == ["a", "b", "b (strength 2)"]
    reasons = {one.label: one.reason for one in result.skipped}
    assert reasons["b (strength 3)"] == "it would take about 60 s, and 30 s are left"
    assert result.seconds == 180


def test_a_trial_is_ended_when_the_time_is_up_and_goes_on_later(look: Run) -> None:
    fakes = [Fake("quick", always(fixes(1)), seconds=10), Fake("slow", always(fixes(3)), seconds=1000, steps=100)]
    result = look(*fakes, trials=None, minutes=1)
    slow = next(trial for trial in result.trials if trial.method == "slow")
    assert (slow.status, slow.seconds) == ("unfinished", 50)
    assert result.winner is not None
    assert result.winner.method == "quick"
    more = look(*fakes, trials=None, minutes=30)
    assert more.winner is not None
    assert more.winner.method == "slow"
    assert fakes[0].calls == 1


def test_nothing_finished_is_an_error_that_says_how_to_go_on(look: Run) -> None:
    with pytest.raises(UsageError, match="type the same command with a larger one"):
        look(Fake("slow", always(fixes(3)), seconds=1000, steps=100), trials=None, minutes=1)


def test_an_interrupted_search_goes_on_without_repeating_a_trial(look: Run, tmp_path: Path) -> None:
    class Interrupt(BaseException):
        pass

    fakes = [Fake(name, always(fixes(count))) for name, count in (("a", 1), ("b", 2), ("c", 3))]

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what == "c":
            raise Interrupt

    with pytest.raises(Interrupt):
        look(*fakes, progress=stop)
    saved = json.loads(next((tmp_path / "out" / "trials").glob("c-*/trial.json")).read_text())
    assert saved["status"] == "unfinished"
    calls = [fake.calls for fake in fakes]
    result = look(*fakes)
    assert calls == [1, 1, 1]
    assert [fake.calls for fake in fakes] == [1, 1 + 2, 2 + 2]
    assert result.winner is not None
    assert result.winner.method == "c"
    again = look(*fakes)
    assert [fake.calls for fake in fakes] == [1, 3, 4]
    assert (again.chosen, again.trials) == (result.chosen, result.trials)


def test_a_failing_method_is_told_and_counted(look: Run) -> None:
    fakes = [
        Fake("broken", lambda strength: ValueError("no such <layer>")),
        Fake("fine", always(fixes(2))),
    ]
    result = look(*fakes, trials=2)
    assert [trial.status for trial in result.trials] == ["failed", "finished"]
    assert "failed: broken: ValueError: no such <layer>" in str(result)
    look(*fakes, trials=2)
    assert fakes[0].calls == 1
    with pytest.raises(UsageError, match=r"2 failed \(broken, worse: ValueError: no such <layer>\)"):
        look(fakes[0], Fake("worse", fakes[0].right), out="all")
    with pytest.raises(StorageError):
        look(Fake("full", lambda strength: StorageError("no space")), out="disk")


def test_another_task_or_other_models_are_refused(look: Run, tmp_path: Path) -> None:
    look(Fake("a", always(fixes(1))))
    for path in (tmp_path / "out" / "trials").glob("*/trial.json"):
        path.write_text(path.read_text().replace('"key": "', '"key": "0'))
    with pytest.raises(UsageError, match="holds a search of other models or another task"):
        look(Fake("a", always(fixes(1))))


def test_names_and_options_are_checked(tmp_path: Path) -> None:
    with registered(Fake("only", always(fixes(1))), clock=Clock()):
        with pytest.raises(UsageError, match="did you mean 'only'"):
            search("a", "b", task(), out=tmp_path, config=SearchConfig(methods=("onyl",)))
        with pytest.raises(UsageError, match="did you mean 'strength'"):
            search("a", "b", task(), out=tmp_path, options={"strenght": 3})
    for wrong in ({"minutes": 0}, {"trials": 0}, {"margin": 1.0}):
        with pytest.raises(UsageError):
            SearchConfig(**wrong)


def test_damage_is_named(look: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no search in"):
        load_search(tmp_path)
    look(Fake("a", always(fixes(1))))
    path = tmp_path / "out" / "search.json"
    path.write_text('{"format": 1}')
    with pytest.raises(CorruptError, match="not a saved search"):
        load_search(tmp_path / "out")


def test_only_what_the_search_wrote_is_withdrawn(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "repair.json").write_text('{"artifact": "adapter"}')
    search_ship.withdraw(tmp_path)
    assert (tmp_path / "adapter").is_dir()
    (tmp_path / "search.json").write_text("{}")
    (tmp_path / "repair.json").write_text('{"artifact": "../other"}')
    search_ship.withdraw(tmp_path)
    assert (tmp_path / "adapter").is_dir()
    assert not (tmp_path / "repair.json").exists()


def test_everything_that_can_be_fixed_is_the_best(look: Run) -> None:
    result = look(Fake("all", always(BOTH)))
    assert result.winner is not None
    assert result.winner.validation is not None
    assert result.winner.validation.nfr == 0


def test_a_training_on_real_models_gets_its_controls(
    model_v1: Path, model_v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("UPHOLD_STORE", str(tmp_path / "store"))
    # Random models, so that whether MUSCLE helps is chance.
    monkeypatch.setattr(
        sys.modules["uphold.repair.search"], "choose", lambda candidates, strict: next(iter(candidates), None)
    )
    options = {"epochs": 1, "rank": 2, "batch_size": 16, "warmup_steps": 1}
    results = [
        search(
            model_v1,
            model_v2,
            write_task(tmp_path, 24),
            out=tmp_path / "out",
            config=SearchConfig(methods=("muscle",), trials=1, force=True),
            options=options,
        )
        for _ in range(2)
    ]
    assert [control.label for control in results[0].controls] == [
        "control: cross-entropy only",
        "control: new teacher only",
    ]
    assert results[0].trials == results[1].trials
    assert results[0].controls == results[1].controls
    repair = load_repair(tmp_path / "out")
    assert [arm.control for arm in repair.arms] == [False, True, True]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert "control: cross-entropy only" in (tmp_path / "out" / "adapter" / "README.md").read_text()
