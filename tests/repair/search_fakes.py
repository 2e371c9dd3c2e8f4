"""Repair methods that train nothing: their repairs are written down, so that a search can be followed by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from tests.conftest import make_record, make_run
from uphold.core import registry
from uphold.core.runs import Run
from uphold.measure import Comparison, compare_runs
from uphold.repair.protocol import Setting
from uphold.repair.result import Arm, Form, Repair
from uphold.repair.search_result import Search
from uphold.tasks.base import FixedTask, Instance, Score

_folder = TemporaryDirectory()
COUNT = 40
OLD_RIGHT = set(range(20))
NEW_RIGHT = set(range(5, 30))
"""25 of 40, with 5 negative flips: an NFR of 12.5%."""


class Model:
    """Stands for a loaded model."""

    def __init__(self, name: str) -> None:
        self.fingerprint = {"name": name, "weights": f"weights of {name}"}
        self.name = name


def task() -> FixedTask:
    splits = {
        split: tuple(Instance(f"{split} {number}", "right") for number in range(3))
        for split in ("train", "validation", "test")
    }
    return FixedTask("colours", "generate", splits, "exact.v1", lambda instance, output: Score(True, 1.0, output))  # type: ignore[arg-type]


@lru_cache
def run(name: str, right: frozenset[int], split: str) -> Run:
    """A run on one of two splits of 40 instances."""
    records = [make_record(i, i in right, "right" if i in right else f"{name} {i}") for i in range(COUNT)]
    return make_run(Path(_folder.name) / f"{name} {split} {hash(right)}", records, name, split=split)


@lru_cache
def against_old(name: str, right: frozenset[int], split: str) -> Comparison:
    """The old version, right on 0-19, against another one."""
    return compare_runs(run("old", frozenset(OLD_RIGHT), split), run(name, right, split), discover=False)


def setting(out: Path) -> Setting:
    """Old right on 0-19, new on 5-29, on both splits."""
    test, validation = (against_old("new", frozenset(NEW_RIGHT), split) for split in ("test", "validation"))
    out.mkdir(parents=True, exist_ok=True)
    old: Any = Model("old")
    new: Any = Model("new")
    return Setting("search", "", old, new, task(), out, test, validation, None, _silent)


def _silent(what: str, done: int, total: int, note: str = "") -> None:
    pass


@dataclass(frozen=True)
class FakeConfig:
    """Options of a fake."""

    strength: int = 1
    epochs: int = 1
    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {"strength": (1, 2, 3)}
    KIND: ClassVar[str] = "training"


Right = Callable[[int], set[int] | Exception]
Look = Callable[..., Search]
"""Searches among fakes; see `look` in conftest.py."""


@dataclass
class Fake:
    """A registered method; `right` says which instances its repair gets right at a strength."""

    name: str
    right: Right
    seconds: float = 10.0
    form: Form = "adapter"
    test_right: Right | None = None
    steps: int = 1
    calls: int = 0

    def __call__(self, folder: Path, config: FakeConfig, clock: Clock, progress: Any) -> Repair:
        self.calls += 1
        for step in range(self.steps):
            progress("steps", step, self.steps)
            clock.now += self.seconds / self.steps
        progress("steps", self.steps, self.steps)
        right = self.right(config.strength)
        if isinstance(right, Exception):
            raise right
        tested = (self.test_right or self.right)(config.strength)
        assert not isinstance(tested, Exception)
        name = f"{self.name} {config.strength}"
        test = against_old(name, frozenset(tested), "test")
        validation = against_old(name, frozenset(right), "validation")
        artifact = folder / self.form
        artifact.mkdir(exist_ok=True)
        (artifact / "content.txt").write_text(name)
        arm = Arm("repaired", f"{self.name} arm", test, validation, (), control=False)
        begun = setting(folder)
        repair = Repair(
            self.name, "", begun.before, begun.validation, (arm,), asdict(config), {}, artifact, self.form, ()
        )
        repair.save(folder)
        return repair


@dataclass
class Clock:
    """Seconds that pass when a fake says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def registered(*fakes: Fake, clock: Clock) -> Iterator[None]:
    """The fakes as the only repair methods."""
    before = dict(registry._methods)
    registry.methods()
    everything = dict(registry._methods)
    for key in [key for key in registry._methods if key[0] == "repair"]:
        del registry._methods[key]
    for fake in fakes:

        def function(
            old: Any, new: Any, task: Any, *, out: Any, config: FakeConfig, progress: Any, own: Fake = fake
        ) -> Repair:
            """Do nothing."""
            return own(Path(out), config, clock, progress)

        registry.repair(fake.name)(function)
    try:
        yield
    finally:
        registry._methods.clear()
        registry._methods.update(everything | before)


def shuffled(right: set[int], seed: int) -> set[int]:
    """As many instances, other ones."""
    return set(random.Random(seed).sample(range(COUNT), len(right)))


def fixes(count: int, loses: int = 0) -> set[int]:
    """The new model's answers with `count` of the five negative flips fixed and `loses` gains lost."""
    return (NEW_RIGHT | set(range(count))) - set(range(29, 29 - loses, -1))


def always(right: set[int]) -> Right:
    return lambda strength: right


def labels(result: Search) -> list[str]:
    return [trial.label for trial in result.trials]
