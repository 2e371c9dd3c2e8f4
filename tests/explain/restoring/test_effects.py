import pytest
import torch

from tests.explain.restoring.two_versions import PLANTED, forks, hybrid, planted
from tests.models.sites.small import layout_of
from uphold.core.errors import ModelError
from uphold.explain.restoring.effects import Hybrid
from uphold.explain.restoring.forks import Forks
from uphold.models.sites.site import Site


def test_margins_are_those_of_each_version() -> None:
    rows = forks(7)
    old, new = hybrid().margins(rows)
    assert (old > 0).all()
    assert (new < 0).all()
    for place, row in enumerate(rows.rows):
        for layout, margins in zip(planted(), (old, new), strict=True):
            with torch.no_grad():
                logits = layout.model(torch.tensor([row.tokens])).logits[0, -1]
            torch.testing.assert_close(margins[place], logits[row.old] - logits[row.new])


def test_the_site_that_differs_restores_everything_and_one_before_it_nothing() -> None:
    rows, both = forks(9), hybrid()
    old, new = both.margins(rows)
    before = Site("mlp", 0)
    patched = both.patched(rows, [(PLANTED,), (before,), (before, PLANTED), ()])
    torch.testing.assert_close(patched[0], old, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patched[1], new, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patched[2], old, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patched[3], new)


def test_a_held_site_keeps_what_it_is_in_the_new_version() -> None:
    rows, both = forks(5), hybrid()
    _, new = both.margins(rows)
    later = [Site("residual", 3)]
    held = both.patched(rows, [(PLANTED,)], [tuple(later)])
    torch.testing.assert_close(held[0], new, atol=1e-5, rtol=1e-5)


def test_batches_and_padding_do_not_show() -> None:
    rows = forks(8)
    groups = [(PLANTED,), (Site("head", 2, 1),)]
    one, other = (hybrid(tokens).patched(rows, groups) for tokens in (9, 1000))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    one, other = (hybrid(tokens).screened(rows, [PLANTED, Site("mlp", 2)]) for tokens in (9, 1000))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_equal_versions_have_nothing_to_restore() -> None:
    layout = layout_of("llama")
    same = Hybrid(layout, layout)
    rows = forks(4)
    old, new = same.margins(rows)
    assert torch.equal(old, new)
    sites = layout.sites("head", "mlp")
    assert same.screened(rows, sites).abs().max() == 0
    torch.testing.assert_close(same.patched(rows, [(site,) for site in sites]), new.expand(len(sites), -1))


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ModelError, match=r"not of one architecture \(model type llama and gpt2, key heads 2 and 4"):
        Hybrid(layout_of("llama"), layout_of("gpt2"))


def test_forks_that_do_not_decide_are_left_out() -> None:
    rows, both = forks(6), hybrid()
    turned = tuple(row._replace(old=row.new, new=row.old) if place % 2 else row for place, row in enumerate(rows.rows))
    kept = both.decided(Forks(turned, 1))
    assert kept.rows == rows.rows[::2]
    assert kept.left_out == 4
