from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uphold.core.errors import ModelError
from uphold.models.encode import Encoded, collate, encode_answers, encode_prompts
from uphold.models.load import load


def test_prompt_and_answer_together_are_the_whole_text(model_v1: Path) -> None:
    tokenizer = load(model_v1).tokenizer
    [row] = encode_answers(tokenizer, ["2+2="], ["4"])
    assert tokenizer.decode(row.prompt) == "2+2="
    assert tokenizer.decode(row.answer) == "4"


def test_white_space_at_the_end_of_a_prompt_counts_as_the_answers(model_v1: Path) -> None:
    tokenizer = load(model_v1).tokenizer
    [row] = encode_answers(tokenizer, ["a: "], ["b"])
    assert [tokenizer.decode(row.prompt), tokenizer.decode(row.answer)] == ["a:", " b"]


def test_the_end_token_is_appended_when_asked_for(model_v1: Path) -> None:
    tokenizer = load(model_v1).tokenizer
    [plain], [ended] = (encode_answers(tokenizer, ["a"], ["b"], end=end) for end in (False, True))
    assert ended.answer == [*plain.answer, tokenizer.eos_token_id]


def test_empty_prompts_and_answers_are_refused(model_v1: Path) -> None:
    tokenizer = load(model_v1).tokenizer
    with pytest.raises(ModelError, match="no tokens of its own"):
        encode_answers(tokenizer, ["a"], [""])
    with pytest.raises(ModelError, match="needs at least one"):
        encode_prompts(tokenizer, [""])


def test_collate_pads_on_the_right_and_marks_the_answer() -> None:
    batch = collate([Encoded([5, 6], [7]), Encoded([8], [9, 3, 4])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [8, 9, 3, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.is_answer.tolist() == [[False, False, True, False], [False, True, True, True]]
    wider = collate([Encoded([5, 6], [7])], extra_padding=3)
    assert wider.input_ids.shape == (1, 6)
    assert torch.equal(wider.to("cpu").attention_mask, wider.attention_mask)
