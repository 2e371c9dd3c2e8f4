import math

import pytest
import torch

from uphold.models.spherical import are_parallel, karcher_mean, mean_direction, slerp_shares


def gram_of(*vectors):
    stacked = torch.tensor(vectors, dtype=torch.float64)
    return stacked @ stacked.T


def test_shares_of_a_right_angle():
    shares = slerp_shares(gram_of([1, 0], [0, 2]), 0.25)
    assert float(shares.first) == pytest.approx(math.sin(0.75 * math.pi / 2))
    assert float(shares.second) == pytest.approx(math.sin(0.25 * math.pi / 2))
    assert not shares.linear


@pytest.mark.parametrize("scale", [1, -1])
def test_parallel_and_opposite_tensors_are_on_a_line(scale):
    shares = slerp_shares(gram_of([1, 1], [3 * scale, 3 * scale]), 0.25)
    assert (float(shares.first), float(shares.second), bool(shares.linear)) == (0.75, 0.25, True)


def test_shares_come_in_batches():
    grams = torch.stack([gram_of([1, 0], [0, 2]), gram_of([1, 1], [3, 3])])
    assert slerp_shares(grams, 0.25).linear.tolist() == [False, True]


def test_parallel():
    assert are_parallel(gram_of([1, 2], [2, 4], [0.1, 0.2]))
    assert not are_parallel(gram_of([1, 2], [-1, -2]))
    assert not are_parallel(gram_of([1, 2], [0, 0]))
    assert not are_parallel(gram_of([1, 2], [2, 4.001]))


def test_a_mean_direction_has_the_mean_norm():
    vectors = [[3.0, 0, 0], [0, 1, 0]]
    shares = mean_direction(gram_of(*vectors), [0.5, 0.5], "w")
    point = torch.tensor(shares, dtype=torch.float64) @ torch.tensor(vectors, dtype=torch.float64)
    torch.testing.assert_close(point, torch.tensor([math.sqrt(2), math.sqrt(2), 0], dtype=torch.float64))


def test_the_centre_of_mass_has_no_pull():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(4, 6, generator=generator, dtype=torch.float64) + 1
    shares = torch.tensor(karcher_mean(vectors @ vectors.T, 100, 1e-10), dtype=torch.float64)
    centre = shares @ vectors
    units = vectors / vectors.norm(dim=1, keepdim=True)
    assert float(centre.norm()) == pytest.approx(float(vectors.norm(dim=1).mean()))
    centre = centre / centre.norm()
    dots = units @ centre
    pulls = (dots.arccos() / dots.arccos().sin())[:, None] * (units - dots[:, None] * centre)
    assert float(pulls.sum(dim=0).norm()) < 1e-8


def test_zero_tensors_have_no_direction():
    assert karcher_mean(torch.zeros(2, 2, dtype=torch.float64), 10, 1e-5) == [0, 0]
    assert karcher_mean(gram_of([2, 0], [0, 0]), 10, 1e-5) == [0.5, 0]
