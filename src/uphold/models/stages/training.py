"""A training loop for one stage of a network, or all of it: seeded, and resumable to the bit after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from uphold.core.errors import ModelError, UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.models.load import default_device
from uphold.models.stages.boundary import Replay
from uphold.models.stages.data import Examples, Objective
from uphold.models.stages.split import run
from uphold.models.training_state import TrainingState, latest, read_state, save_state, unreadable_state

Frozen = Literal["eval", "train"]


@dataclass(frozen=True)
class Training:
    """How long and how fast to train: AdamW, the learning rate falling as half a cosine."""

    epochs: int = 20
    learning_rate: float = 1e-3
    final_rate: float = 1e-5
    """The learning rate at the end."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly."""
    weight_decay: float = 0.05
    """On weights of two and more dimensions: biases and norms are left alone."""
    batch_size: int = 32
    """At most; an epoch's batches are made equally large, so that none is left with a single instance."""
    max_gradient_norm: float = 0.0
    """Gradients are clipped to this norm; 0 leaves them alone."""
    seed: int = 0
    """Of fresh weights, data order, dropout and augmentation."""
    frozen: Frozen = "eval"
    """The mode of stages that are not trained. `train` keeps their dropout active, as the authors' code does; batch
    norms are in eval in any case, or they would go on changing."""
    cache_bytes: int = 1 << 30
    """Keep what the trained stage reads in memory where it takes no more than this and never changes: frozen stages in
    `eval`, no augmentation. 0 reads it again in every step."""
    threads: int = 1
    """Of the CPU for this training. Sums depend on it in their last bits: it is fixed, so that a job gives the same
    module wherever it runs."""
    device: str | None = None
    """Where to train; None takes the GPU where there is one."""
    save_every_s: float = 30.0
    """How often the state is written, in seconds; 0 after every step."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.threads) < 1 or not 0 <= self.final_rate <= self.learning_rate:
            raise UsageError(
                "a training needs epochs, batch_size and threads of at least 1 and 0 <= final_rate <= learning_rate"
            )
        others = (self.warmup_steps, self.weight_decay, self.max_gradient_norm, self.cache_bytes, self.save_every_s)
        if min(*others, self.seed) < 0:
            raise UsageError(
                "warm-up, weight decay, gradient norm, cache_bytes, save_every_s and seed must not be negative"
            )
        if self.frozen not in get_args(Frozen):
            raise unknown_name("mode of frozen stages", self.frozen, get_args(Frozen))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, out of `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.final_rate + (self.learning_rate - self.final_rate) * 0.5 * (1 + math.cos(math.pi * done))

    def decisive(self) -> dict[str, Any]:
        """The options that decide the outcome."""
        options = {name: value for name, value in asdict(self).items() if name != "save_every_s"}
        return options | {"device": self.device or default_device()}


@dataclass(frozen=True)
class FineTuning(Training):
    """The last phase: no warm-up and clipped gradients, which would destroy the assembled start otherwise."""

    max_gradient_norm: float = 1.0


@dataclass
class Trainee:
    """What is trained, and in what surroundings."""

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    """What the optimiser gets, by the name it is saved under."""
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What else changes while training (running statistics)."""
    modules: Sequence[nn.Module] = ()
    """Those that are trained, and in train mode; what is around them is frozen. Empty: the whole model."""
    replay: Replay | None = None
    """Stands for the frozen stages in front, where `read` is kept."""
    read: torch.Tensor | None = None
    """What the trained stage reads of each instance."""

    def mode(self, frozen: Frozen) -> None:
        """Put every module in its mode."""
        if not self.modules:
            self.model.train()
            return
        self.model.train(frozen == "train")
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        for module in self.modules:
            module.train()

    def state(self) -> dict[str, torch.Tensor]:
        """What is saved: parameters and buffers, copied to the CPU."""
        both = {**self.parameters, **self.buffers}
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in both.items()}


def fit(
    trainee: Trainee,
    examples: Examples,
    objective: Objective,
    training: Training,
    folder: Path,
    *,
    what: str = "training",
    progress: Progress = silent,
) -> list[float]:
    """Train, and leave the weights of the last step in the trainee; a state in `folder` is gone on from.

    Args:
        trainee: what to train.
        examples: on what.
        objective: for what.
        training: how long and how fast.
        folder: where the state is kept; what else decides the outcome is the caller's to check.
        what: what progress is reported as.
        progress: called after every step.

    Returns:
        The mean loss of each epoch.

    Raises:
        ModelError: the loss is not finite.
        CorruptError: the saved state cannot be read.
    """
    with threads(training.threads), torch.random.fork_rng():
        return _Fit(trainee, examples, objective, training, folder, what, progress).run()


class _Fit:
    def __init__(
        self,
        trainee: Trainee,
        examples: Examples,
        objective: Objective,
        training: Training,
        folder: Path,
        what: str,
        progress: Progress,
    ) -> None:
        self.trainee, self.examples, self.objective, self.training = trainee, examples, objective, training
        self.folder, self.what, self.progress = folder, what, progress
        self.device = next(iter(trainee.parameters.values())).device
        values = list(trainee.parameters.values())
        groups = [
            {"params": [one for one in values if one.dim() > 1], "weight_decay": training.weight_decay},
            {"params": [one for one in values if one.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=training.learning_rate)
        self.step, self.losses = 0, list[float]()
        self.sum = 0.0
        """Of the losses of the epoch so far."""
        self.per_epoch = -(-len(examples) // training.batch_size)

    def run(self) -> list[float]:
        found = latest(self.folder)
        if found is not None:
            self._restore(found)
        if found is None or found.name != "done":
            self._steps()
            self._save(finished=True)
        return self.losses

    def _steps(self) -> None:
        total, saved = self.per_epoch * self.training.epochs, time.monotonic()
        self.trainee.mode(self.training.frozen)
        while self.step < total:
            epoch, number = divmod(self.step, self.per_epoch)
            rows = batches(len(self.examples), self.per_epoch, self.training.seed, epoch)[number]
            self._one(rows, total)
            if self.step % self.per_epoch == 0:
                self.losses.append(self.sum / self.per_epoch)
                self.sum = 0.0
            shown = self.losses[-1] if self.losses else self.sum / self.step
            self.progress(self.what, self.step, total, f"epoch {epoch + 1}, loss {shown:.3f}")
            if time.monotonic() - saved >= self.training.save_every_s and self.step < total:
                self._save()
                saved = time.monotonic()

    def _one(self, rows: torch.Tensor, total: int) -> None:
        # Dropout draws from torch's global generator, which is lent a seed meanwhile.
        seed = (self.training.seed * 1_000_003 + self.step) % 2**63
        torch.manual_seed(seed)
        inputs = self.examples.inputs[rows]
        if self.examples.augment is not None:
            inputs = self.examples.augment(inputs, torch.Generator().manual_seed(seed))
        if self.trainee.replay is not None:
            assert self.trainee.read is not None
            self.trainee.replay.value = self.trainee.read[rows].to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate(self.step, total)
        self.optimizer.zero_grad(set_to_none=True)
        outputs = run(self.trainee.model, inputs)
        loss = self.objective.loss(outputs, self.examples.targets[rows].to(self.device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(
                f"{self.what}: the loss is not finite at step {self.step}: lower the learning rate, or clip gradients "
                "(max_gradient_norm=1)"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        if self.training.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(self.trainee.parameters.values(), self.training.max_gradient_norm)
        self.optimizer.step()
        self.sum += value
        self.step += 1

    def _save(self, finished: bool = False) -> None:
        names = {id(value): name for name, value in self.trainee.parameters.items()}
        moments = {
            f"{kind}/{names[id(parameter)]}": value.detach().to("cpu", copy=True)
            for parameter, state in self.optimizer.state.items()
            for kind, value in state.items()
        }
        history = {"losses": self.losses, "sum": self.sum}
        state = TrainingState(
            len(self.losses), self.step, {}, history, self.trainee.state(), {}, {} if finished else moments
        )
        save_state(self.folder, state, finished)

    def _restore(self, path: Path) -> None:
        state = read_state(path)
        try:
            self.step, self.losses, self.sum = state.step, list(state.history["losses"]), state.history["sum"]
            with torch.no_grad():
                for name, value in {**self.trainee.parameters, **self.trainee.buffers}.items():
                    value.copy_(state.weights[name])
            for name, parameter in self.trainee.parameters.items():
                kinds = ("step", "exp_avg", "exp_avg_sq")
                moments = {kind: state.moments[key] for kind in kinds if (key := f"{kind}/{name}") in state.moments}
                if moments:
                    self.optimizer.state[parameter] = {
                        kind: value if kind == "step" else value.to(self.device) for kind, value in moments.items()
                    }
        except (KeyError, TypeError, RuntimeError) as error:
            raise unreadable_state(path, error) from error


def batches(count: int, number: int, seed: int, epoch: int) -> list[torch.Tensor]:
    """An epoch's batches: a random order of `count` instances in `number` parts whose sizes differ by at most one."""
    import numpy as np

    order = np.random.default_rng((seed, epoch)).permutation(count)
    return [torch.from_numpy(part) for part in np.array_split(order, number)]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """With this many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seeded(make: Callable[[], Any], seed: int) -> Any:
    """What `make` returns when torch's global generator has this seed, which it has only meanwhile."""
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**63)
        return make()


def stage_seed(seed: int, stage: int) -> int:
    """The seed of a stage's fresh weights."""
    return seed * 1_000_003 + stage
