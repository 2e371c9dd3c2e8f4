"""Small BIG-bench tasks for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uphold.tasks.base import SPLITS, FixedTask, Instance
from uphold.tasks.bigbench import bigbench_task

CHOICES = {"red": 0, "green": 1, "blue": 0}


def choice_examples(count: int = 20) -> list[dict[str, Any]]:
    return [{"input": f"What colour is leaf {n}?", "target_scores": CHOICES} for n in range(count)]


def text_examples(count: int = 20) -> list[dict[str, Any]]:
    return [{"input": f"{n} + 1 =", "target": str(n + 1)} for n in range(count)]


def write_task(folder: Path, examples: Any = None, metric: str | None = None, **changes: Any) -> Path:
    """A task.json: a choice among colours, or what `changes` makes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "canary": "not for training",
        "name": folder.name,
        "description": "a test",
        "keywords": ["test"],
        "metrics": [metric or "multiple_choice_grade"],
        "preferred_score": metric or "multiple_choice_grade",
        "examples": choice_examples() if examples is None else examples,
        **changes,
    }
    path = folder / "task.json"
    path.write_text(json.dumps({key: value for key, value in described.items() if value != "left out"}))
    return path


def everything(task: FixedTask) -> list[Instance]:
    return [instance for split in SPLITS for instance in task.instances(split)]


def only(
    folder: Path, example: Mapping[str, Any], metric: str = "exact_str_match", **changes: Any
) -> tuple[FixedTask, Instance]:
    task = bigbench_task(str(write_task(folder, [example], metric, **changes)))
    (instance,) = everything(task)
    return task, instance
