"""Where tools differ, ours follows the definition: each case, with what goes wrong elsewhere."""

import math

import pytest
import torch

from tests.merge.whole import WholeView, instance, merged, settings
from uphold.core.errors import UsageError
from uphold.merge.breadcrumbs import middle
from uphold.merge.della_linear import keep_probability

ZERO = torch.zeros(8)
FALLING = torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1])
DRAWS = 4000


def prepared(name, models, base, **options):
    """What a method finds out about a tensor."""
    chosen = instance(name)
    view = WholeView(base, models, chosen.unit)
    return chosen.prepare(view, settings(name, len(models), {}, {}, options), None)


# Linear


def test_the_order_of_models_does_not_matter_to_linear():
    models = [torch.randn(50, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    weights = [0.1, 0.5, 1.0, 2.0]
    first = merged("linear", models, weights=weights)
    torch.testing.assert_close(merged("linear", models[::-1], weights=weights[::-1]), first, rtol=1e-6, atol=1e-6)


def test_a_weight_of_0_is_a_weight():
    one, other = torch.randn(5), torch.randn(5)
    assert torch.equal(merged("linear", [one, other], weights=(0, 2.0)), other)
    assert torch.equal(merged("linear", [one, other], weights=(1, 0)), one)
    ties = merged("ties", [ZERO + 1, ZERO - 2], ZERO, weights=(1, 0))
    assert torch.equal(ties, ZERO + 1)


@pytest.mark.parametrize("name", ["linear", "multislerp"])
def test_weights_that_cancel_cannot_be_normalised(name):
    with pytest.raises(UsageError, match=r"weights of '.*' at model\.layers\.0\.weight add up to 0 \(1, -1\)"):
        merged(name, [ZERO, FALLING], weights=(1, -1))


def test_linear_leaves_a_base_out_that_has_no_weight():
    assert torch.equal(merged("linear", [ZERO + 1], ZERO + 5, weights=(1,)), ZERO + 1)
    assert torch.equal(merged("linear", [ZERO + 1], ZERO + 5, weights=(1,), base_settings={"weight": 1}), ZERO + 3)


def test_negative_weights_and_sums_that_are_not_normalised():
    one, other = FALLING, FALLING.flip(0)
    torch.testing.assert_close(merged("linear", [one, other], weights=(2, -1)), 2 * one - other)
    torch.testing.assert_close(merged("linear", [one, other], weights=(2, 1), normalize=False), 2 * one + other)


# Interpolation on the sphere


@pytest.mark.parametrize(("t", "expected"), [(0, 0), (1, 1)])
def test_the_ends_are_the_models(t, expected):
    pair = [torch.randn(40), torch.randn(40)]
    assert torch.equal(merged("slerp", [pair[1]], pair[0], t=t), pair[expected])
    weights = (1 - t, t)
    for options in ({}, {"nuslerp_flatten": False}):
        assert torch.equal(merged("nuslerp", pair, weights=weights, **options), pair[expected])
        assert torch.equal(merged("nuslerp", pair, ZERO.repeat(5) + 3, weights=weights, **options), pair[expected])
    assert torch.equal(merged("multislerp", pair, weights=weights), pair[expected])
    assert torch.equal(merged("linear", pair, weights=weights), pair[expected])


def test_slerp_does_not_move_on_a_line_from_a_zero_tensor():
    zero, other = torch.zeros(2), torch.tensor([0.0, 2])
    torch.testing.assert_close(merged("slerp", [other], zero, t=0.5), torch.tensor([0, math.sqrt(2)]))
    assert torch.equal(merged("slerp", [zero], zero, t=0.5), zero)


def test_slerp_is_linear_between_almost_parallel_tensors():
    base = torch.randn(100, generator=torch.Generator().manual_seed(0))
    model = base + 0.01 * torch.randn(100, generator=torch.Generator().manual_seed(1))
    assert torch.equal(merged("slerp", [model], base, t=0.3), merged("linear", [base, model], weights=(0.7, 0.3)))


def test_nuslerp_takes_the_middle_where_weights_cancel():
    pair = [torch.tensor([1.0, 0]), torch.tensor([0.0, 2])]
    torch.testing.assert_close(merged("nuslerp", pair, weights=(1, -1)), torch.tensor([0.707107, 1.414214]))


@pytest.mark.parametrize("shape", [(4, 5), (3, 2, 5)])
def test_nuslerp_along_the_first_dimension(shape):
    pair = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    swapped = [one.transpose(0, -1).contiguous() for one in pair]
    options = {"weights": (0.7, 0.3), "nuslerp_flatten": False}
    along_first = merged("nuslerp", pair, nuslerp_row_wise=True, **options)
    torch.testing.assert_close(along_first, merged("nuslerp", swapped, **options).transpose(0, -1))


def test_multislerp_of_directions_that_cancel():
    one = torch.tensor([1.0, 2])
    torch.testing.assert_close(merged("multislerp", [one, -one], weights=(1, 1)), torch.zeros(2))
    opposed = [one, -3 * one]
    torch.testing.assert_close(merged("multislerp", opposed, weights=(1, 1)), -one)
    torch.testing.assert_close(merged("multislerp", opposed, weights=(1, 1), normalize_weights=False), -2 * one)
    thirds = [torch.tensor([math.cos(angle), math.sin(angle)]) for angle in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    with pytest.raises(UsageError, match="cancel each other"):
        merged("multislerp", thirds, weights=(1, 1, 1))


def test_karcher_of_two_is_half_way_on_the_sphere():
    pair = [torch.randn(30, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    pair = [one / one.norm() for one in pair]
    torch.testing.assert_close(merged("karcher", pair), merged("nuslerp", pair, weights=(1, 1)))


# Trimming


def test_at_least_one_entry_stays():
    for name in ("ties", "breadcrumbs", "breadcrumbs_ties"):
        assert merged(name, [FALLING], ZERO, weights=(1,), density=0.01).count_nonzero() == 1
        assert torch.equal(
            merged(name, [torch.tensor(3.0)], torch.tensor(1.0), weights=(1,), density=0.3), torch.tensor(3.0)
        )


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.99])
def test_ties_keeps_the_largest_and_of_equals_the_first(density):
    change = torch.randn(501, generator=torch.Generator().manual_seed(0)).mul(4).round()
    order = change.abs().sort(descending=True, stable=True).indices[: int(density * 501)]
    expected = torch.zeros(501)
    expected[order] = change[order]
    assert torch.equal(merged("ties", [change], torch.zeros(501), weights=(1,), density=density), expected)


def test_breadcrumbs_that_drop_none_of_the_largest_keep_them():
    # mergekit 0.1.4 took the slice [a:-0] and returned the base.
    kept = merged("breadcrumbs", [FALLING], ZERO, weights=(1,), density=0.5, gamma=0.01)
    assert torch.equal(kept, torch.tensor([8.0, 7, 6, 5, 0, 0, 0, 0]))
    kept = merged("breadcrumbs", [FALLING], ZERO, weights=(1,), density=0.5, gamma=0.25)
    assert torch.equal(kept, torch.tensor([0, 0, 6.0, 5, 4, 3, 0, 0]))


@pytest.mark.parametrize(
    ("density", "gamma", "length", "expected"),
    [
        (0.5, 0.1, 10, (1, 5)),
        (0.95, 0.2, 10, (1, 9)),
        (0.01, 0.5, 10, (5, 1)),
        (0.5, 1.0, 10, (5, 5)),
        (0.5, 0, 1, (0, 1)),
    ],
)
def test_ranks_of_breadcrumbs(density, gamma, length, expected):
    assert middle(density, gamma, length) == expected


def test_breadcrumbs_of_the_paper_go_by_row():
    change = torch.stack([FALLING, 100 * FALLING])
    options = {"density": 0.5, "gamma": 0.125, "lambda": 1.0}
    by_row = merged("breadcrumbs_paper", [change], torch.zeros(2, 8), **options)
    assert torch.equal(by_row, change * torch.tensor([0, 1.0, 1, 1, 1, 0, 0, 0]))
    by_tensor = merged("breadcrumbs", [change], torch.zeros(2, 8), weights=(1,), **options)
    assert torch.equal(by_tensor, change * torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1]]))


def test_rescaling_restores_the_sum_of_magnitudes():
    rescaled = merged("ties", [FALLING], ZERO, weights=(1,), density=0.5, rescale=True)
    torch.testing.assert_close(rescaled, torch.tensor([8.0, 7, 6, 5, 0, 0, 0, 0]) * 36 / 26)


def test_a_sum_of_0_elects_plus():
    assert torch.equal(merged("ties", [ZERO + 1, ZERO - 1], ZERO, weights=(1, 1)), ZERO + 1)


# TIES of the paper


def survey(bases, models, density=0.2):
    chosen = instance("ties_paper")
    resolved = settings("ties_paper", len(models), {}, {}, {"density": density})
    views = [WholeView(base, [model[index] for model in models], chosen.unit, 3) for index, base in enumerate(bases)]
    surveyed = chosen.survey((view, resolved) for view in views)
    parts = [
        [chosen.combine(chunk, resolved, chosen.prepare(view, resolved, surveyed)) for chunk in view.chunks()]
        for view in views
    ]
    return surveyed, [torch.cat(part) for part in parts]


def test_ties_paper_trims_over_the_whole_model():
    small, large = torch.full((10,), 0.01), torch.arange(1.0, 11)
    surveyed, (first, second) = survey([torch.zeros(10), torch.zeros(10)], [[small, large]])
    assert surveyed.smallest == (6.0,)
    assert torch.equal(first, torch.zeros(10))
    assert second.count_nonzero() == 5


def test_ties_paper_gives_ties_the_sign_of_most_entries():
    one, other = torch.tensor([-1.0, -1, -1, 2]), torch.tensor([-1.0, -1, 1, -2])
    _, (result,) = survey([torch.zeros(4)], [[one], [other]], density=1.0)
    assert torch.equal(result, torch.tensor([-1.0, -1, -1, -2]))
    _, (result,) = survey([torch.zeros(4)], [[-one], [-other]], density=1.0)
    assert torch.equal(result, torch.tensor([1.0, 1, 1, 2]))


def test_ties_paper_takes_one_density_per_model():
    view = WholeView(ZERO, [FALLING], "element")
    two = [(view, settings("ties_paper", 1, {}, {}, {"density": one})) for one in (0.1, 0.2)]
    with pytest.raises(UsageError, match=r"not 0\.1 here and 0\.2 there"):
        instance("ties_paper").survey(iter(two))


# Random masks


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della_linear", "della", "della_paper"])
def test_the_mean_over_masks_is_the_change(name):
    # mergekit restores the L1 norm instead: 7.3 for 8 and 1.3 for 1 (DARE), 10.6 and 0.35 (DELLA).
    options = {} if not name.startswith("della") else {"epsilon": 0.3}
    kept = merged(
        name, [FALLING.expand(DRAWS, 8).contiguous()], torch.zeros(DRAWS, 8), weights=(1,), density=0.5, **options
    )
    error = kept.std(dim=0) / DRAWS**0.5
    assert bool(((kept.mean(dim=0) - FALLING).abs() < 4.5 * error).all())
    assert bool((error < 0.3).all())


def test_what_is_kept_is_divided_by_its_probability():
    kept = merged("dare_linear", [FALLING.repeat(50)], ZERO.repeat(50), weights=(1,), density=0.25)
    assert set((kept / FALLING.repeat(50)).tolist()) == {0.0, 4.0}
    plain = merged("dare_linear", [FALLING.repeat(50)], ZERO.repeat(50), weights=(1,), density=0.25, rescale=False)
    assert set((plain / FALLING.repeat(50)).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_density_1_draws_nothing(name, monkeypatch):
    monkeypatch.setattr(WholeView, "uniform", None)
    assert torch.equal(merged(name, [FALLING], ZERO, weights=(1,)), FALLING)


def test_each_model_has_masks_of_its_own():
    kept = merged("dare_linear", [FALLING.repeat(9), FALLING.repeat(9)], ZERO.repeat(9), weights=(1, 1), density=0.5)
    assert set((kept / FALLING.repeat(9)).tolist()) == {0.0, 2.0, 4.0}


def test_della_keeps_by_rank_in_the_row():
    change = torch.tensor([[1.0, -4, 2, -3, 5], [0, 0, 0, 0, 9]])
    expected = [[0.2, 0.5, 0.3, 0.4, 0.6], [0.2, 0.3, 0.4, 0.5, 0.6]]
    torch.testing.assert_close(keep_probability(change, 0.4, 0.2), torch.tensor(expected))
    assert keep_probability(torch.ones(3, 1), 0.4, 0.2).tolist() == [[pytest.approx(0.4)]] * 3


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_della_refuses_probabilities_outside_0_and_1(density):
    view = WholeView(ZERO, [FALLING], "row")
    chosen = settings("della", 1, {"weight": (1,)}, {}, {"density": density})
    with pytest.raises(UsageError, match=rf"density {density} and epsilon 0\.15 at .*: .*set epsilon below 0\.1$"):
        instance("della").survey(iter([(view, chosen)]))


# Model Stock


def test_model_stock_of_one_model_twice_is_that_model():
    base, model = torch.randn(30), torch.randn(30)
    for options in ({}, {"filter_wise": True}):
        assert torch.equal(merged("model_stock", [model, model.clone()], base, **options), model)


def test_model_stock_is_given_its_cosine_and_ratio():
    base = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]])
    one = base + torch.tensor([[0.1, -0.2, 0.3, -0.4], [0.5, 0, -0.7, 0.8]])
    other = base + torch.tensor([[0.2, 0.3, -0.1, -0.3], [0.2, 0.1, -0.4, 0.5]])
    found = prepared("model_stock", [one, other], base)
    assert float(found.t) == pytest.approx(0.870632, abs=1e-6)
    assert found.notes == ()


def test_model_stock_keeps_to_the_base_where_changes_oppose():
    # Unclamped, t would be 2c / (1 + c) = -1.5 for c = -0.43 and so on: away from all models.
    base = torch.zeros(2, 3)
    one, other = torch.tensor([[1.0, 2, 0], [1, 0, 0]]), torch.tensor([[-2.0, 0, 1], [1, 0, 0]])
    found = prepared("model_stock", [one, other], base)
    assert float(found.t) == 0
    assert "point against each other (mean cosine -0.167)" in found.notes[0]
    assert torch.equal(merged("model_stock", [one, other], base), base)
    rows = prepared("model_stock", [one, other], base, filter_wise=True)
    assert "1 of 2 rows" in rows.notes[0]
    by_row = merged("model_stock", [one, other], base, filter_wise=True)
    assert torch.equal(by_row, torch.tensor([[0.0, 0, 0], [1, 0, 0]]))


def test_model_stock_measures_small_changes_as_large_ones():
    # A floor under the product of the norms would take changes this small for orthogonal ones.
    change, other = torch.tensor([1.0, 0]), torch.tensor([1.0, 1])
    found = prepared("model_stock", [1e-5 * change, 1e-5 * other], torch.zeros(2))
    assert float(found.t) == pytest.approx(2 * math.sqrt(0.5) / (1 + math.sqrt(0.5)))


# SCE


def test_sce_weights_small_changes_too():
    # mergekit gives all models equal weights where their mean squares add up to less than 1e-6.
    one, other = torch.full((4,), 1e-4), torch.full((4,), 2e-4)
    torch.testing.assert_close(merged("sce", [one, other], torch.zeros(4)), torch.full((4,), 1.8e-4))


def test_sce_selects_entries_of_the_largest_variance():
    one = torch.tensor([[1.0, 2], [3, 4]])
    other = torch.tensor([[1.0, 2.5], [2, 8]])
    half = merged("sce", [one, other], torch.zeros(2, 2), select_topk=0.67)
    assert half.count_nonzero() == 2
    assert torch.equal(half[0], torch.zeros(2))
    assert merged("sce", [one, other], torch.zeros(2, 2), select_topk=0.01).count_nonzero() == 1


# RAM, NearSwap, Arcee Fusion, passthrough


def test_ram_adds_what_is_unique_and_averages_what_is_shared():
    one, other = torch.tensor([1.0, 0, 4, 1e-6]), torch.tensor([0.0, 2, 2, 0])
    assert torch.equal(merged("ram", [one, other], torch.zeros(4)), torch.tensor([1.0, 2, 3, 0]))
    # Each has one entry of its own and one shared: clip(1 / 1, 0, 0.2) = 0.2.
    plus = merged("ramplus_tl", [one, other], torch.zeros(4), r=0.5)
    torch.testing.assert_close(plus, torch.tensor([1.1, 2.2, 3, 0]))


def test_nearswap_takes_over_what_is_near():
    base, model = torch.tensor([0.0, 1, 2]), torch.tensor([0.1, 1, 3])
    assert torch.equal(merged("nearswap", [model], base, t=0.2), torch.tensor([0.1, 1, 2.2]))
    assert torch.equal(merged("nearswap", [model], base, t=0), base)


def test_arcee_fusion_takes_over_what_stands_out():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(20, 30, generator=generator)
    model = base + torch.randn(20, 30, generator=generator) * torch.rand(20, 1, generator=generator)
    p, q = model.double().softmax(-1) + 1e-8, base.double().softmax(-1) + 1e-8
    importance = ((model - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)).float()
    ordered = importance.flatten().sort().values
    lower, median, upper = (ordered[int(place * 599)] for place in (0.25, 0.5, 0.75))
    taken = importance >= median + 1.5 * (upper - lower)
    assert 0 < taken.sum() < 200
    assert torch.equal(merged("arcee_fusion", [model], base), torch.where(taken, model, base))


def test_passthrough_copies_or_scales():
    assert torch.equal(merged("passthrough", [FALLING]), FALLING)
    assert torch.equal(merged("passthrough", [FALLING], scale=0.5), FALLING / 2)
