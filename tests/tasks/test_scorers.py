from __future__ import annotations

import pytest

from uphold.core.errors import UsageError
from uphold.tasks.base import Instance, Score
from uphold.tasks.scorers import choice, exact, exact_number, rouge1, rouge_l, scorer, unscored


def asked(target: str) -> Instance:
    return Instance("question", target)


@pytest.mark.parametrize(
    ("target", "output", "answer", "right"),
    [
        ("Paris", "Paris", "Paris", True),
        ("Paris", "  Paris \n", "Paris", True),
        ("New  York", "New\nYork", "New York", True),
        ("Paris", "paris", "paris", False),
        ("Paris", "Paris.", "Paris.", False),
        ("Paris", "", "", False),
    ],
)
def test_exact_folds_white_space_only(target: str, output: str, answer: str, right: bool) -> None:
    assert exact(asked(target), output) == Score(answer, right, float(right))


@pytest.mark.parametrize(
    ("target", "output", "answer", "right"),
    [
        ("#### 72", "so she sold 48 + 24 = 72", "72", True),
        ("72", "The answer is 72.", "72", True),
        ("1,080", "in total $1080", "1080", True),
        ("-3", "it fell to -3 degrees", "-3", True),
        ("18", "$18.00", "18", True),
        ("2.50", "2.5 litres", "2.5", True),
        ("100", "100", "100", True),
        ("10", "100", "100", False),
        ("72", "72 in all, 7 each", "7", False),
        ("72", "seventy-two", "", False),
        ("no number", "no number", "", False),
    ],
)
def test_exact_number_compares_the_last_number(target: str, output: str, answer: str, right: bool) -> None:
    assert exact_number(asked(target), output) == Score(answer, right, float(right))


def test_a_choice_is_the_option_itself() -> None:
    assert choice(asked(" b"), " b") == Score(" b", True, 1.0)
    assert choice(asked(" b"), "b") == Score("b", False, 0.0)


@pytest.mark.parametrize(
    ("target", "output", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        # 2 of 4 words found (precision), 2 of 3 hit (recall): F = 2 * 1/2 * 2/3 / (1/2 + 2/3)
        ("the cat sat", "a cat sat down", 4 / 7),
        ("the cat sat", "dogs bark", 0.0),
        ("the cat sat", "", 0.0),
        # stemming: cats = cat
        ("cats", "cat", 1.0),
    ],
)
def test_rouge_1_by_hand(target: str, output: str, score: float) -> None:
    measured = rouge1(asked(target), output)

    assert measured.score == pytest.approx(score)
    assert measured.correct is None
    assert measured.answer == output


def test_rouge_l_minds_the_order() -> None:
    assert rouge1(asked("the cat sat"), "sat cat the").score == pytest.approx(1.0)
    # the longest common subsequence is one word of three
    assert rouge_l(asked("the cat sat"), "sat cat the").score == pytest.approx(1 / 3)


def test_unscored_keeps_the_answer() -> None:
    assert unscored(asked("x"), "def f():\n    pass") == Score("def f():\n    pass", None, None)


def test_a_scorer_is_found_with_and_without_version() -> None:
    assert scorer("exact") == ("exact.v1", exact)
    assert scorer("exact.v1") == ("exact.v1", exact)
    assert scorer("rougeL") == ("rougeL.v1", rouge_l)


def test_an_unknown_scorer_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"unknown scorer 'rogue1\.v1': did you mean 'rouge1\.v1'"):
        scorer("rogue1")
    with pytest.raises(UsageError, match=r"unknown scorer 'exact\.v2'"):
        scorer("exact.v2")
