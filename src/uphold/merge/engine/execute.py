"""Carrying out a plan: every tensor is read, merged and written in chunks, several tensors at a time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from uphold.core.errors import ModelError
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.merge.engine.diagnostics import Observer, TensorDiagnosis
from uphold.merge.engine.inputs import Input
from uphold.merge.engine.plan import Plan, Planned
from uphold.merge.engine.sources import Permuted, Source, Stored
from uphold.merge.engine.view import CHUNK, TensorView, largest_chunk, spans
from uphold.merge.protocol import Chunk, Settings, View
from uphold.models.checkpoint import DTYPE_NAMES
from uphold.models.fingerprint import bytes_of

MEMORY = 400_000_000
"""Bytes that all threads together may work in; one thread takes what it needs."""
_BEHIND = 4
"""Tensors that may wait for their hash: beyond them a thread that merges hashes by itself."""


class Sink(Protocol):
    """Where merged values go."""

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """Take a part of a tensor that begins with element `start`."""


@dataclass
class Outcome:
    """What is known after all tensors are written."""

    entries: list[tuple[str, str, list[int], str]] = field(default_factory=list)
    """Name, element type, shape and hash of every tensor."""
    diagnoses: dict[str, TensorDiagnosis] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)
    """Tensors with values that are no finite numbers."""
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What the method remarks on a tensor: `notes` of what its `prepare` returns."""

    def content_hash(self) -> str:
        """What `uphold.models.fingerprint.weights_hash` says of the result."""
        return sha256_of(sorted(self.entries))


class InputHashes:
    """Hashes of the inputs' tensors, taken while they are in memory anyway; good for several merges of one process."""

    def __init__(self) -> None:
        """Nothing is hashed yet."""
        self._found: dict[tuple[str, int, int, str], str] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._running: set[Future[str]] = set()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Hash in a thread beside those that merge, as long as it keeps up with them."""
        with ThreadPoolExecutor(1, thread_name_prefix="uphold-hash") as pool:
            self._pool = pool
            try:
                yield
                for future in self._running:
                    future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                self._pool = None
                self._running = set()

    def take(self, source: Source) -> None:
        """Hash all that a source reads, unless that was done."""
        stored = [source] if isinstance(source, Stored) else []
        if isinstance(source, Permuted):
            stored = [source.own, *(other for other, _ in source.others)]
        for one in stored:
            if not self._handed_over(one):
                self._hash(one.model, one.name)

    def of(self, model: Input) -> str:
        """The hash of all weights of a model; reads what no one has read yet."""
        checkpoint = model.checkpoint
        if any(info.start < 0 for info in checkpoint.infos.values()):
            return checkpoint.content_hash()
        return sha256_of(
            sorted(
                (name, DTYPE_NAMES[info.dtype], list(info.shape), self._hash(model, name))
                for name, info in checkpoint.infos.items()
            )
        )

    def _handed_over(self, one: Stored) -> bool:
        with self._lock:
            self._running = {future for future in self._running if not future.done() or future.exception()}
            if self._pool is None or len(self._running) >= _BEHIND:
                return False
            self._running.add(self._pool.submit(self._hash, one.model, one.name))
            return True

    def _hash(self, model: Input, name: str) -> str:
        info = model.checkpoint.infos[name]
        if info.start < 0:
            return ""  # what torch wrote is hashed file by file
        status = info.file.stat()
        key = (str(info.file), status.st_size, status.st_mtime_ns, name)
        with self._lock:
            known = self._found.get(key)
        if known is None:
            known = model.checkpoint.tensor_hash(name)
            with self._lock:
                self._found[key] = known
        return known


def working_memory(plan: Plan, size: int = CHUNK) -> int:
    """Bytes that one thread works in: its chunks, and about as much again for a method's own steps."""
    most = 0
    for tensor in plan.tensors:
        if tensor.settings is not None:
            most = max(most, largest_chunk(tensor.shape, plan.method.unit, size) * (2 * len(tensor.sources) + 3))
        else:
            most = max(most, size)
    return 4 * most


def cores_for(wanted: int | None = None) -> int:
    """Cores to use: those of torch, unless another number is wanted."""
    return wanted if wanted is not None else torch.get_num_threads()


def threads_for(plan: Plan, wanted: int | None = None, size: int = CHUNK) -> int:
    """Threads that fit the cores and the memory; `wanted` sets the number of cores to use."""
    return max(1, min(cores_for(wanted), len(plan.tensors), MEMORY // max(1, working_memory(plan, size))))


def execute(
    plan: Plan,
    sink: Sink,
    *,
    threads: int,
    size: int = CHUNK,
    cores: int = 1,
    hashes: InputHashes | None = None,
    diagnostics: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Merge every tensor of a plan into a sink.

    The result depends on the plan and on `size` only where a method adds up over chunks; never on the threads.

    Args:
        plan: what to do.
        sink: where values go.
        threads: tensors that are merged at the same time, >= 1.
        size: elements in a chunk.
        hashes: filled with the hashes of the inputs, where given.
        cores: those that may be used; where there are more of them than threads, one hashes.
        diagnostics: whether to compare the models, and the result with them.
        progress: called after every tensor.

    Raises:
        ModelError: the method returned something of another shape.
        UpholdError: whatever the method refuses.
    """
    run = _Run(plan, sink, size, hashes, diagnostics)
    beside = hashes.beside() if hashes is not None and cores > threads else nullcontext()
    with _one_thread_each(), beside:
        run.surveyed = plan.method.survey(_views(plan, size, progress))
        pool = ThreadPoolExecutor(threads, thread_name_prefix="uphold-merge")
        try:
            _drain(pool, run, threads, progress)
        finally:
            run.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return run.outcome


def _drain(pool: ThreadPoolExecutor, run: _Run, threads: int, progress: Progress) -> None:
    waiting: set[Future[None]] = set()
    tensors = iter(run.plan.tensors)
    done, total = 0, len(run.plan.tensors)
    progress("merging", 0, total)
    while done < total:
        while len(waiting) < 2 * threads and (tensor := next(tensors, None)) is not None:
            waiting.add(pool.submit(run.tensor, tensor))
        finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in finished:
            future.result()
            done += 1
        progress("merging", done, total)


def _views(plan: Plan, size: int, progress: Progress) -> Iterator[tuple[View, Settings]]:
    merged = [one for one in plan.tensors if one.settings is not None]
    for number, tensor in enumerate(merged, start=1):
        assert tensor.settings is not None
        yield TensorView(tensor, plan.method.unit, plan.recipe.random_seed, size), tensor.settings
        progress("surveying", number, len(merged))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """One core for each operation of torch: sums then do not depend on the machine, and threads do not compete."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Run:
    plan: Plan
    sink: Sink
    size: int
    hashes: InputHashes | None
    diagnostics: bool
    surveyed: Any = None
    stopped: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome = field(default_factory=Outcome)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tensor(self, tensor: Planned) -> None:
        """Merge one tensor, or copy it; gives up quietly once the run is stopped."""
        digest = hashlib.sha256((tensor.elements * tensor.dtype.itemsize).to_bytes(8, "little"))
        observer = Observer(tensor) if self.diagnostics and tensor.settings is not None else None
        odd = False
        for start, values, chunk in self.pieces(tensor):
            if self.stopped.is_set():
                return
            cast = values.reshape(-1).to(tensor.dtype)
            odd = odd or not _finite(cast)
            if observer is not None and chunk is not None:
                observer.see(chunk, values)
            self.sink.write(tensor.name, cast, start)
            digest.update(bytes_of(cast))
        if self.hashes is not None:
            for source in tensor.sources:
                self.hashes.take(source)
        with self.lock:
            self.outcome.entries.append(
                (tensor.name, DTYPE_NAMES[tensor.dtype], list(tensor.shape), digest.hexdigest())
            )
            if odd:
                self.outcome.odd.append(tensor.name)
            if observer is not None:
                self.outcome.diagnoses[tensor.name] = observer.diagnosis()

    def pieces(self, tensor: Planned) -> Iterator[tuple[int, torch.Tensor, Chunk | None]]:
        """First element and values of every part of the result."""
        if tensor.settings is None:
            assert tensor.base is not None
            yield from ((start, values, None) for start, values in _copied(tensor.base, tensor.shape, self.size))
            return
        method = self.plan.method
        view = TensorView(tensor, method.unit, self.plan.recipe.random_seed, self.size)
        prepared = method.prepare(view, tensor.settings, self.surveyed)
        if notes := getattr(prepared, "notes", ()):
            with self.lock:
                self.outcome.notes[tensor.name] = tuple(notes)
        for chunk in view.chunks():
            values = method.combine(chunk, tensor.settings, prepared)
            if values.shape != chunk.models[0].shape or not values.is_floating_point():
                raise ModelError(
                    f"the merge method '{self.plan.recipe.merge_method}' made {values.dtype} of shape "
                    f"{tuple(values.shape)} of {tensor.name}; expected floats of shape {tuple(chunk.models[0].shape)}"
                )
            yield chunk.start, values, chunk


def _copied(source: Source, shape: tuple[int, ...], size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """A tensor as it is stored, or as float32 where an adapter changes it."""
    for start, stop in spans(shape, "element", size):
        if isinstance(source, Stored) and source.name not in source.model.updates:
            yield start, source.raw()[start:stop]
        else:
            yield start, source.read(start, stop)


def _finite(values: torch.Tensor) -> bool:
    if not values.is_floating_point() or values.numel() == 0:
        return True
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) and torch.isfinite(high))


def facts_of(inputs: Mapping[str, Input], hashes: InputHashes) -> list[dict[str, Any]]:
    """What provenance says of every input."""
    return [one.facts(hashes.of(one)) for one in inputs.values()]
