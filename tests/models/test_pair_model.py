from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny import characters, texts, tiny
from uphold.core.errors import ModelError, UsageError
from uphold.models.attention import attention_window, max_length, reads_masks, reads_padding
from uphold.models.decoding import Sampling
from uphold.models.encode import Encoder
from uphold.models.engine import Meter
from uphold.models.generate import GenerationEngine
from uphold.models.likelihood import LikelihoodEngine
from uphold.models.load import Loaded
from uphold.models.pair_file import Averaging, Gating, Parameters, Reranking
from uphold.models.pair_model import Gate, ModelPair, averaged, fused, heard

QUESTIONS = [[(text + ":", text[::-1]), (text + ":", "ab"), (text + ":", "z")] for text in texts(12, 9)]
PROMPTS = [text + ":" for text in texts(10, 9, seed=1)]


EAGER = ("mamba", "gemma2")
"""Architectures without another kernel."""


def model(kind: str, attention: str = "sdpa", **changes: Any) -> Any:
    return tiny(kind, "eager" if kind in EAGER else attention, **changes)


def member(kind: str, **changes: Any) -> Loaded:
    fingerprint = {"weights": kind, "config": str(changes), "tokenizer": "characters", "adapter": None}
    return Loaded(model(kind, **changes), characters(), kind, fingerprint, None)


def pair(how: Parameters, old: str = "gpt2", new: str = "llama", gate: Gate | None = None) -> Any:
    return ModelPair(member(old), member(new), how, gate).eval()


def tokens_of(text: str) -> list[int]:
    return list(characters()(text)["input_ids"])


def plain(single: Any, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities after every token of a row, read alone."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        return single(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)


# ---- mixing, by hand ----


def test_an_average_of_probabilities_by_hand() -> None:
    old, new = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]]).log()
    torch.testing.assert_close(averaged(old, new, 0.25).exp(), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(averaged(old + 3, new - 7, 0.25).exp(), torch.tensor([[0.5, 0.5]]))
    assert averaged(old, new, 1.0) is old
    assert averaged(old, new, 0.0) is new


@given(share=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_an_average_is_a_distribution_between_its_parts(share: float, seed: int) -> None:
    old, new = 5 * torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(seed))
    mixed = averaged(old, new, share).softmax(-1)
    parts = torch.stack([old.softmax(-1), new.softmax(-1)])
    torch.testing.assert_close(mixed, share * parts[0] + (1 - share) * parts[1], atol=1e-5, rtol=1e-4)
    assert bool((mixed <= parts.amax(0) + 1e-6).all())
    assert bool((mixed >= parts.amin(0) - 1e-6).all())


def test_fused_logits_by_hand() -> None:
    old, new = torch.tensor([[4.0, 0.0], [4.0, 0.0]]), torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    fusion = fused(old, new, torch.tensor([0.75, 1.0]), 2.0)
    torch.testing.assert_close(fusion, torch.tensor([[1.25, 2.25], [1.0, 3.0]]))


def test_a_fresh_gate_is_one_half_an_open_one_is_one() -> None:
    gate, hidden = Gate(8, 4), torch.randn(5, 8)
    assert gate(hidden).tolist() == [0.5] * 5
    with gate.open():
        assert gate(hidden).tolist() == [1.0] * 5
    assert gate(hidden).tolist() == [0.5] * 5
    state = torch.random.get_rng_state()
    assert torch.equal(Gate(8, 4, seed=3).inner.weight, Gate(8, 4, seed=3).inner.weight)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- as one model ----


@pytest.mark.parametrize(
    ("old", "new"), [("gpt2", "llama"), ("llama", "gpt2"), ("mistral", "llama"), ("llama", "mamba")]
)
def test_option_likelihoods_are_those_of_the_mixture_token_by_token(old: str, new: str) -> None:
    """Trees, headers and caches where both models take them, plain rows where one does not."""
    both = pair(Averaging(0.3), old, new)
    scored = LikelihoodEngine(both, Encoder(characters()), 256, Meter()).score(QUESTIONS)
    for question, one in zip(QUESTIONS, scored, strict=True):
        for (context, continuation), option in zip(question, one.options, strict=True):
            first, last = len(context), len(context) + len(continuation)
            ids = tokens_of(context + continuation)
            mixed = averaged(plain(model(old), ids), plain(model(new), ids), 0.3)
            expected = sum(float(mixed[at - 1, ids[at]]) for at in range(first, last))
            assert option.logprob == pytest.approx(expected, abs=2e-4)
            assert option.greedy == all(int(mixed[at - 1].argmax()) == ids[at] for at in range(first, last))


def test_it_takes_masks_and_padding_where_both_models_do() -> None:
    assert reads_masks(pair(Averaging()))
    assert reads_padding(pair(Averaging()))
    assert not reads_masks(pair(Averaging(), "llama", "mamba"))


def test_its_configuration_is_the_narrower_of_both() -> None:
    made: Any = ModelPair(member("llama", max_position_embeddings=64), member("mistral", vocab_size=60), Averaging())
    assert (max_length(made), attention_window(made)) == (64, 6)
    assert made.config.vocab_size == tiny("llama").config.vocab_size
    assert made(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2, tiny("llama").config.vocab_size)
    eager: Any = ModelPair(member("llama", attention="eager"), member("gpt2"), Averaging())
    assert eager.config._attn_implementation == "eager"
    assert reads_masks(eager)


def greedy_by_hand(both: tuple[Any, Any], prompt: str, count: int) -> str:
    start = tokens_of(prompt)
    tokens = list(start)
    while len(tokens) < len(start) + count:
        token = int(averaged(plain(both[0], tokens)[-1:], plain(both[1], tokens)[-1:], 0.5).argmax())
        if token == characters().eos_token_id:
            break
        tokens.append(token)
    return str(characters().decode(tokens[len(start) :], skip_special_tokens=True))


@pytest.mark.parametrize(("old", "new"), [("gpt2", "llama"), ("llama", "mistral"), ("llama", "mamba")])
def test_text_is_written_from_the_mixture(old: str, new: str) -> None:
    """In slots, in padded batches (an attention window), and one row at a time (a recurrent model)."""
    both = pair(Averaging(0.5), old, new)
    written = GenerationEngine(both, Encoder(characters()), 512, Meter()).write(PROMPTS, Sampling(12))
    for prompt, one in zip(PROMPTS, written, strict=True):
        assert one.text == greedy_by_hand((model(old), model(new)), prompt, 12)


def test_sampled_text_does_not_depend_on_what_stands_beside_it() -> None:
    engine = GenerationEngine(pair(Averaging(0.5)), Encoder(characters()), 512, Meter())
    sampling = Sampling(8, temperature=1.0, top_p=0.9, seed=3)
    together = engine.write(PROMPTS, sampling)
    assert [engine.write([prompt], sampling)[0].text for prompt in PROMPTS] == [one.text for one in together]


def test_an_answer_ends_where_either_model_ends_it() -> None:
    old, new = member("llama"), member("gpt2")
    assert set(ModelPair(old, new, Averaging()).generation_config.eos_token_id) == {2}


def saturated(value: float) -> Gate:
    gate = Gate(32, 4)
    torch.nn.init.constant_(gate.outer.bias, value)
    return gate


@pytest.mark.parametrize(("bias", "which"), [(100.0, "llama"), (-200.0, "gpt2")])
def test_a_saturated_gate_is_one_of_the_models(bias: float, which: str) -> None:
    engine = LikelihoodEngine(pair(Gating(), gate=saturated(bias)), Encoder(characters()), 256, Meter())
    single = LikelihoodEngine(tiny(which), Encoder(characters()), 256, Meter())
    ours, theirs = engine.score(QUESTIONS), single.score(QUESTIONS)
    if which == "llama":
        assert ours == theirs
    for one, other in zip(ours, theirs, strict=True):
        assert [o.logprob for o in one.options] == pytest.approx([o.logprob for o in other.options], abs=1e-4)


def test_the_gate_hears_what_the_new_models_head_is_given() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.manual_seed(0)
    gate = Gate(32, 4)
    torch.nn.init.normal_(gate.outer.weight)
    with torch.no_grad():
        hidden = tiny("llama").model(input_ids=ids).last_hidden_state[0]
        expected = fused(
            tiny("gpt2")(input_ids=ids).logits[0], tiny("llama")(input_ids=ids).logits[0], gate(hidden), 2.0
        )
        both = pair(Gating(old_temperature=2.0), gate=gate)
        torch.testing.assert_close(both(input_ids=ids).logits[0], expected, atol=1e-5, rtol=1e-4)


def test_only_the_gate_has_parameters_and_hooks_leave_no_trace() -> None:
    both = pair(Gating(), gate=Gate(32, 4))
    assert {name.partition(".")[0] for name, _ in both.named_parameters()} == {"gate"}
    both(input_ids=torch.tensor([[5, 6]]))
    for kind in ("gpt2", "llama"):
        assert not tiny(kind)._forward_hooks
        assert not tiny(kind).get_output_embeddings()._forward_pre_hooks


def test_candidates_are_not_mixed_token_by_token() -> None:
    with pytest.raises(UsageError, match="does not predict token by token"):
        pair(Reranking())(input_ids=torch.tensor([[5, 6]]))


def test_a_model_without_a_head_has_nothing_to_listen_to() -> None:
    class Headless:
        def get_output_embeddings(self) -> None: ...

    with pytest.raises(ModelError, match="hidden states before the output head"), heard(Headless()):
        pass
