from __future__ import annotations

import random
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.models.stages.nets import WIDTH, Block, Shell, drawn, mlp
from tests.models.tiny import tiny
from uphold.core.errors import UsageError
from uphold.models.fingerprint import module_fingerprint
from uphold.models.stages.split import run
from uphold.models.stages.stages import Stages, compose

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
IDS = torch.arange(4, 22).view(2, 9)


def weights(model: nn.Module) -> str:
    return str(module_fingerprint(model, "")["weights"])


def assert_partition(stages: Stages) -> None:
    """Every parameter and buffer belongs to exactly one stage."""
    owned = [id(tensor) for stage in range(stages.count) for tensor in stages.tensors(stage).values()]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(tensor) for tensor in stages.model.state_dict(keep_vars=True).values()}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.randoms())
def test_split_and_assemble_is_the_identity_and_the_order_of_loading_does_not_matter(
    counts: list[int], order: random.Random
) -> None:
    stages = drawn(tuple(counts))
    assert stages.depths[1:-1] == tuple(counts[1:-1])
    assert_partition(stages)
    assert weights(compose([stages] * stages.count).model) == weights(stages.model)

    other = drawn(tuple(counts), seed=1)
    assert not set(other.hashes) & set(stages.hashes)
    numbers = list(range(stages.count))
    order.shuffle(numbers)
    for stage in numbers:
        other.load(stage, stages.tensors(stage))
    assert (weights(other.model), other.hashes) == (weights(stages.model), stages.hashes)
    assert other.digest == stages.digest


def test_a_sequential_owns_its_stem_in_the_first_stage_and_norm_and_head_in_the_last() -> None:
    stages = drawn((2, 1, 2))

    assert stages.starts == (0, 3, 4)
    assert {name.split(".")[1] for name in stages.tensors(0)} == {"0", "1", "2"}
    assert "blocks.0.weight" in stages.tensors(0)
    assert stages.tensors(2)["blocks.3.weight"] is stages.model[7].weight
    assert stages.tensors(2)["blocks.2.bias"] is stages.model[6].bias


def test_a_stage_keeps_its_hash_in_a_model_of_other_depth() -> None:
    small, deep = drawn((1, 1, 1)), drawn((1, 4, 1), seed=1)

    hybrid = compose([small, deep, small])

    assert hybrid.hashes == (small.hash(0), deep.hash(1), small.hash(2))
    assert hybrid.depths == (2, 4, 3)
    assert compose([hybrid] * 3).digest == hybrid.digest


def test_a_shell_is_cut_by_what_is_called_when_and_not_by_what_is_registered_when() -> None:
    stages = Stages.by_counts(Shell(4), [1, 3], sample=X)

    assert (stages.blocks, stages.late) == ("layers", ("final", "head"))
    assert_partition(stages)
    assert {name for name in stages.tensors(0) if name.startswith("shell.")} == {
        "shell.place",
        "shell.embed.weight",
        "shell.embed.bias",
    }
    hybrid = compose([stages, Stages.by_counts(Shell(2), [1, 1], sample=X)])
    assert len(hybrid.model.layers) == 2
    assert hybrid.hashes[0] == stages.hash(0)
    with pytest.raises(UsageError, match=r"Shell has modules around its blocks: give a batch of inputs"):
        Stages.by_counts(Shell(4), [1, 3])


def test_ratios_give_counts_by_largest_remainders_and_at_least_one_each() -> None:
    def depths(*ratios: float) -> list[int]:
        edges = (*Stages.by_ratios(mlp((8,)), ratios).starts[1:], 9)
        return [edges[0] - 1, *(end - start for start, end in pairwise(edges))]

    assert depths(1, 1, 1, 1) == [2, 2, 2, 2]
    assert depths(1, 3) == [3, 5]
    assert depths(1, 1000) == [1, 7]
    assert depths(0.5) == [8]
    for wrong in ([], [1, 0], [1, float("nan")], [1] * 9):
        with pytest.raises(UsageError, match=r"cannot cut 8 blocks by"):
            Stages.by_ratios(mlp((8,)), wrong)


def test_names_cut_anywhere() -> None:
    stages = Stages.at(mlp((4,)), ["1", "4"])
    assert stages.starts == (0, 1, 4)
    assert_partition(stages)

    named = nn.Sequential(
        OrderedDict(stem=nn.Linear(4, WIDTH), first=Block(), second=Block(), head=nn.Linear(WIDTH, 3))
    )
    cut = Stages.at(named, ["first", "head"])
    assert cut.depths == (1, 2, 1)
    assert list(compose([cut] * 3).model.state_dict()) == list(named.state_dict())

    whole = Stages.at(named, [])
    assert whole.count == 1

    for names in (["4", "1"], ["1", "1"], ["0"]):
        with pytest.raises(UsageError, match=r"stages that start at blocks"):
            Stages.at(mlp((4,)), names)
    with pytest.raises(UsageError, match=r"'9' is no place to cut: expected blocks such as '0'"):
        Stages.at(mlp((4,)), ["9"])
    with pytest.raises(UsageError, match=r"no module 'nowhere'"):
        Stages.at(mlp((4,)), ["nowhere.3"])


def test_embeddings_and_head_of_a_decoder_can_be_stages_of_their_own() -> None:
    model = tiny("llama", tie_word_embeddings=False)
    stages = Stages.at(model, ["model.layers.0", "model.layers.1", "model.norm"])

    assert stages.depths == (0, 1, 1, 0)
    assert list(stages.tensors(0)) == ["shell.model.embed_tokens.weight"]
    assert set(stages.tensors(3)) == {"shell.model.norm.weight", "shell.lm_head.weight"}
    assert_partition(stages)
    for names in (
        ["model.norm", "model.layers.1"],
        ["model.layers.0", "lm_head.x"],
        ["model.layers.0", "model.embed_tokens"],
    ):
        with pytest.raises(UsageError, match=r"is no place to cut|has no module|start at blocks"):
            Stages.at(model, names)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "falcon-alibi", "mamba"])
@pytest.mark.parametrize("tied", [False, True])
def test_decoders_of_many_families(kind: str, tied: bool) -> None:
    model = tiny(kind, "eager" if kind == "mamba" else "sdpa", tie_word_embeddings=tied)
    stages = Stages.by_counts(model, [1, 1])

    assert_partition(stages)
    assert len(stages.shared) == tied
    made = compose([stages, stages])
    assert weights(made.model) == weights(model)
    with torch.no_grad():
        # Some kernels of Mamba round by where in memory a tensor lies.
        assert torch.allclose(run(made.model, IDS), run(model, IDS), atol=1e-5 if kind == "mamba" else 0, rtol=0)
    assert made.model.config.num_hidden_layers == 2


def test_tied_embeddings_belong_to_the_first_stage_and_stay_tied() -> None:
    one, other = (Stages.by_counts(tiny("llama", tie_word_embeddings=True), [1, 1]) for _ in range(2))
    other = other.copied()
    with torch.no_grad():
        other.model.model.embed_tokens.weight.mul_(2)

    (shared,) = one.shared
    assert (shared.owner, shared.aliases) == (0, ("model.embed_tokens.weight", "lm_head.weight"))
    assert shared.name in one.tensors(0)
    assert "shell.lm_head.weight" not in one.tensors(1)
    assert shared.name not in one.parameters(0)
    made = compose([one, other])
    assert made.model.lm_head.weight is made.model.model.embed_tokens.weight
    assert torch.equal(made.model.lm_head.weight, one.model.lm_head.weight)
    assert one.model.lm_head.weight is one.model.model.embed_tokens.weight


def test_kinds_of_layers_come_with_the_layers() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    # By a pattern, since `tiny` takes no lists.
    stages = Stages.by_counts(tiny("gemma3", num_hidden_layers=4, sliding_window_pattern=2), [2, 2])
    small = Stages.by_counts(tiny("gemma3", num_hidden_layers=2, sliding_window_pattern=2), [1, 1])
    assert stages.model.config.layer_types == kinds

    made = compose([stages, small])

    assert made.model.config.layer_types == [*kinds[:2], "full_attention"]
    assert made.model.config.num_hidden_layers == 3
    assert [layer.self_attn.layer_idx for layer in made.model.model.layers] == [0, 1, 2]
    assert [layer.self_attn.layer_idx for layer in small.model.model.layers] == [0, 1]
    assert (stages.model.config.num_hidden_layers, small.model.config.num_hidden_layers) == (4, 2)


def test_a_stage_of_its_own_is_the_only_one_that_has_weights_of_its_own() -> None:
    source, fresh = drawn((1, 1, 1)), drawn((1, 2, 1), seed=1)
    made = compose([source, fresh, source], own=1)

    for stage, tensors in ((stage, made.tensors(stage)) for stage in range(3)):
        origin = (fresh if stage == 1 else source).tensors(stage)
        for name, value in tensors.items():
            assert value.requires_grad == (stage == 1)
            assert (value.data_ptr() == origin[name].data_ptr()) == (stage != 1)
    assert all(value.requires_grad for value in source.model.parameters())


class Unused(Shell):
    def __init__(self) -> None:
        super().__init__(2)
        self.spare = nn.Linear(2, 2)


class Around(Shell):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.embed(x)[:, :4] + 0 * self.final(self.embed(x))[:, :4])


class Between(Shell):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.place
        for layer in self.layers:
            x = self.final(layer(x))
        return self.head(x)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.ModuleList([Block(), Block()]) for _ in range(2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 3), r"Linear has no list of blocks: expected an nn\.Sequential"),
        (Unused(), r"'spare' has weights and is never called"),
        (Around(2), r"'final' is called after and before the blocks: such a model cannot be cut"),
        (Between(2), r"'final' is called after and between the blocks"),
        (Pair(), r"blocks could be 'one' or 'other': name one"),
    ],
)
def test_what_cannot_be_cut_is_refused(model: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Stages.by_counts(model, [1, 1], sample=X)


def test_wrong_counts_and_shapes_are_refused() -> None:
    for counts in ([1, 1], [0, 4], [], [5, -1]):
        with pytest.raises(UsageError, match=r"has 4 blocks, and the stages have"):
            Stages.by_counts(mlp((4,)), counts)
    with pytest.raises(UsageError, match=r"'0' is no list of blocks"):
        Stages.by_counts(mlp((4,)), [4], blocks="0")
    with pytest.raises(
        UsageError, match=r"stage 1 does not fit: blocks\.1\.\S+ is \(8,\) \S+ in the module and absent"
    ):
        drawn((2, 2)).load(1, drawn((2, 1)).tensors(1))
    with pytest.raises(UsageError, match=r"is \(4,\) torch.float32 in the module and \(8,\)"):
        drawn((1, 1)).load(1, Stages.by_counts(mlp((1, 1), width=4), [1, 1]).tensors(1))
    with pytest.raises(UsageError, match=r"a model of 3 stages cannot give one of 2: cut both alike"):
        compose([drawn((1, 1)), drawn((1, 1, 1))])
    with pytest.raises(UsageError, match=r"models of two shapes"):
        compose([drawn((1, 1)), Stages.by_counts(Shell(2), [1, 1], sample=X)])
