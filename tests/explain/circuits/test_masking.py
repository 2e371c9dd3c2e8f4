import pytest
import torch

from tests.explain.circuits.made import layout_of, prompts
from uphold.core.errors import EmptyError, UsageError
from uphold.explain.circuits.masking import MaskConfig, Pairs, learn_mask, mask_loss, target_accuracy
from uphold.explain.circuits.patching import moved
from uphold.explain.circuits.prompts import Node, nodes_of
from uphold.models.sites.layout import Layout
from uphold.models.sites.run import read, run

GROUP = tuple(Node(layer, head, "last") for layer in (2, 3) for head in range(4))


def pairs(layout: Layout, patched: tuple[Node, ...]) -> Pairs:
    """Pairs whose target is what patching some heads makes the most likely answer."""
    base, source = prompts(layout, 0), prompts(layout, 1)
    held, _ = read(layout, source.inputs, [node.site for node in GROUP])
    edits = [moved(node, held, source, base) for node in patched]
    return Pairs(base, source, run(layout, base.inputs, edits, at=base.at).argmax(-1))


def repeated(few: Pairs) -> Pairs:
    return few.rows(torch.arange(40) % len(few))


def test_a_mask_of_ones_leaves_the_base_and_one_of_zeros_patches() -> None:
    layout = layout_of("llama")
    some = pairs(layout, GROUP)
    logits = run(layout, some.base.inputs, at=some.base.at)
    alone = mask_loss(layout, some, GROUP, torch.ones(8), 0.5)
    torch.testing.assert_close(-alone, logits.gather(1, some.targets[:, None]).mean())
    assert target_accuracy(layout, some, ()) == int((logits.argmax(-1) == some.targets).sum()) / 5
    held, _ = read(layout, some.source.inputs, [node.site for node in GROUP])
    edits = [moved(node, held, some.source, some.base) for node in GROUP]
    logits = run(layout, some.base.inputs, edits, at=some.base.at)
    patched = mask_loss(layout, some, GROUP, torch.zeros(8), 0.5)
    torch.testing.assert_close(0.5 * 8 - patched, logits.gather(1, some.targets[:, None]).mean())
    assert target_accuracy(layout, some, GROUP) == 1


def test_gradients_of_the_mask_are_those_of_differences() -> None:
    layout = layout_of("gpt2")
    some = pairs(layout, GROUP[:3])
    mask = torch.full((8,), 0.5, requires_grad=True)
    mask_loss(layout, some, GROUP, mask, 0.1).backward()  # type: ignore[no-untyped-call]
    assert mask.grad is not None
    for number in range(0, 8, 3):
        step = 0.01 * torch.eye(8)[number]
        high, low = (mask_loss(layout, some, GROUP, mask.detach() + sign * step, 0.1) for sign in (1, -1))
        torch.testing.assert_close((high - low) / 0.02, mask.grad[number], atol=2e-3, rtol=2e-2)
    assert all(weight.requires_grad and weight.grad is None for weight in layout.model.parameters())


def test_heads_that_carry_the_answer_are_found() -> None:
    layout = layout_of("llama")
    some = repeated(pairs(layout, GROUP))
    assert target_accuracy(layout, some, ()) < 0.5
    mask = learn_mask(layout, some, GROUP, config=MaskConfig(batch=5, epochs=8))
    assert mask.whole == 1
    assert mask.accuracy > mask.floor
    assert set(mask.patched) <= set(GROUP)
    assert mask.count == 10


def test_a_high_price_leaves_every_head_alone() -> None:
    layout = layout_of("llama")
    some = repeated(pairs(layout, GROUP))
    mask = learn_mask(layout, some, GROUP, config=MaskConfig(penalty=1e6, batch=5))
    assert mask.patched == ()
    assert mask.accuracy == mask.floor


@pytest.mark.parametrize("seed", range(3))
def test_the_mask_is_never_worse_than_none_on_validation_pairs(seed: int) -> None:
    layout = layout_of("llama")
    some = repeated(pairs(layout, ()))  # the base's own answers are wanted: every patch is a loss
    config = MaskConfig(batch=5, seed=seed, penalty=0)
    mask = learn_mask(layout, some, nodes_of(layout, ["early"]), config=config)
    assert mask.validation == 1


def test_wrong_settings_are_refused() -> None:
    layout = layout_of("gpt2")
    with pytest.raises(UsageError, match="must leave some to test with"):
        MaskConfig(shares=(0.5, 0.5))
    with pytest.raises(UsageError, match="cannot be learned"):
        MaskConfig(batch=0)
    with pytest.raises(EmptyError, match="no heads"):
        learn_mask(layout, pairs(layout, ()), ())
    with pytest.raises(EmptyError, match="2 pairs are too few"):
        learn_mask(layout, pairs(layout, ()).rows(slice(0, 2)), GROUP)


def test_a_mask_that_reaches_nothing_patches_nothing() -> None:
    layout = layout_of("llama")
    base, source = prompts(layout, 0), prompts(layout, 1)
    held, _ = read(layout, source.inputs, [node.site for node in GROUP])
    alone = run(layout, base.inputs, at=base.at)
    patched = run(layout, base.inputs, [moved(node, held, source, base) for node in GROUP], at=base.at)
    gain = patched - alone
    # Targets that neither run comes near to.
    for logits in (alone, patched):
        gain[logits.argsort(-1, descending=True).argsort(-1) < 20] = -9
    pairs = repeated(Pairs(base, source, gain.argmax(-1)))
    mask = learn_mask(layout, pairs, GROUP, config=MaskConfig(batch=5, epochs=8))
    assert (mask.validation, mask.patched) == (0, ())
