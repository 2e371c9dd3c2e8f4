import copy
from typing import Any

import pytest
import torch

from tests.explain.circuits.made import FAMILIES, layout_of, prompts
from uphold.explain.circuits.knockout import knockout
from uphold.explain.circuits.measures import of_all
from uphold.explain.circuits.prompts import OTHER
from uphold.models.sites.layout import Layout, read_layout
from uphold.models.sites.run import run


def with_kernel(family: str, kernel: str) -> Layout:
    model: Any = copy.deepcopy(layout_of(family).model)
    model.set_attn_implementation(kernel)
    return read_layout(model)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [False, True])
def test_what_is_never_looked_at_does_not_matter(family: str, kernel: str, padded: bool) -> None:
    layout = with_kernel(family, kernel)
    some = prompts(layout, 0, padded=padded)
    clean = of_all("logit-difference", some)(run(layout, some.inputs, at=some.at))
    found = knockout(layout, some, "last", "early", measure="logit-difference", batch=2)
    torch.testing.assert_close(found[4], clean, atol=1e-5, rtol=1e-4)
    backwards = knockout(layout, some, "early", "last", measure="logit-difference", starts=[0])
    torch.testing.assert_close(backwards[0], clean, atol=1e-5, rtol=1e-4)
    assert (found[0] - clean).abs().max() > 1e-3


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_position_that_nothing_may_look_at_has_no_part(kernel: str) -> None:
    layout = with_kernel("llama", kernel)
    some = prompts(layout, 0, padded=False)
    # Only the last position comes after `early`: where it may not look there, that token says nothing.
    some.roles["early"][:] = 8
    other = some.rows(slice(None))
    other.inputs["input_ids"][:, 8] = 7
    found = [knockout(layout, one, "last", "early", measure="logit-difference", starts=[0])[0] for one in (some, other)]
    torch.testing.assert_close(*found)


def test_no_block_is_left_with_hooks() -> None:
    layout = layout_of("gpt2")
    some = prompts(layout, 0)
    knockout(layout, some, "last", OTHER, starts=[2])
    assert not any(module._forward_pre_hooks for module in layout.model.modules())
