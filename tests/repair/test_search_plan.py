from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.repair.search_fakes import Clock, Fake, Look, always, fixes, labels, registered, task
from uphold.core.errors import UsageError
from uphold.core.registry import Method
from uphold.repair.search import search
from uphold.repair.search_plan import Proposal, kind_of, neighbours
from uphold.repair.search_result import SearchConfig
from uphold.repair.training import DistillConfig


def test_defaults_come_first_then_variations_of_the_better_half(look: Look) -> None:
    result = look(*(Fake(name, always(fixes(count))) for name, count in (("a", 1), ("b", 2), ("c", 3), ("d", 0))))
    assert labels(result) == [
        *("a", "b", "c", "d"),
        *("c (strength 2)", "b (strength 2)", "c (strength 3)", "b (strength 3)"),
    ]


def test_names_and_options_are_checked(tmp_path: Path) -> None:
    with registered(Fake("only", always(fixes(1))), clock=Clock()):
        with pytest.raises(UsageError, match="did you mean 'only'"):
            search("a", "b", task(), out=tmp_path, config=SearchConfig(methods=("onyl",)))
        with pytest.raises(UsageError, match="did you mean 'strength'"):
            search("a", "b", task(), out=tmp_path, options={"strenght": 3})
    for wrong in ({"minutes": 0}, {"minutes": float("nan")}, {"trials": 0}, {"margin": 1.0}):
        with pytest.raises(UsageError):
            SearchConfig(**wrong)


@dataclass(frozen=True)
class Strict:
    """Takes no strength above 2."""

    strength: int = 1
    other: str = "a"
    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {"strength": (1, 2, 3), "other": ("a", "b")}

    def __post_init__(self) -> None:
        if self.strength > 2:
            raise UsageError("too strong")


def method_with(config: type | None) -> Method:
    def function(old: Any, new: Any, task: Any, *, out: Any, config: Any = None) -> None: ...

    def without(old: Any, new: Any, task: Any, *, out: Any) -> None: ...

    function.__annotations__["config"] = config
    return Method("repair", "mine", "", without if config is None else function)


def test_neighbours_differ_in_one_option_and_are_named_by_what_differs_from_the_defaults() -> None:
    mine = method_with(Strict)
    default = Proposal(mine, Strict(), {})
    start = Proposal(mine, Strict(other="b"), {"other": "b"})
    found = list(neighbours(start, default))
    assert [one.label if isinstance(one, Proposal) else one for one in found] == [
        "mine (strength 2, other b)",
        ("mine (strength 3)", "too strong"),
        "mine",
    ]
    assert isinstance(found[2], Proposal)
    assert found[2].name == default.name
    with pytest.raises(UsageError, match="SEARCH names 'strength', which is no option of it"):
        list(neighbours(Proposal(mine, type("Bare", (), {"SEARCH": {"strength": (1,)}})(), {}), default))


def test_what_a_method_is_follows_from_its_config_and_its_arguments() -> None:
    declared, wrong = (dataclass(type("Config", (), {"KIND": kind})) for kind in ("weights", "wieghts"))
    assert [kind_of(method_with(config)) for config in (None, DistillConfig, declared)] == [
        "other",
        "training",
        "weights",
    ]
    assert kind_of(Method("repair", "mine", "", lambda old, new, task, records, out: None)) == "input"
    with pytest.raises(UsageError, match="KIND is 'wieghts'"):
        kind_of(method_with(wrong))
