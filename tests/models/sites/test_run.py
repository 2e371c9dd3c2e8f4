from typing import Any

import pytest
import torch
from torch import nn

from tests.models.sites.small import AT, CONFIGS, KINDS, decoder, difference, inputs, layout_of
from uphold.core.errors import ModelError
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import read_layout
from uphold.models.sites.resume import keep, resume
from uphold.models.sites.run import last_positions, read, run
from uphold.models.sites.site import Site
from uphold.models.sites.sweep import mask_at, sweep

EMBEDDED = Site("residual", -1)


@pytest.mark.parametrize("family", CONFIGS)
def test_patching_the_input_of_the_first_block_gives_the_source_run(family: str) -> None:
    layout = layout_of(family)
    source, wanted = read(layout, inputs(1), [EMBEDDED])
    assert torch.equal(run(layout, inputs(0), [Edit(EMBEDDED, source[EMBEDDED])]), wanted)


@pytest.mark.parametrize("family", CONFIGS)
def test_patching_with_itself_changes_nothing(family: str) -> None:
    layout = layout_of(family)
    sites = layout.sites(*KINDS)
    found, clean = read(layout, inputs(0), sites)
    assert torch.equal(run(layout, inputs(0), [Edit(site, found[site]) for site in sites]), clean)


@pytest.mark.parametrize("family", CONFIGS)
def test_all_heads_and_feed_forward_parts_of_another_model_make_it_that_model(family: str) -> None:
    # Embeddings, final norm and head are shared; in between everything differs.
    layout, other = layout_of(family), decoder(family, seed=1)
    shared = {name: value for name, value in decoder(family).state_dict().items() if not _in_a_block(name)}
    other.load_state_dict(shared, strict=False)
    sites = layout.sites("attention", "mlp")
    found, wanted = read(read_layout(other), inputs(0), sites)
    if family == "gemma3":
        sites = layout.sites("residual")
        found, wanted = read(read_layout(other), inputs(0), sites)
    patched = run(layout, inputs(0), [Edit(site, found[site]) for site in sites])
    torch.testing.assert_close(patched, wanted, atol=1e-6, rtol=1e-5)


def _in_a_block(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


@pytest.mark.parametrize("family", CONFIGS)
def test_going_on_from_the_middle_gives_what_a_whole_pass_gives(family: str) -> None:
    layout = layout_of(family)
    sites = layout.sites(*KINDS)
    source, _ = read(layout, inputs(1), sites)
    kept = keep(layout, inputs(0), AT)
    torch.testing.assert_close(kept.logits, run(layout, inputs(0), at=AT))
    for site in sites:
        for position in (0, 3, 5):
            edits = [Edit(site, source[site], mask_at((5, 10), position))]
            wanted = run(layout, inputs(0), edits, at=AT)
            torch.testing.assert_close(resume(layout, kept, edits, layer=site.layer, start=position), wanted)
            if site.kind == "residual":
                torch.testing.assert_close(resume(layout, kept, edits, layer=site.layer + 1, start=position), wanted)
    assert torch.equal(keep(layout, inputs(0), AT).logits, kept.logits)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("tokens", [7, 40, 5000])
def test_a_sweep_gives_what_single_patches_give(family: str, tokens: int) -> None:
    layout = layout_of(family)
    sites = layout.sites("residual", "head", "key", "hidden")[:: 3 if tokens == 7 else 1]
    source, _ = read(layout, inputs(1), sites)
    candidates = [[Edit(site, source[site], mask_at((5, 10), position))] for site in sites for position in (0, 4, 7)]
    candidates += [
        [Edit(sites[0], source[sites[0]]), Edit(sites[-1], torch.zeros_like)],
        [Edit(sites[1], torch.tensor(0.0), mask_at((5, 10), [0, 1, 2, 3, -1]))],
    ]
    found = sweep(layout, keep(layout, inputs(0), AT), candidates, difference, tokens=tokens)
    single = [difference(run(layout, inputs(0), edits, at=AT), torch.arange(5)) for edits in candidates]
    torch.testing.assert_close(found, torch.stack(single), atol=3e-6, rtol=1e-5)


def test_edits_of_one_module_are_made_in_order() -> None:
    layout = layout_of("llama")
    site = Site("residual", 1)
    twice = [Edit(site, lambda old: old + 1), Edit(site, lambda old: 2 * old)]
    once = [Edit(site, lambda old: 2 * (old + 1))]
    assert torch.equal(run(layout, inputs(0), twice), run(layout, inputs(0), once))


def test_what_is_read_is_what_edits_left() -> None:
    layout = layout_of("llama")
    site = Site("head", 1, 2)
    found, _ = read(layout, inputs(0), [site], [Edit(site, torch.tensor(3.0))])
    assert (found[site] == 3).all()


def test_positions_that_count_are_the_only_ones_projected() -> None:
    layout = layout_of("llama")
    whole = run(layout, inputs(0))
    assert torch.equal(last_positions(inputs(0)), AT)
    torch.testing.assert_close(run(layout, inputs(0), at=AT), whole[torch.arange(5), AT])
    projected: list[torch.Size] = []
    hook = layout.model.get_output_embeddings().register_forward_hook(lambda *call: projected.append(call[-1].shape))
    run(layout, inputs(0), at=AT)
    hook.remove()
    assert projected == [(5, 1, 50)]


class Uncalled(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.used, self.times = nn.Linear(2, 2), times

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            values = self.used(values)
        return values


@pytest.mark.parametrize(("times", "message"), [(0, "did not call used"), (2, "called used 2 times")])
def test_an_intervention_that_does_not_take_place_once_is_an_error(times: int, message: str) -> None:
    layout = read_layout(Uncalled(times))
    site = Site("module", path="used")
    with pytest.raises(ModelError, match=message):
        run(layout, torch.ones(1, 2), [Edit(site, torch.zeros(2))])
    with pytest.raises(ModelError, match=message):
        read(layout, torch.ones(1, 2), [site])


@pytest.mark.parametrize("edit", [Edit(EMBEDDED, torch.zeros(7)), Edit(EMBEDDED, torch.zeros(1), torch.ones(3, 10))])
def test_a_value_that_does_not_fit_is_refused(edit: Edit) -> None:
    with pytest.raises(ModelError, match=r"residual.-1 holds \(5, 10, 32\): a value of .* does not fit"):
        run(layout_of("llama"), inputs(0), [edit])


@pytest.mark.parametrize("call", ["run", "resume"])
def test_the_model_is_whole_after_an_exception(call: str) -> None:
    layout = layout_of("llama")
    clean = run(layout, inputs(0), at=AT)
    modules = dict(layout.model.named_modules())
    layout.model.train()

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    edits = [Edit(Site("mlp", 2), fail)]
    kept = keep(layout, inputs(0), AT)

    def attempt() -> Any:
        return run(layout, inputs(0), edits) if call == "run" else resume(layout, kept, edits, layer=2, start=3)

    with pytest.raises(KeyboardInterrupt):
        attempt()
    assert layout.model.training
    layout.model.eval()
    assert dict(layout.model.named_modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in layout.model.modules())
    assert torch.equal(run(layout, inputs(0), at=AT), clean)
