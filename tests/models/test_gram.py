import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.models.gram import absolute_sums, aligned, column_grams, gram, row_grams


@given(sizes=st.lists(st.integers(0, 30), max_size=12), block=st.integers(1, 17))
@settings(max_examples=60, deadline=None)
def test_cutting_anew_keeps_numbers_and_order(sizes, block):
    numbers = torch.arange(float(sum(sizes)))
    parts = list(aligned([[part, -part] for part in numbers.split(sizes)] if sizes else [], block))
    assert all(part[0].numel() % block == 0 for part in parts[:-1])
    assert all(part[0].numel() for part in parts)
    joined = torch.cat([torch.empty(0), *(part[0] for part in parts)])
    assert torch.equal(joined, numbers)
    assert all(torch.equal(one, -other) for one, other in parts)


def test_inner_products_do_not_depend_on_chunks():
    tensors = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0))
    whole = gram([list(tensors)], 3)
    torch.testing.assert_close(whole, tensors.double() @ tensors.double().T)
    for size in (999, 4096, 5000):
        assert torch.equal(gram(([*part] for part in tensors.split(size, dim=1)), 3), whole)


def test_equal_tensors_have_equal_products():
    one = torch.randn(9000, generator=torch.Generator().manual_seed(0))
    assert len(set(gram([[one, one.clone(), one.clone()]], 3).flatten().tolist())) == 1


def test_nothing_has_products_of_0():
    assert torch.equal(gram([], 2), torch.zeros(2, 2, dtype=torch.float64))
    assert absolute_sums([], 2) == [0.0, 0.0]


def test_rows_and_columns():
    tensors = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    exact = tensors.double()
    torch.testing.assert_close(
        row_grams([[one[:3] for one in tensors], [one[3:] for one in tensors]], len(tensors[0]), len(tensors)),
        torch.einsum("irc,jrc->rij", exact, exact),
    )
    parts = [(first, list(tensors[:, first : first + 2])) for first in range(0, 5, 2)]
    torch.testing.assert_close(column_grams(parts, 1)[0], torch.einsum("irc,jrc->cij", exact, exact))


def test_sums_of_magnitudes():
    numbers = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    (total,) = absolute_sums([[part] for part in numbers.split(777)], 1)
    assert total == pytest.approx(math.fsum(abs(one) for one in numbers.tolist()), rel=1e-12)
