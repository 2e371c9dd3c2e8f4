from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uphold.core.errors import CorruptError, UsageError
from uphold.models.patches.quantise import quantise, scheme

NUMBERS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=0, max_size=40).map(torch.tensor)
SCHEMES = ["int8", "int4", "log", "log:4", "log:16", "linear:2", "linear:8", "linear:16", "linear:256", "linear:1000"]


@pytest.mark.parametrize("text", SCHEMES)
@given(values=NUMBERS)
def test_zero_stays_zero_and_the_error_is_within_its_bound(text: str, values: torch.Tensor) -> None:
    made = quantise(values, scheme(text)).check()
    back = made.part(0, made.count)
    assert back.dtype == torch.float32
    assert bool((back[values == 0] == 0).all())
    if made.scheme.kind != "log":
        limit = made.error * (1 + 1e-6) + 1e-6 * float(values.abs().max() if len(values) else 0) + 1e-45
        assert bool(((back - values).abs() <= limit).all())
        return
    tiny = values.abs() <= values.abs().max() * 2.0**-24 if len(values) else values.bool()
    assert bool((back[tiny] == 0).all())
    assert torch.equal(back[~tiny].sign(), values[~tiny].sign())
    off = (back[~tiny].double().abs().log2() - values[~tiny].double().abs().log2()).abs()
    assert bool((off <= made.error + 1e-5).all())


def test_the_papers_bound_for_linear_levels() -> None:
    values = torch.tensor([-1.0, -0.3, 0.2, 0.9, 2.0])
    for levels in (4, 8, 16, 256):
        made = quantise(values, scheme(f"linear:{levels}"))
        assert made.error == pytest.approx(3.0 / (2 * (levels - 1)))
        assert float((made.part(0, 5) - values).abs().max()) <= made.error + 1e-6
    # Two levels are the smallest and the largest number.
    assert quantise(values, scheme("linear:2")).part(0, 5).tolist() == [-1, -1, -1, 2, 2]


def test_symmetric_codes_are_whole_steps_of_the_largest_number() -> None:
    made = quantise(torch.tensor([-1.0, 0.5, 0.0, 127 / 128]), scheme("int8"))
    assert made.part(0, 4).tolist() == pytest.approx([-1.0, 64 / 127, 0.0, 126 / 127])
    assert made.error == pytest.approx(1 / 254)


@given(values=st.lists(st.floats(-18, 18, width=32), min_size=1, max_size=40).map(torch.tensor))
def test_tanh_levels(values: torch.Tensor) -> None:
    for levels in (2, 8, 256):
        made = quantise(values, scheme(f"tanh:{levels}")).check()
        back = made.part(0, made.count)
        assert bool(back.isfinite().all())
        assert bool((back[values == 0] == 0).all())
        assert float((back.double().tanh() - values.double().tanh()).abs().max()) <= made.error * (1 + 1e-6) + 1e-6


def test_tanh_of_small_numbers_is_linear_and_of_large_ones_refused() -> None:
    small = 1e-4 * torch.tensor([-1.0, -0.3, 0.2, 0.9, 2.0])
    linear, curved = (quantise(small, scheme(f"{kind}:8")) for kind in ("linear", "tanh"))
    assert torch.equal(linear.codes, curved.codes)
    assert torch.allclose(linear.part(0, 5), curved.part(0, 5), rtol=1e-6)
    assert quantise(torch.tensor([-1.0, 1.0]), scheme("tanh:2")).part(0, 2).tolist() == [-1, 1]
    with pytest.raises(UsageError, match="up to 18, not 19"):
        quantise(torch.tensor([19.0]), scheme("tanh:8"))


def test_logarithmic_levels() -> None:
    made = quantise(torch.tensor([1.0, -8.0, 2.0, 0.0]), scheme("log:8"))
    assert made.part(0, 4).tolist() == [1.0, -8.0, 2.0, 0.0]


def test_four_bits_take_half_a_byte() -> None:
    for text in ("int4", "linear:16", "log:16"):
        made = quantise(torch.tensor([0.1, -0.7, 0.3, 0.9, -0.2]), scheme(text))
        assert made.nbytes == 3
        whole = made.part(0, 5)
        for start in range(5):
            assert torch.equal(made.part(start, 5), whole[start:])
            assert torch.equal(made.part(start, start), whole[:0])
    assert quantise(torch.tensor([0.1, 0.0]), scheme("linear:16")).nbytes == 2
    assert quantise(torch.ones(3), scheme("linear:256")).nbytes == 3


@pytest.mark.parametrize("text", [*SCHEMES, "tanh:8"])
def test_nothing_and_only_zeros(text: str) -> None:
    assert quantise(torch.zeros(0), scheme(text)).check().part(0, 0).tolist() == []
    assert quantise(torch.zeros(3), scheme(text)).check().part(0, 3).tolist() == [0, 0, 0]
    assert quantise(torch.full((3,), -0.5), scheme(text)).part(0, 3).tolist() == [-0.5] * 3


@pytest.mark.parametrize(
    "text", ["", "int3", "int8:4", "linear", "linear:1", "linear:-3", "linear:99999999999", "log:3", "tanh", "tanh:1"]
)
def test_an_unknown_quantiser_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        scheme(text)


def test_what_is_not_finite_is_refused() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(UsageError, match="finite"):
            quantise(torch.tensor([bad]), scheme("int8"))


def test_codes_that_cannot_be_are_refused() -> None:
    made = quantise(torch.tensor([0.1, 0.2, -0.3]), scheme("linear:20"))
    for broken in (
        replace(made, codes=torch.tensor([0, 1, 25], dtype=torch.uint8)),
        replace(made, codes=made.codes[:2]),
        replace(made, codes=made.codes.long()),
        replace(made, low=math.nan),
        replace(made, low=2.0, high=1.0),
        replace(quantise(torch.ones(3), scheme("log")), high=1e9),
        replace(quantise(torch.ones(3), scheme("tanh:4")), high=1.0),
    ):
        with pytest.raises(CorruptError):
            broken.check()
