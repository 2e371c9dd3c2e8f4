from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_record, make_run, save_tiny_model, write_task
from uphold import load_repair, load_task
from uphold.core.errors import TokenizerMismatchError, UsageError
from uphold.core.storage import write_text
from uphold.measure import Comparison, compare_runs
from uphold.models.load import load
from uphold.repair.protocol import Setting, _check_gain, _doubts, begin, conclude
from uphold.repair.result import Arm


def compared(folder: Path, old: set[int], new: set[int], count: int = 200) -> Comparison:
    runs = []
    for name, right in (("old", old), ("new", new)):
        records = [make_record(i, i in right, "right" if i in right else name) for i in range(count)]
        runs.append(
            make_run(folder / f"{name}-{len(right)}-{min(right)}", records, f"{name}-{min(right)}-{len(right)}")
        )
    return compare_runs(*runs)


@pytest.mark.parametrize(
    ("right", "helped"),
    [
        (range(18, 138), True),  # accuracy 60%, NFR 9%
        (range(11, 130), True),  # accuracy 59.5%, NFR 5.5%
        (range(20, 140), False),  # as the plain update
        (range(11, 129), False),  # accuracy 59%, NFR 5.5%
    ],
)
def test_a_repair_that_validation_does_not_bear_out_says_so(tmp_path: Path, right: range, helped: bool) -> None:
    """The plain update is right on 20-139 (60%); the old model on 0-99, so 20 of 200 flip (10%)."""
    old = set(range(100))
    plain = compared(tmp_path / "plain", old, set(range(20, 140)))
    own = compared(tmp_path / "own", old, set(right))
    setting: Any = type("Setting", (), {"validation": plain})
    notes = _doubts(setting, [Arm("repaired", "MUSCLE", own, own, (), control=False)])
    assert bool(notes) != helped
    assert all("did not help on validation" in note for note in notes)
    assert _doubts(setting, [Arm("control", "control", own, own, (), control=True)]) == []


def test_a_clearly_worse_update_is_refused(tmp_path: Path) -> None:
    _check_gain(compared(tmp_path / "near", set(range(120)), set(range(3, 120))))
    with pytest.raises(UsageError, match=r"worse than the old one on validation \(57\.0% against 60\.0%\)"):
        _check_gain(compared(tmp_path / "far", set(range(120)), set(range(6, 120))))


@dataclass(frozen=True)
class Options:
    strength: float = 0.5


@pytest.fixture
def setting(model_v1: Path, model_v2: Path, tmp_path: Path) -> Setting:
    task = load_task(write_task(tmp_path))
    return begin("mine", "arXiv:0", model_v1, model_v2, task, out=tmp_path / "out", force=True)


def test_a_setting_knows_what_models_make_of_each_split(setting: Setting) -> None:
    assert setting.before.count == 30
    assert setting.validation.count == 15
    validation = setting.task.instances("validation")
    assert [setting.old_scores[one.id] for one in validation] == setting.scores(setting.old, "validation", "")
    train = setting.scores(setting.old, "train", "")
    recorded = {record.id: record.score for record in setting.run(setting.old, "train", "").records()}
    assert train == [recorded[instance.id] for instance in setting.task.instances("train")]


def test_an_arm_is_measured_against_the_old_model(setting: Setting) -> None:
    same = setting.arm("repaired", "nothing done", setting.new)
    assert same.comparison.rates == setting.before.rates
    assert same.validation.rates == setting.validation.rates
    assert same.comparison.old.sha256 == setting.before.old.sha256
    assert not same.control


def test_what_is_concluded_is_saved_with_its_doubts_and_its_card(setting: Setting, tmp_path: Path) -> None:
    artifact = tmp_path / "out" / "thing"
    artifact.mkdir()
    write_text(artifact / "weights", "")
    arm = setting.arm("repaired", "nothing done", setting.new)
    repair = conclude(setting, [arm], Options(), artifact, "weights", ["a remark"])
    assert repair.config == {"strength": 0.5}
    assert repair.notes[0] == "a remark"
    assert "did not help" in repair.notes[-1]
    assert "nothing done" in (artifact / "README.md").read_text()
    again = load_repair(tmp_path / "out")
    assert (again.form, again.artifact) == ("weights", artifact)
    assert str(again) == str(repair)


def test_other_tokenizers_are_refused_where_one_is_needed(model_v1: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5, letters="abcdefgh0123456789:")
    task = load_task(write_task(tmp_path))
    with pytest.raises(TokenizerMismatchError, match="different tokenizers"):
        begin("mine", "", model_v1, other, task, out=tmp_path / "out", force=True)
    made = begin("mine", "", model_v1, other, task, out=tmp_path / "out", force=True, one_tokenizer=False)
    assert made.new.name == load(other).name
