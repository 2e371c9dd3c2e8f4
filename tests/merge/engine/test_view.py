from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.merge.engine.test_sources import stored
from uphold.merge.engine.counter import uniform
from uphold.merge.engine.plan import Planned
from uphold.merge.engine.view import TensorView, largest_chunk, spans
from uphold.merge.protocol import Settings


@given(
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.sampled_from(["element", "row", "tensor"]),
    st.integers(1, 30),
)
def test_chunks_cover_a_tensor_once_and_in_order(shape: tuple[int, ...], unit: Any, size: int) -> None:
    found = list(spans(shape, unit, size))
    assert [element for start, stop in found for element in range(start, stop)] == list(range(math.prod(shape)))
    columns = shape[-1] if shape else 1
    if unit == "row":
        assert all(start % columns == stop % columns == 0 for start, stop in found)
    if unit == "element":
        assert all(stop - start <= size for start, stop in found)
    assert largest_chunk(shape, unit, size) == max((stop - start for start, stop in found), default=0)


@pytest.mark.parametrize(("unit", "shape"), [("element", (6,)), ("row", (2, 3)), ("tensor", (2, 2, 3))])
def test_chunks_have_the_shape_that_the_method_asks_for(unit: Any, shape: tuple[int, ...]) -> None:
    value = torch.arange(12.0).reshape(2, 2, 3)
    tensor = Planned("w", torch.float32, (2, 2, 3), Settings([], {}), stored(value), (stored(-value.bfloat16()),))
    view = TensorView(tensor, unit, 5, 6)
    for _ in range(2):
        chunks = list(view.chunks())
        assert {tuple(chunk.models[0].shape) for chunk in chunks} == {shape}
        assert torch.cat([chunk.models[0].reshape(-1) for chunk in chunks]).equal(-value.reshape(-1))
        assert chunks[0].models[0].dtype == torch.float32
    assert (view.name, view.shape) == ("w", (2, 2, 3))
    assert view.uniform(1, 3, 4).tolist() == uniform(5, "w", 1, 3, 4).tolist()


def test_a_scalar_is_a_row_of_one() -> None:
    one = stored(torch.tensor(2.0))
    shapes = []
    for unit in ("element", "row", "tensor"):
        view = TensorView(Planned("w", torch.float32, (), Settings([], {}), None, (one,)), unit, 0)  # type: ignore[arg-type]
        shapes.append([tuple(chunk.models[0].shape) for chunk in view.chunks()])
    assert shapes == [[(1,)], [(1, 1)], [()]]
