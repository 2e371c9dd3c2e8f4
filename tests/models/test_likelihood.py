from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uphold.models.likelihood import option_logprobs
from uphold.models.load import load

PROMPTS = ["a:", "what is 17 + 25 =", "x", "the long one before the short one:", "b?"]
OPTIONS = [["a", "b", "c"], ["42", "43", "1", "1000"], ["y", "xyz", "a b c"], ["0", "1"], ["ab", "ac", "ad", "b"]]


def reference(model_path: Path) -> list[list[float]]:
    """One forward pass per option, no batching, no padding, float64 softmax."""
    loaded = load(model_path)
    values = []
    for prompt, options in zip(PROMPTS, OPTIONS, strict=True):
        own = []
        for option in options:
            head = loaded.tokenizer(prompt)["input_ids"]
            ids = loaded.tokenizer(prompt + option)["input_ids"]
            with torch.no_grad():
                shares = loaded.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            own.append(sum(float(shares[at - 1, ids[at]]) for at in range(len(head), len(ids))))
        values.append(own)
    return values


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_equal_to_one_plain_forward_pass_per_option_at_every_batch_size(model_v1: Path, batch_size: int) -> None:
    loaded = load(model_v1)
    values, _ = option_logprobs(loaded.model, loaded.tokenizer, PROMPTS, OPTIONS, batch_size)
    for ours, theirs in zip(values, reference(model_v1), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_single_token_options_share_one_row(model_v1: Path) -> None:
    loaded = load(model_v1)
    _, tokens = option_logprobs(loaded.model, loaded.tokenizer, ["abc", "abc"], [["x", "y", "z"], ["xy", "xz", "yz"]])
    # "abc" once; "abcx" (shared by xy and xz) and "abcy".
    assert tokens == [3, 8]


def test_a_model_without_logits_to_keep_gives_the_same(model_v1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(model_v1)
    kept, _ = option_logprobs(loaded.model, loaded.tokenizer, PROMPTS, OPTIONS)
    monkeypatch.setattr("uphold.models.likelihood._keeps_logits", lambda model: False)
    full, _ = option_logprobs(loaded.model, loaded.tokenizer, PROMPTS, OPTIONS)
    for ours, theirs in zip(kept, full, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_no_prompts_no_values(model_v1: Path) -> None:
    loaded = load(model_v1)
    assert option_logprobs(loaded.model, loaded.tokenizer, [], []) == ([], [])
