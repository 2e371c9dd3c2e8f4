"""Incubations side by side: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from uphold.core import errors
from uphold.core.errors import ModelError, UpholdError, UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.storage import read_json
from uphold.repair.assembly_jobs import RESULT, STATE, Job, incubate, read_job

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from uphold.models.stages.build import StageBuilder
    from uphold.models.stages.data import Examples, Objective
    from uphold.models.stages.stages import Stages
    from uphold.models.stages.training import Training

ExecutorName = Literal["local", "ray"]
POLL_S = 0.5
"""How often jobs in other processes are looked at."""


@dataclass(frozen=True)
class Order:
    """A job to be done, as other processes get it."""

    meta: Stages
    stage: int
    builder: StageBuilder
    examples: Examples
    out: Path
    objective: Objective | None
    config: Training

    def run(self, progress: Progress = silent) -> Job:
        """Do it."""
        return incubate(
            self.meta,
            self.stage,
            self.builder,
            self.examples,
            out=self.out,
            objective=self.objective,
            config=self.config,
            progress=progress,
        )


def incubate_all(
    meta: Stages,
    builder: StageBuilder,
    examples: Examples,
    *,
    out: str | Path,
    stages: Sequence[int] | None = None,
    objective: Objective | None = None,
    config: Training | None = None,
    executor: ExecutorName = "local",
    workers: int = 1,
    address: str | None = None,
    progress: Progress = silent,
) -> list[Job]:
    """Incubate several stages, each in a folder `stage-NUMBER` of its own; see `incubate`.

    What is finished is not made again, and what was interrupted goes on, with any executor.

    Args:
        meta: the trained meta model.
        builder: makes the fresh stages. Other processes must be able to import it: with several workers it is a
            function or class of a module, or of a script that keeps its work under `if __name__ == "__main__"`.
        examples: what to train on.
        out: the folder that gets the jobs' folders; with Ray, one that all machines share.
        stages: which; None: all.
        objective: see `incubate`.
        config: how long and how fast; each job takes `config.threads` threads.
        executor: `local` or `ray`.
        workers: processes on this machine; 1 works in this process. Ray takes as many as the cluster has room for.
        address: of a Ray cluster; None starts one here, or takes the one in `$RAY_ADDRESS`.
        progress: called after every step, or, for other processes, whenever they save and finish.

    Returns:
        The jobs in the order of `stages`.

    Raises:
        UsageError: see `incubate`; or the work cannot be sent to other processes.
        ModelError: a process was lost; what was finished is kept.
    """
    from uphold.models.stages.training import Training

    if executor not in get_args(ExecutorName):
        raise unknown_name("executor", executor, get_args(ExecutorName))
    if workers < 1:
        raise UsageError(f"{workers} workers: expected at least 1")
    chosen = config or Training()
    folder = Path(out).resolve()
    orders = [
        Order(meta, stage, builder, examples, folder / f"stage-{stage}", objective, chosen)
        for stage in (range(meta.count) if stages is None else stages)
    ]
    if executor == "ray":
        _on_ray(orders, address, progress)
    elif workers > 1 and len(orders) > 1:
        _in_processes(orders, workers, progress)
    else:
        return [order.run(progress) for order in orders]
    return [read_job(order.out) for order in orders]


# ---- processes of this machine ----


@dataclass
class _Hand:
    order: Order
    process: SpawnProcess
    ear: Connection


def _in_processes(orders: Sequence[Order], workers: int, progress: Progress) -> None:
    from multiprocessing.connection import wait

    waiting, busy = list(orders), list[_Hand]()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                busy.append(_started(waiting.pop(0)))
            wait([hand.process.sentinel for hand in busy], POLL_S)
            for hand in list(busy):
                if not hand.process.is_alive():
                    busy.remove(hand)
                    _check_end(hand)
            _tell(orders, progress)
    finally:
        for hand in busy:
            hand.process.terminate()
            hand.process.join()


def _started(order: Order) -> _Hand:
    from multiprocessing import get_context

    context = get_context("spawn")
    ear, mouth = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(order, mouth, os.getpid()))
    try:
        process.start()
    except (AttributeError, TypeError, ValueError) as error:
        raise _unsendable(error) from error
    except Exception as error:
        if type(error).__name__ != "PicklingError":
            raise
        raise _unsendable(error) from error
    mouth.close()
    return _Hand(order, process, ear)


def _unsendable(error: Exception) -> UsageError:
    reason = " ".join(str(error).split())
    return UsageError(
        f"the work cannot be sent to other processes ({reason}): use functions and classes of a module instead of "
        "lambdas, or workers=1"
    )


def _child(order: Order, mouth: Connection, parent: int) -> None:
    import signal

    # Ctrl-C reaches the whole group; the parent ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def alone(what: str, done: int, total: int, note: str = "") -> None:
        if os.getppid() != parent:
            raise SystemExit(1)

    try:
        order.run(alone)
    except UpholdError as error:
        mouth.send_bytes(json.dumps([type(error).__name__, str(error)]).encode())


def _check_end(hand: _Hand) -> None:
    hand.process.join()
    try:
        name, message = json.loads(hand.ear.recv_bytes().decode())
    except EOFError:
        pass
    else:
        raise getattr(errors, name)(message)
    finally:
        hand.ear.close()
    if hand.process.exitcode or not (hand.order.out / RESULT).is_file():
        raise ModelError(
            f"the process of stage {hand.order.stage} ended with code {hand.process.exitcode}: what was finished is "
            "kept, make the same call again to go on (a script needs its work under if __name__ == '__main__')"
        )


def _tell(orders: Sequence[Order], progress: Progress) -> None:
    """Report the steps that jobs have saved, and those of finished jobs."""
    from uphold.models.training_state import latest

    done = total = finished = 0
    for order in orders:
        steps = order.config.epochs * -(-len(order.examples) // order.config.batch_size)
        total += steps
        if (order.out / RESULT).is_file():
            done, finished = done + steps, finished + 1
            continue
        found = latest(order.out / STATE) if (order.out / STATE).is_dir() else None
        if found is not None and found.name.startswith("step-"):
            done += int(found.name.removeprefix("step-"))
    progress("incubation", done, total, f"{finished} of {len(orders)} stages finished")


# ---- Ray ----


def _on_ray(orders: Sequence[Order], address: str | None, progress: Progress) -> None:
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise UsageError("the ray executor needs the package ray: pip install 'uphold[ray]'")
    from uphold.measure.ray_executor import connected

    ray, here = connected(address)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") and orders[0].config.device in (None, "cuda") else 0
        remote = ray.remote(num_cpus=orders[0].config.threads, num_gpus=gpus, max_retries=0)(_on_worker)
        left = {}
        for order in orders:
            try:
                left[remote.remote(order)] = order
            except TypeError as error:
                raise _unsendable(error) from error
        try:
            while left:
                ended, _ = ray.wait(list(left), timeout=POLL_S)
                for one in ended:
                    _check_remote(ray, one, left.pop(one))
                _tell(orders, progress)
        finally:
            for one in left:
                ray.cancel(one, force=True)
    finally:
        if here:
            ray.shutdown()


def _on_worker(order: Order) -> Mapping[str, Any]:
    return order.run().result


def _check_remote(ray: Any, reference: Any, order: Order) -> None:
    try:
        result = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, UpholdError) else error from error
    except ray.exceptions.RayError as error:
        raise ModelError(
            f"the worker of stage {order.stage} was lost: what was finished is kept, make the same call again to go on"
        ) from error
    path = order.out / RESULT
    if not path.is_file() or read_json(path) != result:
        raise UsageError(f"{order.out} is not the worker's folder: choose one that all machines of the cluster share")
