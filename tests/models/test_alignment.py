from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import save_tiny_model
from uphold.core.errors import ModelError
from uphold.models.alignment import Segment, same_tokens, segments, token_bytes, tokenised
from uphold.models.load import load_tokenizer
from uphold.models.reference import find_model


def cut(*ends: int) -> list[tuple[int, int]]:
    """Tokens that end at these places and stand side by side."""
    return list(zip([0, *ends[:-1]], ends, strict=True))


def pairs(student: list[tuple[int, int]], teacher: list[tuple[int, int]]) -> list[tuple[list[int], list[int]]]:
    return [(list(one.student), list(one.teacher)) for one in segments(student, teacher)]


def test_equal_tokenisations_give_a_segment_per_token_but_the_first() -> None:
    assert pairs(cut(1, 3, 7), cut(1, 3, 7)) == [([1], [1]), ([2], [2])]


def test_one_token_against_many() -> None:
    assert pairs(cut(2, 9), cut(2, 4, 5, 9)) == [([1], [1, 2, 3])]
    assert pairs(cut(2, 4, 5, 9), cut(2, 9)) == [([1, 2, 3], [1])]


def test_crossing_tokens_share_one_segment() -> None:
    assert pairs(cut(1, 3, 6, 8), cut(1, 4, 6, 8)) == [([1, 2], [1, 2]), ([3], [3])]


def test_a_leading_special_token_predicts_the_first_one() -> None:
    """Only the side with a special token predicts the first word; a segment needs both."""
    special = [(0, 0), *cut(2, 5)]
    assert pairs(special, cut(2, 5)) == [([2], [1])]
    assert pairs(special, special) == [([1], [1]), ([2], [2])]


def test_a_space_may_belong_to_either_side() -> None:
    """'to go': 'to', ' go' and 'to ', 'go' agree at the end only."""
    assert pairs([(0, 0), (0, 2), (2, 5)], [(0, 0), (0, 3), (3, 5)]) == [([1, 2], [1, 2])]


def test_a_character_in_several_byte_tokens_is_never_cut() -> None:
    """A three-byte character at place 1, one token on one side, three with the same span on the other."""
    assert pairs([(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]) == [([1], [1, 2, 3]), ([2], [4])]


def test_end_of_text_goes_with_end_of_text() -> None:
    ends = (5, 5)
    assert pairs([*cut(2, 5), ends], [*cut(2, 3, 5), ends]) == [([1], [1, 2]), ([2], [3])]
    assert pairs([*cut(2, 5), ends], cut(2, 3, 5)) == [([1], [1, 2])]


@st.composite
def tokenisations(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    length = draw(st.integers(1, 12))
    sides = [sorted({*draw(st.sets(st.integers(1, length))), length}) for _ in range(2)]
    return cut(*sides[0]), cut(*sides[1])


@given(tokenisations())
def test_segments_cover_the_same_text_in_order(sides: tuple[list[tuple[int, int]], list[tuple[int, int]]]) -> None:
    student, teacher = sides
    found = segments(student, teacher)
    for one in found:
        assert student[one.student[0]][0] == teacher[one.teacher[0]][0]
        assert student[one.student[-1]][1] == teacher[one.teacher[-1]][1]
    assert [one.student.start for one in found[1:]] == [one.student.stop for one in found[:-1]]
    assert [Segment(one.teacher, one.student) for one in found] == segments(teacher, student)


def test_a_text_is_cut_as_its_tokenizer_cuts_it(model_v1: Path) -> None:
    tokenizer = load_tokenizer(find_model(model_v1))
    found = tokenised(tokenizer, "ab: ", "cd", 7, ends=True)
    assert tokenizer.convert_ids_to_tokens(found.row.prompt) == ["a", "b", ":"]
    assert tokenizer.convert_ids_to_tokens(found.row.answer) == [" ", "c", "d", "<eos>"]
    assert found.row.instance == 7
    assert found.spans == ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 6))
    with pytest.raises(ModelError, match="no tokens of its own"):
        tokenised(tokenizer, "ab", "", 0)


def byte_level(folder: Path, words: list[str]) -> Path:
    """A byte-level tokenizer beside a model that does not matter here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE({name: index for index, name in enumerate([*names, *words, "<end>"])}, merges=[("Ġ", "a")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_tokens_of_one_text_are_found_whatever_they_are_called(model_v1: Path, tmp_path: Path) -> None:
    letters = load_tokenizer(find_model(model_v1))
    byte = load_tokenizer(find_model(byte_level(tmp_path / "bytes", ["Ġa"])))
    same = same_tokens(letters, byte)
    named = dict(
        zip(letters.convert_ids_to_tokens(same.student), byte.convert_ids_to_tokens(same.teacher), strict=True)
    )
    assert named["a"] == "a"
    assert named[" "] == "Ġ"
    assert named["<eos>"] == "<end>"
    assert "Ġa" not in named.values()
    assert "<pad>" not in named
    assert token_bytes(byte)[byte.convert_tokens_to_ids("Ġa")] == b" a"
    assert token_bytes(byte)[byte.convert_tokens_to_ids("Ã")] == b"\xc3"


def test_characters_of_several_bytes_in_real_tokenisations(tmp_path: Path) -> None:
    letters = load_tokenizer(find_model(save_tiny_model(tmp_path / "letters", 0, "abü:東 ")))
    byte = load_tokenizer(find_model(byte_level(tmp_path / "bytes", ["Ġa"])))
    mine, theirs = (tokenised(one, "a:", " a東üb", ends=True) for one in (letters, byte))
    found = [
        (letters.convert_ids_to_tokens(mine.tokens[one.student.start : one.student.stop]), len(one.teacher))
        for one in segments(mine.spans, theirs.spans)
    ]
    assert found == [([":"], 1), ([" ", "a"], 1), (["東"], 3), (["ü"], 2), (["b"], 1), (["<eos>"], 1)]


def test_one_vocabulary_is_matched_with_itself(model_v1: Path, model_v2: Path) -> None:
    one, other = (load_tokenizer(find_model(place)) for place in (model_v1, model_v2))
    same = same_tokens(one, other)
    assert sorted(same.student) == list(range(len(one.get_vocab())))
    assert same.student == same.teacher


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match="fast tokenizer"):
        token_bytes(type("Slow", (), {"backend_tokenizer": None})())
