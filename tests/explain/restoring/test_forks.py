from pathlib import Path

import pytest
import torch

from tests.conftest import make_record
from uphold.explain.restoring.forks import Fork, Forks, forks, padded
from uphold.models.encode import Encoder
from uphold.models.load import load
from uphold.tasks.base import FixedTask, Instance, Kind, Score


def task(kind: Kind, delimiter: str = "") -> FixedTask:
    return FixedTask("t", kind, {}, "s", lambda instance, output: Score(output, True, 1.0), delimiter)


@pytest.fixture(scope="module")
def encoder(model_v1: Path) -> Encoder:
    return Encoder(load(model_v1).tokenizer)


def test_options_part_at_their_first_different_letter(encoder: Encoder) -> None:
    instance = Instance("ab", "cda", ("cda", "cdb", "d"))
    old, new = make_record(0, True, "cda"), make_record(0, False, "cdb")
    found = forks(task("choice"), [(instance, old, new)], encoder, 2)
    ids = encoder.tokenizer.convert_tokens_to_ids
    assert found == Forks((Fork(instance.id, (*ids(list("abcd")),), ids("a"), ids("b")),), 0)


def test_an_answer_that_ends_earlier_parts_at_end_of_text(encoder: Encoder) -> None:
    instance = Instance("ab", "c")
    pairs = [(instance, make_record(0, True, "c"), make_record(0, False, "cd"))]
    (fork,) = forks(task("generate"), pairs, encoder, 2).rows
    assert (fork.old, fork.new) == (2, encoder.tokenizer.convert_tokens_to_ids("d"))


def test_a_written_answer_goes_on_from_the_prompt_as_it_was_written(encoder: Encoder) -> None:
    instance = Instance("ab", "c")
    pairs = [(instance, make_record(0, True, "ca"), make_record(0, False, "cd"))]
    (fork,) = forks(task("generate", delimiter="b"), pairs, encoder, 2).rows
    assert fork.tokens == tuple(encoder.tokenizer.convert_tokens_to_ids(list("abc")))


@pytest.mark.parametrize(("old", "new"), [("c", "c"), ("", "c"), ("c", "  ")])
def test_answers_that_do_not_part_are_counted(encoder: Encoder, old: str, new: str) -> None:
    instance = Instance("ab", "c")
    found = forks(task("generate"), [(instance, make_record(0, True, old), make_record(0, False, new))], encoder, 2)
    assert (found.rows, found.left_out) == ((), 1)


def test_options_asked_for_after_different_texts_are_left_out(encoder: Encoder) -> None:
    instance = Instance("ab", "c", ("c", "d"), requests=(("ab", "c"), ("ba", "d")))
    found = forks(task("choice"), [(instance, make_record(0, True, "c"), make_record(0, False, "d"))], encoder, 2)
    assert found.left_out == 1


def test_batches_hold_every_row_once() -> None:
    rows = tuple(Fork(str(number), tuple(range(3, 4 + number % 5)), 1, 2) for number in range(13))
    batches = Forks(rows, 0).batches(12)
    assert sorted(row.id for batch in batches for row in batch) == sorted(row.id for row in rows)
    assert all(len(batch) * max(len(row.tokens) for row in batch) <= 12 for batch in batches)
    inputs, at = padded(batches[-1], torch.device("cpu"))
    assert torch.equal(inputs["attention_mask"].sum(1) - 1, at)
    assert len(Forks(rows, 0).batches(1)) == 13
