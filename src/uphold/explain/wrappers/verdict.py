"""What became of a skill, by numbers that must agree.

The limits are ours (`WrapperConfig`): the paper (arXiv:2311.12786) reads its curves by eye.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.probes import Profile
from uphold.explain.wrappers.relearning import Lead, Relearning
from uphold.explain.wrappers.revival import Revival
from uphold.explain.wrappers.skill import Behaviour

Verdict = Literal["unchanged", "wrapped", "altered", "deleted", "undecided"]
Reading = Literal["kept", "partly", "gone", "cannot tell"]
_MEANING: dict[Reading, Verdict] = {"kept": "wrapped", "partly": "altered", "gone": "deleted"}
RELEARNING = "relearning"
"""The tool without which there is no verdict."""
READABLE = 0.1
"""A probe of the old model must read so much more than one of an untrained model to tell anything."""
REVIVED = 0.5
"""Pruning that brings back so much of what was lost says that the skill is still there."""


@dataclass(frozen=True)
class Sign:
    """What one measurement says of the skill."""

    tool: str
    says: Reading
    numbers: str
    """What it goes by."""


def read_relearning(found: Relearning, config: WrapperConfig) -> Sign:
    """What relearning says.

    Kept where the target is reached `faster` times sooner than by every control, gone where neither it nor half the way
    to it is reached `slow` times sooner than by the best control.
    """
    own, *controls = found.arms
    steps = "/".join(f"> {own.steps[-1]}" if one is None else str(one) for one in own.reached(found.target))
    text = f"at {found.learning_rate:g}: {steps} steps"
    if not controls:
        return Sign(RELEARNING, "cannot tell", f"{text}, with no control beside it")
    leads = found.leads()
    if leads is None:
        ends = ", ".join(f"{arm.name} {arm.mean[-1]:.1%}" for arm in found.arms)
        if own.mean[-1] <= max(arm.mean[-1] for arm in controls):
            return Sign(RELEARNING, "gone", f"{text}; accuracy at the end: {ends}")
        return Sign(RELEARNING, "cannot tell", f"{text}, more are needed; accuracy at the end: {ends}")
    least = min(leads, key=lambda one: one.times)
    halves = found.leads(found.half) or leads
    half = next(one for one in halves if one.control == least.control)
    text = f"{text}, {_bound(least)} times sooner than {least.control}; half-life {_bound(half)} times shorter"
    if least.times >= config.faster:
        return Sign(RELEARNING, "kept", text)
    if least.open:
        return Sign(RELEARNING, "cannot tell", f"{text}: more steps are needed")
    return Sign(RELEARNING, "gone" if max(least.times, half.times) <= config.slow else "partly", text)


def _bound(lead: Lead) -> str:
    return f"{'at least ' if lead.open else ''}{lead.times:.1f}"


def read_probes(profiles: Sequence[Profile], config: WrapperConfig) -> Sign:
    """Probes: the best selectivity of the new model, between the untrained model's (0) and the old model's (1)."""
    best = {one.model: max(probe.selectivity for probe in one.probes) for one in profiles}
    text = ", ".join(f"{name} {value:.1%}" for name, value in best.items())
    if "untrained" not in best:
        return Sign("probes", "cannot tell", f"selectivity {text}; no untrained model beside them")
    gap = best["old"] - best["untrained"]
    if gap < READABLE:
        return Sign("probes", "cannot tell", f"selectivity {text}: an untrained model is read as well")
    share = (best["new"] - best["untrained"]) / gap
    says: Reading = "kept" if share >= config.kept else "gone" if share <= config.lost else "partly"
    return Sign("probes", says, f"selectivity {text}: {share:.0%} of the way")


def read_revival(found: Revival, lost: float) -> Sign:
    """Revival: kept where pruning brings back half of what was lost, and more than random units in every draw.

    That it does not is no sign: a skill may be covered by more than a few units.
    """
    start, best = found.curve[0].old, found.best
    share = (best.old.balanced - start.balanced) / lost if lost > 0 else 0.0
    beside = max(best.random, default=0.0)
    text = (
        f"{best.k} {found.kind} take the old skill from {start.accuracy:.1%} to {best.old.accuracy:.1%} "
        f"(random ones at most to {beside:.1%})"
    )
    revived = best.k > 0 and share >= REVIVED and best.old.accuracy > beside
    return Sign("revival", "kept" if revived else "cannot tell", text)


def judge(before: Behaviour, after: Behaviour, relearning: Relearning, signs: Sequence[Sign]) -> tuple[Verdict, str]:
    """The verdict, and why.

    Args:
        before: the old model on the old skill.
        after: the new model on it.
        relearning: its curves, and the accuracy that counts as having the skill.
        signs: what each tool says.
    """
    target = relearning.target
    numbers = f"old skill {before.accuracy:.1%}, after the update {after.accuracy:.1%} (needed {target:.1%})"
    if after.accuracy >= target:
        if all(one == 0 for one in relearning.arms[0].reached(target)):
            return "unchanged", f"{numbers}: 0 steps to relearn"
        return "undecided", f"{numbers}, but it does not stay there while it is trained on"
    if after.interval.high >= target:
        return "undecided", f"{numbers}: within noise of {after.n} instances"
    telling = [one for one in signs if one.says != "cannot tell"]
    listed = "; ".join(f"{one.tool}: {one.says} ({one.numbers})" for one in signs)
    if all(one.tool != RELEARNING for one in telling):
        return "undecided", f"{numbers}; relearning does not tell; {listed}"
    said = {one.says for one in telling}
    if len(said) > 1:
        return "undecided", f"{numbers}; the signs do not agree; {listed}"
    alone = "by relearning alone; " if len(telling) == 1 else ""
    return _MEANING[said.pop()], f"{numbers}; {alone}{listed}"
