"""Gated fusion: a learnt gate says at each token how much of the old model's logits to keep.

Lai et al., "Improving Prediction Backward-Compatiblility in NLP Model Upgrade with Gated Fusion", EACL Findings 2023,
arXiv:2302.02080.

    z = g z_new + (1 - g) z_old / T          g = sigmoid(MLP(h_new))

h_new is the hidden state that reaches the new model's output head. The loss is the cross-entropy of z with the gold
tokens; in training the gate is dropped, g = 1, for each token with probability p. Both models are frozen here and the
gate alone trains, so a dropped token gives no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.pair_file import Gating, parameters_of
from uphold.models.train import Schedule, Select, Tokens
from uphold.repair.both_models import BothConfig, repair_with_both
from uphold.repair.result import REPAIRED, Repair

if TYPE_CHECKING:
    from uphold.core.runs import RunStore
    from uphold.models.load import Loaded, ModelLike
    from uphold.models.train import History
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

NAME, PAPER = "gated-fusion", "arXiv:2302.02080"


@dataclass(frozen=True)
class GatedFusionConfig(BothConfig, Schedule):
    """Options of gated fusion; the schedule is that of the gate."""

    learning_rate: float = 1e-3
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly."""
    tokens: Tokens = "answer"
    """Train on all tokens, or on the answer's only."""
    select: Select = "nfr"
    """Which epoch is kept, by validation: the one with the lowest NFR among those about as accurate as the new model,
    the most accurate, the one with the lowest loss, or the last."""
    old_temperature: float = 1.0
    """T, by which the old model's logits are divided."""
    width: int = 64
    """Units in the gate's hidden layer."""
    drop: float = 0.1
    """Share of tokens for which the gate is dropped in training, so that the new model alone predicts them."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {"old_temperature": (1.0, 2.0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        parameters_of(self, Gating)
        if not 0 <= self.drop < 1:
            raise UsageError(f"gated fusion needs drop in [0, 1), not {self.drop}")


@repair(NAME, paper=PAPER)
def gated_fusion(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: GatedFusionConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Train a gate that mixes the logits of the old and the new model, token by token (both are asked).

    An interrupted call that is repeated goes on where it stopped.

    Args:
        old: the version that users have; stays as it is.
        new: the version that is to replace it; stays as it is, too. Both must share one token-id map.
        task: what to keep; the gate is trained on its train split, its epoch chosen on its validation split.
        out: the folder to write `pair/`, the runs and the training state to.
        config: the options; those of the recipe that belongs to the task where None.
        store: where runs are kept.
        progress: called after every step.

    Raises:
        TokenizerMismatchError: the models do not share a token-id map.
        ModelError: the new model does not show the hidden states before its output head.
        UsageError: the new model is clearly worse than the old one, unless `config.force`.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    from uphold.repair.adapt import epochs
    from uphold.repair.protocol import begin
    from uphold.repair.recipe import configure, recipe_for
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    options = config or configure(GatedFusionConfig(), NAME, recipe_for(chosen))
    setting = begin(NAME, PAPER, old, new, chosen, out=out, force=options.force, store=store, progress=progress)
    pair, history = _trained(setting, options)
    return repair_with_both(setting, options, "gated fusion", pair, epochs(history))


def _trained(setting: Setting, config: GatedFusionConfig) -> tuple[Loaded, History]:
    """The pair with its gate trained; epoch 0 of the history is the new model alone."""
    from uphold.core.hashing import sha256_of
    from uphold.models.pair import fresh_gate, pair_of
    from uphold.models.pair_file import content_of
    from uphold.models.pair_objective import GateLoss
    from uphold.models.train import decisive, train
    from uphold.repair.training import Validation, training_rows
    from uphold.tasks.base import task_fingerprint

    old, new, how = setting.old, setting.new, parameters_of(config, Gating)
    gate = fresh_gate(new, config.width, config.seed)
    pair = pair_of(old, new, how, gate)
    objective = GateLoss(config.tokens, config.drop)
    validation = Validation(setting.task, pair, config, objective, setting.old_scores)

    def validate(epoch: int) -> Mapping[str, float]:
        # What is selected may not be less accurate than the new model, so that is what training starts from.
        if epoch:
            return validation.measure(pair.model)
        with gate.open():
            return validation.measure(pair.model)

    tasks = [task_fingerprint(setting.task, split) for split in ("train", "validation")]
    history = train(
        pair.model,
        [(row,) for row in training_rows(new, setting.task, "train")],
        objective,
        # No gradient goes through a layer: there is nothing to forget.
        replace(config, gradient_checkpointing=False),
        validate,
        setting.folder / "training" / REPAIRED,
        key=sha256_of([NAME, content_of(old.fingerprint), content_of(new.fingerprint), tasks, decisive(config)]),
        what="gated fusion",
        progress=setting.progress,
    )
    return pair_of(old, new, how, gate), history
