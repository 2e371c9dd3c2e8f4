from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_record, make_run
from uphold.core import registry, stats
from uphold.core.errors import CorruptError, DataError, EmptyError, NotComparableError, StorageError
from uphold.core.runs import Run, write_run
from uphold.measure import comparison as comparison_module
from uphold.measure.comparison import compare_runs, load_comparison
from uphold.measure.discover import Discovery, Rule
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
    assert "instances without a score in one of the runs, left out: 2" in comparison.notes
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


def test_a_measure_of_a_third_party_reads_the_instances_it_needs(
    old: Run, new: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))

    @registry.measure("brier-like")
    def brier(pairs: Pairs) -> list[Rate]:
        assert pairs.old_correct is not None
        assert len(pairs) == len(pairs.old_correct)
        return [Rate("brier", "Brier", float(((pairs.new_score - pairs.old_correct) ** 2).mean()))]

    assert compare_runs(old, new)["brier"].value == pytest.approx(0.3)


def test_continuous_scores_have_no_matrix_and_a_test_of_their_own(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", [make_record(n, None, "x", 0.5) for n in range(10)], "old")
    new = make_run(tmp_path / "new", [make_record(n, None, "x", 0.4 if n == 0 else 0.6) for n in range(10)], "new")

    comparison = compare_runs(old, new)

    assert comparison.matrix is None
    assert comparison.test.name == "sign-flip permutation test"
    # 22 of 1024 sign patterns have at most one sign against the others.
    assert comparison.test.p == pytest.approx(22 / 1024)
    assert "10 instances: 1 scores fall, 9 rise, 0 stay as they are; sign-flip permutation test p = 0.0215" in str(
        comparison
    )


# ---- what so many instances can show ----


def test_the_smallest_visible_nfr_is_above_the_floor(old: Run, new: Run, again: Run) -> None:
    comparison = compare_runs(old, new, again)

    # The floor of the NFR is 0: one flip tells, and 1 - (1 - p) ** 10 = 0.8 at p = 0.1487
    assert comparison.smallest_visible_nfr == pytest.approx(1 - 0.2**0.1, rel=1e-6)
    assert "with 10 instances an NFR of 15% would be seen with 80% power" in str(comparison)
    assert "with 80% power, were the noise floor 0\n" in str(compare_runs(old, new))


def test_a_high_floor_takes_a_higher_nfr_to_be_seen(tmp_path: Path) -> None:
    old, new = outcomes(tmp_path, "old", "1" * 20), outcomes(tmp_path, "new", "1" * 19 + "0")
    again = outcomes(tmp_path, "again", "1" * 16 + "0" * 4, batching=17, weights="weights of old")

    high = compare_runs(old, new, again).smallest_visible_nfr
    assert high == pytest.approx(stats.smallest_visible_rate(20, floor=0.2))
    assert high > 0.2


def test_a_floor_that_nothing_exceeds_leaves_none_visible(tmp_path: Path) -> None:
    old, new = outcomes(tmp_path, "old", "11"), outcomes(tmp_path, "new", "10")
    again = outcomes(tmp_path, "again", "00", batching=17, weights="weights of old")

    comparison = compare_runs(old, new, again)
    assert comparison.smallest_visible_nfr is None
    assert "would be seen" not in str(comparison)
    assert load_comparison(comparison.save(tmp_path / "out")).smallest_visible_nfr is None


# ---- runs that differ, clusters ----


def test_a_mismatch_that_is_allowed_is_noted(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", [make_record(n, True, "x") for n in range(4)], "old", shots=0)
    new = make_run(tmp_path / "new", [make_record(n, n > 2, "x") for n in range(2, 7)], "new", shots=5)

    with pytest.raises(NotComparableError, match=r"shots \(0 against 5\)"):
        compare_runs(old, new)
    comparison = compare_runs(old, new, allow_mismatch=True)

    assert comparison.count == 2
    assert comparison["nfr"].value == 0.5
    assert comparison.notes[0] == "mismatch allowed: shots (0 against 5)"
    assert "left out: 2 instances of the old run only, 3 of the new run only" in comparison.notes


def by_passage(folder: Path, name: str, right: str, size: int) -> Run:
    records = [
        make_record(number, flag == "1", flag, tags={"passage": f"p{number // size}"})
        for number, flag in enumerate(right)
    ]
    return make_run(folder / name, records, name)


def test_clusters_widen_intervals_and_temper_the_test(tmp_path: Path) -> None:
    # Twelve passages of five questions; two passages break, all their questions at once.
    old = by_passage(tmp_path, "old", "1" * 60, 5)
    new = by_passage(tmp_path, "new", "1" * 50 + "0" * 10, 5)

    plain, clustered = compare_runs(old, new), compare_runs(old, new, cluster="passage")

    assert (plain.cluster, clustered.cluster) == (None, "passage")
    assert clustered["nfr"].value == plain["nfr"].value == pytest.approx(1 / 6)
    for name in ("nfr", "gain"):
        assert clustered[name].low < plain[name].low  # type: ignore[operator]
        assert clustered[name].high > plain[name].high  # type: ignore[operator]
    # Ten flips of one kind among instances, two among passages.
    assert plain.test.p == pytest.approx(2 / 2**10)
    assert (clustered.test.p, clustered.test.clusters) == (pytest.approx(0.5), 12)
    assert any("the 12 values of 'passage' as independent; slices" in note for note in clustered.notes)
    assert "clustered McNemar p = 0.5" in str(clustered)
    # Passages that fall as one are worth one question each, and less with the t quantile of so few.
    assert plain.smallest_visible_nfr == pytest.approx(1 - 0.2 ** (1 / 60), rel=1e-6)
    assert clustered.smallest_visible_nfr is not None
    assert 1 - 0.2 ** (1 / 12) <= clustered.smallest_visible_nfr <= 1 - 0.2 ** (1 / 8)
    assert "with 60 instances in 12 clusters an NFR of" in str(clustered)


def test_few_clusters_are_said_to_be_rough(tmp_path: Path) -> None:
    old, new = by_passage(tmp_path, "old", "1" * 10, 5), by_passage(tmp_path, "new", "1" * 9 + "0", 5)

    notes = compare_runs(old, new, cluster="passage").notes
    assert any("2 values of 'passage' as independent, which with fewer than 10 is rough" in note for note in notes)


def test_an_unknown_cluster_is_refused(old: Run, new: Run) -> None:
    with pytest.raises(DataError, match=r"10 of 10 instances lack the tag 'passage'.*: level"):
        compare_runs(old, new, cluster="passage")


def test_rules_are_looked_for_unless_told_not_to(old: Run, new: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule(("level is hard",), 10, 1, 0.1, 0.0, 0.01)
    monkeypatch.setattr(comparison_module, "look_for_rules", lambda old, new: Discovery((rule,), 10, 1, 2, ()))

    assert compare_runs(old, new).discovered == (rule,)
    assert compare_runs(old, new, discover=False).discovered == ()


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


def test_everything_that_was_found_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule(("level is hard", "has digits"), 10, 1, 0.1, 0.0, 0.01)
    monkeypatch.setattr(comparison_module, "look_for_rules", lambda old, new: Discovery((rule,), 10, 1, 2, ()))
    runs = by_passage(tmp_path, "old", "1110", 2), by_passage(tmp_path, "new", "1101", 2)
    comparison = compare_runs(*runs, cluster="passage")

    loaded = load_comparison(comparison.save(tmp_path / "out"))

    assert loaded.discovered == (rule,)
    assert (loaded.cluster, loaded.test) == ("passage", comparison.test)
    assert loaded.smallest_visible_nfr == comparison.smallest_visible_nfr
    assert loaded.slices == comparison.slices


def test_the_saved_file_says_what_was_compared(tmp_path: Path, old: Run, new: Run) -> None:
    saved = json.loads((compare_runs(old, new).save(tmp_path / "out") / "comparison.json").read_text())

    assert (saved["old"]["name"], saved["new"]["name"], saved["again"]) == ("old", "new", None)
    assert saved["test"]["p"] == 1.0
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
