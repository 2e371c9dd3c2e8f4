from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import make_record, make_run
from uphold.core.errors import CorruptError, DataError
from uphold.core.runs import Run
from uphold.measure import compare_runs
from uphold.repair.result import Arm, Epoch, Repair, load_repair


def run(folder: Path, name: str, right: set[int]) -> Run:
    return make_run(
        folder / name, [make_record(i, i in right, "right" if i in right else name) for i in range(10)], name
    )


@pytest.fixture
def repair(tmp_path: Path) -> Repair:
    """Old right on 0-5, new on 2-7 (2 negative flips), repaired on 1-7 (1 negative flip)."""
    old, new = run(tmp_path, "old", set(range(6))), run(tmp_path, "new", set(range(2, 8)))
    fixed = run(tmp_path, "repaired", set(range(1, 8)))
    chosen = [run(tmp_path / "validation", name, {0, 1}) for name in ("old", "new", "repaired")]
    history = (
        Epoch(0, {}, {"accuracy": 0.6, "nfr": 0.2}),
        Epoch(1, {"loss": 1.0}, {"accuracy": 0.7, "nfr": 0.1}, True),
    )
    return Repair(
        method="muscle",
        paper="arXiv:2407.09435",
        before=compare_runs(old, new),
        validation=compare_runs(*chosen[:2]),
        arms=(Arm("repaired", "MUSCLE", compare_runs(old, fixed), compare_runs(chosen[0], chosen[2]), history, False),),
        config={"temperature": 2.0},
        splits={"train": 5, "validation": 3, "test": 10},
        artifact=tmp_path / "out" / "adapter",
        notes=("a note",),
    )


def test_the_table_is_against_the_old_model(repair: Repair) -> None:
    assert repair.table() == [
        ("", "accuracy", "NFR", "relative to plain", "NFR^mc"),
        ("old", "60.00%", "", "", ""),
        ("new (plain update)", "60.00%", "20.00%", "", "40.00%"),
        ("MUSCLE", "70.00%", "10.00%", "-50.0%", "30.00%"),
    ]
    assert "note: a note" in str(repair)
    assert repair.repaired.label == "MUSCLE"


def test_what_is_saved_is_loaded(repair: Repair, tmp_path: Path) -> None:
    folder = repair.save(tmp_path / "out")
    again = load_repair(folder)
    assert again.table() == repair.table()
    assert again.repaired.history == repair.repaired.history
    assert (again.config, again.splits, again.notes, again.artifact, again.form) == (
        repair.config,
        repair.splits,
        repair.notes,
        folder / "adapter",
        "adapter",
    )
    assert again.validation.rates == repair.validation.rates
    assert again.repaired.validation.rates == repair.repaired.validation.rates


def test_damage_is_named(repair: Repair, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no repair in"):
        load_repair(tmp_path)
    folder = repair.save(tmp_path / "out")
    (folder / "runs" / "repaired" / "records.parquet").write_bytes(b"x")
    with pytest.raises(CorruptError, match=r"records\.parquet"):
        load_repair(folder)
    (folder / "repair.json").write_text("{")
    with pytest.raises(CorruptError, match=r"repair\.json is not valid JSON"):
        load_repair(folder)
