"""The main job, end to end, on a pair of models that needs no download: adapt, compare, repair, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from uphold.core.errors import unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.runs import RunStore
from uphold.core.storage import writable_folder
from uphold.embedded.smollm2 import write_updated
from uphold.repair import AdaptConfig, MuscleConfig, Repair, adapt, muscle
from uphold.repair.recipe import configure
from uphold.report import write_report
from uphold.tasks.load import load_task


@dataclass(frozen=True)
class Preset:
    """Two bases and a task; the task's recipe says how both are adapted and repaired."""

    task: str
    bases: Callable[[Path, Progress], tuple[str, str]]
    """From the demo's folder to the references of the old and the new base, made where needed."""


def _embedded(folder: Path, progress: Progress) -> tuple[str, str]:
    return "embedded:v1", "embedded:v2"


def _smollm2(folder: Path, progress: Progress) -> tuple[str, str]:
    return "embedded:smollm2", str(write_updated("embedded:smollm2", folder / "v2", progress))


PRESETS = {"embedded": Preset("demo", _embedded), "smollm2": Preset("smollm2", _smollm2)}


def run_demo(preset: str, out: Path, *, seed: int = 0, progress: Progress = silent) -> Repair:
    """Adapt both bases of a preset to its task, measure the update, repair it with MUSCLE, write the report.

    An interrupted demo that is started again with the same folder goes on where it stopped.

    Args:
        preset: one of `PRESETS`.
        out: gets everything that is made, the runs included.
        seed: of fresh adapter weights and the data order.
        progress: called throughout.

    Raises:
        UsageError: no such preset, or what it needs is not installed.
        UpholdError: see `uphold.core.errors`.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    folder = writable_folder(out)
    chosen = PRESETS[preset]
    task = load_task(chosen.task)
    old_base, new_base = chosen.bases(folder, progress)
    adapting = replace(configure(AdaptConfig(), "adapt", chosen.task), seed=seed)
    repairing = replace(configure(MuscleConfig(), "muscle", chosen.task), seed=seed)
    old = adapt(old_base, task, out=folder / "old", config=adapting, progress=progress)
    new = adapt(new_base, task, out=folder / "new", config=adapting, progress=progress)
    result = muscle(
        old.reference,
        new.reference,
        task,
        out=folder,
        config=repairing,
        store=RunStore(folder / "store"),
        progress=progress,
    )
    write_report(folder)
    return result
