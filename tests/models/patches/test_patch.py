from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.core.errors import UsageError
from uphold.models.patches.apply import apply
from uphold.models.patches.delta import Delta, fused
from uphold.models.patches.patch import Manifest, Patch, compose, pristine_hashes, quantised, scale, value_hash
from uphold.models.patches.quantise import scheme

SHAPE = (6, 5)


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(SHAPE, generator=generator).to(dtype),
        "b": torch.randn(7, generator=generator).to(dtype),
        "mean": torch.randn(4, generator=generator).to(dtype),
        "count": torch.tensor(3),
    }


def patch_of(deltas: dict[str, Delta], before: dict[str, torch.Tensor] | None = None, **put: torch.Tensor) -> Patch:
    return Patch(deltas, Manifest("test", pristine_hashes(before or weights(), [*deltas, *put])), put)


@st.composite
def deltas(draw: st.DrawFn, shape: Sequence[int] = SHAPE) -> Delta:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    kind = draw(st.sampled_from(["dense", "sparse", "rows", "columns", "int8", "int4"]))
    whole = torch.randn(*shape, generator=generator)
    if kind == "sparse":
        places = torch.randperm(whole.numel(), generator=generator)[: draw(st.integers(1, 9))]
        return Delta.sparse(shape, places, whole.reshape(-1)[places])
    if kind in ("rows", "columns"):
        dim = int(kind == "columns")
        chosen = torch.randperm(shape[dim], generator=generator)[: draw(st.integers(1, 3))]
        return Delta.slices(shape, dim, chosen.tolist(), whole.index_select(dim, chosen).movedim(dim, 0))
    made = Delta.dense(whole)
    return made if kind == "dense" else made.quantised(scheme(kind))


def test_the_three_forms_of_a_delta() -> None:
    assert Delta.dense(torch.ones(2, 2)).tensor().tolist() == [[1, 1], [1, 1]]
    sparse = Delta.sparse((2, 3), torch.tensor([4, 1]), torch.tensor([40.0, 10.0]))
    assert sparse.tensor().tolist() == [[0, 10, 0], [0, 40, 0]]
    columns = Delta.slices((2, 3), 1, [2, 0], torch.tensor([[5.0, 6.0], [1.0, 2.0]]))
    assert columns.tensor().tolist() == [[1, 0, 5], [2, 0, 6]]
    rows = Delta.slices((2, 3), 0, [1], torch.tensor([[7.0, 8.0, 9.0]]))
    assert rows.tensor().tolist() == [[0, 0, 0], [7, 8, 9]]
    filters = Delta.slices((2, 3, 1, 2), 1, [1], torch.arange(4.0).reshape(1, 2, 1, 2))
    assert filters.tensor()[:, 1].reshape(-1).tolist() == [0, 1, 2, 3]
    assert float(filters.tensor()[:, [0, 2]].abs().sum()) == 0


@pytest.mark.parametrize(
    ("shape", "dim", "indices", "values"),
    [
        ((2, 3), None, [6], 1),
        ((2, 3), None, [-1], 1),
        ((2, 3), None, [1, 1], 2),
        ((2, 3), None, [1, 2], 1),
        ((2, 3), 2, [0], 3),
        ((2, 3), 1, [3], 2),
        ((2, 3), 1, [0], 3),
    ],
)
def test_a_delta_that_does_not_fit_together_is_refused(shape: Any, dim: Any, indices: list[int], values: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        Delta(shape, torch.ones(values), torch.tensor(indices), dim).check()


def test_a_delta_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Delta.dense(torch.tensor([1.0, math.nan])).check()


@given(one=deltas())
def test_the_flat_form_of_a_delta_is_the_delta(one: Delta) -> None:
    places, values = one.flat()
    numbers = values if isinstance(values, torch.Tensor) else values.part(0, values.count)
    found = torch.zeros(one.elements)
    found[slice(None) if places is None else places] = numbers
    assert torch.equal(found.reshape(one.shape), one.tensor())
    if places is not None:
        assert bool((places[1:] > places[:-1]).all())


@given(one=deltas(), strength=st.floats(-3, 3))
def test_adding_is_the_formula(one: Delta, strength: float) -> None:
    pristine = weights()["a"]
    pieces = list(fused("a", pristine, [(strength, one)]))
    expected = (pristine + one.tensor() * strength).reshape(-1)
    assert torch.equal(torch.cat([piece.values for piece in pieces]), expected)


def test_where_a_tensor_is_cut_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Delta.slices(SHAPE, 1, [0, 3], torch.randn(2, 6))
    two = Delta.dense(torch.randn(SHAPE)).quantised(scheme("int4"))
    three = Delta.sparse(SHAPE, torch.tensor([3, 29]), torch.tensor([1.0, -2.0]))
    terms = [(0.3, one), (1.7, two), (-1.0, three)]
    whole = torch.cat([piece.values for piece in fused("a", weights()["a"], terms)])
    for size in (1, 2, 7, 30):
        monkeypatch.setattr("uphold.models.patches.delta.CHUNK", size)
        assert torch.equal(torch.cat([piece.values for piece in fused("a", weights()["a"], terms)]), whole)


def test_untouched_elements_keep_their_very_bits() -> None:
    bits = torch.tensor([0x7FA1, -0x8000, 0x3F80, 0x0001], dtype=torch.int16)
    pristine = bits.view(torch.bfloat16)
    (piece,) = fused("a", pristine, [(1.0, Delta.sparse((4,), torch.tensor([2]), torch.tensor([1.0])))])
    assert piece.values.view(torch.int16).tolist() == [0x7FA1, -0x8000, 0x4000, 0x0001]
    (piece,) = fused("a", pristine, [(0.0, Delta.dense(torch.ones(4)))])
    assert piece.values.view(torch.int16).tolist() == bits.tolist()


def test_changes_that_round_away_are_counted() -> None:
    pristine = torch.tensor([1.0, 0.001], dtype=torch.bfloat16)
    (piece,) = fused("a", pristine, [(1.0, Delta.dense(torch.tensor([1e-3, 1e-3])))])
    assert (piece.asked, piece.lost) == (2, 1)


def test_an_overflow_is_refused() -> None:
    with pytest.raises(UsageError, match="overflows float16"):
        list(fused("a", torch.tensor([60000.0]).half(), [(1.0, Delta.dense(torch.tensor([60000.0])))]))


def test_float64_weights_are_summed_in_float64() -> None:
    pristine = torch.tensor([1 + 2.0**-40], dtype=torch.float64)
    (piece,) = fused("a", pristine, [(1.0, Delta.dense(torch.tensor([0.5])))])
    assert float(piece.values) == 1.5 + 2.0**-40


@settings(max_examples=50)
@given(made=st.lists(deltas(), min_size=2, max_size=4), strengths=st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_composed_patches_give_the_same_bits_as_all_of_them(made: list[Delta], strengths: list[float]) -> None:
    patches = [patch_of({"a": one, "b": Delta.dense(torch.full((7,), 0.1 * k))}) for k, one in enumerate(made, 1)]
    strengths = [one or 1.0 for one in strengths[: len(patches)]]
    together, composed, reverse = weights(), weights(), weights()
    apply(together, patches, strengths)
    apply(composed, compose(patches, strengths))
    apply(reverse, compose(patches[::-1], strengths[::-1]))
    for name in together:
        assert torch.equal(together[name], composed[name])
        assert torch.equal(together[name], reverse[name])


def test_columns_stay_columns_when_they_are_composed() -> None:
    one = patch_of({"a": Delta.slices(SHAPE, 1, [1], torch.ones(1, 6))})
    two = patch_of({"a": Delta.slices(SHAPE, 1, [3, 1], torch.full((2, 6), 2.0))})
    both = compose([one, two]).deltas["a"]
    assert both.dim == 1
    assert both.indices is not None
    assert both.indices.tolist() == [1, 3]
    assert both.tensor()[0].tolist() == [0, 3, 0, 2, 0]


@given(one=deltas(), factor=st.sampled_from([0.5, 2.0, -1.0, 0.25]))
def test_scaling_is_linear(one: Delta, factor: float) -> None:
    patch = patch_of({"a": one})
    scaled, dialled = weights(), weights()
    apply(scaled, scale(patch, factor))
    apply(dialled, patch, factor)
    assert torch.equal(scaled["a"], dialled["a"])
    assert scale(scale(patch, factor), 2).manifest.scale == 2 * factor


def test_replacements_are_averaged_by_strength() -> None:
    one = patch_of({}, mean=torch.full((4,), 1.0))
    two = patch_of({}, mean=torch.full((4,), 4.0))
    assert compose([one, two]).replacements["mean"].tolist() == [2.5] * 4
    assert compose([one, two], [2, 1]).replacements["mean"].tolist() == [2.0] * 4
    assert compose([one], [0.1]).replacements["mean"].tolist() == [1.0] * 4
    with pytest.raises(UsageError, match="negative"):
        compose([one, two], [1, -1])
    counts = [patch_of({}, count=torch.tensor(k)) for k in (4, 5)]
    with pytest.raises(UsageError, match="different values"):
        compose(counts)
    with pytest.raises(UsageError, match="adds to 'mean'"):
        compose([one, patch_of({"mean": Delta.dense(torch.ones(4))})])


def test_patches_of_different_weights_are_composed_by_force_only() -> None:
    one = patch_of({"b": Delta.dense(torch.ones(7))})
    two = patch_of({"b": Delta.dense(torch.ones(7))}, weights(5))
    with pytest.raises(UsageError, match="different weights"):
        compose([one, two])
    both = compose([one, two], force=True)
    with pytest.raises(UsageError, match="not those that the patch was made from"):
        apply(weights(), both)
    apply(weights(), both, force=True)


def test_what_cannot_be_composed_is_refused() -> None:
    one = patch_of({"b": Delta.dense(torch.ones(7))})
    for patches, strengths in (([], None), ([one, one], None), ([one], [1, 2]), ([one], [math.inf]), ([one], [0.0])):
        with pytest.raises(UsageError):
            compose(patches, strengths)
    with pytest.raises(UsageError, match="shape"):
        compose([one, Patch({"b": Delta.dense(torch.ones(8))}, one.manifest)])
    with pytest.raises(UsageError, match="at least one"):
        Patch({}, Manifest("test", {}))
    with pytest.raises(UsageError, match="pristine"):
        Patch(one.deltas, Manifest("test", {}))
    with pytest.raises(UsageError, match="both"):
        Patch(one.deltas, one.manifest, {"b": torch.ones(7)})


def test_quantising_a_patch() -> None:
    small = quantised(patch_of({"a": Delta.dense(torch.randn(SHAPE))}, mean=torch.ones(4)), scheme("int8"))
    assert small.manifest.quantiser == "int8"
    assert small.nbytes == 30 + 16


def test_equal_content_has_one_id() -> None:
    def one(value: float) -> Patch:
        return patch_of({"b": Delta.dense(torch.full((7,), value))})

    assert one(1).id == one(1).id
    assert len({one(1).id, one(2).id, scale(one(1), 2).id}) == 3


def test_the_hash_of_values_survives_loading_in_a_wider_type() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        narrow = torch.randn(100).to(dtype)
        assert value_hash(narrow) == value_hash(narrow.float())
    assert value_hash(torch.ones(3)) != value_hash(torch.ones(3, dtype=torch.int64))
    assert value_hash(torch.ones(3)) != value_hash(torch.ones(4))
    assert value_hash(torch.arange(6.0).reshape(2, 3).T) == value_hash(torch.tensor([0.0, 3, 1, 4, 2, 5]))
