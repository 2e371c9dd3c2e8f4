from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.models.stages.nets import WIDTH, Block, Shell, drawn, mlp
from tests.models.tiny import tiny
from uphold.core.errors import UsageError
from uphold.models.stages.boundary import boundaries, check_fit, check_separable, tail
from uphold.models.stages.split import run
from uphold.models.stages.stages import Stages, compose

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
IDS = torch.arange(4, 22).view(2, 9)


def test_a_boundary_holds_what_the_next_stage_reads() -> None:
    stages = drawn((2, 1, 1))
    first, second = boundaries(stages, X)

    with torch.no_grad():
        assert torch.equal(first, stages.model[:3](X))
        assert torch.equal(second, stages.model[3](first))
        assert torch.equal(stages.model[4:](second), stages.model(X))
    assert boundaries(stages, X, upto=1)[0].equal(first)
    assert boundaries(drawn((2,)), X) == []
    assert stages.model.training
    assert not first.requires_grad


def test_reading_boundaries_changes_no_batch_norm() -> None:
    stages = drawn((1, 1), build=lambda depths: mlp(depths, batch_norm=True))
    before = stages.digest
    boundaries(stages, X)
    check_separable(stages, X)
    assert stages.digest == before


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "llama4", "falcon-alibi", "bloom", "mamba"])
def test_a_tail_of_a_decoder_goes_on_from_a_boundary(kind: str) -> None:
    kernel = "eager" if kind in ("gemma2", "bloom", "mamba") else "sdpa"
    stages = Stages.by_counts(tiny(kind, kernel), [1, 1])
    with torch.no_grad():
        expected = run(stages.model, IDS)
    (value,) = boundaries(stages, IDS)

    model, replay = tail(compose([stages, stages]), 1, IDS)
    replay.value = value

    with torch.no_grad():
        made = run(model.eval(), torch.full_like(IDS, 5))
        # Some kernels of Mamba round by where in memory a tensor lies.
        assert torch.allclose(made, expected, rtol=0, atol=1e-5 if kind == "mamba" else 0)
    check_separable(stages, IDS)


def test_a_tail_may_start_behind_embeddings_or_hold_the_head_only() -> None:
    stages = Stages.at(tiny("llama", tie_word_embeddings=True), ["model.layers.0", "model.norm"])
    values = boundaries(stages, IDS)

    with torch.no_grad():
        assert torch.equal(values[0], stages.model.model.embed_tokens(IDS))
        for stage, value in enumerate(values, 1):
            model, replay = tail(compose([stages] * 3), stage, IDS)
            replay.value = value
            assert torch.equal(run(model, IDS.flip(0)), run(stages.model, IDS))
    check_separable(stages, IDS)


def test_ends_that_do_not_fit_are_refused() -> None:
    good, wide = drawn((1, 1)), Stages.by_counts(mlp((1, 1), width=6), [1, 1])

    check_fit([good, drawn((3, 3))], X)
    with pytest.raises(
        UsageError, match=r"stage 0 gives \(3, 8\) float32 and stage 1 of the other model takes \(3, 6\)"
    ):
        check_fit([good, wide], X)
    with pytest.raises(UsageError, match=r"takes \(3, 8\) float64"):
        check_fit([good, Stages(Doubled(), "", (0, 2))], X)
    broken = Stages.by_counts(nn.Sequential(Block(), Block(), nn.Linear(5, 3)), [1, 1])
    with pytest.raises(
        UsageError, match=r"Sequential does not run on a batch of shape \(3, 4\) \(.*\): expected inputs"
    ):
        check_fit([broken, good], X)


class Doubled(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, WIDTH), Upcast(), nn.Linear(WIDTH, 3).double())


class Upcast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


class Skipping(Shell):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x[:, :3]


class Reusing(Shell):
    """The embedding is used again behind the blocks, not as a module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) @ self.embed.weight[:3, :3]


class Telling(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(Texts(), Texts())


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Any) -> Any:
        return "text"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Skipping(2), r"stage 1 reads more than stage 0 gives it"),
        (Reusing(2), r"'embed.weight' of an earlier stage is used in stage 1 too"),
    ],
)
def test_a_model_of_which_something_goes_past_the_boundary_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_separable(Stages.by_counts(model, [1, 1], sample=X), X)
    check_separable(Stages.by_counts(Shell(2), [1, 1], sample=X), X)


def test_blocks_that_return_no_tensor_are_refused() -> None:
    with pytest.raises(UsageError, match=r"a block returns a str: expected a tensor"):
        boundaries(Stages.by_counts(Telling(), [1, 1]), X)
    with pytest.raises(UsageError, match=r"Telling returns a str: expected a tensor, or logits"):
        run(Telling(), X)
