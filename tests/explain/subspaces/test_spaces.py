import pytest
import torch
from torch import nn

from tests.models.sites.small import decoder, layout_of
from uphold.core.errors import ModelError, UsageError
from uphold.explain.subspaces.directions import random_subspace
from uphold.explain.subspaces.spaces import next_map, reader_map, row_space, split
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import read_layout
from uphold.models.sites.run import read
from uphold.models.sites.site import parse_site


@pytest.mark.parametrize("k", [1, 3, 12])
def test_a_split_adds_up_and_its_parts_are_apart(k: int) -> None:
    weight = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = random_subspace(12, k, seed=1)
    parts = split(basis, row_space(weight))
    torch.testing.assert_close(parts.row + parts.null, basis)
    assert float((parts.row.T @ parts.null).abs().max()) < 1e-12
    assert float((parts.null.T @ weight).abs().max()) < 1e-12
    assert float((parts.null_basis.T @ weight).abs().max()) < 1e-10
    torch.testing.assert_close(parts.row.square().sum() + parts.null.square().sum(), torch.tensor(float(k)).double())
    assert parts.row_share == pytest.approx(float(parts.row.square().sum()) / k)
    assert parts.row_basis.shape[1] == min(k, 5)


def test_one_direction_has_its_length_as_cosine() -> None:
    weight = torch.tensor([[0.0], [2.0], [1.0]])
    parts = split(torch.tensor([[0.0], [0.0], [1.0]]), row_space(weight))
    assert parts.cosines == (pytest.approx(0.2**0.5),)
    assert parts.row[:, 0].tolist() == pytest.approx([0, 0.4, 0.2])


def test_a_direction_that_is_only_numerically_alive_counts_as_dead() -> None:
    weight = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    weight = weight - weight.mean(1, keepdim=True)  # centred: rank 5 but for rounding
    assert row_space(weight).rank == 5
    assert row_space(weight, tolerance=0).rank == 6
    assert row_space(weight.bfloat16().float(), tolerance=1e-2).tolerance == 1e-2


def test_a_subspace_in_the_kernel_has_no_row_part() -> None:
    weight = torch.tensor([[1.0], [0.0], [0.0]])
    parts = split(torch.tensor([[0.0], [1.0], [0.0]]), row_space(weight))
    assert parts.row_basis.shape == (3, 0)
    assert parts.cosines == (0.0,)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "phi3"])
@pytest.mark.parametrize("name", ["hidden.1", "head.1.2"])
def test_the_next_map_is_what_the_module_does(family: str, name: str) -> None:
    layout, site = layout_of(family), parse_site(name)
    weight, path = next_map(layout, site)
    place = layout.place(site)
    assert path == place.path
    inputs = torch.randn(2, 64 if name == "hidden.1" and family != "gpt2" else (128 if name == "hidden.1" else 32))
    moved = inputs.clone()
    part = moved[..., place.start : place.stop] if place.stop else moved
    change = torch.randn_like(part)
    part += change
    with torch.no_grad():
        torch.testing.assert_close(place.module(moved) - place.module(inputs), change @ weight, atol=1e-5, rtol=1e-4)


def test_the_map_of_a_module_that_carries_an_adapter_has_the_adapter_in_it() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer, self.more = nn.Linear(6, 4), nn.Linear(6, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.base_layer(x) + self.more(x)
            return out

    net = nn.Sequential(Adapted())
    weight, _ = next_map(read_layout(net), parse_site("module<0"))
    adapted = net[0]
    assert isinstance(adapted, Adapted)
    torch.testing.assert_close(weight, (adapted.base_layer.weight + adapted.more.weight).T, atol=1e-6, rtol=1e-5)


def test_a_module_that_is_not_linear_is_refused() -> None:
    class Bent(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    with pytest.raises(ModelError, match="not linear"):
        next_map(read_layout(nn.Sequential(Bent(6, 4))), parse_site("module<0"))


def test_the_residual_stream_has_no_single_next_map() -> None:
    with pytest.raises(UsageError, match="readers="):
        next_map(layout_of("gpt2"), parse_site("residual.1"))


@pytest.mark.parametrize(
    ("family", "norm"), [("gpt2", "transformer.h.2.ln_1"), ("llama", "model.layers.2.input_layernorm")]
)
def test_what_readers_do_not_see_does_not_reach_them(family: str, norm: str) -> None:
    torch.manual_seed(0)
    layout = layout_of(family)
    module = layout.model.get_submodule(norm)
    before = module.weight.detach().clone()
    try:
        module.weight.data.uniform_(0.5, 2)
        weight, name = reader_map(layout, [("query.2.0", norm), ("query.2.3", norm)])
        assert weight.shape == (32, 16)
        assert name == "query.2.0 + query.2.3"
        dead = split(random_subspace(32, 1, 0), row_space(weight)).null_basis.float()
        sites = [parse_site("query.2.0"), parse_site("query.2.3"), parse_site("query.2.1")]
        ids = {"input_ids": torch.randint(3, 50, (2, 5))}
        moved = Edit(parse_site("residual.1"), lambda old: _same_length(old, dead[:, 0], family))
        clean, _ = read(layout, ids, sites)
        found, _ = read(layout, ids, sites, [moved])
    finally:
        module.weight.data.copy_(before)
    for site in sites[:2]:
        torch.testing.assert_close(found[site], clean[site], atol=1e-5, rtol=1e-4)
    assert float((found[sites[2]] - clean[sites[2]]).abs().max()) > 1e-2


def _same_length(old: torch.Tensor, dead: torch.Tensor, family: str) -> torch.Tensor:
    """Reflected along the direction: the norm divides by the same number."""
    centred = old - old.mean(-1, keepdim=True) if family == "gpt2" else old
    direction = dead - dead.mean() if family == "gpt2" else dead
    return old - 2 * (centred @ direction)[..., None] * direction / direction.square().sum()


def test_a_reader_must_be_an_output() -> None:
    with pytest.raises(UsageError, match="expected an output"):
        reader_map(layout_of("gpt2"), [("hidden.1", "")])
    with pytest.raises(UsageError, match="no reader"):
        reader_map(layout_of("gpt2"), [])
    assert decoder("gpt2").training is False
