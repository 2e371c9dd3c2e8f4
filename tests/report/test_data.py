from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from uphold.core.errors import DataError
from uphold.core.stats import mcnemar_exact
from uphold.repair.result import load_repair
from uphold.report.data import gather, to_json

Save = Callable[..., Path]


def test_a_repair_becomes_one_version_per_arm(save_repair: Save) -> None:
    data = gather(save_repair())
    assert [(version.name, version.role) for version in data.versions] == [
        ("old", "old"),
        ("new", "new"),
        ("repaired", "repaired"),
        ("finetuned", "control"),
    ]
    assert [version.score.value for version in data.versions] == pytest.approx([17 / 40, 19 / 40, 20 / 40, 19 / 40])
    assert data.change(data.versions[2]) == pytest.approx(-0.25)
    assert data.change(data.versions[3]) == 0.0
    assert data.repair_p == mcnemar_exact(1, 2)


def test_a_comparison_has_no_repair(save_comparison: Save) -> None:
    data = gather(save_comparison())
    assert data.repair is None
    assert data.repaired is None
    assert data.repair_p is None
    assert [version.label for version in data.versions] == ["old", "new"]


def test_change_is_undefined_without_flips_to_begin_with(save_repair: Save) -> None:
    data = gather(save_repair(outcomes=[(True, True, False), (False, False, False)]))
    assert data.change(data.versions[2]) is None


def test_slices_come_surest_first_with_their_state_after_the_repair(save_repair: Save) -> None:
    data = gather(save_repair())
    tagged = [pair for pair in data.slices if pair.before.tag in ("half", "all")]
    assert [pair.label for pair in tagged] == ["half = low", "all = yes", "half = high"]
    assert [pair.before.q for pair in data.slices] == sorted(pair.before.q for pair in data.slices)
    low = tagged[0]
    assert low.after is not None
    assert (low.before.negative_flips, low.after.negative_flips) == (4, 3)


def test_json_says_what_the_comparison_says(save_repair: Save) -> None:
    folder = save_repair()
    repair = load_repair(folder)
    report = to_json(gather(folder), "in words", ("a remark",))
    assert report["format"] == 1
    assert report["verdict"] == "in words"
    assert report["rates"] == repair.before.to_dict()["rates"]
    for name in ("matrix", "test", "cluster", "smallest_visible_nfr", "discovered"):
        assert report[name] == repair.before.to_dict()[name], name
    assert report["gate"] is None
    assert set(report["slices"][0]["before"]) >= {"p", "q", "nfr", "nfr_interval"}
    assert [arm["name"] for arm in report["arms"]] == ["old", "new", "repaired", "finetuned"]
    assert report["arms"][2]["rates"]["nfr"]["value"] == repair.repaired.comparison["nfr"].value
    assert report["arms"][2]["nfr_against_plain"] == pytest.approx(-0.25)
    assert report["instances"]["effects"]["newly broken"] == 1
    assert len(report["instances"]["flips"]) == 4 + 1 + 6 + 1
    assert report["fingerprints"]["repaired"]["model"]["name"] == "v2+repaired"
    assert report["arms"][2]["history"][2]["train"] == {"loss": 0.8}
    json.dumps(report, allow_nan=False)


def test_the_old_models_own_figures_read_alike_in_every_column(save_repair: Save) -> None:
    data = gather(save_repair())
    assert data.column(data.versions[2], "accuracy_old") is data.new.rate("accuracy_old")
    assert data.column(data.versions[2], "nfr") is data.versions[2].rate("nfr")


def test_notes_of_arms_carry_their_label(save_comparison: Save, save_scores: Save) -> None:
    assert gather(save_comparison()).notes == ()
    assert any("no noise floor" in note for note in gather(save_scores([0.1], [0.2])).notes)


def test_a_folder_with_neither_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no comparison in"):
        gather(tmp_path)
