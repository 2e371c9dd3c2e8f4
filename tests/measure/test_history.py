from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import make_record, make_run
from tests.measure.test_timelines import judged_runs, score_runs
from uphold.core.errors import DataError, EmptyError, NotComparableError, UsageError
from uphold.measure.comparison import compare_runs
from uphold.measure.history import history, stored_versions

# Ten instances through four versions: 6, 7, 6 and 6 right.
PATTERNS = ["1111", "1111", "1111", "1001", "1010", "1100", "0111", "0101", "0100", "0000"]


def test_four_versions_counted_by_hand(tmp_path: Path) -> None:
    found = history(judged_runs(tmp_path, PATTERNS))
    assert [version.score for version in found.versions] == [0.6, 0.7, 0.5, 0.6]
    steps = [version.previous for version in found.versions[1:]]
    assert [(step.negative, step.positive) for step in steps if step] == [(2, 3), (3, 1), (1, 2)]
    firsts = [version.first for version in found.versions[1:]]
    assert [(flips.negative, flips.positive) for flips in firsts if flips] == [(2, 3), (2, 1), (2, 2)]
    bests = [version.best for version in found.versions[1:]]
    assert [(flips.against, flips.negative) for flips in bests if flips] == [(0, 2), (1, 3), (1, 2)]
    assert [version.debt for version in found.versions] == [0, 2, 4, 3]
    assert [version.broken_since for version in found.versions] == [0, 0, 2, 1]
    assert found.best == 1
    assert found.kinds == {"kept": 3, "gained": 1, "recovered": 2, "lost": 3, "never": 1}
    assert found.oscillating == {3: 2, 2: 2}
    assert found.pattern_count == 8
    assert (found.patterns[0].marks, found.patterns[0].count) == ("1111", 3)
    assert found.notes == ()


def test_p_values_are_exact_and_corrected_over_the_updates(tmp_path: Path) -> None:
    found = history(judged_runs(tmp_path, ["100"] * 8 + ["010"] + ["111"] * 3))
    first, second = (version.previous for version in found.versions[1:])
    assert first is not None
    assert second is not None
    # 8 negative and 1 positive flip: 2 * (1 + 9) / 2^9; then 1 negative flip: p = 1.
    assert first.p == pytest.approx(20 / 512)
    assert first.adjusted_p == pytest.approx(40 / 512)
    assert (second.p, second.adjusted_p) == (1.0, 1.0)
    # Wilson's interval of 8 in 12, from its closed form.
    assert first.nfr_interval == pytest.approx((0.3906, 0.8619), abs=1e-4)


def test_the_earlier_of_equally_good_versions_is_the_best(tmp_path: Path) -> None:
    found = history(judged_runs(tmp_path, ["101", "011"]))
    assert found.versions[2].best is not None
    assert (found.versions[2].best.against, found.best) == (0, 2)
    assert history(judged_runs(tmp_path / "equal", ["100", "011"])).best == 0


def test_two_versions_agree_with_their_comparison(tmp_path: Path) -> None:
    runs = judged_runs(tmp_path, [pattern[:2] for pattern in PATTERNS])
    step = history(runs).versions[1].previous
    matrix = compare_runs(runs[0], runs[1]).matrix
    assert step is not None
    assert matrix is not None
    assert (step.negative, step.positive) == (matrix.negative_flips, matrix.positive_flips)


def test_going_back_turns_losses_into_gains(tmp_path: Path) -> None:
    runs = judged_runs(tmp_path, PATTERNS)
    there, back = history(runs), history(runs[::-1])
    for k in range(1, 4):
        step, other = there.versions[k].previous, back.versions[4 - k].previous
        assert step is not None
        assert other is not None
        assert (step.negative, step.positive) == (other.positive, other.negative)
    assert there.kinds["lost"] + there.kinds["gained"] + there.kinds["recovered"] == (
        back.kinds["lost"] + back.kinds["gained"] + back.kinds["recovered"]
    )


def test_continuous_scores_are_followed_by_falls_and_rises(tmp_path: Path) -> None:
    found = history(score_runs(tmp_path, [[0.2, 0.4, 0.6], [0.3, 0.3, 0.6], [0.2, 0.3, 0.9]]))
    assert not found.judged
    assert found.versions[1].score == pytest.approx(0.4)
    step = found.versions[2].previous
    assert step is not None
    assert (step.negative, step.positive) == (1, 1)
    assert found.versions[2].debt == 2
    # Mean 0.4, standard deviation 0.2, n = 3: t(2) at 97.5% is 4.30265.
    low, high = found.versions[0].interval
    assert (low, high) == (0.0, pytest.approx(0.4 + 4.30265 * 0.2 / 3**0.5, abs=1e-5))
    assert (found.kinds["never"], found.kinds["gained"]) == (0, 0)


def test_one_continuous_instance_has_the_widest_interval(tmp_path: Path) -> None:
    assert history(score_runs(tmp_path, [[0.2], [0.3]])).versions[0].interval == (0.0, 1.0)


def test_everything_fits_into_json(tmp_path: Path) -> None:
    values = json.loads(json.dumps(history(judged_runs(tmp_path, PATTERNS)).to_dict(), allow_nan=False))
    assert values["versions"][2]["previous"]["negative"] == 3
    assert values["versions"][0]["previous"] is None
    assert sum(entry["count"] for entry in values["patterns"]) == values["count"] == 10
    assert values["instances"][0]["pattern"] == "0101"
    assert values["instances"][0]["changes"] == 3


def test_limits_cut_what_is_shown_and_not_what_is_counted(tmp_path: Path) -> None:
    found = history(judged_runs(tmp_path, PATTERNS), limit=1, patterns=2)
    assert (len(found.instances), len(found.patterns), found.pattern_count) == (2, 2, 8)
    assert sum(found.kinds.values()) == 10


def test_a_name_that_two_versions_share_is_numbered(tmp_path: Path) -> None:
    runs = judged_runs(tmp_path, ["101"])
    same = [
        make_run(tmp_path / str(k), [make_record(0, True, "x")], "api", prompt="same", instances=f"{k}")
        for k in range(2)
    ]
    labels = [version.label for version in history([runs[0], *same], allow_mismatch=True).versions]
    assert labels == ["v0", "api (1)", "api (2)"]


def test_one_run_named_twice_is_refused_by_its_places(tmp_path: Path) -> None:
    a, b = judged_runs(tmp_path, PATTERNS)[:2]
    with pytest.raises(
        NotComparableError, match=r"versions 1 \('v0 \(1\)'\) and 3 \('v0 \(2\)'\) are one and the same"
    ):
        history([a, b, a])


def test_versions_asked_differently_are_refused_unless_allowed(tmp_path: Path) -> None:
    runs = judged_runs(tmp_path, ["10", "11"])
    other = make_run(tmp_path / "x", [make_record(i, True, "a") for i in range(2)], "x", scorer="exact.v1")
    with pytest.raises(NotComparableError, match="scorer"):
        history([*runs, other])
    assert any("scorer" in note and note.startswith("version 3:") for note in history([*runs, other], True).notes)


def test_versions_with_other_instances_are_refused_unless_allowed(tmp_path: Path) -> None:
    runs = judged_runs(tmp_path, ["10", "11", "01"])
    fewer = make_run(tmp_path / "x", [make_record(i, True, "a") for i in range(1, 3)], "x")
    with pytest.raises(NotComparableError, match="1 of 'v0', 1 of 'v1'"):
        history([*runs, fewer])
    found = history([*runs, fewer], allow_mismatch=True)
    assert found.count == 2
    assert any("left out: 1 of 'v0', 1 of 'v1'" in note for note in found.notes)


def test_unscored_instances_are_counted(tmp_path: Path) -> None:
    found = history(score_runs(tmp_path, [[0.1, None, 0.5], [0.1, 0.2, 0.3]]))
    assert (found.count, found.unscored) == (2, 1)
    assert any(note.startswith("1 instances have no score") for note in found.notes)
    with pytest.raises(EmptyError, match="nothing to follow"):
        history(score_runs(tmp_path / "none", [[None, 0.1], [0.1, None]]))


def test_a_history_needs_two_versions(tmp_path: Path) -> None:
    runs = judged_runs(tmp_path, ["10"])
    with pytest.raises(UsageError, match="2 to 62 runs, not 1"):
        history(runs[:1])
    with pytest.raises(UsageError, match="not 63"):
        history(runs[:1] * 63)


def test_sixty_two_versions(tmp_path: Path) -> None:
    pattern = "10" * 31
    found = history(judged_runs(tmp_path, [pattern, "1" * 62]))
    assert found.oscillating == {61: 1}
    assert found.versions[61].debt == 1


def test_runs_are_found_by_folder_and_task(tmp_path: Path) -> None:
    records = [make_record(0, True, "x")]
    for version in ("v1", "v2"):
        for task in ("maths", "colours"):
            make_run(tmp_path / version / task, records, version, name=task)
    make_run(tmp_path / "v3", records, "v3", name="maths")
    folders = [tmp_path / name for name in ("v1", "v2", "v3")]
    assert [run.name for run in stored_versions(folders)] == ["v1", "v2", "v3"]
    assert [run.path.name for run in stored_versions(folders[:2], "colours")] == ["colours", "colours"]
    with pytest.raises(UsageError, match=r"2 tasks \(colours, maths\): choose one with --task"):
        stored_versions(folders[:2])
    with pytest.raises(UsageError, match="did you mean 'colours'"):
        stored_versions(folders[:2], "colour")
    with pytest.raises(UsageError, match="neither a stored run nor another tool's log"):
        stored_versions([tmp_path / "nothing"])


def test_a_damaged_run_is_refused(tmp_path: Path) -> None:
    runs = judged_runs(tmp_path, ["10"])
    runs[0].records_path.write_bytes(b"")
    with pytest.raises(DataError, match=r"records\.parquet"):
        stored_versions([run.path for run in runs])
