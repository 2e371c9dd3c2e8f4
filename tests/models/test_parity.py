"""Number for number against lm-evaluation-harness' own `hf` model."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from tests.models.tiny import CORPUS, byte_pairs, characters, texts, tiny
from uphold.models.decoding import Sampling
from uphold.models.encode import Encoder
from uphold.models.engine import Meter
from uphold.models.generate import GenerationEngine
from uphold.models.likelihood import LikelihoodEngine, Scored

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

Question = list[tuple[str, str]]
WORDS = sorted({word for text in CORPUS for word in text.split()})
SHOTS = "".join(
    f"question: is {word} new? answer: {answer}\n" for word, answer in zip(WORDS, ["yes", "no"] * 3, strict=False)
)
# Contexts of words and of letters, with and without a first special token, and a model that is read row by row. The
# longest contexts are cut for Gemma 2, most are for the short GPT-2.
CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("words", "llama", "sdpa", {}),
    ("words after <bos>", "qwen2", "eager", {}),
    ("letters", "gemma2", "eager", {}),
    ("letters", "bloom", "eager", {}),
    ("words", "gpt2", "sdpa", {"n_positions": 40}),
]


def tokenizer_of(name: str) -> Any:
    return characters() if name == "letters" else byte_pairs(start="<bos>" in name)


@lru_cache(maxsize=1)
def questions() -> list[Question]:
    """Eighty questions, 344 requests."""
    draw = random.Random(7)

    def words(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

    asked: list[Question] = []
    for number in range(64):
        context = words(12) + draw.choice(["", ":", " ", "  ", "\n", " answer:"])
        context = SHOTS + context if number % 4 == 0 else context
        options = [" " + words(4) for _ in range(3)] + [" " + draw.choice(WORDS)[:3]]
        asked.append([(context, option) for option in options])
    for number in range(8):
        asked.append([("", words(5)), ("", WORDS[number]), ("", words(2))])  # no context
    for text in texts(8, 20, seed=3):
        asked.append(
            [(text, option) for option in "abcd"] + [(text, "a b"), (text + " ", "ab"), (text, " ab"), ("", "ab")]
        )
    return asked


def by_lm_eval(model: Any, tokenizer: Any, asked: list[Question]) -> list[list[tuple[float, bool]]]:
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=16)
    flat = [pair for question in asked for pair in question]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(flat)]
    answers = iter(theirs.loglikelihood(requests, disable_tqdm=True))
    return [[next(answers) for _ in question] for question in asked]


def assert_equal(ours: list[Scored], theirs: list[list[tuple[float, bool]]]) -> None:
    for scored, expected in zip(ours, theirs, strict=True):
        own = [option.logprob for option in scored.options]
        assert own == pytest.approx([logprob for logprob, _ in expected], abs=1e-4)
        assert [option.greedy for option in scored.options] == [greedy for _, greedy in expected]
        assert max(range(len(own)), key=own.__getitem__) == np.argmax([logprob for logprob, _ in expected])


@pytest.mark.parametrize(("name", "kind", "kernel", "changes"), CASES)
def test_every_log_likelihood_and_choice_is_lm_evals(
    name: str, kind: str, kernel: str, changes: dict[str, Any]
) -> None:
    tokenizer = tokenizer_of(name)
    model = tiny(kind, kernel, vocab_size=len(tokenizer), **changes)
    assert sum(map(len, questions())) == 344

    ours = LikelihoodEngine(model, Encoder(tokenizer), 512, Meter()).score(questions())

    assert_equal(ours, by_lm_eval(model, tokenizer, questions()))
    assert any(scored.truncated for scored in ours) == (kind in ("gemma2", "gpt2"))


def test_greedy_options_are_found_as_lm_eval_finds_them() -> None:
    """Random options are hardly ever what a model would write; these are, up to their last token."""
    tokenizer = byte_pairs()
    model = tiny("llama", vocab_size=len(tokenizer))
    contexts = [question[0][0].rstrip() for question in questions()[:40]]
    written = GenerationEngine(model, Encoder(tokenizer), 2048, Meter()).write(contexts, Sampling(3))
    asked = [
        [(context, answer.text), (context, answer.text + "the")]
        for context, answer in zip(contexts, written, strict=True)
        if answer.text.strip()
    ]

    ours = LikelihoodEngine(model, Encoder(tokenizer), 512, Meter()).score(asked)

    assert_equal(ours, by_lm_eval(model, tokenizer, asked))
    assert sum(scored.options[0].greedy for scored in ours) > 10


@pytest.mark.parametrize("start", [False, True])
def test_requests_are_tokenised_as_lm_eval_does(start: bool) -> None:
    tokenizer = byte_pairs(start)
    theirs = HFLM(
        pretrained=tiny("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer, backend="causal", batch_size=1
    )
    pairs = [pair for question in questions() for pair in question if pair[0]]
    pairs += [("the sky\n\n", "is"), ("the  sky", "  is"), ("café é", "é"), ("<bos>the sky", " is")]

    for pair, ours in zip(pairs, Encoder(tokenizer).pairs(pairs), strict=True):
        assert (ours.prompt, ours.answer) == theirs._encode_pair(*pair)


@pytest.mark.parametrize(
    ("name", "kind", "kernel"),
    [("letters", "llama", "sdpa"), ("words", "gpt2", "eager"), ("letters", "bloom", "eager")],
)
def test_greedy_answers_are_lm_evals(name: str, kind: str, kernel: str) -> None:
    tokenizer = tokenizer_of(name)
    model = tiny(kind, kernel, vocab_size=len(tokenizer))
    prompts, stop = [question[0][0].rstrip() for question in questions()[:24]], ("k", "the", ": ")
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=5)
    arguments = {"until": list(stop), "max_gen_toks": 10, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (prompt, dict(arguments)), index) for index, prompt in enumerate(prompts)
    ]

    ours = GenerationEngine(model, Encoder(tokenizer), 512, Meter()).write(prompts, Sampling(10, stop))

    assert [answer.text for answer in ours] == theirs.generate_until(requests, disable_tqdm=True)
