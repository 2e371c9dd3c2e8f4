import pytest

from uphold.core.stats import Interval
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.probes import Probe, Profile
from uphold.explain.wrappers.relearning import Arm, Relearning
from uphold.explain.wrappers.skill import Behaviour
from uphold.explain.wrappers.verdict import Sign, judge, read_probes, read_relearning

STEPS = (0, 10, 20, 40, 100)
CONFIG = WrapperConfig()


def relearning(own: tuple[float, ...], control: tuple[float, ...]) -> Relearning:
    return Relearning(1e-4, 0.0, 0.9, 0.5, (0,), (Arm("reFT", STEPS, (own,)), Arm("scratch", STEPS, (control,))))


def behaviour(accuracy: float, high: float | None = None) -> Behaviour:
    band = Interval(accuracy - 0.02, accuracy + 0.02 if high is None else high)
    return Behaviour("m", "s", 100, accuracy, band, accuracy, 0.0, ((0, 100),))


def profiles(new: float, old: float, untrained: float) -> list[Profile]:
    return [
        Profile(name, (Probe("residual.0", value, Interval(0, 1), 0.0),))
        for name, value in (("new", new), ("old", old), ("untrained", untrained))
    ]


@pytest.mark.parametrize(
    ("own", "control", "says"),
    [
        ((0.1, 1, 1, 1, 1), (0.1, 0.1, 0.1, 0.1, 1), "kept"),
        ((0.1, 1, 1, 1, 1), (0.1, 0.1, 0.1, 0.1, 0.1), "kept"),
        ((0.1, 0.1, 1, 1, 1), (0.1, 0.1, 0.1, 1, 1), "partly"),
        ((0.1, 0.1, 1, 1, 1), (0.1, 0.1, 1, 1, 1), "gone"),
        ((0.1, 0.6, 0.6, 1, 1), (0.1, 0.1, 0.1, 1, 1), "partly"),
        ((0.1, 0.1, 0.1, 1, 1), (0.1, 0.1, 0.1, 0.1, 0.1), "cannot tell"),
        ((0.1, 0.1, 0.1, 0.1, 0.2), (0.1, 0.1, 0.1, 0.1, 0.3), "gone"),
        ((0.1, 0.1, 0.1, 0.1, 0.5), (0.1, 0.1, 0.1, 0.1, 0.3), "cannot tell"),
    ],
)
def test_what_relearning_says(own: tuple[float, ...], control: tuple[float, ...], says: str) -> None:
    assert read_relearning(relearning(own, control), CONFIG).says == says


@pytest.mark.parametrize(
    ("new", "old", "untrained", "says"),
    [
        (0.9, 0.9, 0.2, "kept"),
        (0.55, 0.9, 0.2, "partly"),
        (0.2, 0.9, 0.2, "gone"),
        (0.9, 0.9, 0.85, "cannot tell"),
    ],
)
def test_what_probes_say(new: float, old: float, untrained: float, says: str) -> None:
    assert read_probes(profiles(new, old, untrained), CONFIG).says == says
    assert read_probes(profiles(new, old, untrained)[:2], CONFIG).says == "cannot tell"


@pytest.mark.parametrize(
    ("relearned", "probed", "verdict"),
    [
        ("kept", "kept", "wrapped"),
        ("partly", "partly", "altered"),
        ("gone", "gone", "deleted"),
        ("gone", "cannot tell", "deleted"),
        ("kept", "gone", "undecided"),
        ("partly", "kept", "undecided"),
        ("cannot tell", "gone", "undecided"),
    ],
)
def test_signs_must_agree(relearned: str, probed: str, verdict: str) -> None:
    signs = [Sign("relearning", relearned, "x"), Sign("probes", probed, "y")]  # type: ignore[arg-type]
    curves = relearning((0.1,) * 5, (0.1,) * 5)
    assert judge(behaviour(1.0), behaviour(0.1), curves, signs)[0] == verdict


def test_a_skill_that_is_there_is_unchanged_and_one_that_may_be_is_undecided() -> None:
    there, shaky = relearning((1.0,) * 5, (0.1,) * 5), relearning((1.0, 0.2, 1, 1, 1), (0.1,) * 5)
    assert judge(behaviour(1.0), behaviour(0.95), there, [])[0] == "unchanged"
    assert judge(behaviour(1.0), behaviour(0.95), shaky, [])[0] == "undecided"
    verdict, reason = judge(behaviour(1.0), behaviour(0.89, high=0.92), there, [])
    assert (verdict, "within noise" in reason) == ("undecided", True)
