"""A training loop for adapters: deterministic for a seed, resumable to the step, checkpoint chosen on validation.

The state on disk is one folder per saved step, written whole and then renamed: trained weights and AdamW
moments as safetensors, counters and history as JSON. A run that is killed and taken up again makes the same
steps, and ends with the same bytes, as one that was not.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from uphold.core.errors import CorruptError, EmptyError, ModelError, UsageError, unknown_name
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.core.storage import atomic_folder, read_json, write_json
from uphold.models.encode import Batch, Encoded, collate

if TYPE_CHECKING:
    import torch

    from uphold.models.rules import Trained

Tokens = Literal["all", "answer"]
Select = Literal["accuracy", "nfr", "loss", "last"]
Decay = Literal["constant", "linear", "cosine"]
SAVE_EVERY_S = 60.0
NFR_TOLERANCE = 0.005
"""Validation accuracy that may be given up for fewer negative flips, as a share."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    epochs: int = 10
    learning_rate: float = 1e-4
    warmup_steps: int = 500
    """Steps over which the learning rate rises linearly."""
    decay: Decay = "constant"
    """What the learning rate does afterwards: stay, or fall to 0 at the end, in a line or as half a cosine."""
    batch_size: int = 64
    """Instances per optimiser step."""
    micro_batch: int = 64
    """Instances per forward pass; gradients are accumulated up to `batch_size`."""
    weight_decay: float = 0.0
    max_gradient_norm: float = 0.0
    """Gradients are clipped to this norm; 0 leaves them alone."""
    tokens: Tokens = "all"
    """Train on all tokens, or on the answer's only."""
    select: Select = "accuracy"
    """Which epoch is kept, by validation: the most accurate (or best mean score), the one with the lowest NFR among
    those about as accurate as the start, the one with the lowest loss, or the last."""
    seed: int = 0
    """Of the data order and of fresh adapter weights."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.micro_batch) < 1 or self.learning_rate <= 0:
            raise UsageError(
                "a schedule needs epochs, batch_size and micro_batch of at least 1 and a learning rate > 0"
            )
        if self.warmup_steps < 0 or self.weight_decay < 0 or self.max_gradient_norm < 0:
            raise UsageError("warm-up steps, weight decay and gradient norm must not be negative")
        if self.decay not in get_args(Decay):
            raise unknown_name("decay", self.decay, get_args(Decay))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, out of `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        match self.decay:
            case "linear":
                return self.learning_rate * (1 - done)
            case "cosine":
                return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
            case _:
                return self.learning_rate


class StepLoss(NamedTuple):
    """What an objective returns for one micro-batch."""

    total: torch.Tensor
    """Scalar: the loss summed over what `Objective.count` counts, with gradient."""
    logs: Mapping[str, tuple[float, float]]
    """For each logged quantity its sum and what it is to be divided by; `loss` among them."""


class Objective(Protocol):
    """A loss."""

    def __call__(self, model: Any, batch: Batch) -> StepLoss:
        """The loss of one micro-batch."""
        ...

    def count(self, batch: Batch) -> int:
        """By how much the sum of a micro-batch's loss is to be divided: its trained tokens, or its instances."""
        ...


Validate = Callable[[int], Mapping[str, float]]
Example = Sequence[Encoded]
"""What is drawn and read together: one row, or all options of an instance."""


@dataclass
class History:
    """What happened in training."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    """Per epoch `epoch`, `train` and `validation`; epoch 0 is the state before the first step."""
    chosen: int = 0
    """The epoch whose weights were kept."""


def selected_tokens(batch: Batch, tokens: Tokens) -> torch.Tensor:
    """Which next-token predictions are trained, shape (rows, length - 1)."""
    chosen = batch.is_answer if tokens == "answer" else batch.attention_mask.bool()
    return chosen[:, 1:]


def trained_tokens(batch: Batch, tokens: Tokens) -> Trained:
    """The trained next-token predictions of `batch`."""
    from uphold.models.rules import Trained

    sequence, position = selected_tokens(batch, tokens).nonzero(as_tuple=True)
    return Trained(
        sequence=sequence,
        position=position,
        targets=batch.input_ids[sequence, position + 1],
        is_answer=batch.is_answer[sequence, position + 1],
        instance=batch.instance[sequence],
    )


def train(
    model: Any,
    rows: Sequence[Example],
    objective: Objective,
    schedule: Schedule,
    validate: Validate,
    folder: Path,
    *,
    key: str,
    what: str = "training",
    progress: Progress = silent,
) -> History:
    """Train the parameters of `model` that require gradients, and leave the chosen epoch's weights in it.

    Args:
        model: a PEFT model whose adapter alone is trainable.
        rows: the training instances, tokenised; mostly of one row each.
        objective: the loss of one micro-batch.
        schedule: how long and how fast.
        validate: measured before the first step and after every epoch; must give what `schedule.select` needs.
        folder: where the state is kept; a finished training is read from here instead of being repeated.
        key: hash of everything that decides the outcome; another key in `folder` is refused.
        what: what progress is reported as.
        progress: called after every step.

    Raises:
        EmptyError: no rows.
        UsageError: `folder` holds another training.
        ModelError: the loss is not finite.
        CorruptError: the saved state cannot be read.
    """
    if not rows:
        raise EmptyError("the train split is empty: there is nothing to train on")
    return _Trainer(model, rows, objective, schedule, validate, folder, key, what, progress).run()


class _Trainer:
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
    ) -> None:
        import torch

        self.model, self.rows, self.objective, self.schedule = model, rows, objective, schedule
        self.validate, self.folder, self.what, self.progress = validate, folder, what, progress
        self.key = sha256_of([key, asdict(schedule), len(rows)])
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.history = History()
        self.best: dict[str, torch.Tensor] = self._weights()
        self.epoch, self.step = 0, 0
        self.sums: dict[str, list[float]] = {}
        self.steps_per_epoch = -(-len(rows) // schedule.batch_size)

    def run(self) -> History:
        import torch

        self._check_key()
        if (self.folder / "done").is_dir():
            self._restore(self.folder / "done")
        else:
            # Dropout, where a recipe has it, draws from torch's global generator: lend it a seed, then put it back.
            with torch.random.fork_rng():
                self._run_epochs()
            self._save(self.folder / "done")
            for left in self.folder.glob("step-*"):
                shutil.rmtree(left, ignore_errors=True)
        self._load_weights(self.best)
        return self.history

    def _run_epochs(self) -> None:
        import torch

        saved = sorted(self.folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        if saved:
            self._restore(saved[-1])
        else:
            self._close_epoch(0, {})
        last_save = time.monotonic()
        total = self.steps_per_epoch * self.schedule.epochs
        while self.epoch < self.schedule.epochs:
            batches = _batches(self.rows, self.schedule, self.epoch)
            self.model.train()
            for batch in batches[self.step - self.epoch * self.steps_per_epoch :]:
                torch.manual_seed(_seed(self.schedule.seed, self.step))
                self._step([self.rows[index] for index in batch])
                loss = self.sums["loss"][0] / max(self.sums["loss"][1], 1.0)
                self.progress(self.what, self.step, total, f"epoch {self.epoch + 1}, loss {loss:.3f}")
                if time.monotonic() - last_save > SAVE_EVERY_S:
                    self._save_step()
                    last_save = time.monotonic()
            self.epoch += 1
            means = {name: top / bottom for name, (top, bottom) in self.sums.items() if bottom}
            self.sums = {}
            self._close_epoch(self.epoch, means)
            self._save_step()
            last_save = time.monotonic()

    def _step(self, examples: Sequence[Example]) -> None:
        import torch

        batches = [collate(rows).to(self.model.device) for rows in _micro_batches(examples, self.schedule.micro_batch)]
        count = sum(self.objective.count(batch) for batch in batches)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step, self.steps_per_epoch * self.schedule.epochs)
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            loss = self.objective(self.model, batch)
            if not torch.isfinite(loss.total):
                raise ModelError(
                    f"{self.what}: the loss is not finite at step {self.step}: lower the learning rate "
                    "(the last saved state is kept)"
                )
            (loss.total / max(1, count)).backward()  # type: ignore[no-untyped-call]
            for name, (top, bottom) in loss.logs.items():
                entry = self.sums.setdefault(name, [0.0, 0.0])
                entry[0] += top
                entry[1] += bottom
        if self.schedule.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.schedule.max_gradient_norm)
        self.optimizer.step()
        self.step += 1

    def _close_epoch(self, epoch: int, train_means: Mapping[str, float]) -> None:
        self.model.eval()
        validation = {name: float(value) for name, value in self.validate(epoch).items()}
        self.history.epochs.append({"epoch": epoch, "train": dict(train_means), "validation": validation})
        if chosen_epoch(self.history.epochs, self.schedule.select) == epoch:
            self.history.chosen = epoch
            self.best = self._weights()

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.parameters.items()}

    def _load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(weights[name])
        self.model.eval()

    def _check_key(self) -> None:
        path = self.folder / "key.json"
        if path.is_file() and read_json(path) != {"key": self.key}:
            raise UsageError(
                f"{self.folder} holds another training (other models, data or options): "
                "choose another --out folder, or remove that one"
            )
        write_json(path, {"key": self.key})

    def _save_step(self) -> None:
        path = self.folder / f"step-{self.step}"
        self._save(path)
        for left in self.folder.glob("step-*"):
            if left != path:
                shutil.rmtree(left, ignore_errors=True)

    def _save(self, path: Path) -> None:
        from safetensors.torch import save_file

        tensors = {f"best/{name}": value for name, value in self.best.items()}
        tensors |= {f"weight/{name}": value for name, value in self._weights().items()}
        names = {id(value): name for name, value in self.parameters.items()}
        for parameter, state in self.optimizer.state.items():
            for kind, value in state.items():
                tensors[f"adam/{kind}/{names[id(parameter)]}"] = value.detach().cpu().clone()
        counters = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "history": asdict(self.history),
        }
        with atomic_folder(path) as temporary:
            save_file(tensors, temporary / "state.safetensors")
            write_json(temporary / "state.json", counters)

    def _restore(self, path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path / "state.safetensors")
            counters = read_json(path / "state.json")
            self.epoch, self.step = counters["epoch"], counters["step"]
            self.sums, self.history = counters["sums"], History(**counters["history"])
            self._load_weights({name: tensors[f"weight/{name}"] for name in self.parameters})
            self.best = {name: tensors[f"best/{name}"] for name in self.parameters}
        except (SafetensorError, OSError, KeyError, RuntimeError, TypeError) as error:
            raise CorruptError(
                f"the saved training {path} cannot be read ({error}); remove it to start over"
            ) from error
        for name, parameter in self.parameters.items():
            kinds = ("step", "exp_avg", "exp_avg_sq")
            state = {kind: tensors[key] for kind in kinds if (key := f"adam/{kind}/{name}") in tensors}
            if state:
                self.optimizer.state[parameter] = {
                    kind: value if kind == "step" else value.to(parameter.device) for kind, value in state.items()
                }


def chosen_epoch(epochs: Sequence[Mapping[str, Any]], select: Select) -> int:
    """Which epoch of a history is kept; of equals the earliest.

    Epoch 0, the untouched start, is kept only while there is no other: a control that fell back to it would
    not be a control. `nfr` asks for the lowest validation NFR among the epochs whose validation accuracy is not
    below the start's by more than `NFR_TOLERANCE`; where there is none, for the most accurate epoch.
    """
    trained = list(epochs[1:]) or list(epochs)
    if select == "last":
        return int(trained[-1]["epoch"])

    def least(entries: Sequence[Mapping[str, Any]], name: str, sign: float) -> int:
        return int(min(entries, key=lambda entry: sign * entry["validation"][name])["epoch"])

    if select == "nfr":
        floor = epochs[0]["validation"]["accuracy"] - NFR_TOLERANCE
        accurate = [entry for entry in trained if entry["validation"]["accuracy"] >= floor]
        if accurate:
            return least(accurate, "nfr", 1)
    return least(trained, "loss", 1) if select == "loss" else least(trained, "accuracy", -1)


def _micro_batches(examples: Sequence[Example], most: int) -> list[list[Encoded]]:
    """The rows of `examples` in groups of at most `most`; an example that is larger gets a group of its own."""
    groups: list[list[Encoded]] = []
    for example in examples:
        if not groups or len(groups[-1]) + len(example) > most:
            groups.append([])
        groups[-1].extend(example)
    return groups


def _batches(rows: Sequence[Example], schedule: Schedule, epoch: int) -> list[list[int]]:
    """The epoch's batches: a random order of the instances, the same for every model that trains on them."""
    import numpy as np

    order = np.random.default_rng((schedule.seed, epoch)).permutation(len(rows)).tolist()
    return [order[start : start + schedule.batch_size] for start in range(0, len(order), schedule.batch_size)]


def _seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63
