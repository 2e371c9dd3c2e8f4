from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.tiny import byte_pairs, characters
from uphold.core.errors import ModelError
from uphold.models import encode
from uphold.models.encode import Encoded, Encoder, collate


class Counted:
    """A tokenizer that says what it was asked to tokenise."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.asked = tokenizer, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, texts: Any, **options: Any) -> Any:
        self.asked += [texts] if isinstance(texts, str) else texts
        return self.tokenizer(texts, **options)


# ---- pairs ----


def test_prompt_and_answer_together_are_the_whole_text() -> None:
    tokenizer = characters()
    [row] = Encoder(tokenizer).pairs([("2+2=", "4")])

    assert tokenizer.decode(row.prompt) == "2+2="
    assert tokenizer.decode(row.answer) == "4"


@pytest.mark.parametrize("space", [" ", "  ", "\n", " \n "])
def test_white_space_at_the_end_of_a_prompt_counts_as_the_answers(space: str) -> None:
    tokenizer = byte_pairs()
    [row, moved] = Encoder(tokenizer).pairs([(f"the sky{space}", "is"), ("the sky", f"{space}is")])

    assert [tokenizer.decode(row.prompt), tokenizer.decode(row.answer)] == ["the sky", f"{space}is"]
    assert row == moved


def test_an_answer_begins_where_the_prompts_own_tokens_end() -> None:
    """Whatever the answer's own text is: " th" and " than" do not begin with the same token."""
    tokenizer = byte_pairs()
    [row] = Encoder(tokenizer).pairs([("seven is more th", "an three")])

    head, whole = (tokenizer(text)["input_ids"] for text in ("seven is more th", "seven is more than three"))
    assert whole[: len(head)] != head
    assert row == Encoded(head, whole[len(head) :])


@pytest.mark.parametrize("start", [False, True])
def test_without_prompt_an_answer_follows_the_first_special_token(start: bool) -> None:
    tokenizer = byte_pairs(start)
    own = tokenizer("the sky", add_special_tokens=False)["input_ids"]

    assert Encoder(tokenizer).pairs([("", "the sky"), ("", "<bos>the sky")]) == [Encoded([1], own)] * 2


def test_without_first_special_token_the_end_token_takes_its_place() -> None:
    tokenizer: Any = Counted(characters())
    tokenizer.bos_token_id, tokenizer.bos_token = None, None
    assert Encoder(tokenizer).pairs([("", "ab")]) == [Encoded([2], [4, 5])]

    tokenizer.eos_token_id = None
    assert Encoder(tokenizer).pairs([("", "ab")]) == [Encoded([4], [5])]
    with pytest.raises(ModelError, match="no tokens of its own"):
        Encoder(tokenizer).pairs([("", "a")])


def test_white_space_alone_is_no_prompt_either() -> None:
    """As in lm-eval, it counts as the answer's where a special token stands before it."""
    tokenizer = byte_pairs(start=True)

    assert Encoder(tokenizer).pairs([(" ", "sky")]) == Encoder(tokenizer).pairs([("", " sky")])


def test_special_tokens_are_not_added_twice() -> None:
    encoder = Encoder(byte_pairs(start=True))

    assert encoder.prompts(["the sky"]) == encoder.prompts(["<bos>the sky"])
    assert encoder.prompts(["the sky"])[0][0] == 1
    assert encoder.pairs([("the sky", " is")]) == encoder.pairs([("<bos>the sky", " is")])
    assert encoder.prompts([""]) == [[1]]


def test_empty_prompts_and_answers_are_refused() -> None:
    encoder = Encoder(characters())
    with pytest.raises(ModelError, match=r"the answer '' has no tokens of its own after 'a': use a delimiter"):
        encoder.pairs([("a", "b"), ("a", "")])
    with pytest.raises(ModelError, match="no tokens of its own"):
        encoder.pairs([("", "")])
    with pytest.raises(ModelError, match="needs at least one"):
        encoder.prompts(["a", ""])


# ---- remembering ----


def test_what_was_encoded_is_not_encoded_again() -> None:
    tokenizer: Any = Counted(characters())
    encoder = Encoder(tokenizer)

    first = encoder.pairs([("ab", "c"), ("ab", "d"), ("ab", "c")])
    assert sorted(tokenizer.asked) == ["ab", "abc", "abd"]
    assert encoder.pairs([("ab", "d"), ("ab", "c")]) == first[:2][::-1]
    assert encoder.prompts(["ab", "abc", "x"]) == [[4, 5], [4, 5, 6], [27]]
    assert sorted(tokenizer.asked) == ["ab", "abc", "abd", "x"]


def test_what_is_returned_may_be_changed() -> None:
    encoder = Encoder(characters())
    encoder.prompts(["ab"])[0].append(99)
    encoder.prompts(["ab"])[0].append(99)

    assert encoder.prompts(["ab"]) == [[4, 5]]


def test_it_forgets_before_it_holds_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "MOST_TOKENS", 10)
    tokenizer: Any = Counted(characters())
    encoder = Encoder(tokenizer)

    for text in ("ghijkl", "mnopqr", "stuvwx", "yzabcd"):
        assert encoder.prompts([text, "abcdef"])[1] == [4, 5, 6, 7, 8, 9]
        assert sum(map(len, encoder._known.values())) <= 10 + 12
    assert tokenizer.asked.count("abcdef") == 2


def test_no_texts_no_tokens() -> None:
    assert Encoder(characters()).prompts([]) == []
    assert Encoder(characters()).pairs([]) == []


# ---- collate ----


def test_collate_pads_on_the_right_and_marks_the_answer() -> None:
    batch = collate([Encoded([5, 6], [7]), Encoded([8], [9, 3, 4])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [8, 9, 3, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.is_answer.tolist() == [[False, False, True, False], [False, True, True, True]]
    wider = collate([Encoded([5, 6], [7])], extra_padding=3)
    assert wider.input_ids.shape == (1, 6)
    assert torch.equal(wider.to("cpu").attention_mask, wider.attention_mask)
