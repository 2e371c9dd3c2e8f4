"""What a run would take, before it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uphold.core.runs import RunStore, default_store
from uphold.measure.answer import prompts, questions
from uphold.measure.jobs import Job, instances_in
from uphold.models.encode import Encoder
from uphold.models.endpoint_reference import is_endpoint, parse_endpoint
from uphold.tasks.base import Instance

CHARACTERS_PER_TOKEN = 4
"""For endpoints, whose tokenizer is not known here."""


@dataclass(frozen=True)
class Estimate:
    """The work that is left of one job."""

    model: str
    task: str
    instances: int
    """Instances of the split."""
    stored: int
    """Those whose answers are in the store."""
    requests: int
    """Continuations to score, or prompts to continue."""
    tokens: int
    """Tokens to read, each distinct prefix once; for endpoints one token per four characters."""
    tokens_apart: int
    """The same if every request were read by itself."""
    written: int
    """Tokens to write, at most."""
    cost: float | None
    """Currency units, at most, where an endpoint has prices."""

    def __str__(self) -> str:
        text = f"{self.model} on {self.task}: {self.instances:,} instances, {self.stored:,} of them stored; "
        text += f"{self.requests:,} requests, {self.tokens:,} tokens to read"
        if self.tokens_apart > self.tokens:
            text += f" ({self.tokens_apart:,} if each request were read by itself)"
        if self.written:
            text += f", at most {self.written:,} to write"
        return text + (f", at most {self.cost:.4f} to pay" if self.cost is not None else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def estimate(job: Job, *, store: RunStore | None = None, numerics: Mapping[str, str] | None = None) -> Estimate:
    """What `job` would take; the model itself is not loaded, only its tokenizer.

    Args:
        job: what to evaluate.
        store: where runs are kept.
        numerics: device, dtype and attention kernel where the model will run; None for here.
    """
    keep, fingerprint = store or default_store(), job.fingerprint(numerics)
    found, writer = keep.find(fingerprint), keep.writer(fingerprint)
    left = [] if found else [part for index, part in enumerate(job.parts) if not writer.has(index)]
    remaining = [instance for part in left for instance in part]
    requests = len(remaining)
    if job.task.kind == "choice":
        requests = sum(map(len, questions(job.task, remaining)))
    tokens = apart = 0
    if is_endpoint(job.model):
        tokens = apart = sum(map(len, _texts(job, remaining))) // CHARACTERS_PER_TOKEN
    elif left:
        encoder = _encoder(job)
        counts = [_tokens(job, encoder, part) for part in left]
        readers = 2 if "pair" in fingerprint["model"] else 1
        tokens, apart = (readers * sum(column) for column in zip(*counts, strict=True))
    written = len(remaining) * job.task.decoding.max_new_tokens if job.task.kind == "generate" else 0
    total = instances_in(job.parts)
    return Estimate(
        model=str(fingerprint["model"]["name"]),
        task=job.task.name,
        instances=total,
        stored=total - len(remaining),
        requests=requests,
        tokens=tokens,
        tokens_apart=apart,
        written=written,
        cost=_cost(job, tokens, written),
    )


def _encoder(job: Job) -> Encoder:
    if isinstance(job.model, str | Path):
        from uphold.models.load import load_tokenizer
        from uphold.models.reference import find_model

        return Encoder(load_tokenizer(find_model(job.model)))
    from uphold.models.load import load

    return Encoder(load(job.model).tokenizer)


def _texts(job: Job, instances: Sequence[Instance]) -> list[str]:
    if job.task.kind == "generate":
        return prompts(job.task, instances)
    return [context + continuation for question in questions(job.task, instances) for context, continuation in question]


def _tokens(job: Job, encoder: Encoder, part: Sequence[Instance]) -> tuple[int, int]:
    """Tokens of one part, each distinct prefix read once, and each request by itself."""
    if job.task.kind == "generate":
        total = sum(map(len, encoder.prompts(prompts(job.task, part))))
        return total, total
    from uphold.models.likelihood import planned_tokens

    return planned_tokens(encoder, questions(job.task, part))


def _cost(job: Job, tokens: int, written: int) -> float | None:
    if not is_endpoint(job.model):
        return None
    endpoint = parse_endpoint(str(job.model))
    if endpoint.input_price is None and endpoint.output_price is None:
        return None
    return (tokens * (endpoint.input_price or 0.0) + written * (endpoint.output_price or 0.0)) / 1e6
