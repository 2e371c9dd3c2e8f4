from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.neurons.test_neurons import neox
from tests.models.tiny import tiny
from tests.models.toy_lm import Toy
from uphold.core.errors import ModelError, UsageError
from uphold.models.neurons.attribution import candidates, neuron_scores
from uphold.models.neurons.context import Context, Trial, forward
from uphold.models.neurons.neurons import Down, read_anatomy

IDS = [5, 9, 17, 4, 30, 22, 11, 8]
KINDS = ["llama", "gpt2", "qwen2", "gemma3", "bloom", "neox", "falcon-alibi"]


def model_of(kind: str) -> Any:
    return neox() if kind == "neox" else tiny(kind, "eager" if kind == "bloom" else "sdpa")


def trial(down: Down, index: int, seed: int) -> Trial:
    column = torch.randn(down.hidden, generator=torch.Generator().manual_seed(seed))
    return Trial(down, index, column, column - down.neuron(index))


@pytest.mark.parametrize("layers", ["half", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_trying_a_neuron_is_patching_it(kind: str, layers: Any) -> None:
    model = model_of(kind)
    anatomy = read_anatomy(model)
    context = Context(anatomy, IDS, anatomy.selected(layers))
    with torch.no_grad():
        plain = model(torch.tensor([IDS])).logits[0, -1]
    assert torch.allclose(context.logits(), plain, atol=1e-5)
    trials = [trial(down, index, index) for down in context.downs for index in (3, 20)]
    simulated = context.simulate(trials)
    for one, logits in zip(trials, simulated, strict=True):
        kept = one.down.neuron(one.index).clone()
        one.down.neuron(one.index).copy_(one.column)
        with torch.no_grad():
            applied = model(torch.tensor([IDS])).logits[0, -1]
        assert torch.allclose(context.logits(), applied, atol=1e-4)
        one.down.neuron(one.index).copy_(kept)
        assert not torch.allclose(applied, plain, atol=1e-2)
        assert torch.allclose(logits, applied, atol=1e-4)
    assert torch.allclose(context.logits(), plain, atol=1e-5)


def test_lower_blocks_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    anatomy = read_anatomy(model)
    context = Context(anatomy, IDS, anatomy.selected("half"))
    calls = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    context.simulate([trial(context.downs[0], index, 0) for index in range(5)])
    context.gradients(lambda logits: logits[3])
    assert not calls
    model(torch.tensor([IDS]))
    handle.remove()
    assert calls == [1]
    assert "forward" not in vars(model.model.layers[0])


def test_many_trials_are_cut_into_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = read_anatomy(tiny("llama"))
    context = Context(anatomy, IDS, anatomy.downs)
    trials = [trial(anatomy.downs[index % 2], index, index) for index in range(9)]
    whole = context.simulate(trials)
    monkeypatch.setattr("uphold.models.neurons.context.BATCH_TOKENS", 20)
    assert torch.allclose(context.simulate(trials), whole, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_are_those_of_the_input_of_the_down_projection(kind: str, frozen: bool) -> None:
    model = tiny(kind)
    anatomy = read_anatomy(model)
    model.requires_grad_(not frozen)
    context = Context(anatomy, IDS, anatomy.downs)
    pairs = context.gradients(lambda logits: logits.log_softmax(-1)[7])
    model.requires_grad_(True)
    assert all(parameter.grad is None for parameter in model.parameters())
    for down, (activation, gradient) in zip(anatomy.downs, pairs, strict=True):
        assert activation.shape == gradient.shape == (len(IDS), down.width)
        # Scaling a neuron by 1 + e is scaling its activation everywhere.
        index, step = 6, 1e-2
        kept = down.neuron(index).clone()
        values = []
        for sign in (1, -1):
            down.neuron(index).copy_(kept * (1 + sign * step))
            values.append(float(context.logits().log_softmax(-1)[7]))
            down.neuron(index).copy_(kept)
        expected = float((activation[:, index] * gradient[:, index]).sum())
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_a_gated_neuron_is_active_by_gate_times_up() -> None:
    model = tiny("llama")
    anatomy = read_anatomy(model)
    seen = []
    mlp = model.model.layers[1].mlp
    handle = mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    context = Context(anatomy, IDS, anatomy.selected("half"))
    [(activation, _)] = context.gradients(lambda logits: logits[3])
    handle.remove()
    with torch.no_grad():
        expected = mlp.act_fn(mlp.gate_proj(seen[-1])) * mlp.up_proj(seen[-1])
    assert torch.allclose(activation, expected[0], atol=1e-6)


def test_scores_are_norms_of_activation_times_gradient_over_positions() -> None:
    anatomy = read_anatomy(tiny("llama"))
    context = Context(anatomy, IDS, anatomy.downs)
    generator = torch.Generator().manual_seed(0)
    scores = neuron_scores(context, 7, "attribution", generator)
    for score, (activation, gradient) in zip(
        scores, context.gradients(lambda logits: logits.softmax(-1)[7]), strict=True
    ):
        by_probability = (activation * gradient).norm(dim=0)
        ratio = score / by_probability
        assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-2)
    found = candidates(context, 7, 10, "attribution", generator)
    everything = torch.cat(list(scores)).sort(descending=True).values[:10]
    assert [one.score for one in found] == pytest.approx(everything.tolist())
    assert all(float(scores[one.down.layer][one.index]) == pytest.approx(one.score) for one in found)


def test_random_candidates_follow_the_seed() -> None:
    anatomy = read_anatomy(tiny("llama"))
    context = Context(anatomy, IDS, anatomy.downs)

    def drawn(seed: int) -> list[tuple[int, int]]:
        found = candidates(context, 7, 10, "random", torch.Generator().manual_seed(seed))
        return [(one.down.layer, one.index) for one in found]

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("locate", ["attribution", "activation"])
def test_a_neuron_that_is_never_active_is_no_candidate(locate: Any) -> None:
    toy = Toy(neurons=4)
    toy.blocks[0].up.bias.data[2] = -100
    anatomy = read_anatomy(toy, head="head")
    context = Context(anatomy, [3, 5], anatomy.downs)
    found = candidates(context, 1, 10, locate, torch.Generator())
    assert 2 not in [one.index for one in found]
    gone = context.simulate([trial(anatomy.downs[0], 2, 0)])
    assert torch.equal(gone[0], context.logits())


def test_unknown_tokens_are_cut_off_and_long_rows_refused() -> None:
    anatomy = read_anatomy(tiny("gpt2"), vocabulary=40)
    assert forward(anatomy, torch.tensor([IDS])).shape == (1, len(IDS), 40)
    with pytest.raises(UsageError, match="257 tokens, but the model reads at most 256"):
        forward(anatomy, torch.zeros(1, 257, dtype=torch.long))
    toy = Toy()
    toy.head.weight.data[0] = torch.nan
    with pytest.raises(ModelError, match="not numbers"):
        forward(read_anatomy(toy, head="head"), torch.tensor([[1, 2]]))
