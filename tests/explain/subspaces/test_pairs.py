import pytest
import torch

from tests.explain.subspaces.nets import HIDDEN, Toy, layout_of, text_pairs, toy_pairs
from tests.models.sites.small import layout_of as decoder_layout
from uphold.core.errors import DataError, EmptyError, ModelError
from uphold.explain.subspaces.pairs import Pairs, activations, shared_pairs
from uphold.models.sites.run import read
from uphold.models.sites.site import Site


def test_pairs_that_expect_what_is_there_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 pairs expect"):
        Pairs(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0, 1]), torch.tensor([1, 1]))


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="source"):
        Pairs(torch.zeros(2, 1), torch.zeros(3, 1), torch.tensor([0, 1]), torch.tensor([1, 0]))
    with pytest.raises(EmptyError):
        Pairs(torch.zeros(0, 1), torch.zeros(0, 1), torch.zeros(0).long(), torch.zeros(0).long())


def test_some_pairs_keep_all_that_belongs_to_them() -> None:
    pairs = text_pairs("gpt2")
    full = Pairs(
        pairs.base,
        pairs.source,
        pairs.answers,
        pairs.expected,
        at=torch.arange(6),
        positions=torch.arange(6) + 1,
        source_positions=torch.arange(6) + 2,
        classes=(torch.arange(6), torch.arange(6) + 10),
        clusters=torch.arange(6) // 2,
    )
    part = full.chosen(torch.tensor([4, 1]))
    assert part.at is not None
    assert part.clusters is not None
    assert part.counting is not None
    assert part.patched is not None
    assert part.taken is not None
    assert (part.at.tolist(), part.clusters.tolist()) == ([4, 1], [2, 0])
    assert (part.counting.tolist(), part.patched.tolist(), part.taken.tolist()) == ([4, 1], [5, 2], [6, 3])
    assert [one.tolist() for one in part.values] == [[4, 1], [14, 11]]
    assert [len(batch) for batch in full.batches(4)] == [4, 2]


@pytest.mark.parametrize("position", [None, 3])
def test_activations_are_those_of_the_position(position: int | None) -> None:
    layout, pairs, site = decoder_layout("llama"), text_pairs("llama"), Site("hidden", 2)
    where = None if position is None else torch.full((6,), position)
    pairs = Pairs(pairs.base, pairs.source, pairs.answers, pairs.expected, positions=where)
    found, _ = read(layout, pairs.source, [site])
    torch.testing.assert_close(
        activations(layout, pairs, site, source=True, rows=4), found[site][:, 7 if position is None else position]
    )


def test_a_site_without_positions_needs_none() -> None:
    found = activations(layout_of(Toy()), toy_pairs(), HIDDEN)
    assert found.shape == (40, 3)
    assert bool((found[:, 1] == 0).all())


def test_a_site_with_positions_needs_one() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    x = torch.zeros(2, 5, 4)
    with pytest.raises(ModelError, match="positions in the pairs"):
        activations(layout_of(net), Pairs(x, x, torch.tensor([0, 1]), torch.tensor([1, 0])), Site("module", path="0"))


def test_pairs_in_both_sets_are_counted() -> None:
    pairs = text_pairs("gpt2")
    assert shared_pairs(pairs.chosen(slice(0, 4)), pairs.chosen(slice(2, 6))) == 2
    assert shared_pairs(toy_pairs(), toy_pairs()) == 40
