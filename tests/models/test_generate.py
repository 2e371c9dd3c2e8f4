from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.models.tiny import byte_pairs, characters, texts, tiny
from uphold.core.errors import ModelError
from uphold.models import generate as module
from uphold.models.decoding import Generated, Sampling
from uphold.models.encode import Encoder
from uphold.models.engine import Meter
from uphold.models.generate import GenerationEngine, _header

PROMPTS = ["a", "some words:", "12+7=", "zz", "the quick brown fox", "b b b b", *texts(14, 30, seed=1)]
HEADER = "q: 1 + 1 =? a: 2. q: 2 + 3 =? a: 5. "
STOP = ("0", "1", "k", "tt")
ONE_SLOT_BATCH, FEW, MANY = 64, 64 * 9, 4096
"""Tokens per batch for one row, nine rows and all rows side by side."""
SLOTS = [
    ("llama", "sdpa"),
    ("llama", "eager"),
    ("gpt2", "sdpa"),
    ("gpt2", "eager"),
    ("qwen2", "sdpa"),
    ("gemma3", "sdpa"),
    ("gemma2", "eager"),
    ("mistral", "sdpa"),
]
ROWS = [("mamba", "eager"), ("rwkv", "eager"), ("bloom", "eager"), ("falcon-alibi", "sdpa")]


def write(
    model: Any,
    prompts: list[str],
    sampling: Sampling,
    batch_tokens: int = FEW,
    tokenizer: Any = None,
    meter: Meter | None = None,
    keys: tuple[str, ...] = (),
) -> list[Generated]:
    engine = GenerationEngine(model, Encoder(tokenizer or characters()), batch_tokens, meter or Meter())
    return engine.write(prompts, sampling, keys)


def by_transformers(model: Any, tokenizer: Any, prompt: str, most: int, longest: int = 10_000) -> str:
    """Greedy decoding of one prompt by transformers."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"][:, -longest:]
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, pad_token_id=0
    )
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))


def texts_of(answers: list[Generated]) -> list[str]:
    return [answer.text for answer in answers]


# ---- equal to transformers ----


@pytest.mark.parametrize(("kind", "kernel"), SLOTS + ROWS)
def test_greedy_equals_transformers_own_greedy(kind: str, kernel: str) -> None:
    """More prompts than slots; Gemma and Mistral past their attention window too."""
    model = tiny(kind, kernel)

    ours = write(model, PROMPTS, Sampling(12))

    assert texts_of(ours) == [by_transformers(model, characters(), prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize(("kind", "kernel"), [("gemma3", "sdpa"), ("mistral", "sdpa")])
def test_within_the_attention_window_rows_decode_in_slots(
    kind: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(kind, kernel, sliding_window=24)
    padded: list[int] = []
    plain = GenerationEngine._padded
    monkeypatch.setattr(
        GenerationEngine, "_padded", lambda self, rows, *rest: padded.append(len(rows)) or plain(self, rows, *rest)
    )
    short = texts(12, 16, seed=2)

    ours = write(model, short, Sampling(8))
    assert not padded
    assert texts_of(ours) == [by_transformers(model, characters(), prompt, 8) for prompt in short]

    ours = write(model, [*short, "a" * 17], Sampling(8))
    assert padded
    assert texts_of(ours)[:12] == [by_transformers(model, characters(), prompt, 8) for prompt in short]


@pytest.mark.parametrize("start", [False, True])
def test_tokens_of_many_letters(start: bool) -> None:
    tokenizer = byte_pairs(start)
    model = tiny("llama", vocab_size=len(tokenizer))
    prompts = ["question: is seven more", "the quick", "café", "answer: yes, "]

    ours = write(model, prompts, Sampling(10), tokenizer=tokenizer)

    assert texts_of(ours) == [by_transformers(model, tokenizer, prompt, 10) for prompt in prompts]


# ---- the same answers whatever stands beside a row ----


@pytest.mark.parametrize(
    "sampling", [Sampling(10, STOP), Sampling(10, STOP, temperature=1.0, top_p=0.9)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize(
    ("kind", "kernel"), [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa"), ("bloom", "eager")]
)
def test_answers_do_not_depend_on_the_batch(kind: str, kernel: str, sampling: Sampling) -> None:
    model = tiny(kind, kernel)
    few = write(model, PROMPTS, sampling)

    assert write(model, PROMPTS, sampling, ONE_SLOT_BATCH) == few
    assert write(model, PROMPTS, sampling, MANY) == few
    assert write(model, PROMPTS[::-1], sampling)[::-1] == few
    assert write(model, PROMPTS[3:11], sampling) == few[3:11]
    assert [write(model, [prompt], sampling)[0] for prompt in PROMPTS[:4]] == few[:4]


def test_rows_of_a_model_that_overlooks_padding_do_not_depend_on_the_batch() -> None:
    """RWKV takes no mask: what stands before a shorter row would be read as its beginning."""
    model = tiny("rwkv", "eager")
    prompts = ["a", "some words:", "12+7="]

    assert write(model, prompts, Sampling(6), MANY) == write(model, prompts, Sampling(6), ONE_SLOT_BATCH)


def test_a_common_header_is_read_once_and_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [HEADER + text for text in texts(12, 20, seed=2)]
    for sampling in (Sampling(8, STOP), Sampling(8, STOP, temperature=1.0)):
        shared, apart = Meter(), Meter()
        with monkeypatch.context() as patch:
            ours = write(tiny("llama"), prompts, sampling, meter=shared)
            patch.setattr(module, "_header", lambda waiting: ())
            assert write(tiny("llama"), prompts, sampling, meter=apart) == ours
        assert apart.tokens - shared.tokens > 10 * (len(HEADER) - 8)


def test_equal_prompts_share_all_but_a_token() -> None:
    prompts = [HEADER] * 10

    assert (
        texts_of(write(tiny("llama"), prompts, Sampling(6)))
        == [by_transformers(tiny("llama"), characters(), HEADER, 6)] * 10
    )


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([[1] * 70 + [2], [1] * 70 + [3, 4]], 70),
        ([[1] * 64 + [2], [1] * 64 + [3]], 0),  # 64 tokens are what a header must save
        ([[1] * 65 + [2], [1] * 65 + [3]], 65),
        ([[1] * 40, [1] * 40, [1] * 40], 39),
        ([[1] * 200], 0),
        ([[1] * 90, [1] * 90, [2]], 0),
    ],
)
def test_what_all_prompts_begin_with(rows: list[list[int]], length: int) -> None:
    waiting: Any = [module.Prompt(index, row, None) for index, row in enumerate(rows)]

    assert list(_header(waiting)) == rows[0][:length]


# ---- sampling ----


def test_sampling_follows_its_seed_and_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    draws = [texts_of(write(tiny("llama"), PROMPTS, Sampling(10, temperature=1.0, seed=seed))) for seed in (0, 0, 1)]

    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_keys_tell_equal_prompts_apart() -> None:
    sampling = Sampling(10, temperature=1.0)

    same = texts_of(write(tiny("llama"), ["a:"] * 3, sampling))
    apart = texts_of(write(tiny("llama"), ["a:"] * 3, sampling, keys=("x", "y", "z")))
    turned = texts_of(write(tiny("llama"), ["a:"] * 3, sampling, keys=("z", "x", "y")))

    assert len(set(same)) == 1
    assert len(set(apart)) == 3
    assert turned == [apart[2], apart[0], apart[1]]


def test_a_tiny_nucleus_is_greedy() -> None:
    greedy = write(tiny("llama"), PROMPTS, Sampling(8))

    assert write(tiny("llama"), PROMPTS, Sampling(8, temperature=1.0, top_p=1e-9)) == greedy


# ---- where answers end ----


@pytest.mark.parametrize(("kind", "kernel"), [("llama", "sdpa"), ("bloom", "eager")])
def test_a_stop_string_ends_an_answer_and_is_left_out(kind: str, kernel: str) -> None:
    model = tiny(kind, kernel)
    plain = write(model, PROMPTS, Sampling(16))
    stops = tuple(answer.text[3:6] for answer in plain if len(answer.text) > 8)[:3]  # three tokens each

    stopped = write(model, PROMPTS, Sampling(16, stops))

    for whole, cut in zip(plain, stopped, strict=True):
        ends = [whole.text.find(stop) for stop in stops if stop in whole.text]
        assert cut.text == (whole.text[: min(ends)] if ends else whole.text)
        assert cut.tokens <= whole.tokens
    assert sum(cut.tokens < whole.tokens for whole, cut in zip(plain, stopped, strict=True)) >= 3


def test_an_end_token_ends_an_answer() -> None:
    """The token that this model writes second after this prompt is made an end token."""
    model = copy.deepcopy(tiny("llama"))
    [plain] = write(model, ["some words:"], Sampling(6))
    model.generation_config.eos_token_id = [2, characters()(plain.text[1])["input_ids"][0]]

    [ended] = write(model, ["some words:"], Sampling(6))

    assert ended.text == plain.text[:1]
    assert ended.tokens == len("some words:") + 2


def test_tokens_read_and_written_are_counted() -> None:
    [answer] = write(tiny("llama"), ["abc"], Sampling(5))

    assert (answer.tokens, answer.truncated) == (8, False)


# ---- too long for the model ----


@pytest.mark.parametrize(("kind", "kernel"), [("llama", "sdpa"), ("gpt2", "sdpa")])
def test_prompts_that_are_too_long_are_cut_from_the_left(kind: str, kernel: str) -> None:
    room = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    model = tiny(kind, kernel, **{room: 32})
    prompts = ["abcdefgh" * 6, "a" * 25, "bcdefgha" * 3, "ab"]  # 48, 25, 24 and 2 tokens; 24 leave room for 8

    ours = write(model, prompts, Sampling(8))

    assert texts_of(ours) == [by_transformers(model, characters(), prompt, 8, 24) for prompt in prompts]
    assert [answer.truncated for answer in ours] == [True, True, False, False]


@pytest.mark.parametrize("prompts", [["a" * 18, "b" * 15], [HEADER + letters for letters in ("a", "bcd", "efghi")]])
def test_padding_needs_no_positions_that_the_model_lacks(prompts: list[str]) -> None:
    """Rows and what follows a header are padded to a multiple of eight, maybe past the last learnt position."""
    model = tiny("gpt2", n_positions=max(map(len, prompts)) + 2)

    assert texts_of(write(model, prompts, Sampling(2))) == [
        by_transformers(model, characters(), prompt, 2) for prompt in prompts
    ]


@pytest.mark.parametrize(
    ("kind", "kernel", "room"), [("gpt2", "sdpa", 16), ("llama", "sdpa", 64), ("bloom", "eager", 16)]
)
def test_an_answer_that_fills_the_model_ends_there(
    kind: str, kernel: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for more tokens than the model has places, it writes what fits behind half a model of prompt."""
    changes = {"gpt2": {"n_positions": room}, "llama": {"max_position_embeddings": room}}
    model = tiny(kind, kernel, **changes.get(kind, {}))
    if kind == "bloom":
        monkeypatch.setattr(module, "max_length", lambda model: room)
    prompts = ["abcd", "abcdefghijkl" * 6, "ab" * 40, "some words:", "b"]
    kept = [min(len(prompt), room // 2) for prompt in prompts]

    ours = write(model, prompts, Sampling(200))

    assert [answer.truncated for answer in ours] == [len(prompt) > room // 2 for prompt in prompts]
    for prompt, answer, read in zip(prompts, ours, kept, strict=True):
        # The last token that is written needs no place.
        assert answer.text == by_transformers(model, characters(), prompt, room + 1 - read, room // 2)
    assert max(answer.tokens for answer in ours) == room + 1


# ---- refusals ----


def test_no_prompts_no_answers() -> None:
    assert write(tiny("llama"), [], Sampling(4)) == []


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match="needs at least one"):
        write(tiny("llama"), ["a", ""], Sampling(4))


@pytest.mark.parametrize(("kind", "kernel"), [("llama", "sdpa"), ("bloom", "eager")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_gives_nan_is_an_error_and_not_an_answer(kind: str, kernel: str, temperature: float) -> None:
    model = copy.deepcopy(tiny(kind, kernel))
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))

    with pytest.raises(ModelError, match="NaN"):
        write(model, ["a"], Sampling(4, temperature=temperature))


def test_the_global_state_of_the_model_stays() -> None:
    model = tiny("llama")
    write(model, PROMPTS, Sampling(4))

    assert not model.get_output_embeddings()._forward_pre_hooks
    assert model.config.use_cache
