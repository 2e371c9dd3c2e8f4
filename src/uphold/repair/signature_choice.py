"""How many layers of a signature, and how strong: chosen on validation under a budget of clean accuracy.

    choice = choose(net, initial, standard, robust, clean=on_clean, robustness=on_damaged, budget=0.02)
    with apply(net, choice.patch): ...

What is measured is the caller's: any function from the patched model to a number in [0, 1]. `task_accuracy` makes one
of a task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import DataError, EmptyError, UsageError
from uphold.core.progress import Progress, silent
from uphold.repair.signatures import kept_layers, restricted, signature

if TYPE_CHECKING:
    import torch

    from uphold.core.runs import RunStore
    from uphold.core.stats import Interval
    from uphold.models.forward_order import Unit
    from uphold.models.load import ModelLike
    from uphold.models.patches.patch import Patch
    from uphold.models.patches.source import WeightsLike
    from uphold.tasks.base import Split, Task

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
_STEPS = 4
_TRIED = "signatures tried"
Metric = Callable[[Any], float]
"""From a model to its accuracy, in [0, 1]."""


@dataclass(frozen=True)
class Trial:
    """One point of the grid."""

    layers: int
    """How many layers the signature has; 0 for the unpatched model."""
    strength: float
    clean: float
    """Accuracy on clean data, in [0, 1]."""
    robust: float
    """Accuracy on damaged data, in [0, 1]."""

    def __str__(self) -> str:
        layers = f"{self.layers} layer{'s' if self.layers > 1 else ''}"
        what = f"{layers}, strength {self.strength:g}" if self.layers else "unpatched"
        return f"{what}: clean {100 * self.clean:.2f}%, robust {100 * self.robust:.2f}%"


@dataclass(frozen=True)
class Choice:
    """What was tried, and what of it is to be used."""

    before: Trial
    """The model without a patch."""
    trials: tuple[Trial, ...]
    """Every point of the grid, fewest layers first."""
    budget: float
    """Clean accuracy that may be lost."""
    chosen: Trial | None
    """Of those within the budget that are more robust than the model without a patch, the most robust; of equals, the
    one with the fewest layers, then the weakest. None where there is none."""
    patch: Patch | None
    """The chosen signature at the chosen strength, with both accuracies in its manifest."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "before": asdict(self.before),
            "trials": [asdict(trial) for trial in self.trials],
            "budget": self.budget,
            "chosen": asdict(self.chosen) if self.chosen else None,
        }

    def __str__(self) -> str:
        last = f"chosen: {self.chosen}" if self.chosen else "nothing within the budget is more robust: do not patch"
        return "\n".join([*map(str, (self.before, *self.trials)), f"{last} (budget {100 * self.budget:.2f} points)"])


def choose(
    model: torch.nn.Module,
    initial: WeightsLike,
    standard: WeightsLike,
    robust: WeightsLike,
    *,
    clean: Metric,
    robustness: Metric,
    budget: float = 0.02,
    layers: Sequence[int] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    order: Sequence[Unit] | None = None,
    quantiser: str = "",
    batches: Iterable[Any] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Choice:
    """Try every number of layers at every strength; `model` is as it was afterwards.

    Args:
        model: what is to be patched, loaded: the standard model, or a later version of it.
        initial: see `signature`, as for the next three.
        standard: after training on clean data.
        robust: after training on damaged data.
        clean: accuracy on clean validation data.
        robustness: accuracy on damaged validation data.
        budget: clean accuracy that may be lost, in [0, 1].
        layers: numbers of layers to try; four, evenly spread over all but the head, where None.
        strengths: to try.
        order: the layers in forward order; see `signature`.
        quantiser: see `signature`; what is tried is quantised already.
        batches: damaged inputs on which the batch-norm statistics of kept layers are estimated anew for every trial.
        force: patch a model whose weights are not those of `standard`.
        progress: called after every trial.

    Raises:
        UsageError: an option is out of range, or see `signature`.
        DataError: a metric is not in [0, 1].
    """
    if not 0 <= budget <= 1:
        raise UsageError(f"the budget of clean accuracy is a share in [0, 1], not {budget}")
    units = kept_layers(standard, None, order)
    counts = sorted(set(_spread(len(units)) if layers is None else layers))
    if not counts or not strengths:
        raise UsageError("there is nothing to try: give at least one number of layers and one strength")
    whole = signature(initial, standard, robust, layers=counts[-1], order=order, quantiser=quantiser, progress=progress)
    held = list(batches) if batches is not None else None
    before = Trial(0, 0.0, _measured(clean, model), _measured(robustness, model))
    total = len(counts) * len(set(strengths))
    progress(_TRIED, 0, total, str(before))
    trials: list[Trial] = []
    patches: dict[Trial, Patch] = {}
    for count in counts:
        for strength in sorted(set(strengths)):
            patch = _at(model, restricted(whole, count), strength, held, force)
            with _patched(model, patch, force):
                trial = Trial(count, strength, _measured(clean, model), _measured(robustness, model))
            trials.append(trial)
            patches[trial] = patch
            progress(_TRIED, len(trials), total, str(trial))
    chosen = best(before, trials, budget)
    found = _with_figures(patches[chosen], before, chosen) if chosen else None
    return Choice(before, tuple(trials), budget, chosen, found)


def best(before: Trial, trials: Sequence[Trial], budget: float) -> Trial | None:
    """The trial to use; see `Choice.chosen`."""
    # Accuracies are shares of a few hundred images: their difference may miss the budget by a rounding.
    within = [one for one in trials if one.clean >= before.clean - budget - 1e-9 and one.robust > before.robust]
    return max(within, key=lambda one: (one.robust, -one.layers, -one.strength), default=None)


def task_accuracy(
    tokenizer: Any,
    task: str | Path | Task,
    *,
    split: Split = "validation",
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Metric:
    """The mean score of a language model on one split of a task, as a metric for `choose`.

    Args:
        tokenizer: the model's.
        task: see `uphold.load_task`; a task of damaged prompts measures robustness.
        split: which instances.
        store: where runs are kept; the default store where None.
        progress: called as instances are answered.

    Raises:
        EmptyError: nothing is scored (when the metric is called).
    """
    from uphold.measure.evaluate import evaluate
    from uphold.measure.summary import summarise
    from uphold.tasks.load import load_task

    chosen = load_task(task)

    def metric(model: Any) -> float:
        found = summarise(evaluate((model, tokenizer), chosen, split=split, store=store, progress=progress)).score
        if found is None:
            raise EmptyError(f"no answer of '{chosen.name}' is scored: choose a task with right answers")
        return found

    return metric


def choose_on_tasks(
    initial: WeightsLike,
    standard: ModelLike,
    robust: WeightsLike,
    task: str | Path | Task,
    damaged: str | Path | Task,
    *,
    budget: float = 0.02,
    quantiser: str = "",
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Choice:
    """`choose` for language models on disk, by their mean scores on the validation splits of two tasks.

    Every trial's answers are stored as runs: interrupted, the same call goes on where it stopped.

    Args:
        initial: see `signature`, as for `robust`.
        standard: the model that is to be patched; loaded here.
        robust: after training on damaged data.
        task: clean prompts.
        damaged: the same damaged.
        budget: mean score on `task` that may be lost, in [0, 1].
        quantiser: see `signature`.
        store: where runs are kept; the default store where None.
        progress: called after every trial.

    Raises:
        UsageError, ModelError, DataError, EmptyError: see `choose` and `task_accuracy`.
    """
    from uphold.models.load import load

    loaded = load(standard)
    clean, hard = (task_accuracy(loaded.tokenizer, one, store=store) for one in (task, damaged))
    return choose(
        loaded.model,
        initial,
        standard,
        robust,
        clean=clean,
        robustness=hard,
        budget=budget,
        quantiser=quantiser,
        progress=progress,
    )


@dataclass(frozen=True)
class Effect:
    """What a patch did on one set of instances."""

    name: str
    before: int
    """Right without the patch."""
    after: int
    """Right with it."""
    broken: int
    """Right without and wrong with it."""
    total: int
    """Instances."""

    def interval(self, patched: bool, level: float = 0.95) -> Interval:
        """Wilson's confidence interval of the accuracy, in [0, 1]."""
        from uphold.core.stats import proportion_interval

        return proportion_interval(self.after if patched else self.before, self.total, level, "wilson")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; accuracies with the ends of their 95% intervals."""
        shares = {
            when: {"accuracy": right / self.total, "low": ends.low, "high": ends.high}
            for when, right, ends in (
                ("before", self.before, self.interval(False)),
                ("after", self.after, self.interval(True)),
            )
        }
        return {"name": self.name, "total": self.total, "broken": self.broken, **shares}

    def __str__(self) -> str:
        texts = []
        for right, patched in ((self.before, False), (self.after, True)):
            low, high = self.interval(patched)
            texts.append(f"{100 * right / self.total:.2f}% [{100 * low:.2f}%, {100 * high:.2f}%]")
        return f"{self.name}: {' -> '.join(texts)}, {self.broken} of {self.total} broken"


def effects(
    model: torch.nn.Module,
    patches: Sequence[Patch],
    tests: Mapping[str, Callable[[Any], Sequence[bool]]],
    strengths: Sequence[float] | None = None,
    force: bool = False,
) -> tuple[Effect, ...]:
    """What signatures, applied together, do to `model` on every kind of data; it is as it was afterwards.

    Args:
        model: what is patched.
        patches: signatures.
        tests: by name of the data (clean, blur, ...), which of its instances a model tells right, in a fixed order.
        strengths: one for each patch, such as `coefficients` gives; 1 where None.
        force: patch a model whose weights are not those that the signatures were made from.

    Raises:
        EmptyError: a test has no instances.
        DataError: it does not answer the same number of instances with the patch.
    """
    from uphold.models.patches.apply import apply

    before = {name: [bool(one) for one in test(model)] for name, test in tests.items()}
    with apply(model, list(patches), strengths=strengths, force=force):
        after = {name: [bool(one) for one in test(model)] for name, test in tests.items()}
    found = []
    for name, first in before.items():
        second = after[name]
        if not first:
            raise EmptyError(f"'{name}' has no instances: there is nothing to measure")
        if len(first) != len(second):
            raise DataError(f"'{name}' has {len(first)} instances without the patch and {len(second)} with it")
        broken = sum(one and not other for one, other in zip(first, second, strict=True))
        found.append(Effect(name, sum(first), sum(second), broken, len(first)))
    return tuple(found)


def _spread(most: int) -> list[int]:
    return [math.ceil(most * step / _STEPS) for step in range(1, _STEPS + 1)]


def _measured(metric: Metric, model: Any) -> float:
    found = float(metric(model))
    if not 0 <= found <= 1:
        raise DataError(f"a metric says {found}: expected an accuracy in [0, 1]")
    return found


def _patched(model: torch.nn.Module, patch: Patch, force: bool) -> Any:
    from uphold.models.patches.apply import apply

    return apply(model, patch, force=force)


def _at(model: torch.nn.Module, patch: Patch, strength: float, batches: list[Any] | None, force: bool) -> Patch:
    """The signature at one strength, with batch-norm statistics of the model that it makes."""
    from uphold.models.batch_norm import reestimated
    from uphold.models.patches.patch import scale

    scaled = scale(patch, strength)
    if batches is None:
        return scaled
    with _patched(model, scaled, force):
        statistics = reestimated(model, batches, scaled.replacements, min(1.0, max(0.0, strength)))
    facts = {**scaled.manifest.facts, "batch_norm": "estimated"}
    return replace(
        scaled, replacements={**scaled.replacements, **statistics}, manifest=replace(scaled.manifest, facts=facts)
    )


def _with_figures(patch: Patch, before: Trial, after: Trial) -> Patch:
    figures = {when: {"clean": one.clean, "robust": one.robust} for when, one in (("before", before), ("after", after))}
    return replace(patch, manifest=replace(patch.manifest, figures=figures))
