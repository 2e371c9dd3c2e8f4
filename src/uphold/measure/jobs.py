"""What is to be evaluated: one model on one split of one task, cut into parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from uphold.models.endpoint_reference import is_endpoint
from uphold.models.engine import default_batch_tokens
from uphold.models.load import ModelLike, fingerprint_of, library_versions
from uphold.tasks.base import Instance, Split, Task, required_instances, task_fingerprint

PART = 256
"""The most instances in a part of a run in the making."""
ENDPOINT_PART = 32
"""The same for endpoints, whose answers are paid for."""
PART_CHARACTERS = 200_000
"""The most text in a part, read and, at four characters a token, written: what a kill can cost at most."""


@dataclass(frozen=True)
class Batching:
    """How instances are put into batches; part of a run's fingerprint, since rounding may depend on it."""

    tokens: int = 0
    """Padded tokens per forward pass, at most; 0 for 2048 on a CPU and 16384 on a GPU."""
    reverse: bool = False
    """Cut the instances into parts from the other end."""

    def on(self, device: str) -> Batching:
        """The same with a number of tokens that fits the device."""
        return Batching(self.tokens or default_batch_tokens(device), self.reverse)

    def other(self, device: str) -> Batching:
        """Another composition of batches, for the noise floor."""
        here = self.on(device)
        return Batching(max(1, here.tokens // 2 + 1), not here.reverse)


AS_THE_DEVICE_LIKES = Batching()


@dataclass(frozen=True)
class Job:
    """One model on one split of one task."""

    model: ModelLike
    task: Task
    split: Split = "test"
    batching: Batching = AS_THE_DEVICE_LIKES
    seed: int = 0
    """Of sampled decoding; without effect on greedy decoding and on choices."""
    what: str = ""
    """What progress is reported as."""

    @cached_property
    def parts(self) -> list[list[Instance]]:
        """The instances in parts of like length: all of a part is stored at once.

        Raises:
            EmptyError: the split has no instances.
        """
        found = required_instances(self.task, self.split)
        ordered = sorted(found, key=lambda instance: (len(instance.prompt), instance.id), reverse=self.batching.reverse)
        parts: list[list[Instance]] = []
        most, room = ENDPOINT_PART if is_endpoint(self.model) else PART, 0
        for instance in ordered:
            size = self._characters(instance)
            if not parts or len(parts[-1]) >= most or size > room:
                parts.append([])
                room = PART_CHARACTERS
            parts[-1].append(instance)
            room -= size
        return parts

    def _characters(self, instance: Instance) -> int:
        written = 4 * self.task.decoding.max_new_tokens if self.task.kind == "generate" else 0
        requests = sum(len(context) + len(continuation) for context, continuation in instance.requests)
        return written + (requests or len(instance.prompt) + sum(map(len, instance.options)))

    def fingerprint(self, numerics: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What is needed to repeat the run, as plain JSON.

        Args:
            numerics: device and dtype where the model will run; None for here.
        """
        model = fingerprint_of(self.model)
        if "device" in model:
            model |= {key: value for key, value in (numerics or {}).items() if key in ("device", "dtype")}
        batching = self.batching.on(model.get("device", "cpu"))
        sampled = self.task.kind == "generate" and self.task.decoding.temperature > 0
        return {
            "model": model,
            "task": task_fingerprint(self.task, self.split),
            "batching": {
                "tokens": batching.tokens,
                "reverse": batching.reverse,
                "part": PART,
                "characters": PART_CHARACTERS,
            },
            "seed": self.seed if sampled else 0,
            # What computes behind an endpoint is not ours to know; asking again costs money.
            "versions": {"uphold": version("uphold")} if is_endpoint(self.model) else library_versions(),
        }

    def label(self) -> str:
        """What progress is reported as."""
        return self.what or f"evaluating {fingerprint_of(self.model)['name']}"


def instances_in(parts: Sequence[Sequence[Instance]]) -> int:
    """How many instances the parts hold."""
    return sum(map(len, parts))
