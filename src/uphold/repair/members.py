"""Several task adapters of the new base that differ by their seed alone: for soups, ensembles and teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from uphold.core.errors import UsageError

if TYPE_CHECKING:
    from uphold.models.load import Loaded
    from uphold.repair.adapt import AdaptConfig
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

FOLDER = "members"


def train_members(setting: Setting, count: int, first_seed: int) -> list[Path]:
    """Train `count` task adapters on the new model's base, with the recipe that `uphold adapt` uses for the task.

    Member i has seed `first_seed` + i and lies in `members/seed-SEED` of the setting's folder. A call that is
    repeated goes on where it stopped, and trains only members that are not there yet.

    Args:
        setting: gives base, task, folder and progress. A new model without an adapter is its own base.
        count: how many, at least 0.
        first_seed: of data order and initial weights of the first member.

    Returns:
        The adapters' folders, ordered by seed.

    Raises:
        UsageError: `count` is negative, or the folder holds members made of another base, task or recipe.
        UpholdError: see `uphold.repair.adapt.adapt`.
    """
    from uphold.repair.adapt import adapt

    if count < 0:
        raise UsageError(f"cannot train {count} members: give 0 or more")
    if not count:
        return []
    base = new_base(setting)
    options = member_config(setting.task)
    made = []
    for seed in range(first_seed, first_seed + count):
        place = setting.folder / FOLDER / f"seed-{seed}"
        config = replace(options, seed=seed)
        made.append(adapt(base, setting.task, out=place, config=config, progress=setting.progress).adapter)
    return made


def member_config(task: Task) -> AdaptConfig:
    """The options that members are trained with, but for the seed: those of the recipe that belongs to the task."""
    from uphold.repair.adapt import AdaptConfig
    from uphold.repair.recipe import configure, recipe_for

    return configure(AdaptConfig(), "adapt", recipe_for(task))


def new_base(setting: Setting) -> Loaded:
    """The new model without its adapter; the model itself where it has none."""
    from uphold.models.adapter import base_name, is_adapted
    from uphold.models.fingerprint import module_fingerprint
    from uphold.models.load import Loaded, load
    from uphold.models.weights import bare_copy

    new = setting.new
    if not is_adapted(new):
        return new
    if new.files is not None:
        return load(base_name(new))
    bare = bare_copy(new)
    fingerprint = new.fingerprint | module_fingerprint(bare, new.name)
    return Loaded(bare, new.tokenizer, new.name, fingerprint, None)


def load_member(setting: Setting, adapter: Path) -> Loaded:
    """A member that `train_members` made, as a model of its own."""
    from uphold.models.adapter import adapted, base_name
    from uphold.models.load import load, with_adapter
    from uphold.models.weights import bare_copy

    name = f"{base_name(setting.new)}+{adapter}"
    if setting.new.files is not None:
        return load(name)
    base = new_base(setting)
    return adapted(with_adapter(bare_copy(base), adapter, name).eval(), base, adapter, name)
