from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uphold.models.generate import generate
from uphold.models.load import load

PROMPTS = ["a", "some words:", "12+7=", "zz", "the quick brown fox", "b b b b"]


def test_greedy_equals_transformers_own_greedy(model_v1: Path) -> None:
    loaded = load(model_v1)
    ours = generate(loaded.model, loaded.tokenizer, PROMPTS, max_new_tokens=12, batch_size=3)
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        ids = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = loaded.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert answer.text == loaded.tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_the_batch(model_v1: Path, temperature: float) -> None:
    loaded = load(model_v1)
    runs = [
        generate(
            loaded.model,
            loaded.tokenizer,
            PROMPTS,
            max_new_tokens=10,
            temperature=temperature,
            top_p=0.9,
            batch_size=size,
        )
        for size in (1, 2, 6)
    ]
    assert runs[0] == runs[1] == runs[2]
    backwards = generate(
        loaded.model, loaded.tokenizer, PROMPTS[::-1], max_new_tokens=10, temperature=temperature, top_p=0.9
    )
    assert backwards[::-1] == runs[0]


def test_sampling_follows_its_seed_and_leaves_the_global_generator_alone(model_v1: Path) -> None:
    loaded = load(model_v1)
    state = torch.random.get_rng_state()
    draws = {
        seed: [
            answer.text
            for answer in generate(
                loaded.model, loaded.tokenizer, PROMPTS, max_new_tokens=10, temperature=1.0, seed=seed
            )
        ]
        for seed in (0, 1)
    }
    assert draws[0] != draws[1]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_tiny_nucleus_is_greedy(model_v1: Path) -> None:
    loaded = load(model_v1)
    greedy = generate(loaded.model, loaded.tokenizer, PROMPTS, max_new_tokens=8)
    nucleus = generate(loaded.model, loaded.tokenizer, PROMPTS, max_new_tokens=8, temperature=1.0, top_p=1e-9)
    assert greedy == nucleus


def test_a_stop_string_ends_an_answer_and_is_left_out(model_v1: Path) -> None:
    loaded = load(model_v1)
    [plain] = generate(loaded.model, loaded.tokenizer, ["a"], max_new_tokens=12)
    stop = plain.text[4:6]
    [stopped] = generate(loaded.model, loaded.tokenizer, ["a"], max_new_tokens=12, stop=[stop])
    assert stopped.text == plain.text[: plain.text.find(stop)]
    assert stopped.tokens < plain.tokens
