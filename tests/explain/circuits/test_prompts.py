import pytest
import torch

from tests.explain.circuits.made import layout_of, prompts
from uphold.core.errors import EmptyError, UsageError
from uphold.explain.circuits.prompts import OTHER, Node, Prompts, halves, nodes_of


def test_roles_and_the_rest_are_all_positions() -> None:
    some = prompts(layout_of("gpt2"), 0)
    masks = torch.stack([some.mask(role) for role in ("last", "early", OTHER)])
    assert masks.sum(0).eq(1).all()
    assert some.mask("early").nonzero().tolist() == [[0, 1], [1, 2], [2, 2], [3, 3], [4, 4]]
    with pytest.raises(UsageError, match="unknown role 'lats': did you mean 'last'"):
        some.mask("lats")


def test_halves_are_all_prompts_once() -> None:
    some = prompts(layout_of("gpt2"), 0)
    one, other = halves(some, 3)
    rows = torch.cat([one.inputs["input_ids"], other.inputs["input_ids"]]).tolist()
    assert sorted(rows) == sorted(some.inputs["input_ids"].tolist())
    assert (len(one), len(other)) == (2, 3)
    with pytest.raises(EmptyError, match="one prompt cannot be split"):
        halves(some.rows(slice(0, 1)), 0)


def test_nodes_name_heads_at_roles() -> None:
    nodes = nodes_of(layout_of("llama"), ["last", "early"])
    assert len(nodes) == 4 * 4 * 2
    assert str(Node(1, 2, "last")) == "head.1.2@last"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"at": torch.tensor([9, 9])}, r"'at' of the prompts has shape \(2,\)"),
        ({"roles": {"last": torch.tensor([9, 9, 9, 9, 10])}}, "outside 0 to 9"),
        ({"roles": {"other": torch.zeros(5).long()}}, "give this one another name"),
        ({"foils": torch.zeros(5).long()}, "'foils' of the prompts has shape"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    given = prompts(layout_of("gpt2"), 0)
    with pytest.raises(UsageError, match=message):
        Prompts(**{**vars(given), **changes})
