"""Whether a teacher is read anew in every epoch, or once and then from disk: whichever is faster here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uphold.core.progress import Progress, silent
from uphold.core.storage import read_json, write_json
from uphold.models.encode import Encoded
from uphold.models.objective import Distillation, FrozenTeacher
from uphold.models.processes import current
from uphold.models.projection import Projected
from uphold.models.teacher_cache import CachedTeacher, CacheSpec, cache_key, measured_cost, write_cache

Keep = Literal["auto", "always", "never"]
LEAST_S = 30.0
"""Teachers that take less than this over all epochs are not worth keeping."""
GAIN = 1.2
"""How many times faster keeping must be."""


@dataclass(frozen=True)
class Plan:
    """A training for which teachers might be kept."""

    keep: Keep
    spec: CacheSpec
    epochs: int
    folder: Path
    """Holds the caches, and what was measured."""


def keep_teachers(
    objective: Distillation,
    rows: Sequence[Encoded],
    plan: Plan,
    identify: Callable[[Any], str],
    progress: Progress = silent,
) -> None:
    """Put caches in the place of those teachers of `objective` for which `plan` says so.

    Args:
        objective: gets the caches.
        rows: what is trained on.
        plan: whether to keep, what, and where.
        identify: gives the hash of everything that decides what a model says.
        progress: called while a cache is written.
    """
    if plan.keep == "never" or not rows:
        return
    processes, teachers = current(), list(objective.teachers)
    for number, teacher in enumerate(teachers):
        if isinstance(teacher, FrozenTeacher):
            place = plan.folder / cache_key(identify(teacher.model), rows, plan.spec)
            kept = False
            with processes.first():
                if processes.is_first:
                    kept = place.is_dir() or plan.keep == "always" or _worth_it(teacher, rows, plan, place)
                    if kept and not place.is_dir():
                        write_cache(teacher, rows, plan.spec, place, f"reading teacher {number + 1}", progress)
            if processes.agree(kept):
                teachers[number] = CachedTeacher(teacher, place)
    objective.teachers = tuple(teachers)


def _worth_it(teacher: FrozenTeacher, rows: Sequence[Encoded], plan: Plan, place: Path) -> bool:
    """What was measured once is not measured again: a training that is taken up goes on as it began."""
    known = plan.folder / f"{place.name}.json"
    if known.is_file():
        return bool(read_json(known)["keep"])
    sample = list(rows[:: max(1, len(rows) // plan.spec.rows_per_pass)][: plan.spec.rows_per_pass])
    plan.folder.mkdir(parents=True, exist_ok=True)
    facts = _measured(teacher, sample, sum(len(row.prompt) + len(row.answer) for row in rows), plan)
    write_json(known, facts)
    return bool(facts["keep"])


def _measured(teacher: FrozenTeacher, sample: Sequence[Encoded], tokens: int, plan: Plan) -> dict[str, Any]:
    if plan.epochs < 2 or not _can_be_kept(teacher, sample, plan):
        return {"keep": False}
    cost = measured_cost(teacher, sample, plan.spec, plan.folder)
    times = tokens / max(1, sum(len(row.prompt) + len(row.answer) for row in sample))
    asked = plan.epochs * cost.asked * times
    kept = (cost.written + plan.epochs * cost.recalled) * times
    room = shutil.disk_usage(plan.folder).free > 2 * cost.size * times
    return {"keep": asked > LEAST_S and asked > GAIN * kept and room, "asked_s": asked, "kept_s": kept}


def _can_be_kept(teacher: FrozenTeacher, sample: Sequence[Encoded], plan: Plan) -> bool:
    from uphold.models.encode import collate
    from uphold.models.train import trained_tokens

    if plan.spec.top:
        return True
    batch = collate(sample[:1]).to(teacher.model.device)
    return isinstance(teacher.logits(batch, trained_tokens(batch, plan.spec.tokens)), Projected)
