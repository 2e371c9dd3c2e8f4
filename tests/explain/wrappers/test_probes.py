import pytest
import torch
from torch import nn

from tests.explain.wrappers.counters import asked, net, trained
from uphold.core.errors import UsageError
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.planted import reinitialised
from uphold.explain.wrappers.probes import default_sites, fit, profile
from uphold.explain.wrappers.skill import Skill
from uphold.explain.wrappers.verdict import read_probes
from uphold.models.sites.layout import read_layout
from uphold.models.sites.site import Site

ONE = WrapperConfig(shuffles=1)


def test_a_probe_reads_what_is_there_and_not_what_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (600,), generator=generator)
    x = torch.randn(600, 5, generator=generator)
    known = x + 4 * torch.nn.functional.one_hot(labels, 5)
    assert float((fit(known[:400], labels[:400], known[400:], 3) == labels[400:]).double().mean()) > 0.95
    assert float((fit(x[:400], labels[:400], x[400:], 3) == labels[400:]).double().mean()) < 0.5


def test_shuffled_labels_are_at_chance() -> None:
    found = profile(
        trained(), asked("a", 500, seed=2), asked("a", 500), default_sites(trained()), config=WrapperConfig(shuffles=3)
    )
    assert [one.site for one in found.probes] == ["residual.-1", "residual.0", "residual.1"]
    for one in found.probes:
        assert one.shuffled == pytest.approx(1 / 5, abs=0.06)
        assert one.selectivity == one.accuracy - one.shuffled


def test_the_count_is_read_after_a_block_and_not_from_the_operand_alone() -> None:
    found = profile(trained(), asked("a", seed=2), asked("a"), default_sites(trained()), config=ONE)
    assert found.probes[0].selectivity < 0.1
    assert found.probes[-1].accuracy > 0.95


def test_probing_changes_no_weight_and_no_global_seed() -> None:
    model, state = net(), torch.get_rng_state()
    before = [one.clone() for one in model.parameters()]
    profile(model, asked("a", 40, seed=2), asked("a", 20), default_sites(model), config=ONE)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(one.grad is None for one in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training


def test_positions_and_sites_must_be_known() -> None:
    with pytest.raises(UsageError, match="name the sites"):
        default_sites(nn.Linear(2, 2))
    plain = nn.Linear(3, 2)
    skill = Skill("s", torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)
    assert profile(plain, skill, skill, [Site("module-input")._replace(kind="module", path="")]).probes


def test_a_site_with_positions_needs_the_answers_position() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).mean(1)  # type: ignore[no-any-return]

    skill = Skill("s", torch.ones(4, 5, 3), torch.arange(4) % 2)
    with pytest.raises(UsageError, match="positions"):
        profile(Pooled(), skill, skill, [Site("module", path="inner")])
    assert read_layout(Pooled()).layers == 0


def same_sign(n: int, seed: int) -> Skill:
    """Whether the first two of eight numbers have one sign, which no linear map of them tells."""
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return Skill("same sign", x, (x[:, 0] * x[:, 1] > 0).long())


def small(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


def test_a_deleted_part_is_read_no_better_than_an_untrained_one() -> None:
    old = small(0)
    with torch.no_grad():
        # |x1 + x2| > |x1 - x2|
        old.get_parameter("0.weight").zero_()[:, :2] = torch.tensor([[1.0, 1.0], [-1, -1], [1, -1], [-1, 1]])
        old.get_parameter("0.bias").zero_()
    models = {"new": reinitialised(old, "0", 1), "old": old, "untrained": small(2)}
    config = WrapperConfig(shuffles=5)
    train, test = same_sign(1000, 0), same_sign(1000, 1)
    profiles = [
        profile(net, train, test, [Site("module", path="1")], name=name, config=config) for name, net in models.items()
    ]
    new, whole, untrained = (one.probes[0] for one in profiles)
    assert whole.accuracy > 0.98
    assert new.accuracy < 0.6
    assert untrained.accuracy < 0.6
    assert read_probes(profiles, config).says == "gone"
