"""The steps of a training, in one process or in several; `uphold.models.train.train` is what is called."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from uphold.core.errors import ModelError
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress
from uphold.models import sharding
from uphold.models.encode import Batch, Encoded, collate
from uphold.models.processes import Processes
from uphold.models.train import Example, History, Objective, Schedule, Validate, chosen_epoch, decisive
from uphold.models.training_state import TrainingState, check_key, latest, read_state, save_state, unreadable_state

if TYPE_CHECKING:
    from collections.abc import Iterator

SAVE_EVERY_S = 60.0


class Trainer:
    """Trains a model; see `uphold.models.train.train` for the arguments.

    Of several processes each takes its share of every step's instances; losses and gradients are summed over all, so
    the steps are those of one process. The first one validates and writes.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[Example],
        objective: Objective,
        schedule: Schedule,
        validate: Validate,
        folder: Path,
        key: str,
        what: str,
        progress: Progress,
        processes: Processes,
    ) -> None:
        self.model, self.rows, self.objective, self.schedule = model, rows, objective, schedule
        self.validate, self.folder, self.what, self.progress = validate, folder, what, progress
        self.processes, self.sharded = processes, processes.count > 1 and sharding.wanted()
        self.key = sha256_of([key, decisive(schedule), len(rows)])
        self.device = model.device
        self.work = sharding.sharded(model, model.active_adapter) if self.sharded else model
        """What makes the steps; the model itself, or a copy that is spread over all processes."""
        self.parameters = {name: value for name, value in self.work.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.steps_objective, self.waiting = objective, list[Any]()
        self.history = History()
        self.best: Mapping[str, torch.Tensor] = self._weights()
        self.epoch, self.step = 0, 0
        self.sums: dict[str, list[float]] = {}
        self.steps_per_epoch = -(-len(rows) // schedule.batch_size)

    def run(self) -> History:
        """Train, or read the finished training."""
        with self.processes.first():
            check_key(self.folder, self.key)
        found = latest(self.folder) if self.processes.is_first else None
        saved = self.processes.agree(None if found is None else str(found))
        if saved is not None:
            self._restore(Path(saved))
        if saved is None or Path(saved).name != "done":
            # Dropout, where a recipe has it, draws from torch's global generator: lend it a seed, then put it back.
            with (
                torch.random.fork_rng(),
                self._spread(),
                checkpointed(self.work, self.schedule.gradient_checkpointing),
            ):
                self._run_epochs(fresh=saved is None)
            self._save(finished=True)
        self._hand_over(self.best)
        return self.history

    @contextmanager
    def _spread(self) -> Iterator[None]:
        """Where weights are spread, spread those of the teachers too, and let the models wait in the host's memory."""
        if not self.sharded:
            yield
            return
        spread = spread_teachers(self.objective)
        self.waiting = [self.model, *models_of(self.objective)]
        self.steps_objective = spread
        sharding.move(self.waiting, torch.device("cpu"))
        try:
            yield
        finally:
            sharding.move(self.waiting, self.device)

    def _run_epochs(self, fresh: bool) -> None:
        if fresh:
            self._close_epoch(0, {})
        last_save = time.monotonic()
        total = self.steps_per_epoch * self.schedule.epochs
        while self.epoch < self.schedule.epochs:
            batches = batches_of(self.rows, self.schedule, self.epoch)
            self.work.train()
            for batch in batches[self.step - self.epoch * self.steps_per_epoch :]:
                torch.manual_seed(_seed(self.schedule.seed, self.step) + self.processes.rank)
                self._step([self.rows[index] for index in batch])
                loss = self.sums["loss"][0] / max(self.sums["loss"][1], 1.0)
                self.progress(self.what, self.step, total, f"epoch {self.epoch + 1}, loss {loss:.3f}")
                due = time.monotonic() - last_save > SAVE_EVERY_S
                if self.processes.agree(due) if self.sharded else due:
                    self._save()
                    last_save = time.monotonic()
            self.epoch += 1
            means = {name: top / bottom for name, (top, bottom) in self.sums.items() if bottom}
            self.sums = {}
            self._close_epoch(self.epoch, means)
            self._save()
            last_save = time.monotonic()

    def _step(self, examples: Sequence[Example]) -> None:
        batches = self._share(examples)
        count = sum(self.processes.gather(sum(self.objective.count(batch) for batch in batches)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step, self.steps_per_epoch * self.schedule.epochs)
        self.optimizer.zero_grad(set_to_none=True)
        logs, finite = self._backward(batches, max(1, count), self._most_batches(examples))
        gathered = self.processes.gather([logs, finite and self._gradients_are_finite()])
        if not all(one for _, one in gathered):
            raise self._not_finite(f"the loss or its gradient is not finite at step {self.step}")
        self._sum_gradients()
        for one, _ in gathered:
            add_logs(self.sums, one)
        if self.schedule.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.schedule.max_gradient_norm)
        self.optimizer.step()
        self.step += 1

    def _share(self, examples: Sequence[Example]) -> list[Batch]:
        """This process's part of a step."""
        own = examples[self.processes.rank :: self.processes.count]
        return [collate(rows).to(self.device) for rows in micro_batches(own, self.schedule.micro_batch)]

    def _most_batches(self, examples: Sequence[Example]) -> int:
        """How often every process must read: where weights are spread, all of them must take part in each reading."""
        if not self.sharded:
            return 0
        shares = [examples[rank :: self.processes.count] for rank in range(self.processes.count)]
        return max(len(micro_batches(share, self.schedule.micro_batch)) for share in shares)

    def _backward(self, batches: list[Batch], count: int, most: int) -> tuple[dict[str, list[float]], bool]:
        """Add up gradients of the loss divided by `count`; returns what is logged, and whether all of it is finite."""
        logs: dict[str, list[float]] = {}
        finite = True
        for number in range(max(len(batches), most)):
            counts = number < len(batches)
            batch = batches[number] if counts else collate([self.rows[0][0]]).to(self.device)
            loss = self.steps_objective(self.work, batch)
            finite = finite and bool(torch.isfinite(loss.total))
            if not finite and not self.sharded:
                return {}, False
            total = loss.total / count
            (total if counts else 0 * total).backward()  # type: ignore[no-untyped-call]
            if counts:
                add_logs(logs, loss.logs)
        return logs, finite

    def _gradients_are_finite(self) -> bool:
        """A finite loss may have other gradients, in half precision; one step with them makes every weight NaN."""
        parts = [sharding.local(value.grad) for value in self.parameters.values() if value.grad is not None]
        parts = [part for part in parts if part.numel()]
        return not parts or bool(torch.nn.utils.get_total_norm(parts, norm_type=math.inf).isfinite())

    def _not_finite(self, found: str) -> ModelError:
        return ModelError(f"{self.what}: {found}: lower the learning rate (the last saved state is kept)")

    def _sum_gradients(self) -> None:
        """Give every process the sum of all processes' gradients; a parameter that none has used stays without."""
        if self.processes.count == 1:
            return
        values = list(self.parameters.values())
        if self.sharded:
            # They are means over the processes, and each process has its part of them.
            for value in values:
                if value.grad is not None:
                    value.grad.mul_(self.processes.count)
            return
        used = values[0].new_tensor([float(value.grad is not None) for value in values], dtype=torch.float32)
        flat = [(torch.zeros_like(value) if value.grad is None else value.grad).flatten().float() for value in values]
        summed = self.processes.total(torch.cat([used, *flat]))
        start = len(values)
        for index, value in enumerate(values):
            piece = summed[start : start + value.numel()]
            value.grad = piece.view_as(value).to(value.dtype) if summed[index] else None
            start += value.numel()

    def _close_epoch(self, epoch: int, train_means: Mapping[str, float]) -> None:
        now = self._weights()
        if self.sharded:
            self._hand_over(now)
        self.work.eval()
        measured = None
        with self.processes.first():
            if self.processes.is_first:
                sharding.move(self.waiting, self.device)
                measured = {name: float(value) for name, value in self.validate(epoch).items()}
                sharding.move(self.waiting, torch.device("cpu"))
        validation = self.processes.agree(measured)
        if not all(math.isfinite(value) for value in validation.values()):
            raise self._not_finite(f"validation gives {validation} after epoch {epoch}")
        self.history.epochs.append({"epoch": epoch, "train": dict(train_means), "validation": validation})
        if chosen_epoch(self.history.epochs, self.schedule.select) == epoch:
            self.history.chosen = epoch
            self.best = now

    def _hand_over(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give the model these weights."""
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                if name in weights:
                    value.copy_(weights[name])
        self.model.eval()

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: sharding.whole(value) for name, value in self.parameters.items()}

    def _load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(sharding.spread_like(weights[name], value))

    def _save(self, finished: bool = False) -> None:
        if not self.processes.is_first and not self.sharded:
            return
        names = {id(value): name for name, value in self.parameters.items()}
        moments = {
            f"{kind}/{names[id(parameter)]}": sharding.whole(value)
            for parameter, state in self.optimizer.state.items()
            for kind, value in state.items()
        }
        history, weights = asdict(self.history), self._weights()
        if self.processes.is_first:
            state = TrainingState(self.epoch, self.step, self.sums, history, weights, self.best, moments)
            save_state(self.folder, state, finished)

    def _restore(self, path: Path) -> None:
        state = read_state(path)
        try:
            self.epoch, self.step, self.sums = state.epoch, state.step, state.sums
            self.history = History(**state.history)
            self._load_weights(state.weights)
            self.best = {name: state.best[name] for name in self.parameters}
        except (KeyError, TypeError, RuntimeError) as error:
            raise unreadable_state(path, error) from error
        for name, parameter in self.parameters.items():
            kinds = ("step", "exp_avg", "exp_avg_sq")
            moments = {kind: state.moments[key] for kind in kinds if (key := f"{kind}/{name}") in state.moments}
            if moments:
                self.optimizer.state[parameter] = {
                    kind: value if kind == "step" else sharding.spread_like(value, parameter)
                    for kind, value in moments.items()
                }


def models_of(objective: Objective) -> list[Any]:
    """The models that `objective` asks besides the one that is trained."""
    return [teacher.model for teacher in getattr(objective, "teachers", ()) if hasattr(teacher, "model")]


def spread_teachers(objective: Objective) -> Objective:
    """`objective` with teachers whose weights are spread over all processes; as it is where it has none."""
    from uphold.models.objective import Distillation, FrozenTeacher

    if not isinstance(objective, Distillation):
        return objective
    teachers = [
        FrozenTeacher(sharding.sharded(one.model)) if isinstance(one, FrozenTeacher) else one
        for one in objective.teachers
    ]
    return Distillation(objective.rule, teachers, objective.tokens)


@contextmanager
def checkpointed(model: Any, wanted: bool) -> Iterator[None]:
    """Let `model` forget activations in the forward pass and make them again in the backward pass."""
    if wanted:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        if wanted:
            model.activation_checkpointing_disable()


def add_logs(sums: dict[str, list[float]], logs: Mapping[str, Sequence[float]]) -> None:
    """Add what was logged to `sums`."""
    for name, (top, bottom) in logs.items():
        entry = sums.setdefault(name, [0.0, 0.0])
        entry[0] += top
        entry[1] += bottom


def micro_batches(examples: Sequence[Example], most: int) -> list[list[Encoded]]:
    """The rows of `examples` in groups of at most `most`; an example that is larger gets a group of its own."""
    groups: list[list[Encoded]] = []
    for example in examples:
        if not groups or len(groups[-1]) + len(example) > most:
            groups.append([])
        groups[-1].extend(example)
    return groups


def batches_of(rows: Sequence[Example], schedule: Schedule, epoch: int) -> list[list[int]]:
    """The epoch's batches: a random order of the instances, the same for every model that trains on them."""
    import numpy as np

    order = np.random.default_rng((schedule.seed, epoch)).permutation(len(rows)).tolist()
    return [order[start : start + schedule.batch_size] for start in range(0, len(order), schedule.batch_size)]


def _seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63
