import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.explain.subspaces.nets import HIDDEN, Linear, Toy, layout_of, pairs_for, text_pairs, toy_pairs
from tests.models.sites.small import layout_of as decoder_layout
from uphold.explain.subspaces.directions import Held, patched_logits
from uphold.explain.subspaces.gap import illusion_gap, largest_effect, shared_effect
from uphold.explain.subspaces.pairs import activations
from uphold.models.sites.run import run
from uphold.models.sites.screen import attributions
from uphold.models.sites.site import Site


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(2, 30), orthogonal=st.booleans())
def test_the_closed_form_is_the_top_eigenvalue(seed: int, width: int, orthogonal: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta, slope = torch.randn(2, width, generator=generator, dtype=torch.float64)
    if orthogonal:
        slope = slope - (slope @ delta) / (delta @ delta) * delta
    form = (torch.outer(delta, slope) + torch.outer(slope, delta)) / 2
    top = float(torch.linalg.eigvalsh(form)[-1])
    assert float(largest_effect(delta, slope)) == pytest.approx(top, abs=1e-9)
    assert shared_effect(delta[None], slope[None]) == pytest.approx(top, abs=1e-9)
    v = delta / delta.norm() + slope / slope.norm()
    v = v / v.norm()
    assert float((v @ delta) * (v @ slope)) == pytest.approx(top, abs=1e-9)
    if orthogonal:
        assert top == pytest.approx(float(delta.norm() * slope.norm()) / 2)


@pytest.mark.parametrize("count", [3, 40])
def test_one_direction_for_all_pairs_is_an_eigenvalue_too(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    delta, slope = torch.randn(2, count, 15, generator=generator, dtype=torch.float64)
    form = delta.T @ slope / count
    top = float(torch.linalg.eigvalsh((form + form.T) / 2)[-1])
    assert shared_effect(delta, slope) == pytest.approx(top)
    assert top <= float(largest_effect(delta, slope).mean())


def test_in_a_linear_network_the_gap_is_what_patches_do() -> None:
    net = Linear()
    layout, pairs = layout_of(net), pairs_for(net)
    (gap,) = illusion_gap(layout, pairs, [HIDDEN], rows=7)
    held = Held(activations(layout, pairs, HIDDEN), activations(layout, pairs, HIDDEN, source=True))

    def fall(values: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(pairs))
        before, after = run(layout, pairs.base), patched_logits(layout, pairs, HIDDEN, values)
        lead = [logits[rows, pairs.answers] - logits[rows, pairs.expected] for logits in (before, after)]
        return lead[0] - lead[1]

    assert gap.full == pytest.approx(float(fall(held.source).mean()))
    slope = torch.stack(
        [net.read.weight[e] - net.read.weight[a] for a, e in zip(pairs.answers, pairs.expected, strict=True)]
    )
    slope = (slope @ net.down.weight).detach()
    delta = held.source - held.base
    v = delta / delta.norm(dim=1, keepdim=True) + slope / slope.norm(dim=1, keepdim=True)
    v = v / v.norm(dim=1, keepdim=True)
    patched = held.base + (v * delta).sum(1, keepdim=True) * v
    assert gap.largest == pytest.approx(float(fall(patched).mean()))
    assert gap.ratio == pytest.approx(gap.largest / gap.full)


def test_the_toy_network_admits_an_illusion() -> None:
    (gap,) = illusion_gap(layout_of(Toy()), toy_pairs(), [HIDDEN])
    # delta.g = 2 |x_s - x_b|, |delta| = sqrt 2 |x_s - x_b|, |g| = 2 sqrt 5.
    assert gap.largest / gap.full == pytest.approx((1 + 10**0.5) / 2, rel=1e-5)
    assert gap.shared == pytest.approx(gap.largest, rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_full_effect_is_the_attribution_of_the_site(family: str) -> None:
    layout, pairs = decoder_layout(family), text_pairs(family)
    sites = [Site("hidden", 1), Site("residual", 0), Site("head", 2, 1)]
    gaps = illusion_gap(layout, pairs, sites, rows=4)
    source = {site: activations(layout, pairs, site, source=True)[:, None] for site in sites}
    last = pairs.counting

    def fall(logits: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(pairs))
        return logits[rows, pairs.expected] - logits[rows, pairs.answers]

    wanted = attributions(layout, pairs.base, source, fall, at=last)
    for gap, site in zip(gaps, sites, strict=True):
        assert gap.full == pytest.approx(float(wanted[site][:, -1].mean()), abs=1e-6)
        assert gap.site == str(site)
        assert abs(gap.full) <= gap.largest * 2
        assert gap.to_dict()["pairs"] == 6


def test_no_ratio_where_the_full_patch_does_nothing() -> None:
    pairs = toy_pairs()
    (gap,) = illusion_gap(
        layout_of(Toy()), type(pairs)(pairs.base, pairs.base, pairs.answers, pairs.expected), [HIDDEN]
    )
    assert gap.full == 0
    assert gap.ratio is None
