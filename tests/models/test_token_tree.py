from __future__ import annotations

from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uphold.models import token_tree
from uphold.models.token_tree import HEADER_COST, KEYS, Group, Request, TokenTree, batches, grow, rounded, share_headers

quick = settings(max_examples=100, deadline=None, database=None)

tokens = st.integers(0, 2)
requests = st.lists(
    st.builds(
        Request,
        st.lists(tokens, min_size=1, max_size=6).map(tuple),
        st.lists(tokens, min_size=1, max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=8,
)


def path(tree: TokenTree, node: int) -> list[int]:
    """The nodes from the first one to `node`."""
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = tree.parents[node]
    return nodes[::-1]


# ---- grow ----


def test_options_of_one_token_add_nothing_and_longer_ones_only_what_is_theirs() -> None:
    context = (1, 2, 3)
    tree = grow([Request(context, (4,)), Request(context, (5,)), Request(context, (6, 7)), Request(context, (6, 8, 9))])

    # Rows: 1 2 3 | 1 2 3 | 1 2 3 6 | 1 2 3 6 8.
    assert tree.tokens == (1, 2, 3, 6, 8)
    assert tree.parents == (-1, 0, 1, 2, 3)
    assert tree.depths == (0, 1, 2, 3, 4)
    assert tree.targets == (((2, 4),), ((2, 5),), ((2, 6), (3, 7)), ((2, 6), (3, 8), (4, 9)))
    assert tree.trunk == 2  # the context's last token predicts the options
    assert tree.needed == 3
    assert tree.is_chain


def test_options_that_part_are_branches() -> None:
    tree = grow([Request((1, 2), (3, 4, 5)), Request((1, 2), (6, 7)), Request((1, 2), (3, 8, 5))])

    # Rows: 1 2 3 4 | 1 2 6 | 1 2 3 8.
    assert tree.tokens == (1, 2, 3, 4, 6, 8)
    assert tree.parents == (-1, 0, 1, 2, 1, 2)
    assert tree.depths == (0, 1, 2, 3, 2, 3)
    assert tree.targets == (((1, 3), (2, 4), (3, 5)), ((1, 6), (4, 7)), ((1, 3), (2, 8), (5, 5)))
    assert tree.trunk == 1
    assert tree.needed == 5
    assert not tree.is_chain
    assert len(tree) == 6


def test_an_option_may_begin_with_another_and_equal_ones_are_one() -> None:
    tree = grow([Request((1,), (2, 3)), Request((1,), (2,)), Request((1,), (2, 3, 4)), Request((1,), (2, 3))])

    assert tree.tokens == (1, 2, 3)
    assert tree.targets == (((0, 2), (1, 3)), ((0, 2),), ((0, 2), (1, 3), (2, 4)), ((0, 2), (1, 3)))
    assert (tree.trunk, tree.needed, tree.is_chain) == (0, 3, True)


def test_contexts_of_one_question_may_differ() -> None:
    tree = grow([Request((1, 2, 3), (9,)), Request((1, 2, 4, 5), (9,)), Request((6,), (9,))])
    both = grow([Request((1, 2, 3), (9,)), Request((1, 2, 4, 5), (9,))])

    assert tree.tokens == (1, 2, 3, 4, 5, 6)
    assert tree.parents == (-1, 0, 1, 1, 3, -1)
    assert tree.depths == (0, 1, 2, 2, 3, 0)
    assert tree.trunk == 0
    assert both.trunk == 2


def test_who_sees_whom() -> None:
    tree = grow([Request((1, 2), (3, 4, 5)), Request((1, 2), (6, 7))])

    assert tree.tokens == (1, 2, 3, 4, 6)
    assert tree.visible().astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert tree.visible(1).tolist() == tree.visible()[1:, 1:].tolist()


@quick
@given(requests)
def test_every_row_is_a_path_and_every_prefix_stands_once(asked: list[Request]) -> None:
    tree = grow(asked)

    assert all(parent < node for node, parent in enumerate(tree.parents))
    assert len(tree) == len({request.row[:end] for request in asked for end in range(1, len(request.row) + 1)})
    for node in range(len(tree)):
        assert tree.depths[node] == len(path(tree, node)) - 1
    for request, targets in zip(asked, tree.targets, strict=True):
        whole = request.context + request.continuation
        nodes = path(tree, targets[-1][0])
        assert tuple(tree.tokens[node] for node in nodes) == request.row == whole[:-1]
        assert [token for _, token in targets] == list(request.continuation)
        assert [node for node, _ in targets] == nodes[len(request.context) - 1 :]
    assert tree.needed == len({node for targets in tree.targets for node, _ in targets})
    assert tree.is_chain == (len(set(tree.depths)) == len(tree))


@quick
@given(requests)
def test_a_node_sees_its_ancestors_and_itself(asked: list[Request]) -> None:
    tree = grow(asked)
    ancestors = np.zeros((len(tree), len(tree)), dtype=bool)
    for node in range(len(tree)):
        ancestors[node, path(tree, node)] = True

    for skip in range(tree.trunk + 1):
        assert np.array_equal(tree.visible(skip), ancestors[skip:, skip:])


@quick
@given(requests)
def test_the_trunk_is_all_that_a_header_may_hold(asked: list[Request]) -> None:
    tree = grow(asked)
    rows = [request.row for request in asked]
    common = next(
        (at for at, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), min(map(len, rows))
    )
    first_asked = min(len(request.context) for request in asked) - 1

    assert tree.trunk == min(common, first_asked)
    assert tree.parents[: tree.trunk] == tuple(range(-1, tree.trunk - 1))
    assert all(row[: tree.trunk] == tree.tokens[: tree.trunk] for row in rows)
    assert all(node >= tree.trunk for targets in tree.targets for node, _ in targets)


# ---- share_headers ----


def stem(*context: int) -> TokenTree:
    """A question whose trunk is `context`."""
    return grow([Request((*context, 0), (1,)), Request((*context, 0), (2,))])


def saved(groups: Sequence[Group], cost: int) -> int:
    """Tokens that need not be read again, less what the headers' own forward passes count for."""
    return sum((len(group.members) - 1) * len(group.header) - cost for group in groups if group.header)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """All partitions of `items`."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for at, block in enumerate(rest):
            yield [*rest[:at], [items[0], *block], *rest[at + 1 :]]


def most(trunks: list[tuple[int, ...]], cost: int) -> int:
    """What the best of all partitions saves."""

    def worth(block: list[int]) -> int:
        rows = [trunks[index] for index in block]
        common = next(
            (at for at, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), min(map(len, rows))
        )
        return max(0, (len(block) - 1) * common - cost)

    return max(sum(map(worth, division)) for division in partitions(list(range(len(trunks)))))


def test_a_common_header_is_read_once_if_that_is_worth_it() -> None:
    worth = HEADER_COST + 1
    long = [stem(*range(worth), 500 + index) for index in range(2)]
    short = [stem(*range(worth - 1), 500 + index) for index in range(2)]

    assert share_headers(long) == [Group(tuple(range(worth)), (0, 1))]
    assert share_headers(short) == [Group((), (0, 1))]
    assert share_headers([stem(*range(1000))]) == [Group((), (0,))]
    assert share_headers([]) == []


def test_two_subjects_have_a_header_each() -> None:
    one, other = [7, *range(100, 200)], [7, *range(200, 300)]
    trees = [stem(*(one if index % 2 else other), 1000 + index) for index in range(8)] + [stem(5, 6)]

    groups = share_headers(trees)

    assert sorted(groups, key=lambda group: group.members) == [
        Group(tuple(other), (0, 2, 4, 6)),
        Group(tuple(one), (1, 3, 5, 7)),
        Group((), (8,)),
    ]


def test_subjects_share_what_all_begin_with_where_that_saves_more() -> None:
    shots = tuple(range(200))
    trees = [stem(*shots, 1000 + subject, 2000 + index) for subject in range(6) for index in range(2)]

    assert share_headers(trees) == [Group(shots, tuple(range(12)))]


def test_a_few_may_have_a_longer_header_of_their_own() -> None:
    with mock.patch.object(token_tree, "HEADER_COST", 1):
        groups = share_headers([stem(9), stem(9), stem(9, 1, 2, 3, 4), stem(9, 1, 2, 3, 4)])

    # A header of five tokens for the last two saves 5 - 1, another of one token for the others 1 - 1; one header of
    # one token for all saves 3 - 1.
    assert groups == [Group((9, 1, 2, 3, 4), (2, 3)), Group((), (0, 1))]


def test_those_that_stay_share_a_header_around_those_that_have_a_longer_one() -> None:
    with mock.patch.object(token_tree, "HEADER_COST", 1):
        trunks = [(9, 0), (9, 1, 2, 3, 4), (9, 1, 2, 3, 4), (9, 8), (9, 7)]
        groups = share_headers([stem(*trunk) for trunk in trunks])

    # (9, 1, 2, 3, 4) for two: 5 - 1; (9,) for the three around them: 2 - 1.
    assert most(trunks, 1) == 5
    assert saved(groups, 1) == 5


def test_questions_cut_from_one_long_text_are_no_deep_recursion() -> None:
    nested = [stem(*range(length)) for length in range(1, 1200)]

    groups = share_headers(nested)

    assert sorted(index for group in groups for index in group.members) == list(range(len(nested)))


trunk_lists = st.lists(st.lists(st.integers(0, 1), max_size=7).map(tuple), min_size=1, max_size=6)


@quick
@given(trunk_lists, st.integers(0, 4))
def test_every_tree_is_in_one_group_whose_header_it_begins_with(trunks: list[tuple[int, ...]], cost: int) -> None:
    trees = [stem(*trunk) for trunk in trunks]
    with mock.patch.object(token_tree, "HEADER_COST", cost):
        groups = share_headers(trees)

    assert sorted(index for group in groups for index in group.members) == list(range(len(trees)))
    for group in groups:
        for index in group.members:
            assert trees[index].trunk >= len(group.header)
            assert trees[index].tokens[: len(group.header)] == group.header
        if group.header:
            assert saved([group], cost) > 0
    assert sum(not group.header for group in groups) <= 1


@quick
@given(trunk_lists, st.integers(0, 4))
@example([(0, 0), (0, 1, 0, 1, 1), (0, 1, 0, 1, 1), (0,), (0,)], 1)
def test_no_other_division_into_groups_saves_more(trunks: list[tuple[int, ...]], cost: int) -> None:
    with mock.patch.object(token_tree, "HEADER_COST", cost):
        groups = share_headers([stem(*trunk) for trunk in trunks])

    assert saved(groups, cost) == most(trunks, cost)


# ---- batches ----


def test_rows_of_like_length_share_a_batch_up_to_the_budget() -> None:
    chains = [stem(*range(length)) for length in (2, 3, 10, 1, 4)]  # one more token each: rows of 3, 4, 11, 2, 5

    assert list(batches(chains, range(5), 0, 8, 64, 99)) == [[0, 1, 3, 4], [2]]
    assert list(batches(chains, range(5), 0, 8, 16, 99)) == [[0, 1], [3, 4], [2]]
    assert list(batches(chains, range(5), 0, 8, 64, 2)) == [[0, 1], [3, 4], [2]]
    assert list(batches(chains, [4, 2], 0, 8, 1, 1)) == [[4], [2]]
    assert list(batches(chains, [], 0, 8, 64, 99)) == []


def test_a_long_header_stands_in_memory_once_for_every_row() -> None:
    chains = [stem(*range(100), number) for number in range(9)]  # two more tokens each behind the header of 100

    assert list(batches(chains, range(9), 100, 8, 64, 99)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]  # 4 * 108 of 512 keys
    assert list(batches(chains, range(9), 20, 8, 999, 99)) == [list(range(9))]


def test_chains_and_branching_trees_stand_apart() -> None:
    branching = grow([Request((1,), (2, 3)), Request((1,), (4, 5))])

    assert list(batches([stem(1, 2), branching, stem(1)], range(3), 0, 8, 64, 99)) == [[1], [0, 2]]


@quick
@given(
    st.lists(requests.map(grow), min_size=1, max_size=10),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 60),
    st.integers(1, 12),
    st.data(),
)
def test_batches_hold_each_member_once_within_both_budgets(
    trees: list[TokenTree], alignment: int, budget: int, predictions: int, data: st.DataObject
) -> None:
    members = data.draw(st.lists(st.sampled_from(range(len(trees))), unique=True))
    header = data.draw(st.integers(0, min((trees[index].trunk for index in members), default=0)))

    def fits(rows: int, length: int) -> bool:
        return rows * length <= budget and rows * (header + length) <= KEYS * budget

    cut = list(batches(trees, members, header, alignment, budget, predictions))

    assert sorted(index for batch in cut for index in batch) == sorted(members)
    shapes = []
    for batch in cut:
        keys = {(rounded(len(trees[index]) - header, alignment), trees[index].is_chain) for index in batch}
        assert len(keys) == 1
        ((length, _),) = keys
        needed = sum(trees[index].needed for index in batch)
        assert len(batch) == 1 or (fits(len(batch), length) and needed <= predictions)
        shapes.append((*keys, length, needed))
    # A batch ends only where the next tree would not have fitted.
    for (key, length, needed), batch, (next_key, _, _), following in zip(
        shapes[:-1], cut[:-1], shapes[1:], cut[1:], strict=True
    ):
        if key == next_key:
            more = needed + trees[following[0]].needed
            assert not fits(len(batch) + 1, length) or more > predictions


@pytest.mark.parametrize(("size", "alignment", "padded"), [(1, 8, 8), (8, 8, 8), (9, 8, 16), (5, 1, 5), (0, 8, 0)])
def test_rounding_up(size: int, alignment: int, padded: int) -> None:
    assert rounded(size, alignment) == padded
