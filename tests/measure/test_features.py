from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.measure import features
from uphold.measure.features import Question, conditions


def question(text: str = "", **changes: Any) -> Question:
    values = {
        "text": text,
        "cut": False,
        "length": len(text),
        "target": "",
        "options": 0,
        "gold": 0,
        "tags": {},
        **changes,
    }
    return Question(**values)


def named(questions: list[Question], minimum: int = 1) -> dict[str, list[int]]:
    return {name: rows.tolist() for name, rows in conditions(questions, minimum)[0]}


def test_words_are_lower_cased_and_whole() -> None:
    texts = ["Red: it is Not so", "knots, it is", "it don't", "Not that", "yes don't"]

    found = named([question(text, length=9) for text in texts])

    assert found["input has the word 'not'"] == [0, 3]
    assert found["input has the word 'it'"] == [0, 1, 2]
    assert found["input has the word 'don't'"] == [2, 4]
    assert found["input starts with 'it'"] == [2]
    assert "input has the word 'knot'" not in found


@pytest.mark.parametrize(
    ("name", "holds", "fails"),
    [
        ("input has more than 4 characters", "a red", "a re"),
        ("input has a number", "a 3.5 b", "a bbb b"),
        ("input has more than 1 number", "a 3 1,000", "a 3 b,ccc"),
        ("input has more than 1 line", "a\nb", "a b"),
        ("first question word is 'why'", "so why", "so who"),
        ("input starts with 'red'", "Red is", "tan is"),
        ("input has a character that is not ASCII", "a é", "a e"),
        ("input has a word in capitals", "a WAY", "a way"),
        ("input has the sign ?", "a?", "a."),
    ],
)
def test_what_the_shape_of_a_prompt_says(name: str, holds: str, fails: str) -> None:
    # Two conditions for the same instance are one, under the first name.
    found = named([question(fails), question(holds)])

    assert found[name] == [1]
    assert list(found.values()).count([1]) == 1


def test_tags_answers_and_options_come_first() -> None:
    questions = [
        question("a", tags={"level": "hard"}, target="yes", options=2, gold=1),
        question("b", tags={"level": "hard"}, target="no", options=2, gold=2),
        question("c", target="yes", options=3, gold=1),
    ]

    found = named(questions)

    assert found["level is hard"] == [0, 1]
    assert found["gold answer is yes"] == [0, 2]
    assert found["gold answer is no"] == [1]
    # as often as another name says it already
    assert "gold answer is option 1" not in found
    assert "input has 2 options" not in found


def test_a_cut_prompt_has_no_first_word() -> None:
    found = named([question("red is", cut=True), question("red it"), question("sea so"), question("red no")])

    assert found["input starts with 'red'"] == [1, 3]
    assert found["input has the word 'red'"] == [0, 1, 3]


def test_rare_and_common_conditions_are_left_out() -> None:
    questions = [question("same thing " + ("red" if n < 3 else "blue" if n < 6 else "")) for n in range(10)]

    found = named(questions, minimum=3)

    assert found["input has the word 'red'"] == [0, 1, 2]
    assert all(3 <= len(rows) <= 7 for rows in found.values())


def test_names_are_short_plain_lines() -> None:
    hostile = "x\n\u2028y " * 100
    questions = [question("a" * 500, tags={hostile: hostile}), question("b " + "c" * 31)]

    found = named(questions)

    assert all(len(name) < 200 and "\n" not in name for name in found)
    assert not any("aaaa" in name or "ccc" in name for name in found)


@pytest.mark.parametrize(
    ("limit", "value", "note"),
    [
        ("MOST_WORDS", 2, "rarer words were not looked at"),
        ("MOST_VALUES", 1, "rarer values of tags were not looked at"),
        ("MOST_DIFFERENT", 3, "words that came after the first 3 different ones were not looked at"),
        ("MOST_MEETINGS", 100, "of the most frequent words were not looked at, to keep the search short"),
    ],
)
def test_what_is_given_up_is_said(monkeypatch: pytest.MonkeyPatch, limit: str, value: int, note: str) -> None:
    monkeypatch.setattr(features, limit, value)
    questions = [
        question(" ".join(f"w{n * k % 7}" for k in range(1, 5)), tags={"k": f"v{n % 3}", "j": str(n % 2)})
        for n in range(30)
    ]

    _, notes = conditions(questions, 2)

    assert [entry for entry in notes if entry.endswith(note)]


@given(st.lists(st.text(max_size=60), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_text_can_be_described(texts: list[str]) -> None:
    found, _ = conditions([question(text) for text in texts], 1)

    for _, rows in found:
        assert 0 < len(rows) < len(texts)
        assert (np.diff(rows) > 0).all()
