from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_record, make_run
from uphold.core.errors import DataError, EmptyError, UsageError
from uphold.core.records import Record
from uphold.measure.pass_at_k import PassAtK, estimate, pass_at_k

quick = settings(max_examples=50, deadline=None, database=None)


def records_of(*problems: str) -> list[Record]:
    """One string per problem, with a letter per sample: r(ight), w(rong), u(nscored)."""
    verdicts = {"r": True, "w": False, "u": None}
    answers = [(f"P/{number}", verdicts[letter]) for number, letters in enumerate(problems) for letter in letters]
    return [
        make_record(index, correct, "answer", tags={"task_id": problem})
        for index, (problem, correct) in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (4, 1, 1, 0.25),
        (4, 1, 2, 0.5),
        (4, 2, 2, 1 - 1 / 6),
        (4, 2, 3, 1.0),
        (5, 0, 5, 0.0),
        (200, 13, 1, 0.065),
    ],
)
def test_cases_counted_by_hand(n: int, c: int, k: int, expected: float) -> None:
    assert estimate(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_many_samples_do_not_overflow() -> None:
    assert estimate(100_000, 1, 50_000) == pytest.approx(0.5)


@quick
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_it_is_the_share_of_subsets_with_a_right_answer(verdicts: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(verdicts)))
    subsets = list(itertools.combinations(verdicts, k))

    assert estimate(len(verdicts), sum(verdicts), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@quick
@given(st.lists(st.text("rw", min_size=3, max_size=6), min_size=1, max_size=8))
def test_it_rises_with_k_lies_in_its_interval_and_needs_no_order(problems: list[str]) -> None:
    records = records_of(*problems)
    results = [pass_at_k(records, k, draws=200) for k in (1, 2, 3)]

    assert results == [pass_at_k(records[::-1], k, draws=200) for k in (1, 2, 3)]
    assert [result.value for result in results] == sorted(result.value for result in results)
    for result in results:
        assert 0 <= result.low <= result.high <= 1
    assert results[0].value == pytest.approx(sum(p.count("r") / len(p) for p in problems) / len(problems))


def test_it_is_the_mean_over_problems_however_many_samples_they_have() -> None:
    result = pass_at_k(records_of("rwww", "ww"), 1)

    assert (result.k, result.value, result.problems, result.samples, result.unscored) == (1, 0.125, 2, 6, 0)
    assert str(result).startswith("pass@1 12.50% [0.00%, 25.00%] (2 problems, 6 samples)")


def test_one_sample_is_accuracy_with_its_bootstrap_interval() -> None:
    result = pass_at_k(records_of(*["r"] * 60, *["w"] * 40), 1, draws=4000)

    # The normal approximation of a binomial share: 0.6 ± 1.96 · sqrt(0.6 · 0.4 / 100).
    assert (result.value, result.low, result.high) == pytest.approx((0.6, 0.504, 0.696), abs=0.015)


@pytest.mark.parametrize(("letter", "expected"), [("w", (0.0, 0.0, 0.3085)), ("r", (1.0, 0.6915, 1.0))])
def test_where_all_problems_are_alike_the_interval_is_the_binomial_one(
    letter: str, expected: tuple[float, float, float]
) -> None:
    result = pass_at_k(records_of(*[letter * 3] * 10), 2)

    assert (result.value, result.low, result.high) == pytest.approx(expected, abs=1e-4)


def test_the_same_seed_gives_the_same_interval() -> None:
    records = records_of("rww", "rrw", "www", "rrr")

    assert pass_at_k(records, 2, seed=1) == pass_at_k(records, 2, seed=1)


def test_a_stored_run_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", records_of("rw", "rr"))

    assert pass_at_k(run, 2) == PassAtK(2, 1.0, pass_at_k(run, 2).low, 1.0, 2, 4)


def test_unscored_answers_are_counted_and_do_not_count_as_wrong() -> None:
    result = pass_at_k(records_of("ruu", "w"), 1)

    assert (result.value, result.samples, result.unscored) == (0.5, 2, 2)


@pytest.mark.parametrize("records", [[], records_of("uu", "u")])
def test_nothing_scored_is_an_error(records: list[Record]) -> None:
    with pytest.raises(EmptyError, match="is scored as right or wrong"):
        pass_at_k(records, 1)


@pytest.mark.parametrize(("problems", "k", "says"), [(("rrr", "rw"), 3, "'P/1' has 2"), (("r", "u"), 1, "'P/1' has 0")])
def test_a_problem_with_too_few_samples_is_an_error(problems: tuple[str, ...], k: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pass_at_k(records_of(*problems), k)


def test_k_is_at_least_one() -> None:
    with pytest.raises(UsageError, match="needs k >= 1"):
        pass_at_k(records_of("r"), 0)


def test_records_of_other_tasks_are_an_error() -> None:
    with pytest.raises(DataError, match="no tag 'task_id'"):
        pass_at_k([make_record(1, True, "a")], 1)
