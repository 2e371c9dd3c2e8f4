import pytest
import torch

from tests.explain.subspaces.nets import text_pairs
from tests.models.sites.small import layout_of
from uphold.core.errors import DataError, UsageError
from uphold.explain.subspaces.directions import patched_logits, random_subspace
from uphold.explain.subspaces.pairs import activations
from uphold.explain.subspaces.rank_one import edit_of_patch, intervention_of_edit, second_moment, weight_change
from uphold.explain.subspaces.spaces import next_map
from uphold.models.sites.run import run
from uphold.models.sites.site import Site, parse_site


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("name", ["hidden.1", "head.2.1"])
def test_a_patch_equals_a_rank_one_edit_on_the_base_input(family: str, name: str) -> None:
    layout, site = layout_of(family), parse_site(name)
    # One position: an edit acts on all of them, a patch on one.
    pairs = text_pairs(family, count=2, length=1)
    base, source = activations(layout, pairs, site)[0], activations(layout, pairs, site, source=True)[0]
    weight, _ = next_map(layout, site)
    many = torch.randint(3, 50, (40, 1), generator=torch.Generator().manual_seed(3))
    rows = activations(layout, type(pairs)({"input_ids": many}, {"input_ids": many}, many[:, 0], many[:, 0] + 1), site)
    moment = second_moment(torch.cat([rows, base[None]]))
    unit = random_subspace(len(base), 1, 5)[:, 0]
    patch = float(unit @ (source - base).double()) * 20 * unit
    edit = edit_of_patch(patch, base, weight, moment)
    assert float(edit.read @ base.double()) == pytest.approx(1)
    inverse = torch.linalg.pinv(moment, rtol=1e-9, hermitian=True)
    assert edit.disturbance == pytest.approx(1 / float(base.double() @ inverse @ base.double()))
    patched = patched_logits(layout, pairs.chosen(slice(0, 1)), site, (base.double() + patch).float()[None])
    parameter, change = weight_change(layout, site, edit)
    target = dict(layout.model.named_parameters())[parameter]
    before = target.detach().clone()
    with torch.no_grad():
        target += change
    try:
        edited = run(layout, pairs.chosen(slice(0, 1)).base, at=torch.tensor([0]))
    finally:
        with torch.no_grad():
            target.copy_(before)
    torch.testing.assert_close(edited, patched, atol=1e-5, rtol=0)
    assert float((edited - run(layout, pairs.chosen(slice(0, 1)).base, at=torch.tensor([0]))).abs().max()) > 1e-4


def test_no_other_edit_that_does_so_disturbs_less() -> None:
    rows, weight = drawn(200, 8), drawn(8, 3, seed=1)
    moment, base = second_moment(rows), drawn(8, seed=2)
    edit = edit_of_patch(drawn(8, seed=3), base, weight, moment)
    for seed in range(20):
        other = drawn(8, seed=seed + 10)
        other = other / float(other @ base)
        assert float(other @ moment @ other) >= edit.disturbance


def test_an_edit_outside_the_second_moment_is_refused() -> None:
    moment = torch.diag(torch.tensor([1.0, 0.0])).double()
    with pytest.raises(DataError, match="outside the second moment"):
        edit_of_patch(torch.ones(2), torch.tensor([0.0, 1.0]), torch.eye(2), moment)
    with pytest.raises(UsageError, match="expected"):
        edit_of_patch(torch.ones(3), torch.ones(2), torch.eye(2), moment)


def test_zeroing_a_direction_is_found_again_from_its_edit() -> None:
    weight, v = drawn(9, 4), random_subspace(9, 1, 1)[:, 0]
    moment = second_moment(drawn(300, 9, seed=2))
    # h - (v.h) v adds -(v.h) v W: a = v W, b = -v.
    found = intervention_of_edit(v @ weight, -v, weight, moment)
    torch.testing.assert_close(found.direction, v, atol=1e-8, rtol=0)
    assert found.relative_error < 1e-12
    unit = intervention_of_edit(3 * v @ weight, -v / 3, weight, moment, alpha=None)
    torch.testing.assert_close(unit.direction, v, atol=1e-6, rtol=0)
    assert unit.alpha == pytest.approx(1 / 3)


@pytest.mark.parametrize("alpha", [1.0, 0.5, -2.0])
def test_the_intervention_is_the_constrained_minimum(alpha: float) -> None:
    weight, moment = drawn(9, 4), second_moment(drawn(300, 9, seed=2))
    a, b = drawn(4, seed=3), drawn(9, seed=4)
    found = intervention_of_edit(a, b, weight, moment, alpha=alpha)
    torch.testing.assert_close(found.direction @ weight, alpha * a, atol=1e-8, rtol=0)
    kernel = torch.linalg.svd(weight, full_matrices=True).U[:, 4:]

    def error(v: torch.Tensor) -> float:
        return float((alpha * v + b) @ moment @ (alpha * v + b))

    assert found.error == pytest.approx(error(found.direction))
    for seed in range(20):
        assert error(found.direction + 0.1 * kernel @ drawn(5, seed=seed)) >= found.error


def test_what_cannot_be_written_is_refused() -> None:
    weight = torch.zeros(5, 3, dtype=torch.float64)
    weight[:, 0] = 1
    with pytest.raises(DataError, match="cannot write"):
        intervention_of_edit(torch.tensor([0.0, 1.0, 0.0]), drawn(5), weight, torch.eye(5))
    with pytest.raises(UsageError, match="alpha is 0"):
        intervention_of_edit(torch.ones(3), drawn(5), drawn(5, 3), torch.eye(5), alpha=0)
    with pytest.raises(DataError, match="unit length"):
        intervention_of_edit(100 * torch.ones(3), 100 * drawn(5), drawn(5, 3), torch.eye(5), alpha=None)


def test_an_edit_needs_a_site_that_a_weight_reads() -> None:
    layout = layout_of("gpt2")
    edit = edit_of_patch(torch.ones(4), torch.ones(4), torch.eye(4), torch.eye(4))
    with pytest.raises(UsageError, match="output of"):
        weight_change(layout, Site("residual", 1), edit)
