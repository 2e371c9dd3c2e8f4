from __future__ import annotations

import pytest
import torch
from torch import nn

from uphold.core.errors import EmptyError, UsageError
from uphold.models.batch_norm import batch_norm_tensors, reestimated


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9), nn.Linear(3, 4), nn.BatchNorm1d(4))


def batches(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [2 + 3 * torch.randn(size, 3, generator=generator) for size in sizes]


def test_layers_are_known_by_their_statistics() -> None:
    names = list(network().state_dict())
    expected = [f"{layer}.{name}" for layer in "03" for name in ("weight", "bias", "running_mean", "running_var")]
    assert batch_norm_tensors(names) == expected
    assert batch_norm_tensors(nn.LayerNorm(3).state_dict()) == []
    assert batch_norm_tensors(nn.BatchNorm1d(3).state_dict()) == ["weight", "bias", "running_mean", "running_var"]


def test_batches_of_every_size_count_by_their_images() -> None:
    data = batches(10, 7, 3)
    found = reestimated(network(), data)

    means = torch.stack([one.mean(dim=0) for one in data])
    variances = torch.stack([one.var(dim=0) for one in data])
    weights = torch.tensor([10.0, 7.0, 3.0])[:, None] / 20
    assert torch.allclose(found["0.running_mean"], (weights * means).sum(dim=0), atol=1e-6)
    assert torch.allclose(found["0.running_var"], (weights * variances).sum(dim=0), atol=1e-5)
    assert torch.allclose(found["0.running_mean"], torch.cat(data).mean(dim=0), atol=1e-6)
    assert sorted(found) == ["0.running_mean", "0.running_var", "3.running_mean", "3.running_var"]


def test_the_model_stays_as_it_is_and_dropout_takes_no_part() -> None:
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}

    first, second = (reestimated(net, batches(8, 8)) for _ in range(2))

    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert net[0].momentum == 0.1


def test_a_strength_below_one_mixes_with_what_was_there() -> None:
    net = network()
    net[0].running_mean += 5
    whole, half, none = (reestimated(net, batches(8), strength=strength) for strength in (1.0, 0.25, 0.0))
    assert torch.allclose(half["0.running_mean"], 0.75 * 5 + 0.25 * whole["0.running_mean"])
    assert torch.equal(none["0.running_mean"], net[0].running_mean)
    with pytest.raises(UsageError, match=r"strength in \[0, 1\]"):
        reestimated(net, batches(8), strength=1.5)


def test_only_named_layers_are_estimated() -> None:
    found = reestimated(network(), batches(8), ["3.running_mean", "3.running_var", "3.weight", "2.weight"])
    assert sorted(found) == ["3.running_mean", "3.running_var"]


def test_nothing_to_estimate_is_refused() -> None:
    with pytest.raises(UsageError, match="no batch-norm statistics"):
        reestimated(nn.Linear(3, 3), batches(2))
    with pytest.raises(UsageError, match="no batch-norm statistics"):
        reestimated(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), batches(2))
    with pytest.raises(EmptyError, match="no batches"):
        reestimated(network(), [])
