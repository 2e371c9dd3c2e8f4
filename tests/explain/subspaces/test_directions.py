from dataclasses import replace

import pytest
import torch

from tests.explain.subspaces.nets import FEW, HIDDEN, Linear, layout_of, pairs_for, text_pairs
from tests.models.sites.small import layout_of as decoder_layout
from uphold.core.errors import DataError, ModelError, UsageError
from uphold.explain.subspaces.conditions import PATCH, along, measure
from uphold.explain.subspaces.directions import (
    Held,
    das,
    mean_difference,
    orthonormal,
    probe,
    random_subspace,
)
from uphold.explain.subspaces.gap import illusion_gap
from uphold.explain.subspaces.pairs import activations
from uphold.models.sites.site import Site

CLASSES = (torch.tensor([0] * 50), torch.tensor([1] * 50))


def clouds(shift: torch.Tensor, seed: int = 0) -> Held:
    base, source = torch.randn(2, 50, len(shift), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Held(base, source + shift)


def test_a_direction_is_divided_by_its_length() -> None:
    assert orthonormal(torch.tensor([3.0, 4.0])).tolist() == [[0.6], [0.8]]


@pytest.mark.parametrize(
    "columns", [torch.zeros(4), torch.ones(4, 2), torch.ones(2, 3), torch.tensor([float("nan"), 1])]
)
def test_columns_without_a_span_are_refused(columns: torch.Tensor) -> None:
    with pytest.raises(UsageError):
        orthonormal(columns)


def test_random_subspaces_are_orthonormal_and_go_by_their_seed() -> None:
    one = random_subspace(10, 4, 3)
    torch.testing.assert_close(one.T @ one, torch.eye(4, dtype=torch.float64))
    assert torch.equal(one, random_subspace(10, 4, 3))
    assert not torch.equal(one, random_subspace(10, 4, 4))
    with pytest.raises(UsageError, match="1 to 10"):
        random_subspace(10, 11, 0)


@pytest.mark.parametrize("find", [mean_difference, probe])
def test_what_separates_two_clouds_is_found(find: object) -> None:
    shift = torch.tensor([0.0, 4.0, 3.0, 0.0], dtype=torch.float64)
    found = find(clouds(shift), CLASSES)  # type: ignore[operator]
    assert found.shape == (4, 1)
    assert float(found.norm()) == pytest.approx(1)
    assert abs(float(found[:, 0] @ shift)) / 5 > 0.9


@pytest.mark.parametrize("find", [mean_difference, probe])
def test_turning_the_space_turns_the_direction(find: object) -> None:
    held = clouds(torch.tensor([0.0, 1.0, 3.0, 0.0], dtype=torch.float64))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    one = find(held, CLASSES)  # type: ignore[operator]
    other = find(Held(held.base @ turn, held.source @ turn), CLASSES)  # type: ignore[operator]
    assert abs(float(other[:, 0] @ (turn.T @ one)[:, 0])) == pytest.approx(1, abs=1e-4)


def test_the_mean_difference_is_the_difference_of_the_means() -> None:
    held = clouds(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    delta = held.source.mean(0) - held.base.mean(0)
    assert abs(float(mean_difference(held, CLASSES)[:, 0] @ delta)) == pytest.approx(float(delta.norm()))


def test_three_classes_have_two_directions() -> None:
    held = clouds(torch.tensor([5.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    third = torch.cat([held.source[:25], held.source[25:] + torch.tensor([0.0, 5.0, 0.0, 0.0])])
    classes = (CLASSES[0], torch.tensor([1] * 25 + [2] * 25))
    found = mean_difference(Held(held.base, third), classes, 2)
    assert float(found[:2].square().sum()) == pytest.approx(2, abs=0.1)
    with pytest.raises(UsageError, match="k=3 with 3 classes"):
        probe(held, classes, 3)


def test_classes_of_one_mean_have_no_difference() -> None:
    held = clouds(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(DataError, match="tell the classes apart"):
        mean_difference(Held(held.base, held.base), CLASSES)


@pytest.mark.parametrize("k", [1, 2])
def test_das_finds_what_flips_the_answers(k: int) -> None:
    net = Linear()
    layout, pairs = layout_of(net), pairs_for(net, 60)
    config = replace(FEW, k=k, epochs=40, lr=0.02)
    weights = [weight.detach().clone() for weight in net.parameters()]
    steps = []
    found = das(layout, pairs, HIDDEN, config, progress=lambda what, done, total, note="": steps.append((done, total)))
    torch.testing.assert_close(found.T @ found, torch.eye(k, dtype=torch.float64))
    assert steps[-1] == (120, 120)
    assert all(torch.equal(*both) for both in zip(weights, net.parameters(), strict=True))
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())
    held = Held(activations(layout, pairs, HIDDEN), activations(layout, pairs, HIDDEN, source=True))
    other = random_subspace(12, k, 0)
    measured = measure(layout, pairs, HIDDEN, held, {PATCH: along(found, found), "random": along(other, other)})
    hits = {name: float(one.hits.double().mean()) for name, one in measured.items()}
    assert hits[PATCH] > hits["random"] + 0.2
    assert torch.equal(found, das(layout, pairs, HIDDEN, config))


def test_das_towards_a_difference_reaches_the_closed_form() -> None:
    # With everything linear, the best direction for all pairs has the largest eigenvalue.
    net = Linear()
    layout, pairs = layout_of(net), pairs_for(net, 60)
    (gap,) = illusion_gap(layout, pairs, [HIDDEN])
    found = das(layout, pairs, HIDDEN, replace(FEW, loss="difference", epochs=150, batch=60, lr=0.03))
    held = Held(activations(layout, pairs, HIDDEN), activations(layout, pairs, HIDDEN, source=True))
    wanted = {"clean": along(found * 0, found), PATCH: along(found, found)}
    measured = measure(layout, pairs, HIDDEN, held, wanted)
    effect = float((measured["clean"].differences - measured[PATCH].differences).mean())
    assert 0.98 * gap.shared <= effect <= gap.shared + 1e-9


def test_das_trains_in_a_decoder() -> None:
    layout, pairs, site = decoder_layout("gpt2"), text_pairs("gpt2"), Site("residual", 2)
    found = das(layout, pairs, site, replace(FEW, epochs=30, batch=3, k=2))
    held = Held(activations(layout, pairs, site), activations(layout, pairs, site, source=True))
    measured = measure(layout, pairs, site, held, {"clean": along(found * 0, found), PATCH: along(found, found)})
    assert float(measured[PATCH].differences.mean()) < float(measured["clean"].differences.mean())


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    net = Linear()
    pairs = pairs_for(net)
    with torch.no_grad():
        net.read.bias.fill_(float("inf"))
    with pytest.raises(ModelError, match="loss is"):
        das(layout_of(net), pairs, HIDDEN, FEW)
