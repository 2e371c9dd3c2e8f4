import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.explain.subspaces.nets import FEW, HIDDEN, Linear, Toy, layout_of, pairs_for, text_pairs, toy_pairs
from tests.models.sites.small import decoder
from uphold.core.errors import DataError, UpholdError, UsageError
from uphold.core.registry import method
from uphold.explain.subspace import subspace
from uphold.explain.subspaces.config import SubspaceConfig
from uphold.explain.subspaces.diagnose import find_map
from uphold.explain.subspaces.directions import random_subspace
from uphold.explain.subspaces.pairs import Pairs
from uphold.models.sites.site import Site


def test_it_is_registered_and_asking_for_it_imports_no_torch() -> None:
    assert method("explain", "subspace").config is SubspaceConfig
    code = "import sys, uphold.explain.subspace; sys.exit(any(one in sys.modules for one in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("direction", ["das", "mean-difference", "probe", "random"])
def test_every_direction_comes_with_all_diagnostics(direction: Any) -> None:
    net = Linear()
    train, test = pairs_for(net, 40, seed=1), pairs_for(net, 40)
    calls: list[str] = []
    config = replace(FEW, direction=direction, arbitrary_labels=True)
    result = subspace(
        net, "module<down", test, train=train, config=config, progress=lambda what, *_, **__: calls.append(what)
    )
    names = {one.name for one in result.effects}
    diagnostics = {"clean", "full", "patch", "row", "null", "row-read", "null-read", "row, unscaled", "placebo"}
    assert names == diagnostics | ({"arbitrary labels"} if direction == "das" else set())
    assert [one.name for one in result.fits] == (
        ["the expected answers", "arbitrary labels"] if direction == "das" else []
    )
    assert (result.map.rank, result.map.width, result.k) == (6, 12, 1)
    assert result.additivity == pytest.approx(1)
    assert result.effect("null").fldd == pytest.approx(0, abs=1e-9)
    assert calls
    json.dumps(result.to_dict(), allow_nan=False)


def test_das_on_fresh_weights_is_one_more_control() -> None:
    net = Linear()
    train, test = pairs_for(net, 40, seed=1), pairs_for(net, 40)
    result = subspace(net, "module<down", test, train=train, fresh=Linear(seed=5), config=FEW)
    assert [one.name for one in result.fits] == ["the expected answers", "the expected answers, random weights"]


def test_turning_the_hidden_basis_changes_no_number() -> None:
    net, turned = Linear(), Linear()
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    with torch.no_grad():
        turned.up.weight.copy_(turn.T @ net.up.weight)
        turned.down.weight.copy_(net.down.weight @ turn)
    pairs, basis = pairs_for(net), random_subspace(12, 2, 0)
    one = subspace(net, "module<down", pairs, basis=basis, config=FEW)
    other = subspace(turned, "module<down", pairs, basis=turn.T @ basis, config=FEW)
    for effect in one.effects:
        if effect.name != "placebo":  # drawn anew: uniform, not the same directions
            assert other.effect(effect.name).fldd == pytest.approx(effect.fldd, abs=1e-9)
            assert other.effect(effect.name).iia == effect.iia
    assert other.map.cosines == pytest.approx(one.map.cosines)
    assert other.gap.to_dict() == pytest.approx(one.gap.to_dict())
    assert other.contrast("row-read - null-read").interval == pytest.approx(
        one.contrast("row-read - null-read").interval
    )


@pytest.mark.parametrize("direction", [[0, 0, 1.0], [1.0, 1.0, 0]])
def test_in_the_toy_the_whole_site_does_as_much_and_nothing_is_decided(direction: list[float]) -> None:
    # By activations and next map alone, the good direction reads more from the kernel (80%) than the illusory (60%).
    result = subspace(Toy(), HIDDEN, toy_pairs(), basis=torch.tensor(direction), config=FEW)
    assert result.verdict == "undecided"
    assert result.effect("patch").fldd == pytest.approx(2, abs=1e-5)
    wanted = 1.6 if direction[2] else 1.2
    assert result.effect("null-read").fldd == pytest.approx(wanted, abs=1e-5)


def test_dead_directions_of_the_toy_do_nothing() -> None:
    for direction in ([1.0, 0, 0], [0, 1.0, 0]):
        result = subspace(Toy(), HIDDEN, toy_pairs(), basis=torch.tensor(direction), config=FEW)
        assert result.verdict == "nothing found"


class Planted(torch.nn.Module):
    """Hidden numbers (x, x, -x): the next map reads the sum of the last two, which is always zero."""

    def __init__(self, live: bool) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(2, 4, bias=False), torch.nn.Linear(4, 1, bias=False)
        self.straight = torch.nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.tensor([[1.0, 0], [0, 1.0], [0, -1.0], [0, 0]]))
            self.up.weight[3, 0] = 1.0 if live else 0.0
            self.down.weight.copy_(torch.tensor([[0.0, 0, 0, 2.0]]))
            self.straight.weight.copy_(torch.tensor([[0.0 if live else 2.0, 0.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(self.up(x)) + self.straight(x)
        return torch.cat([-y, y], dim=1)


@pytest.mark.parametrize(("live", "wanted"), [(False, "illusory"), (True, "faithful")])
def test_a_planted_illusion_is_told_from_a_direction_that_is_used(live: bool, wanted: str) -> None:
    toy = toy_pairs()
    generator = torch.Generator().manual_seed(0)
    assert isinstance(toy.base, torch.Tensor)
    assert isinstance(toy.source, torch.Tensor)
    base, source = (torch.cat([x, torch.randn(40, 1, generator=generator)], 1) for x in (toy.base, toy.source))
    pairs = Pairs(base, source, toy.answers, toy.expected)
    # Not live: the first number knows the class and is not read; the last is read and always zero.
    basis = torch.tensor([1.0, 0, 0, 1.0])
    if live:
        basis = torch.tensor([0.1, 0, 0, 1.0])
    result = subspace(Planted(live), HIDDEN, pairs, basis=basis, config=FEW)
    assert result.verdict == wanted
    if not live:
        assert result.effect("full").fldd == pytest.approx(0, abs=1e-6)
        assert result.effect("row").fldd == pytest.approx(0, abs=1e-6)
        assert result.gap.full == pytest.approx(0, abs=1e-6)
        assert result.gap.ratio is None or result.gap.ratio > 1e3
        assert result.gap.shared > 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("site", ["hidden.1", "head.2.1"])
def test_decoders_have_it_too(family: str, site: str) -> None:
    result = subspace(
        decoder(family),
        site,
        text_pairs(family),
        basis=torch.eye(8 if "head" in site else (128 if family == "gpt2" else 64))[:, :3],
        config=FEW,
    )
    assert (result.map.width, result.map.rank) == ((8, 8) if "head" in site else (128 if family == "gpt2" else 64, 32))
    assert result.verdict in ("nothing found", "undecided", "illusory", "faithful")
    assert result.notes


def test_a_residual_stream_is_judged_by_its_readers() -> None:
    readers = [("query.2.0", "transformer.h.2.ln_1"), ("query.2.1", "transformer.h.2.ln_1")]
    result = subspace(
        decoder("gpt2"), "residual.1", text_pairs("gpt2"), basis=torch.eye(32)[:, 0], readers=readers, config=FEW
    )
    assert (result.map.width, result.map.rank) == (32, 16)
    assert result.map.name == "query.2.0 + query.2.1"
    assert any("readers named" in note for note in result.notes)


def test_source_activations_can_come_from_the_other_version() -> None:
    old, new = Linear(seed=0), Linear(seed=0)
    with torch.no_grad():
        new.up.weight += 0.8 * torch.randn(12, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        answers, expected = new(x).argmax(1), old(x).argmax(1)
    kept = (answers != expected).nonzero()[:, 0]
    pairs = Pairs(
        x[kept], x[kept], answers[kept], expected[kept], classes=(torch.zeros(len(kept)), torch.ones(len(kept)))
    )
    train, test = pairs.chosen(slice(0, len(kept) // 2)), pairs.chosen(slice(len(kept) // 2, None))
    result = subspace(
        new, "module<down", test, train=train, other=old, config=replace(FEW, direction="mean-difference")
    )
    # All that differs between the versions comes before the site: the full patch makes it the old one.
    assert result.effect("full").iia == 1
    alone = subspace(new, "module<down", test, basis=result.basis, config=FEW)
    assert alone.effect("full").iia == 0


def test_the_same_seed_gives_the_same_result() -> None:
    net = Linear()
    train, test = pairs_for(net, 40, seed=1), pairs_for(net, 40)
    once, again = (subspace(net, "module<down", test, train=train, config=FEW).to_dict() for _ in range(2))
    assert once == again


def test_what_does_not_fit_is_refused() -> None:
    net = Linear()
    pairs = pairs_for(net)
    wrong: list[tuple[type[UpholdError], str, dict[str, Any]]] = [
        (UsageError, "give train=", {}),
        (UsageError, "trained on as well", {"train": pairs}),
        (UsageError, "expected one of them", {"next_map": torch.eye(12), "readers": [("module:down", "")]}),
        (UsageError, "takes 5", {"basis": torch.eye(12)[:, 0], "next_map": torch.eye(5)}),
    ]
    for error, text, options in wrong:
        with pytest.raises(error, match=text):
            subspace(net, "module<down", pairs, config=FEW, **options)
    other = Linear(hidden=10)
    with pytest.raises(DataError, match="two models of one shape"):
        subspace(net, "module<down", pairs, basis=torch.eye(12)[:, 0], other=other, config=FEW)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"direction": "dsa"}, "unknown direction"),
        ({"loss": "ce"}, "unknown loss"),
        ({"k": 0}, "k is 0"),
        ({"level": 1.5}, "level"),
        ({"tolerance": 2}, "tolerance"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        SubspaceConfig(**options)


def test_the_map_that_is_given_counts() -> None:
    space = find_map(layout_of(Linear()), HIDDEN, next_map=torch.eye(12)[:, :2])
    assert (space.rank, space.width, space.name) == (2, 12, "the given map")
    assert find_map(layout_of(Linear()), Site("module-input", path="down")).rank == 6
