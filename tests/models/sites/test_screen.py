import pytest
import torch
from torch import nn

from tests.models.sites.small import AT, CONFIGS, difference, inputs, layout_of
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import read_layout
from uphold.models.sites.run import read, run
from uphold.models.sites.screen import attributions, gradients
from uphold.models.sites.site import Site


def metric(logits: torch.Tensor) -> torch.Tensor:
    return difference(logits, torch.arange(5))


@pytest.mark.parametrize("family", CONFIGS)
def test_small_patches_do_what_is_estimated(family: str) -> None:
    layout = layout_of(family)
    sites = layout.sites("residual", "head", "key", "mlp", "hidden")
    base, logits = read(layout, inputs(0), sites, at=AT)
    far, _ = read(layout, inputs(1), sites)
    near = {site: base[site] + 1e-3 * (far[site] - base[site]) for site in sites}
    estimated = attributions(layout, inputs(0), near, metric, at=AT)
    effects = [metric(run(layout, inputs(0), [Edit(site, near[site])], at=AT)) - metric(logits) for site in sites]
    sums = torch.stack([estimated[site].sum(-1) for site in sites])
    scale = torch.stack(effects).abs().max()
    torch.testing.assert_close(sums / scale, torch.stack(effects) / scale, atol=1e-2, rtol=0)
    assert all(weight.requires_grad and weight.grad is None for weight in layout.model.parameters())


def test_a_linear_network_is_estimated_exactly() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    layout, site = read_layout(net), Site("module", path="0")
    one, other = torch.randn(2, 6, 3, dtype=torch.float64)
    source, wanted = read(layout, other, [site])
    found = attributions(layout, one, source, lambda output: output[:, 0])
    torch.testing.assert_close(found[site], (wanted - run(layout, one))[:, 0])


def test_more_steps_are_the_mean_of_gradients_on_the_way() -> None:
    layout = layout_of("gpt2")
    sites = [Site("residual", -1), Site("mlp", 3)]
    source, far = read(layout, inputs(1), sites, at=AT)
    near = run(layout, inputs(0), at=AT)
    found = attributions(layout, inputs(0), source, metric, at=AT, steps=30)
    # Integrated gradients of the embeddings add up to the difference of the metric.
    torch.testing.assert_close(found[sites[0]].sum(-1), metric(far) - metric(near), atol=0.02, rtol=0.05)
    slopes = gradients(layout, inputs(0), [sites[1]], metric, at=AT)[1]
    assert slopes[sites[1]].shape == (5, 10, 32)
