import pytest
import torch

from tests.models.sites.small import CONFIGS, decoder, inputs, layout_of
from uphold.core.errors import UsageError
from uphold.models.sites.layout import read_layout
from uphold.models.sites.run import read
from uphold.models.sites.site import Site, parse_site
from uphold.models.sites.weights import part_of, regions, train_only


@pytest.mark.parametrize("family", CONFIGS)
def test_changing_a_heads_regions_changes_that_head_only(family: str) -> None:
    layout = layout_of(family)
    heads = [Site("head", 2, head) for head in range(4)]
    before, _ = read(layout, inputs(0), [*heads, Site("attention", 1)])
    parameters = dict(layout.model.named_parameters())
    saved = {name: value.detach().clone() for name, value in parameters.items()}
    found = regions(layout, heads[1])
    with torch.no_grad():
        for region in found:
            region.of(parameters[region.parameter]).mul_(1.5).add_(0.1)
    after, _ = read(layout, inputs(0), [*heads, Site("attention", 1)])
    with torch.no_grad():
        for name, value in saved.items():
            parameters[name].copy_(value)
    for site in (heads[0], heads[2], heads[3], Site("attention", 1)):
        torch.testing.assert_close(after[site], before[site])
    assert not torch.allclose(after[heads[1]], before[heads[1]])


def test_parts_are_whole_modules() -> None:
    layout = layout_of("llama")
    names = {region.parameter for region in regions(layout, Site("mlp", 1))}
    assert names == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert {region.parameter for region in regions(layout, Site("hidden", 1))} == names
    assert len(regions(layout, Site("attention", 0))) == 4
    assert len(regions(layout, Site("residual", 0))) == 9
    assert part_of(layout, Site("head", 3, 0)) == "model.layers.3.self_attn"
    with pytest.raises(UsageError, match="name one of the blocks' sites"):
        regions(layout, Site("residual", -1))


def test_only_what_computes_the_sites_is_trained() -> None:
    model = type(decoder("llama"))(decoder("llama").config)
    train_only(model, [parse_site("mlp.2"), parse_site("head.0.1")])
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {".".join(name.split(".")[2:4]) for name in trained} == {"2.mlp", "0.self_attn"}
    with pytest.raises(UsageError, match=r"site mlp.1: the adapter has nothing to train in model.layers.1.mlp"):
        train_only(model, [parse_site("mlp.1")])
    assert read_layout(model).layers == 4
