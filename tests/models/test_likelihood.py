from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch

from tests.models.tiny import byte_pairs, characters, texts, tiny
from uphold.core.errors import ModelError
from uphold.models import likelihood
from uphold.models.encode import Encoder
from uphold.models.engine import Meter
from uphold.models.likelihood import LikelihoodEngine, OptionScore, Scored, encode_questions
from uphold.models.token_tree import Group, Request

Question = list[tuple[str, str]]
BATCH_TOKENS = (1, 8, 64, 4096)

TRICKY: list[Question] = [
    [("a:", option) for option in "abcd"],  # single tokens
    [("what is 17 + 25 =", option) for option in ("42", "43", "1", "1000")],  # some begin alike
    [("x", option) for option in ("y", "yz", "yz a", "y")],  # each begins the next; a duplicate
    [("one ", "a"), ("one ", "b"), ("one", " a"), ("other context", "a")],  # white space, two contexts
    [("", "abc"), ("", "a"), ("", "xyz")],  # no context
    [("q: 1", "one"), ("q: 1", "two"), ("", "one"), ("", "two")],  # as mutual information asks
    [("the only one:", "yes")],
    [("a:", "a"), ("a:", "b")],  # asked before, with fewer options
]
SHOTS = "q: what is 1 + 1? a: 2. q: what is 2 + 3? a: 5. "
FEW_SHOT: list[Question] = [
    [(f"{SHOTS}q: {text}? a:", option) for option in (" 1", " 12", " 3", " none", " no")]
    for text in texts(9, 24, seed=5)
]
# Kind, kernel, and whether a question is read as a tree.
ARCHITECTURES = [
    ("llama", "sdpa"),
    ("llama", "eager"),
    ("gpt2", "sdpa"),
    ("gpt2", "eager"),
    ("qwen2", "sdpa"),
    ("mixtral", "sdpa"),
    ("granite", "sdpa"),  # scaled logits
    ("gemma2", "eager"),  # capped logits, and a window of 16 tokens in every other layer
    ("gemma3", "sdpa"),  # a window of 16 tokens
    ("mistral", "sdpa"),  # a window of 6 tokens
    ("llama4", "sdpa"),  # chunks of 8 tokens
    ("mamba", "eager"),  # row by row from here on
    ("bloom", "eager"),
    ("falcon-alibi", "sdpa"),
]


def engine(model: Any, batch_tokens: int = 256, tokenizer: Any = None, meter: Meter | None = None) -> LikelihoodEngine:
    return LikelihoodEngine(model, Encoder(tokenizer or characters()), batch_tokens, meter or Meter())


def plainly(model: Any, tokenizer: Any, question: Question, longest: int = 10_000) -> list[OptionScore]:
    """One forward pass per option, no padding, softmax in float64; cut from the left as lm-eval cuts."""
    scores = []
    for context, option in question:
        kept = context.rstrip() or context
        head = tokenizer(kept)["input_ids"] or [tokenizer.bos_token_id]
        whole = head + tokenizer(option)["input_ids"] if not kept else tokenizer(context + option)["input_ids"]
        answer = whole[len(head) :]
        row = whole[-(longest + 1) :][:-1]
        with torch.inference_mode():
            shares = model(torch.tensor([row])).logits[0].double().log_softmax(-1)[-len(answer) :]
        logprob = sum(float(share[token]) for share, token in zip(shares, answer, strict=True))
        scores.append(OptionScore(logprob, len(answer), shares.argmax(-1).tolist() == answer))
    return scores


def assert_same(ours: Sequence[Scored], theirs: Sequence[Sequence[OptionScore]], within: float = 2e-5) -> None:
    for scored, expected in zip(ours, theirs, strict=True):
        assert [option.logprob for option in scored.options] == pytest.approx(
            [option.logprob for option in expected], abs=within
        )
        assert [option[1:] for option in scored.options] == [option[1:] for option in expected]


# ---- one plain forward pass per option ----


@pytest.mark.parametrize(("kind", "kernel"), ARCHITECTURES)
def test_equal_to_one_plain_forward_pass_per_option(kind: str, kernel: str) -> None:
    model = tiny(kind, kernel)
    questions = TRICKY + FEW_SHOT

    ours = engine(model).score(questions)

    assert_same(ours, [plainly(model, characters(), question) for question in questions])
    assert not any(scored.truncated for scored in ours)


@pytest.mark.parametrize("kind", ["gemma3", "mistral"])
def test_rows_within_the_attention_window_and_beyond_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(kind, sliding_window=20)
    short: list[Question] = [[("ab" * 6, "x"), ("ab" * 6, "yz"), ("ab" * 6, "xw" * 4)], [("abc", "d")]]
    exact: list[Question] = [[("a" * 20, "b"), ("a" * 18, "bcd")]]  # rows of 20 tokens
    long: list[Question] = [[("ab" * 15, "x"), ("ab" * 15, "yz")]]
    for questions in (short, exact, long, short + long):
        assert_same(engine(model).score(questions), [plainly(model, characters(), question) for question in questions])

    trees: list[bool] = []
    may_share = LikelihoodEngine._may_share
    monkeypatch.setattr(
        LikelihoodEngine, "_may_share", lambda self, requests: trees.append(may_share(self, requests)) or trees[-1]
    )
    for questions in (short, exact, long):
        engine(model).score(questions)
    assert trees == [True, True, True, False]  # one for each question


@pytest.mark.parametrize("start", [False, True])
def test_tokens_that_reach_over_the_end_of_a_context(start: bool) -> None:
    """Byte pairs, with and without a first special token: contexts end where their own tokens end."""
    tokenizer = byte_pairs(start)
    model = tiny("llama", vocab_size=len(tokenizer))
    questions: list[Question] = [
        [("question: is seven more than", option) for option in (" three", " the sky", " blue?", "th")],
        [("the quick brown", " fox"), ("the quick brown ", "fox"), ("the quick  ", " brown fox"), ("the", "re")],
        [("café", " déjà vu"), ("caf", "é"), ("<bos>the", " old")],
    ]

    ours = engine(model, tokenizer=tokenizer).score(questions)

    for question, scored in zip(questions, ours, strict=True):
        for (context, option), score in zip(question, scored.options, strict=True):
            special = not (start and context.startswith("<bos>"))
            head = tokenizer(context.rstrip(), add_special_tokens=special)["input_ids"]
            whole = tokenizer(context + option, add_special_tokens=special)["input_ids"]
            assert score.tokens == len(whole) - len(head)
            with torch.inference_mode():
                shares = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            logprob = sum(float(shares[at - 1, whole[at]]) for at in range(len(head), len(whole)))
            assert score.logprob == pytest.approx(logprob, abs=2e-5)


def test_without_context_a_continuation_follows_the_first_special_token() -> None:
    model = tiny("llama")
    [scored] = engine(model).score([[("", "ab"), ("", "<bos>ab")]])
    with torch.inference_mode():
        shares = model(torch.tensor([[1, 4, 5]])).logits[0].double().log_softmax(-1)

    assert scored.options[0].logprob == pytest.approx(float(shares[0, 4] + shares[1, 5]), abs=2e-5)
    assert scored.options[0] == scored.options[1]


# ---- headers ----


@pytest.mark.parametrize(
    ("kind", "kernel"), [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa"), ("qwen2", "sdpa")]
)
def test_a_common_header_is_read_once_and_changes_nothing(
    kind: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(kind, kernel)
    shared, apart = Meter(), Meter()
    headers: list[int] = []
    read = likelihood.read_header
    monkeypatch.setattr(likelihood, "read_header", lambda *args: headers.append(len(args[1])) or read(*args))

    ours = engine(model, meter=shared).score(FEW_SHOT)
    assert len(headers) == 1
    assert headers[0] > len(SHOTS) - 16
    monkeypatch.setattr(likelihood, "share_headers", lambda trees: [Group((), tuple(range(len(trees))))])
    theirs = engine(model, meter=apart).score(FEW_SHOT)

    assert len(headers) == 1
    assert_same(ours, [scored.options for scored in theirs], within=1e-5)
    assert [scored.tokens for scored in ours] == [scored.tokens for scored in theirs]
    assert shared.tokens < apart.tokens / 2


# ---- the same bits whatever stands beside a row ----


@lru_cache(maxsize=4)
def everything(kind: str, kernel: str) -> list[Scored]:
    return engine(tiny(kind, kernel), 256).score(TRICKY + FEW_SHOT)


PLAIN_ATTENTION = [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa"), ("qwen2", "sdpa"), ("bloom", "eager")]


@pytest.mark.parametrize("batch_tokens", BATCH_TOKENS)
@pytest.mark.parametrize(("kind", "kernel"), PLAIN_ATTENTION)
def test_every_number_is_the_same_at_every_batch_size(kind: str, kernel: str, batch_tokens: int) -> None:
    assert engine(tiny(kind, kernel), batch_tokens).score(TRICKY + FEW_SHOT) == everything(kind, kernel)


@pytest.mark.parametrize(("kind", "kernel"), PLAIN_ATTENTION)
def test_every_number_is_the_same_in_any_order(kind: str, kernel: str) -> None:
    questions = TRICKY + FEW_SHOT
    order = random.Random(3).sample(range(len(questions)), len(questions))

    mixed = engine(tiny(kind, kernel), 64).score([questions[index] for index in order])

    assert mixed == [everything(kind, kernel)[index] for index in order]


@pytest.mark.parametrize(("kind", "kernel"), PLAIN_ATTENTION)
def test_every_number_is_the_same_beside_any_other_questions(kind: str, kernel: str) -> None:
    """Alone, and so without a header, as much as among many."""
    questions, whole = TRICKY + FEW_SHOT, everything(kind, kernel)
    draw = random.Random(4)
    subsets = [[index] for index in range(len(questions))] + [
        draw.sample(range(len(questions)), draw.randint(2, len(questions))) for _ in range(6)
    ]
    for subset in subsets:
        alone = engine(tiny(kind, kernel), 64).score([questions[index] for index in subset])
        assert_same(alone, [whole[index].options for index in subset], within=1e-5)


@pytest.mark.parametrize("kind", ["gemma3", "mistral"])
def test_a_longer_question_changes_no_number_of_those_within_the_window(kind: str) -> None:
    model = tiny(kind, sliding_window=20)
    short: Question = [("abcab", "xyz"), ("abcab", "xw"), ("abcab", "uvw")]
    long: Question = [("ab" * 20, "x")]

    [alone], [beside, _] = engine(model).score([short]), engine(model).score([short, long])

    assert beside == alone


@pytest.mark.parametrize(("kind", "kernel"), [("mamba", "eager"), ("mixtral", "sdpa")])
def test_kernels_that_sum_over_the_batch_differ_by_rounding_only(kind: str, kernel: str) -> None:
    numbers = [engine(tiny(kind, kernel), batch_tokens).score(TRICKY + FEW_SHOT) for batch_tokens in BATCH_TOKENS]
    for other in numbers[1:]:
        assert_same(other, [scored.options for scored in numbers[0]], within=1e-5)


def test_equal_questions_are_read_once() -> None:
    once, thrice = Meter(), Meter()
    model = tiny("llama")

    [single] = engine(model, meter=once).score(TRICKY[1:2])
    triple = engine(model, meter=thrice).score([TRICKY[1], TRICKY[1][::-1], TRICKY[1]])

    assert triple[0] == triple[2] == single
    assert triple[1].options == single.options[::-1]
    # Two questions in two orders are two trees; the third is the first.
    assert thrice.tokens == 2 * once.tokens


# ---- counts and flags ----


def test_each_distinct_token_is_counted_once() -> None:
    [single, longer, apart] = engine(tiny("llama")).score(
        [
            [("abc", "x"), ("abc", "y"), ("abc", "z")],  # abc
            [("abc", "xy"), ("abc", "xz"), ("abc", "yz")],  # abc x | y
            [("ab", "c"), ("xy", "c")],  # ab | xy
        ]
    )

    assert [single.tokens, longer.tokens, apart.tokens] == [3, 5, 4]
    assert [option.tokens for option in longer.options] == [2, 2, 2]


def test_row_by_row_a_prefix_is_read_again() -> None:
    [scored] = engine(tiny("bloom", "eager")).score([[("abc", "xy"), ("abc", "xz"), ("abc", "yz"), ("abc", "z")]])

    assert scored.tokens == 4 + 4 + 3  # abcx for two, abcy, abc


def test_the_meter_counts_padding() -> None:
    meter = Meter()
    calls: list[int] = []
    meter.listener = lambda: calls.append(meter.tokens)

    engine(tiny("llama"), 16, meter=meter).score([[("a" * 5, "b")], [("a" * 7, "b")], [("a" * 9, "b")], [("a", "b")]])

    # Rows of 5, 7 and 1 tokens are 8 long, two in a batch; the one of 9 is 16 long.
    assert [tokens for tokens in calls if tokens] == [16, 24, 40]


@pytest.mark.parametrize(("kind", "kernel"), [("llama", "sdpa"), ("gemma3", "sdpa"), ("bloom", "eager")])
def test_greedy_tells_what_greedy_decoding_would_write(kind: str, kernel: str) -> None:
    model, tokenizer = tiny(kind, kernel), characters()
    questions: list[Question] = []
    for prompt in ("a:", "question?", "12 + 3 ="):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, eos_token_id=None
        )
        best = written[0, ids.shape[1] :].tolist()
        other = [*best[:3], 5 if best[3] == 4 else 4]
        questions.append([(prompt, tokenizer.decode(tokens)) for tokens in (best, best[:2], other)])

    for scored in engine(model).score(questions):
        assert [option.greedy for option in scored.options] == [True, True, False]


# ---- too long for the model ----


@pytest.mark.parametrize(("kind", "kernel"), [("llama", "sdpa"), ("gpt2", "sdpa")])
def test_contexts_that_are_too_long_are_cut_from_the_left(kind: str, kernel: str) -> None:
    room = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    model = tiny(kind, kernel, **{room: 24})
    [text] = ["".join(random.Random(1).choices("abcdefgh", k=60))]
    questions: list[Question] = [
        [(text[:23], "xy"), (text[:24], "x")],  # rows of 24 tokens: they fit
        [(text[:24], "xy"), (text[:23], "xyz")],  # rows of 25
        [(text, "x"), (text, "yz"), ("ab", "x")],
        [(text, "xy" * 12)],  # one token of the context is left
    ]

    ours = engine(model).score(questions)

    assert_same(ours, [plainly(model, characters(), question, 24) for question in questions])
    assert [scored.truncated for scored in ours] == [False, True, True, True]


def test_what_is_cut() -> None:
    pairs = [[("abcdef", "xyz")], [("ab", "xyz")], [("abcd", "x")]]
    encoder = Encoder(characters())
    letters = [tuple(encoder.prompts([text])[0]) for text in ("bcdef", "def", "xyz", "ab", "abcd", "x")]
    five, three, answer, two, four, single = letters

    assert encode_questions(encoder, pairs, None)[1] == [False, False, False]
    requests, cut = encode_questions(encoder, pairs, 7)
    assert requests[0] == [Request(five, answer)]
    assert cut == [True, False, False]
    requests, cut = encode_questions(encoder, pairs, 5)
    assert requests == [[Request(three, answer)], [Request(two, answer)], [Request(four, single)]]
    assert cut == [True, False, False]


def test_a_continuation_longer_than_the_model_is_an_error() -> None:
    model = tiny("gpt2", n_positions=24)

    with pytest.raises(ModelError, match="24"):
        engine(model).score([[("ab", "xy" * 13)]])


def test_padding_needs_no_positions_that_the_model_lacks() -> None:
    """Rows are padded to a multiple of eight, which may be more than a model with learnt positions has."""
    model = tiny("gpt2", n_positions=20)
    questions: list[Question] = [[("a" * 18, "b"), ("a" * 18, "cd")]]

    assert_same(engine(model).score(questions), [plainly(model, characters(), question) for question in questions])


# ---- limits, dtypes, refusals ----


def test_few_logits_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = everything("llama", "sdpa")
    monkeypatch.setattr(likelihood, "LOGITS", 4 * 47)
    monkeypatch.setattr(likelihood, "CHUNK", 3 * 47)

    assert engine(tiny("llama")).score(TRICKY + FEW_SHOT) == whole


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_half_precision_gives_finite_numbers_near_by(kernel: str) -> None:
    model = copy.deepcopy(tiny("llama", kernel)).to(torch.bfloat16)

    ours = engine(model).score(TRICKY + FEW_SHOT)

    for scored, exact in zip(ours, everything("llama", kernel), strict=True):
        for option, other in zip(scored.options, exact.options, strict=True):
            assert option.logprob == pytest.approx(other.logprob, abs=0.15 * option.tokens)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_no_questions_no_scores(kind: str) -> None:
    assert engine(tiny(kind)).score([]) == []


def test_a_continuation_without_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match="no tokens of its own"):
        engine(tiny("llama")).score([[("a", "b"), ("a", "")]])


def test_whether_masks_are_taken_is_found_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(likelihood, "reads_masks", lambda model: asked.append(model) or True)
    ours = engine(tiny("llama"))

    ours.score(TRICKY)
    ours.score(FEW_SHOT)

    assert len(asked) == 1
