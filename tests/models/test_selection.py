import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.models.selection import EVERYTHING, NOTHING, Cut, largest, row_order


def found(streams, counts, size):
    length = len(streams[0])

    def passes():
        for start in range(0, length, size):
            yield start, [stream[start : start + size] for stream in streams]

    return largest(passes, counts, length)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_selected_is_what_a_stable_sort_puts_first(data):
    values = st.floats(0, 3, width=32) | st.sampled_from([0.0, 1.0, 2**-130, 3e38])
    stream = torch.tensor(data.draw(st.lists(values, min_size=1, max_size=40)), dtype=torch.float32)
    count = data.draw(st.integers(0, len(stream) + 1))
    size = data.draw(st.integers(1, len(stream)))
    ((cut,),) = found([stream], [[count]], size)
    expected = torch.zeros(len(stream))
    expected[stream.sort(descending=True, stable=True).indices[:count]] = 1
    parts = [cut.among(stream[start : start + size], start) for start in range(0, len(stream), size)]
    assert torch.equal(torch.cat(parts), expected)


def test_several_streams_and_several_ranks():
    streams = [torch.tensor([1.0, 3, 2, 2]), torch.tensor([4.0, 4, 4, 4])]
    cuts = found(streams, [[1, 2, 3, 4], [0, 3]], 3)
    assert cuts == [[Cut(3.0, None), Cut(2.0, 2), Cut(2.0, None), EVERYTHING], [NOTHING, Cut(4.0, 2)]]


def test_nothing_is_read_where_nothing_is_asked():
    def passes():
        pytest.fail("read")

    assert largest(passes, [[0, 5], []], 5) == [[NOTHING, EVERYTHING], []]


@given(rows=st.integers(0, 4), columns=st.integers(0, 40), descending=st.booleans(), seed=st.integers(0, 9))
def test_the_order_of_rows_is_a_stable_one(rows, columns, descending, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-4, 5, (rows, columns), generator=generator) / 4 * -1.0
    assert torch.equal(
        row_order(values, descending=descending), values.abs().argsort(dim=-1, stable=True, descending=descending)
    )
