"""What teachers say of the training rows, kept on disk: read once, however many epochs follow.

Two forms are kept. The hidden states before the output head (`top` = 0) lose nothing: the head makes the same logits of
them, for any divergence. The k likeliest tokens of each position with the mass of the rest (`top` = k) are smaller for
wide models and save the head's work too, but hide how the rest is shared out: KL(teacher || student) is then too small
by P KL(p / P || q / Q) over the rest, and its gradient with respect to the student's logits off by at most 2 P / T in
absolute sum, with P the teacher's mass outside the k tokens at temperature T (`uphold.models.targets` derives it). P is
kept for every position, and the cache says its mean and largest value. With k of at least the vocabulary nothing is
lost. How likely the gold token is and whether it is the likeliest is exact in both forms.

A cache is a folder of safetensors shards that are mapped into memory, named by the hash of the teacher and of the rows,
and put there whole or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from uphold.core.errors import CorruptError, ModelError
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.core.storage import atomic_folder, read_json, write_json
from uphold.models.divergence import GoldStatistics
from uphold.models.encode import Batch, Encoded, collate
from uphold.models.objective import FrozenTeacher
from uphold.models.projection import Projected, Whole
from uphold.models.rules import Trained
from uphold.models.targets import NotKeptError, Top
from uphold.models.train import Tokens as Which
from uphold.models.train import trained_tokens

FORMAT = 1
SHARD_BYTES = 256 << 20
PROJECTED = 1 << 23
"""Logits that are made at once while a cache is written."""


@dataclass(frozen=True)
class CacheSpec:
    """What is kept of a teacher."""

    top: int = 0
    """The k likeliest tokens; 0 for hidden states."""
    temperatures: tuple[float, ...] = (1.0,)
    """For which a distribution over k tokens and the rest can be made; without effect on hidden states."""
    tokens: Which = "all"
    """Which predictions are trained, and so kept."""
    rows_per_pass: int = 64


class TailMass(NamedTuple):
    """How much lies outside the k likeliest tokens."""

    mean: float
    largest: float

    def gradient_bound(self, temperature: float) -> float:
        """The largest error of any token's gradient of KL(teacher || student), summed over the vocabulary."""
        return 2 * self.largest / temperature


class Place(NamedTuple):
    """Where a row's predictions are kept."""

    shard: int
    start: int
    length: int


@dataclass
class KeptTop:
    """The likeliest tokens of n positions; a `Collapsed` and `Remembered` teacher of `uphold.models.targets`."""

    ids: torch.Tensor
    """Shape (n, k)."""
    logprobs: torch.Tensor
    """At temperature 1, shape (n, k)."""
    norms: dict[float, torch.Tensor]
    """For each temperature T the log of sum p^(1/T) over the vocabulary, shape (n,)."""
    rests: dict[float, torch.Tensor]
    """For each temperature the log of the mass outside the k tokens, shape (n,)."""
    gold: GoldStatistics

    @property
    def width(self) -> int:
        """K."""
        return int(self.ids.shape[1])

    def __len__(self) -> int:
        return len(self.ids)

    def chunk(self, part: slice) -> torch.Tensor:
        """There are no logits.

        Raises:
            NotKeptError: always.
        """
        raise NotKeptError

    def top(self, positions: torch.Tensor, temperature: float) -> Top:
        """See `uphold.models.targets.Collapsed`."""
        if temperature not in self.norms:
            raise NotKeptError
        logprobs = self.logprobs[positions] / temperature - self.norms[temperature][positions, None]
        return Top(self.ids[positions], logprobs, self.rests[temperature][positions])


class CachedTeacher:
    """A teacher that is read from disk where it has been, and asked where it has not."""

    def __init__(self, teacher: FrozenTeacher, folder: Path) -> None:
        """Open the cache in `folder`.

        Raises:
            CorruptError: it does not hold what was written.
        """
        from safetensors import SafetensorError, safe_open

        self.teacher, self.folder = teacher, folder
        index = read_json(folder / "index.json")
        try:
            self.places = {name: Place(*place) for name, place in index["rows"].items()}
            self.temperatures = [float(one) for one in index["temperatures"]]
            self.tail = {float(one): TailMass(*found) for one, found in index["tail"].items()}
            self.shards: list[dict[str, torch.Tensor]] = []
            for number in range(index["shards"]):
                with safe_open(folder / _shard(number), framework="pt") as file:
                    self.shards.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"the teacher's cache {folder} cannot be read ({error}); remove it") from error

    def logits(self, batch: Batch, trained: Trained) -> Projected | Whole | KeptTop:
        """See `uphold.models.objective.Teacher`."""
        places = [self.places.get(name) for name in row_names(batch, trained)]
        if not places or any(place is None for place in places):
            return self.teacher.logits(batch, trained)
        found = [
            {name: value[place.start : place.start + place.length] for name, value in self.shards[place.shard].items()}
            for place in places
            if place is not None
        ]
        device = batch.input_ids.device
        whole = {name: torch.cat([one[name] for one in found]).to(device) for name in found[0]}
        if "hidden" in whole:
            return Projected(whole["hidden"], self.teacher.model.get_output_embeddings())
        return KeptTop(
            whole["ids"].long(),
            whole["logprobs"],
            {one: whole[f"norm-{one}"] for one in self.temperatures},
            {one: whole[f"rest-{one}"] for one in self.temperatures},
            GoldStatistics(whole["right"].bool(), whole["gold"]),
        )


def cache_key(teacher: str, rows: Sequence[Encoded], spec: CacheSpec) -> str:
    """What a cache is called.

    Args:
        teacher: hash of everything that decides what the teacher says.
        rows: what it reads.
        spec: what is kept.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_digest(row.prompt + row.answer, len(row.prompt)).encode())
    form = [spec.top, sorted(set(spec.temperatures)) if spec.top else [], spec.tokens]
    return sha256_of([FORMAT, teacher, digest.hexdigest(), form])


def write_cache(
    teacher: FrozenTeacher,
    rows: Sequence[Encoded],
    spec: CacheSpec,
    folder: Path,
    what: str = "teacher cache",
    progress: Progress = silent,
) -> Path:
    """Read `rows` with `teacher` and keep what `spec` says in `folder`, which appears when all of it is there.

    Raises:
        ModelError: hidden states are asked for, but the model does more behind them than a linear head.
        StorageError: the disk refused.
    """
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    unique = list({_digest(row.prompt + row.answer, len(row.prompt)): row for row in rows}.values())
    ordered = sorted(unique, key=lambda row: len(row.prompt) + len(row.answer))
    with atomic_folder(folder) as temporary:
        written = _Writer(temporary)
        for start in range(0, len(ordered), spec.rows_per_pass):
            group = ordered[start : start + spec.rows_per_pass]
            batch = collate(group).to(teacher.model.device)
            trained = trained_tokens(batch, spec.tokens)
            if len(trained.targets):
                written.add(row_names(batch, trained), _counts(trained), dict(_kept(teacher, batch, trained, spec)))
            progress(what, min(start + len(group), len(ordered)), len(ordered))
        written.close(spec)
    return folder


def row_names(batch: Batch, trained: Trained) -> list[str]:
    """How each row of a batch that has trained predictions is called: by its tokens and the first prediction."""
    if not len(trained.sequence):
        return []
    rows, counts = torch.unique_consecutive(trained.sequence, return_counts=True)
    first = trained.position[counts.cumsum(0) - counts].tolist()
    ids, lengths = batch.input_ids.cpu(), batch.attention_mask.sum(dim=1).tolist()
    return [
        _digest(ids[row, : lengths[row]].tolist(), start + 1) for row, start in zip(rows.tolist(), first, strict=True)
    ]


class Cost(NamedTuple):
    """What one batch of a teacher takes."""

    positions: int
    """Trained predictions in the batch."""
    asked: float
    """Seconds to ask the model."""
    recalled: float
    """Seconds to ask the cache."""
    written: float
    """Seconds to write the cache, the model's own included."""
    size: int
    """Bytes of the cache."""


def measured_cost(teacher: FrozenTeacher, rows: Sequence[Encoded], spec: CacheSpec, folder: Path) -> Cost:
    """What a batch of `rows` costs on this machine, measured in a cache of their own in `folder`, which is removed."""
    batch = collate(rows).to(teacher.model.device)
    trained = trained_tokens(batch, spec.tokens)

    def timed(work: Any) -> float:
        start = time.perf_counter()
        work()
        if batch.input_ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def ask(one: FrozenTeacher | CachedTeacher) -> None:
        logits = one.logits(batch, trained)
        if not isinstance(logits, KeptTop):
            for part in _parts(len(logits), logits.vocabulary):
                logits.chunk(part)

    place = folder / "measured"
    try:
        ask(teacher)
        asked = timed(lambda: ask(teacher))
        written = timed(lambda: write_cache(teacher, rows, spec, place))
        cached = CachedTeacher(teacher, place)
        ask(cached)
        size = sum(file.stat().st_size for file in place.iterdir())
        return Cost(len(trained.targets), asked, timed(lambda: ask(cached)), written, size)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@dataclass
class _Writer:
    """Fills shards."""

    folder: Path
    rows: dict[str, Place] = field(default_factory=dict)
    parts: list[dict[str, torch.Tensor]] = field(default_factory=list)
    shard: int = 0
    start: int = 0
    size: int = 0
    tail: dict[str, list[float]] = field(default_factory=dict)

    def add(self, names: Sequence[str], counts: Sequence[int], kept: dict[str, torch.Tensor]) -> None:
        """Take what is kept of some rows."""
        for name, count in zip(names, counts, strict=True):
            self.rows[name] = Place(self.shard, self.start, count)
            self.start += count
        for name, value in kept.items():
            if name.startswith("rest-"):
                mass = value.double().exp()
                entry = self.tail.setdefault(name.removeprefix("rest-"), [0.0, 0.0, 0.0])
                self.tail[name.removeprefix("rest-")] = [
                    entry[0] + float(mass.sum()),
                    entry[1] + len(mass),
                    max(entry[2], float(mass.max())),
                ]
        self.parts.append(kept)
        self.size += sum(value.nbytes for value in kept.values())
        if self.size >= SHARD_BYTES:
            self._flush()

    def close(self, spec: CacheSpec) -> None:
        """Write what is left, and the index."""
        if self.parts:
            self._flush()
        index = {
            "form": "top" if spec.top else "hidden",
            "top": spec.top,
            "temperatures": sorted(set(spec.temperatures)) if spec.top else [],
            "tail": {name: [total / count, largest] for name, (total, count, largest) in self.tail.items()},
            "shards": self.shard,
            "rows": self.rows,
        }
        write_json(self.folder / "index.json", index)

    def _flush(self) -> None:
        from safetensors.torch import save_file

        whole = {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}
        save_file(whole, self.folder / _shard(self.shard))
        self.parts, self.shard, self.start, self.size = [], self.shard + 1, 0, 0


def _kept(
    teacher: FrozenTeacher, batch: Batch, trained: Trained, spec: CacheSpec
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of one batch, on the CPU."""
    logits = teacher.logits(batch, trained)
    if not spec.top:
        if not isinstance(logits, Projected):
            raise ModelError(
                "this teacher's hidden states cannot be kept: it does more behind them than a linear head; keep its "
                "likeliest tokens instead (--cache-top 256), or nothing (--teacher-cache never)"
            )
        yield "hidden", logits.source.cpu().contiguous()
        return
    found: dict[str, list[torch.Tensor]] = {}
    for part in _parts(len(logits), logits.vocabulary):
        for name, value in _collapsed(logits.chunk(part), trained.targets[part], spec):
            found.setdefault(name, []).append(value.cpu())
    yield from ((name, torch.cat(values).contiguous()) for name, values in found.items())


def _collapsed(logits: torch.Tensor, targets: torch.Tensor, spec: CacheSpec) -> Iterator[tuple[str, torch.Tensor]]:
    logprobs = logits.log_softmax(dim=-1)
    yield "gold", logprobs.gather(1, targets[:, None])[:, 0]
    yield "right", (logits.argmax(dim=-1) == targets).to(torch.uint8)
    top = logprobs.topk(min(spec.top, logits.shape[-1]), dim=-1)
    yield "ids", top.indices.to(torch.int32)
    yield "logprobs", top.values
    for temperature in sorted(set(spec.temperatures)):
        tempered = logprobs / temperature
        norm = tempered.logsumexp(dim=-1)
        yield f"norm-{temperature}", norm
        yield f"rest-{temperature}", tempered.scatter_(1, top.indices, -torch.inf).logsumexp(dim=-1) - norm


def _parts(count: int, vocabulary: int) -> list[slice]:
    size = max(1, PROJECTED // vocabulary)
    return [slice(start, start + size) for start in range(0, count, size)]


def _counts(trained: Trained) -> list[int]:
    counts: list[int] = torch.unique_consecutive(trained.sequence, return_counts=True)[1].tolist()
    return counts


def _digest(tokens: Sequence[int], first: int) -> str:
    text = ",".join(map(str, (first, *tokens)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _shard(number: int) -> str:
    return f"shard-{number:05d}.safetensors"
