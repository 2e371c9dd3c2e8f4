"""All four tools and the scaling, in order, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from uphold.core.errors import DataError
from uphold.core.progress import Progress, silent
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.probes import Profile, default_sites, profile
from uphold.explain.wrappers.relearning import REFT, Fresh, check_names, relearn
from uphold.explain.wrappers.result import WrapperResult
from uphold.explain.wrappers.revival import revive
from uphold.explain.wrappers.scaling import adapter_off, scale
from uphold.explain.wrappers.skill import Behaviour, Skill, Source, behaviour, gathered
from uphold.explain.wrappers.verdict import judge, read_probes, read_relearning, read_revival
from uphold.models.sites.site import Site

SCRATCH = "scratch"
"""The arm of the untrained model."""


@dataclass(frozen=True, eq=False)
class Update:
    """An update, the skill that may have gone with it, and what both are measured by.

    The fields are the arguments of `uphold.explain.wrapper.wrapper`.

    Raises:
        UsageError: a control has the name of another arm.
    """

    old: nn.Module | None
    new: nn.Module
    old_skill: Skill
    new_skills: Sequence[Skill]
    learn: Source
    fresh: Fresh | None
    controls: Mapping[str, Fresh]
    sites: Sequence[Site] | None
    config: WrapperConfig

    def __post_init__(self) -> None:
        check_names(self.controls, REFT, *(() if self.fresh is None else (SCRATCH,)))

    @property
    def arms(self) -> dict[str, Fresh]:
        """What relearning is compared with."""
        untrained = {} if self.fresh is None else {SCRATCH: self.fresh}
        return {**untrained, **self.controls}


def diagnose(update: Update, progress: Progress = silent) -> WrapperResult:
    """Run every tool and give the verdict; no model is changed.

    Raises:
        DataError: the old model does not have the old skill.
        UsageError: options and models do not fit together.
        ModelError: the versions do not have the same tensors; a site is not found; training diverges.
    """
    config, old, others = update.config, update.old_skill, update.new_skills
    models = {"new": update.new, "old": adapter_off(update.new) if update.old is None else update.old}
    found = {
        name: [behaviour(model, one, name=name, rows=config.rows, level=config.level) for one in (old, *others)]
        for name, model in models.items()
    }
    before, after = found["old"][0], found["new"][0]
    _check(before, old)
    target = config.recover * before.accuracy
    examples = gathered(update.learn, config.examples, config.seed)
    revival = revive(update.new, examples, old, others=others, config=config, progress=progress)
    if update.fresh is not None:
        models["untrained"] = update.fresh(config.seeds[0])
    profiles = _profiles(update, models, examples, progress)
    relearning = relearn(
        update.new, update.learn, old, target=target, controls=update.arms, config=config, progress=progress
    )
    scaling = scale(update.old, update.new, old, others=others, target=target, config=config, progress=progress)
    signs = (
        read_relearning(relearning, config),
        read_probes(profiles, config),
        read_revival(revival, before.balanced - after.balanced),
    )
    verdict, reason = judge(before, after, relearning, signs)
    return WrapperResult(
        verdict=verdict,
        reason=reason,
        signs=signs,
        target=target,
        behaviour=(*found["old"], *found["new"]),
        revival=revival,
        profiles=profiles,
        relearning=relearning,
        scaling=scaling,
        notes=_notes(update),
        level=config.level,
    )


def _check(before: Behaviour, old: Skill) -> None:
    """The old model must have the skill that may have gone."""
    chance = float(old.labels.bincount().max()) / len(old)
    if before.interval.low <= chance:
        raise DataError(
            f"the old model answers {before.accuracy:.1%} of skill {old.name}, no more than its most frequent answer "
            f"({chance:.1%}): expected a skill that the old model has"
        )


def _profiles(
    update: Update, models: Mapping[str, nn.Module], examples: Skill, progress: Progress
) -> tuple[Profile, ...]:
    sites = default_sites(update.new) if update.sites is None else update.sites
    found = []
    for done, (name, model) in enumerate(models.items(), 1):
        found.append(profile(model, examples, update.old_skill, sites, name=name, config=update.config))
        progress("probes", done, len(models))
    return tuple(found)


def _notes(update: Update) -> tuple[str, ...]:
    rate = update.config.learning_rate
    notes = [f"what relearning tells depends on the learning rate ({rate:g}): state that of the update"]
    if update.fresh is None:
        notes.append("no untrained model was given: probes have no floor, and relearning lacks the arm from scratch")
    if not update.controls:
        notes.append("no control was trained on the new skill only: relearning lacks the arm 'scratch + FT'")
    return tuple(notes)
