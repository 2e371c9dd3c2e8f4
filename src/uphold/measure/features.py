"""What can be said about an instance before any model has answered it: conditions on its tags, options and prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uphold.core.stats import Ints

MOST_WORDS = 2000
"""So many words are looked at, the most frequent ones."""
MOST_VALUES = 2000
"""So many pairs of tag and value are looked at, the most frequent ones."""
MOST_DIFFERENT = 200_000
"""Once so many different words were met, no new ones are taken up."""
MOST_MEETINGS = 150_000_000
"""Bound on the sum over instances of (conditions that hold) squared, which the time of a search grows with."""
WORD_LENGTH = 30
"""Longer words are not looked at."""
_SHOWN = 60
_CUTS = 8
_QUESTION_WORD = re.compile(r"\b(?:what|which|who|whom|whose|when|where|why|how)\b", re.IGNORECASE | re.ASCII)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)?")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_CAPITALS = re.compile(r"\b[A-Z]{2,}\b")
_SIGNS = '!"#$%&()*+-/:;<=>?@[\\]^_`{|}~'

Named = tuple[str, Ints]
"""A condition in words, and the places of the instances it holds for, in ascending order."""


@dataclass(frozen=True)
class Question:
    """The parts of an instance that conditions speak about."""

    text: str
    """The prompt, without the beginning that all prompts share; of a long one the end."""
    cut: bool
    """Whether `text` is the end of a long prompt."""
    length: int
    """Characters of the whole prompt."""
    target: str
    options: int
    """How many options there are; 0 for none."""
    gold: int
    """The gold option's place, from 1; 0 for none."""
    tags: Mapping[str, str]


def conditions(questions: Sequence[Question], minimum: int) -> tuple[list[Named], list[str]]:
    """All conditions that hold for at least `minimum` questions and fail for at least as many.

    Conditions that hold for the same questions are one, under the name of the first: tags come before gold answers
    and options, these before lengths and numbers, these before words.

    Returns:
        The conditions, and in words what was given up because of the limits of this module.
    """
    notes: list[str] = []
    seen: set[bytes] = set()

    def different(named: Iterable[Named]) -> Iterator[Named]:
        for name, rows in named:
            key = rows.astype(np.int32).tobytes()
            if minimum <= len(rows) <= len(questions) - minimum and key not in seen:
                seen.add(key)
                yield name, rows

    chosen = list(different(_by_tag(questions, minimum, notes)))
    chosen += different(_by_answer(questions))
    chosen += different(_by_shape(questions))
    words = list(different(_by_word(questions, minimum, notes)))
    return chosen + _affordable(words, chosen, len(questions), notes), notes


def _by_tag(questions: Sequence[Question], minimum: int, notes: list[str]) -> Iterator[Named]:
    places: dict[tuple[str, str], list[int]] = {}
    for place, question in enumerate(questions):
        for pair in question.tags.items():
            places.setdefault(pair, []).append(place)
    frequent = [entry for entry in places.items() if len(entry[1]) >= minimum]
    frequent.sort(key=lambda entry: (-len(entry[1]), entry[0]))
    if len(frequent) > MOST_VALUES:
        notes.append(f"{len(frequent) - MOST_VALUES:,} rarer values of tags were not looked at")
    for (tag, value), rows in frequent[:MOST_VALUES]:
        yield f"{_plain(tag)} is {_plain(value)}", np.array(rows)


def _plain(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def _by_answer(questions: Sequence[Question]) -> Iterator[Named]:
    yield from _by_value([_plain(question.target) for question in questions], "gold answer is {}")
    yield from _by_value([str(question.gold or "") for question in questions], "gold answer is option {}")
    yield from _by_value([str(question.options or "") for question in questions], "input has {} options")


def _by_value(values: Sequence[str], name: str) -> Iterator[Named]:
    """One condition per value; an empty one makes none. `name` has a place for the value."""
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        if value:
            places.setdefault(value, []).append(place)
    for value in sorted(places):
        yield name.format(value), np.array(places[value])


def _by_shape(questions: Sequence[Question]) -> Iterator[Named]:
    texts = [question.text for question in questions]
    yield from _thresholds([question.length for question in questions], "character")
    yield from _thresholds([len(_NUMBER.findall(text)) for text in texts], "number")
    yield from _thresholds([1 + text.strip().count("\n") for text in texts], "line")
    yield from _by_value([_first_question_word(text) for text in texts], "first question word is '{}'")
    yield from _by_value(
        ["" if question.cut else _first_word(question.text) for question in questions], "input starts with '{}'"
    )
    for name, holds in (
        ("input has a character that is not ASCII", [not text.isascii() for text in texts]),
        ("input has a word in capitals", [_CAPITALS.search(text) is not None for text in texts]),
        *((f"input has the sign {sign}", [sign in text for text in texts]) for sign in _SIGNS),
    ):
        yield name, np.flatnonzero(holds)


def _thresholds(values: Sequence[int], unit: str) -> Iterator[Named]:
    """Conditions for being at most, and more than, each of the quantiles of `values`."""
    numbers = np.array(values)
    for cut in np.unique(np.quantile(numbers, np.arange(1, _CUTS) / _CUTS, method="inverted_cdf")):
        units = unit if cut == 1 else f"{unit}s"
        few = f"input has no {unit}" if cut == 0 else f"input has at most {cut:,} {units}"
        many = f"input has a {unit}" if cut == 0 else f"input has more than {cut:,} {units}"
        yield few, np.flatnonzero(numbers <= cut)
        yield many, np.flatnonzero(numbers > cut)


def _first_word(text: str) -> str:
    match = _WORD.search(text)
    word = match.group().lower() if match else ""
    return word if len(word) <= WORD_LENGTH else ""


def _first_question_word(text: str) -> str:
    match = _QUESTION_WORD.search(text)
    return match.group().lower() if match else ""


def _by_word(questions: Sequence[Question], minimum: int, notes: list[str]) -> Iterator[Named]:
    numbers: dict[str, int] = {}
    counts: list[int] = []
    columns: list[NDArray[np.int32]] = []
    for question in questions:
        words = {word for word in _WORD.findall(question.text.lower()) if len(word) <= WORD_LENGTH}
        if len(numbers) < MOST_DIFFERENT:
            known = [numbers.setdefault(word, len(numbers)) for word in words]
        else:
            known = [numbers[word] for word in words if word in numbers]
        columns.append(np.array(known, np.int32))
        counts.append(len(known))
    if len(numbers) >= MOST_DIFFERENT:
        notes.append(f"words that came after the first {MOST_DIFFERENT:,} different ones were not looked at")
    column = np.concatenate(columns)
    row = np.repeat(np.arange(len(questions)), counts)
    frequency = np.bincount(column, minlength=len(numbers))
    names = list(numbers)
    usable = np.flatnonzero((frequency >= minimum) & (frequency <= len(questions) - minimum))
    frequent = sorted(usable.tolist(), key=lambda number: (-frequency[number], names[number]))
    if len(frequent) > MOST_WORDS:
        notes.append(f"{len(frequent) - MOST_WORDS:,} rarer words were not looked at")
    order = np.argsort(column, kind="stable")
    ends = np.cumsum(frequency)
    for number in frequent[:MOST_WORDS]:
        yield f"input has the word '{names[number]}'", row[order[ends[number] - frequency[number] : ends[number]]]


def _affordable(words: list[Named], others: list[Named], instances: int, notes: list[str]) -> list[Named]:
    """The words without the most frequent ones, as far as `MOST_MEETINGS` demands."""
    held = np.zeros(instances, np.int64)
    for _, rows in [*others, *words]:
        held[rows] += 1
    given_up = 0
    while given_up < len(words) and int((held**2).sum()) > MOST_MEETINGS:
        held[words[given_up][1]] -= 1
        given_up += 1
    if given_up:
        notes.append(f"{given_up:,} of the most frequent words were not looked at, to keep the search short")
    return words[given_up:]
