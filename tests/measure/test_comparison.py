from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_record, make_run
from uphold.core import registry
from uphold.core.errors import CorruptError, DataError, EmptyError, NotComparableError, StorageError
from uphold.core.runs import Run, write_run
from uphold.measure.comparison import Verdict, compare_runs, load_comparison
from uphold.measure.pairs import Pairs
from uphold.measure.rates import Rate

TAGS = {"level": "hard"}


def outcomes(folder: Path, name: str, right: str, answers: str = "", batching: int = 32, **model: Any) -> Run:
    """A run with one record per letter of `right`: `1` right, `0` wrong, `-` unscored."""
    records = []
    for number, (flag, answer) in enumerate(zip(right, answers or right, strict=True)):
        correct = None if flag == "-" else flag == "1"
        records.append(make_record(number, correct, answer, tags=TAGS))
    run = make_run(folder / f"{name} base", records, name)
    fingerprint = {**run.fingerprint, "batching": {"size": batching}}
    fingerprint["model"] = {**run.fingerprint["model"], **model}
    return write_run(folder / name, records, fingerprint)


@pytest.fixture
def old(tmp_path: Path) -> Run:
    return outcomes(tmp_path, "old", "1111000000")


@pytest.fixture
def new(tmp_path: Path) -> Run:
    return outcomes(tmp_path, "new", "1110110000")


@pytest.fixture
def again(tmp_path: Path) -> Run:
    return outcomes(tmp_path, "again", "1111100000", batching=17, weights="weights of old")


def test_a_comparison_holds_rates_matrix_and_slices(old: Run, new: Run) -> None:
    comparison = compare_runs(old, new)

    assert comparison.count == 10
    assert comparison["nfr"].value == 0.1
    assert comparison["pfr"].value == 0.2
    assert comparison["gain"].value == pytest.approx(0.1)
    assert comparison.matrix is not None
    assert (comparison.matrix.negative_flips, comparison.matrix.positive_flips) == (1, 2)
    assert [(part.value, part.count) for part in comparison.slices] == [("hard", 10)]


def test_without_a_second_evaluation_there_is_no_floor_and_a_note_says_so(old: Run, new: Run) -> None:
    comparison = compare_runs(old, new)

    assert all(rate.floor is None for rate in comparison.rates)
    assert "no noise floor: the old model was not evaluated a second time" in comparison.notes


def test_the_noise_floor_stands_beside_the_rates(old: Run, new: Run, again: Run) -> None:
    comparison = compare_runs(old, new, again)

    # old against itself: one positive flip in ten
    assert comparison["nfr"].floor == 0.0
    assert comparison["pfr"].floor == 0.1
    assert comparison["flips"].floor == 0.1
    assert comparison["accuracy_old"].floor is None
    assert comparison["accuracy_new"].floor is None
    assert comparison.again is again
    assert not any("noise floor" in note for note in comparison.notes)


def test_a_run_against_itself_is_an_error(old: Run) -> None:
    with pytest.raises(NotComparableError, match="one and the same run") as caught:
        compare_runs(old, old)
    assert caught.value.exit_code == 4


def test_a_noise_floor_of_the_very_same_run_is_an_error(old: Run, new: Run) -> None:
    with pytest.raises(NotComparableError, match="one and the same run"):
        compare_runs(old, new, old)


def test_unscored_instances_are_left_out_counted_and_noted(tmp_path: Path) -> None:
    old, new = outcomes(tmp_path, "old", "11-0"), outcomes(tmp_path, "new", "1-10")

    comparison = compare_runs(old, new)

    assert (comparison.count, comparison.unscored) == (2, 2)
    assert comparison["nfr"].value == 0.0
    assert comparison["accuracy_old"].value == 0.5
    assert "2 instances have no score in one of the runs and are left out" in comparison.notes
    assert comparison.slices[0].count == 2


def test_everything_unscored_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmptyError):
        compare_runs(outcomes(tmp_path, "old", "--"), outcomes(tmp_path, "new", "11"))


def test_an_old_model_that_is_always_right_leaves_bec_undefined(tmp_path: Path) -> None:
    comparison = compare_runs(outcomes(tmp_path, "old", "1111"), outcomes(tmp_path, "new", "1100"))

    assert comparison["bec"].value is None
    assert comparison["btc"].value == 0.5
    assert "BEC                  undefined" in str(comparison)


def test_a_new_model_that_is_always_right_leaves_nfi_undefined(tmp_path: Path) -> None:
    comparison = compare_runs(outcomes(tmp_path, "old", "1100"), outcomes(tmp_path, "new", "1111"))

    assert comparison["nfi"].value is None
    assert comparison["relative_nfr"].value is None
    assert comparison["nfr"].value == 0.0


def test_differing_numerics_are_noted(tmp_path: Path) -> None:
    old, new = outcomes(tmp_path, "old", "10", dtype="float32"), outcomes(tmp_path, "new", "01", dtype="bfloat16")

    assert "the runs differ in model.dtype: float32 (old) against bfloat16 (new)" in compare_runs(old, new).notes


def test_an_unknown_rate_names_the_known_ones(old: Run, new: Run) -> None:
    with pytest.raises(KeyError, match=r"no rate 'nrf'; there are .*nfr"):
        compare_runs(old, new)["nrf"]


def test_a_registered_measure_appears_in_every_comparison(
    old: Run, new: Run, again: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))

    @registry.measure("churn")
    def churn(pairs: Pairs) -> list[Rate]:
        return [Rate("churn", "churn", float((~pairs.same_answer).mean()))]

    comparison = compare_runs(old, new, again)

    assert (comparison["churn"].value, comparison["churn"].floor) == (pytest.approx(0.3), pytest.approx(0.1))


# ---- the gate ----


def test_the_gate_holds_the_upper_bound_against_the_limit(tmp_path: Path) -> None:
    # 0 of 58: 1 - 0.05 ** (1 / 58) = 0.0503; one more instance gives 0.0495
    fails = compare_runs(outcomes(tmp_path / "a", "old", "1" * 58), outcomes(tmp_path / "a", "new", "1" * 58))
    passes = compare_runs(outcomes(tmp_path / "b", "old", "1" * 59), outcomes(tmp_path / "b", "new", "1" * 59))

    assert fails.gate(0.05) == Verdict(
        False, "gate FAIL: 0 negative flips in 58, 95% upper bound of the NFR 5.03% > 5.00%"
    )
    assert passes.gate(0.05).passed
    assert (fails.gate(0.05).exit_code, passes.gate(0.05).exit_code) == (1, 0)


def test_a_gate_at_another_level(old: Run, new: Run) -> None:
    # 1 of 10, one-sided: P(X <= 1 | 10, p) = 1 - level at p = 0.3942 (95%) and 0.2710 (80%)
    comparison = compare_runs(old, new)

    assert not comparison.gate(0.39).passed
    assert comparison.gate(0.40).passed
    assert not comparison.gate(0.27, level=0.8).passed
    assert comparison.gate(0.28, level=0.8).passed


def test_a_gate_on_continuous_scores_counts_the_losses(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", [make_record(n, None, "x", 0.5) for n in range(10)], "old")
    new = make_run(tmp_path / "new", [make_record(n, None, "x", 0.4 if n == 0 else 0.6) for n in range(10)], "new")

    comparison = compare_runs(old, new)

    assert comparison.matrix is None
    assert comparison.slices == ()
    assert comparison.gate(0.4).reason.startswith("gate pass: 1 negative flips in 10")


# ---- printing, saving, loading ----


def test_the_table_shows_value_interval_and_floor(old: Run, new: Run, again: Run) -> None:
    text = str(compare_runs(old, new, again))
    line = next(line for line in text.splitlines() if line.startswith("PFR"))

    assert line.split()[:2] == ["PFR", "20.00%"]
    assert line.endswith("10.00%")
    assert "10 instances: 3 stay right, 1 negative flips, 2 positive flips, 4 stay wrong; exact McNemar p = 1" in text


def test_a_saved_comparison_is_read_back_equal(tmp_path: Path, old: Run, new: Run, again: Run) -> None:
    comparison = compare_runs(old, new, again)

    folder = comparison.save(tmp_path / "out")
    loaded = load_comparison(folder)

    assert loaded.to_dict() == comparison.to_dict()
    assert str(loaded) == str(comparison)
    assert list(loaded.new.records()) == list(new.records())


def test_the_saved_file_says_what_was_compared(tmp_path: Path, old: Run, new: Run) -> None:
    saved = json.loads((compare_runs(old, new).save(tmp_path / "out") / "comparison.json").read_text())

    assert (saved["old"]["name"], saved["new"]["name"], saved["again"]) == ("old", "new", None)
    assert saved["matrix"]["mcnemar_p"] == 1.0
    assert {rate["name"]: rate["value"] for rate in saved["rates"]}["nfr"] == 0.1


def test_saving_again_replaces_what_was_there(tmp_path: Path, old: Run, new: Run) -> None:
    other = outcomes(tmp_path, "other", "1110110000")
    compare_runs(old, new).save(tmp_path / "out")
    compare_runs(old, other).save(tmp_path / "out")

    # `other` answered exactly as `new` did, but is another model.
    assert load_comparison(tmp_path / "out").new.name == "other"


def test_a_place_that_is_a_file_is_refused(tmp_path: Path, old: Run, new: Run) -> None:
    (tmp_path / "out").write_text("mine")

    with pytest.raises(StorageError, match="is a file, but a folder is needed"):
        compare_runs(old, new).save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_without_comparison_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="uphold compare OLD NEW --task TASK --out"):
        load_comparison(tmp_path)


def _cut(folder: Path) -> None:
    path = folder / "comparison.json"
    path.write_text(path.read_text()[:40])


def _no_rates(folder: Path) -> None:
    path = folder / "comparison.json"
    saved = json.loads(path.read_text())
    del saved["rates"]
    path.write_text(json.dumps(saved))


def _a_list(folder: Path) -> None:
    (folder / "comparison.json").write_text("[]")


def _other_records(folder: Path) -> None:
    with (folder / "runs" / "new" / "records.parquet").open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("damage", [_cut, _no_rates, _a_list, _other_records])
def test_a_damaged_comparison_is_corrupt(tmp_path: Path, old: Run, new: Run, damage: Callable[[Path], None]) -> None:
    folder = compare_runs(old, new).save(tmp_path / "out")
    damage(folder)

    with pytest.raises(CorruptError, match=str(folder)) as caught:
        load_comparison(folder)
    assert "\n" not in str(caught.value)
