"""The state of a training on disk: a folder per saved step, written whole and then renamed.

Trained weights and AdamW moments are safetensors, counters and history JSON; no two trainings share a folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import CorruptError, UsageError
from uphold.core.storage import atomic_folder, read_json, write_json

if TYPE_CHECKING:
    import torch

DONE = "done"


@dataclass
class TrainingState:
    """Where a training stands."""

    epoch: int = 0
    step: int = 0
    """Optimiser steps done."""
    sums: dict[str, list[float]] = field(default_factory=dict)
    """What is logged of the epoch so far: for each quantity its sum and what it is to be divided by."""
    history: dict[str, Any] = field(default_factory=dict)
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The trained parameters, on the CPU."""
    best: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Those of the chosen epoch."""
    moments: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """AdamW's, as `KIND/PARAMETER`."""


def check_key(folder: Path, key: str) -> None:
    """Claim `folder` for the training that `key` stands for.

    Raises:
        UsageError: it holds another training.
    """
    path = folder / "key.json"
    if path.is_file() and read_json(path) != {"key": key}:
        raise UsageError(
            f"{folder} holds another training (other models, data or options): "
            "choose another --out folder, or remove that one"
        )
    write_json(path, {"key": key})


def latest(folder: Path) -> Path | None:
    """Where the last saved state is: the finished training, or the latest step."""
    if (folder / DONE).is_dir():
        return folder / DONE
    return max(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")), default=None)


def save_state(folder: Path, state: TrainingState, finished: bool = False) -> None:
    """Write `state` to `folder` and remove what was saved before it."""
    from safetensors.torch import save_file

    path = folder / (DONE if finished else f"step-{state.step}")
    tensors = {f"best/{name}": value for name, value in state.best.items()}
    tensors |= {f"weight/{name}": value for name, value in state.weights.items()}
    tensors |= {f"adam/{name}": value for name, value in state.moments.items()}
    counters = {"epoch": state.epoch, "step": state.step, "sums": state.sums, "history": state.history}
    with atomic_folder(path) as temporary:
        save_file(tensors, temporary / "state.safetensors")
        write_json(temporary / "state.json", counters)
    for left in folder.glob("step-*"):
        if left != path:
            shutil.rmtree(left, ignore_errors=True)


def read_state(path: Path) -> TrainingState:
    """The state saved at `path`.

    Raises:
        CorruptError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path / "state.safetensors")
        state = TrainingState(**read_json(path / "state.json"))
    except (SafetensorError, OSError, TypeError, RuntimeError) as error:
        raise unreadable_state(path, error) from error
    parts: dict[str, dict[str, torch.Tensor]] = {"best": {}, "weight": {}, "adam": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = value
    state.best, state.weights, state.moments = parts["best"], parts["weight"], parts["adam"]
    return state


def unreadable_state(path: Path, error: object) -> CorruptError:
    """What is raised when a saved state does not hold what was written."""
    return CorruptError(f"the saved training {path} cannot be read ({error}); remove it to start over")
