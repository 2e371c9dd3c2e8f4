"""What a search does with the repair that it chose: put it where any repair lies, with controls beside it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.storage import atomic_folder, read_json, write_json, write_text
from uphold.repair.result import FILE as REPAIR_FILE
from uphold.repair.result import Arm, Repair, load_repair
from uphold.repair.search_result import FILE, TRIALS, Trial
from uphold.repair.training import DistillConfig

if TYPE_CHECKING:
    from uphold.core.progress import Progress
    from uphold.repair.protocol import Setting

_DONE = "done.json"


def has_controls(config: Any) -> bool:
    """Whether a repair with these options is a training, which controls can be told from."""
    return isinstance(config, DistillConfig)


def ship(setting: Setting, trial: Trial, count: int, controls: tuple[Arm, ...]) -> Repair:
    """Copy the chosen trial's artifact and evidence to the setting's folder.

    Args:
        setting: the search's.
        trial: the chosen one.
        count: of how many.
        controls: that belong to it.
    """
    from uphold.models.adapter import base_name
    from uphold.repair.card import repair_card

    made = load_repair(setting.folder / TRIALS / trial.name)
    place = setting.folder / made.artifact.name
    withdraw(setting.folder, keep=place.name)
    with atomic_folder(place) as temporary:
        shutil.copytree(made.artifact, temporary, dirs_exist_ok=True)
    note = f"chosen by validation among {count} trials of a search, see {FILE}"
    shipped = replace(made, arms=(made.repaired, *controls), artifact=place, notes=(*made.notes, note))
    shipped.save(setting.folder)
    write_text(place / "README.md", repair_card(shipped, base_name(setting.new)))
    return shipped


def train_controls(setting: Setting, trial: Trial, config: DistillConfig, watched: Progress) -> tuple[Arm, ...]:
    """The controls of a trained repair: the same steps without its method.

    Args:
        setting: the search's.
        trial: the repair.
        config: its options.
        watched: ends it when the budget is spent; not asked where the controls only have to be read.
    """
    from uphold.repair.distill import control_arms, trained_arms

    place = setting.folder / TRIALS / f"controls-{trial.name}"
    finished = (place / _DONE).is_file()
    own = replace(setting, method=trial.method, folder=place, progress=setting.progress if finished else watched)
    arms = tuple(trained_arms(own, control_arms(config), config))
    write_json(place / _DONE, {"arms": [arm.name for arm in arms]})
    return arms


def withdraw(folder: Path, keep: str = "") -> None:
    """Remove what an earlier call of this search chose, as far as this one does not write it anew."""
    if not (folder / FILE).is_file() or not (folder / REPAIR_FILE).is_file():
        return
    name = str(read_json(folder / REPAIR_FILE)["artifact"])
    if name != keep and Path(name).name == name and name not in ("", ".", ".."):
        shutil.rmtree(folder / name, ignore_errors=True)
    for left in (REPAIR_FILE, "report.html", "report.md", "report.json"):
        (folder / left).unlink(missing_ok=True)
