"""All four tools and the scaling, in order, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from uphold.core.errors import DataError, UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.probes import Profile, default_sites, profile
from uphold.explain.wrappers.relearning import Fresh, relearn
from uphold.explain.wrappers.result import WrapperResult
from uphold.explain.wrappers.revival import revive
from uphold.explain.wrappers.scaling import adapter_off, scale
from uphold.explain.wrappers.skill import Behaviour, Skill, Source, behaviour, gathered
from uphold.explain.wrappers.verdict import judge, read_probes, read_relearning, read_revival
from uphold.models.sites.site import Site


def diagnose(
    old_model: nn.Module | None,
    new_model: nn.Module,
    old: Skill,
    others: Sequence[Skill],
    learn: Source,
    *,
    fresh: Fresh | None = None,
    controls: Mapping[str, Fresh] | None = None,
    sites: Sequence[Site] | None = None,
    config: WrapperConfig | None = None,
    progress: Progress = silent,
) -> WrapperResult:
    """See `uphold.explain.wrapper.wrapper`, which takes the same arguments."""
    config = config or WrapperConfig()
    if controls and "reFT" in controls:
        raise UsageError("a control may not be called reFT: that is the new model")
    before_model = adapter_off(new_model) if old_model is None else old_model
    rows, level = config.rows, config.level
    skills = (old, *others)
    found = {
        name: tuple(behaviour(model, one, name=name, rows=rows, level=level) for one in skills)
        for name, model in (("old", before_model), ("new", new_model))
    }
    before, after = found["old"][0], found["new"][0]
    _check(before, old)
    target = config.recover * before.accuracy
    examples = gathered(learn, config.examples, config.seed)
    revival = revive(
        new_model,
        examples,
        old,
        others=others,
        ks=config.prune,
        kind=config.units,
        rescore=config.rescore,
        bias=config.bias,
        ends=config.include_ends,
        draws=config.draws,
        seed=config.seed,
        rows=rows,
        level=level,
        progress=progress,
    )
    models = {"new": new_model, "old": before_model}
    if fresh is not None:
        models["untrained"] = fresh(config.seeds[0])
    profiles = _profiles(models, examples, old, sites, config, progress)
    relearning = relearn(
        new_model,
        learn,
        old,
        target=target,
        learning_rate=config.learning_rate,
        controls={**({} if fresh is None else {"scratch": fresh}), **(controls or {})},
        steps=config.steps,
        batch=config.batch,
        warmup=config.warmup,
        seeds=config.seeds,
        rows=rows,
        progress=progress,
    )
    scaling = scale(
        old_model,
        new_model,
        old,
        others=others,
        target=target,
        alphas=config.alphas,
        rows=rows,
        level=level,
        progress=progress,
    )
    signs = (
        read_relearning(relearning, config),
        read_probes(profiles, config),
        read_revival(revival, before.balanced - after.balanced),
    )
    verdict, reason = judge(before, after, target, relearning, signs)
    notes = _notes(fresh, controls, config)
    return WrapperResult(
        verdict,
        reason,
        signs,
        target,
        (*found["old"], *found["new"]),
        revival,
        profiles,
        relearning,
        scaling,
        notes,
        level,
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
    models: Mapping[str, nn.Module],
    examples: Skill,
    old: Skill,
    sites: Sequence[Site] | None,
    config: WrapperConfig,
    progress: Progress,
) -> tuple[Profile, ...]:
    places = default_sites(models["new"]) if sites is None else list(sites)
    found = []
    for done, (name, model) in enumerate(models.items(), 1):
        found.append(
            profile(
                model,
                examples,
                old,
                places,
                name=name,
                shuffles=config.shuffles,
                seed=config.seed,
                rows=config.rows,
                level=config.level,
            )
        )
        progress("probes", done, len(models))
    return tuple(found)


def _notes(fresh: Fresh | None, controls: Mapping[str, Fresh] | None, config: WrapperConfig) -> tuple[str, ...]:
    notes = [f"what relearning tells depends on the learning rate ({config.learning_rate:g}): state that of the update"]
    if fresh is None:
        notes.append("no untrained model was given: probes have no floor, and relearning lacks the arm from scratch")
    if not controls:
        notes.append("no control was trained on the new skill only: relearning lacks the arm 'scratch + FT'")
    return tuple(notes)
