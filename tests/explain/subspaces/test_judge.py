import json
from pathlib import Path

import pytest
import torch

from uphold.core.errors import DataError, EmptyError
from uphold.explain.subspaces.conditions import (
    CLEAN,
    FULL,
    NULL,
    NULL_READ,
    PATCH,
    PLACEBO,
    ROW,
    ROW_READ,
    UNSCALED,
    Measured,
)
from uphold.explain.subspaces.config import SubspaceConfig
from uphold.explain.subspaces.gap import Gap
from uphold.explain.subspaces.judge import BY_FULL, BY_READ, reply, summarise, verdict
from uphold.explain.subspaces.result import Fit, Map, SubspaceResult

CONFIG = SubspaceConfig(draws=500)
SPLIT = Map("down", 12, 6, 1e-6, (0.5,), 0.25)


def made(count: int = 60, iia: float = 0.5, **effects: float) -> dict[str, Measured]:
    """Pairs whose logit difference is 2 to 4 and falls by the given shares."""
    clean = torch.linspace(2, 4, count, dtype=torch.float64)
    named = {
        CLEAN: 0.0,
        FULL: effects["full"],
        PATCH: effects["patch"],
        ROW: effects["row"],
        NULL: 0.0,
        ROW_READ: effects["row"],
        NULL_READ: effects["null"],
        UNSCALED: effects["row"],
    }
    found = {name: Measured(clean * (1 - share), torch.zeros(count, dtype=torch.bool)) for name, share in named.items()}
    for number, share in enumerate((0.01, 0.03)):
        found[f"{PLACEBO} {number}"] = Measured(clean * (1 - share), torch.zeros(count, dtype=torch.bool))
    hits = torch.arange(count) < iia * count
    found[PATCH] = Measured(found[PATCH].differences, hits)
    return found


def judged(found: dict[str, Measured], split: Map = SPLIT) -> str:
    effects, contrasts, _ = summarise(found, None, CONFIG)
    return verdict(effects, contrasts, split, CONFIG)[0]


def test_effects_are_ratios_of_means() -> None:
    effects, contrasts, notes = summarise(made(full=0.2, patch=1.2, row=0.2, null=1.0), None, CONFIG)
    of = {one.name: one for one in effects}
    assert (of[CLEAN].difference, of[CLEAN].fldd) == (pytest.approx(3), 0)
    assert of[PATCH].fldd == pytest.approx(1.2)
    assert of[PATCH].iia == 0.5
    assert of[PLACEBO].fldd == pytest.approx(0.02)
    interval = of[PATCH].iia_interval
    assert interval is not None
    assert interval.low == pytest.approx(0.5 - 1.96 * (0.25 / 60) ** 0.5, abs=0.04)
    by = {one.name: one for one in contrasts}
    assert by[BY_READ].value == pytest.approx(-0.8)
    assert by[BY_READ].below
    assert by[BY_FULL].above
    assert notes == []


@pytest.mark.parametrize(
    ("effects", "wanted"),
    [
        ({"full": 0.2, "patch": 1.2, "row": 0.2, "null": 1.0}, "illusory"),
        ({"full": -0.1, "patch": 0.5, "row": 0.1, "null": 0.4}, "illusory"),
        ({"full": 1.9, "patch": 1.7, "row": 1.6, "null": 0.1}, "faithful"),
        ({"full": 1.9, "patch": 1.2, "row": 0.2, "null": 1.0}, "undecided"),
        ({"full": 0.2, "patch": 1.0, "row": 0.5, "null": 0.5}, "undecided"),
        ({"full": 1.9, "patch": 0.05, "row": 0.05, "null": 0.0}, "nothing found"),
        ({"full": 1.9, "patch": -0.5, "row": -0.5, "null": 0.0}, "nothing found"),
    ],
)
def test_the_verdict_goes_by_what_is_read(effects: dict[str, float], wanted: str) -> None:
    assert judged(made(**effects)) == wanted


def test_a_map_without_a_kernel_decides_nothing() -> None:
    found = made(full=1.9, patch=1.7, row=1.6, null=0.1)
    assert judged(found, Map("down", 6, 6, 1e-6, (1.0,), 1.0)) == "undecided"


def test_pairs_of_one_cluster_count_once() -> None:
    found = made(40, full=0.2, patch=1.2, row=0.2, null=1.0)
    alone, _, few = summarise(found, torch.arange(40), CONFIG)
    joined, _, note = summarise(found, torch.arange(40) // 10, CONFIG)
    assert few == []
    assert note == ["4 independent pairs: intervals of fewer than 20 are too short"]
    widths = []
    for effects in (alone, joined):
        interval = next(one for one in effects if one.name == PATCH).iia_interval
        assert interval is not None
        widths.append(interval.high - interval.low)
    assert widths[1] > widths[0]
    assert [one.fldd for one in alone] == pytest.approx([one.fldd for one in joined])
    with pytest.raises(EmptyError, match="at least 2"):
        summarise(found, torch.zeros(40).long(), CONFIG)


def test_a_model_that_does_not_do_the_task_is_refused() -> None:
    found = made(full=0.2, patch=1.2, row=0.2, null=1.0)
    sign = torch.where(torch.arange(60) % 2 == 0, 1.0, -1.0).double()
    turned = {name: Measured(one.differences * sign, one.hits) for name, one in found.items()}
    with pytest.raises(DataError, match="that the model gets right"):
        summarise(turned, None, CONFIG)


def test_the_reply_goes_by_answers() -> None:
    numbers = {"full": 0.2, "patch": 0.5, "row": 0.1, "null": 0.4}
    few, _, _ = summarise(made(iia=0.04, **numbers), None, CONFIG)
    many, _, _ = summarise(made(iia=0.9, **numbers), None, CONFIG)
    assert "nothing was found" in reply("illusory", few, CONFIG)
    assert "many directions" in reply("illusory", many, CONFIG)
    assert "unscaled" in reply("faithful", many, CONFIG)


def test_a_result_prints_and_goes_to_json(tmp_path: Path) -> None:
    effects, contrasts, notes = summarise(made(10, full=0.2, patch=1.2, row=0.2, null=1.0), None, CONFIG)
    found, reason = verdict(effects, contrasts, SPLIT, CONFIG)
    result = SubspaceResult(
        site="hidden.1",
        method="das",
        k=1,
        pairs=10,
        verdict=found,
        reason=reason,
        reply=reply(found, effects, CONFIG),
        effects=tuple(effects),
        contrasts=tuple(contrasts),
        map=SPLIT,
        gap=Gap("hidden.1", 10, -0.5, 1.0, 0.75),
        additivity=1.0,
        fits=(Fit("the expected answers", 0.9, 0.8),),
        notes=tuple(notes),
        level=0.95,
        seed=0,
        basis=torch.ones(12, 1, dtype=torch.float64),
    )
    text = str(result)
    assert "ILLUSORY" in text
    assert "120.0%" in text
    assert "rank 6 of 12" in text
    assert "too short" in text
    assert all(len(line) < 320 for line in text.splitlines())
    result.write(tmp_path / "result.json")
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["verdict"] == "illusory"
    assert stored["gap"]["ratio"] is None
    assert stored["map"]["rank"] == 6
    assert "basis" not in stored
    assert stored["effects"][0]["fldd_interval"] == [0.0, 0.0]
    assert result.effect(PATCH).iia == 0.5
    assert result.contrast(BY_READ).value == pytest.approx(-0.8)
