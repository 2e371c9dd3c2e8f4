"""MUSCLE: a compatibility adapter by masked distillation from the old and the new model.

Echterhoff et al., "MUSCLE: A Model Update Strategy for Compatible LLM Evolution", arXiv:2407.09435v2.

    M1 = old model, M2 = new model (both frozen);  MC starts as a copy of M2, only its adapter trains
    for each trained token i:   m_i = 1[argmax z_MC,i != y_i]                                  (no gradient)
    L = 1/n sum_i  m_i KL(softmax(z_M1,i/T) || softmax(z_MC,i/T)) + (1-m_i) KL(softmax(z_M2,i/T) || softmax(z_MC,i/T))

Tokens that the student gets right are anchored to the new model, tokens it gets wrong are pulled to the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from uphold.core.errors import UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.train import Select
from uphold.repair.recipe import configure, recipe_for
from uphold.repair.result import Repair
from uphold.repair.training import AdapterConfig

if TYPE_CHECKING:
    import torch

    from uphold.core.runs import RunStore
    from uphold.models.encode import Batch
    from uphold.models.load import Loaded, ModelLike
    from uphold.models.train import Objective, Predictions, StepLoss
    from uphold.tasks.base import Task

Mask = Literal["student-wrong", "new-wrong", "old-correct", "old-only", "likelihood-token", "likelihood-sequence"]
MASKS: tuple[Mask, ...] = get_args(Mask)
PAPER = "arXiv:2407.09435"


@dataclass(frozen=True)
class MuscleConfig(AdapterConfig):
    """Options of MUSCLE; the defaults are the paper's where it gives them (section 3.2, Table 8)."""

    select: Select = "nfr"
    """Which epoch is kept, by validation: the one with the lowest NFR among those about as accurate as the start, the
    most accurate, the one with the lowest loss (MUSCLE's own, not cross-entropy), or the last."""
    temperature: float = 2.0
    """T of both softmaxes. No factor T² is applied, as in the paper's formula."""
    mask: Mask = "student-wrong"
    """Which tokens follow the old model (Table 7): those the student gets wrong (the default, Eq. 1), those the new
    model gets wrong, those the old model gets right, all, those whose gold token the student finds less likely than
    the old model, or all of a sequence whose gold tokens it finds less likely together."""
    kl_weight: float | None = None
    """Lambda of lambda·L + (1 - lambda)·cross-entropy. None: 1, or 0.5 with the likelihood masks, which the paper
    uses with cross-entropy only and for which it reports no lambda."""
    controls: bool = True
    """Train the two controls too: the same steps with cross-entropy only, and with the new teacher only."""
    force: bool = False
    """Go on although the new model is worse than the old one on validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in MASKS:
            raise unknown_name("mask", self.mask, MASKS)
        if self.temperature <= 0 or (self.kl_weight is not None and not 0 <= self.kl_weight <= 1):
            raise UsageError("MUSCLE needs temperature > 0 and kl_weight in [0, 1]")

    @property
    def weight(self) -> float:
        """The lambda in force."""
        if self.kl_weight is not None:
            return self.kl_weight
        return 0.5 if self.mask.startswith("likelihood") else 1.0


@repair("muscle", paper=PAPER)
def muscle(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: MuscleConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Train a compatibility adapter by masked distillation from the old and the new model.

    An interrupted call that is repeated goes on where it stopped.

    Args:
        old: the version that users have; a model reference or a loaded model.
        new: the version that is to replace it; its adapter is where the student starts (a fresh LoRA where it has
            none). Both must share one token-id map.
        task: what to keep; trained on its train split, checkpoints chosen on its validation split, measured once on
            its test split.
        out: the folder to write the adapter, the runs and the training state to.
        config: the options; those of the recipe that belongs to the task where None.
        store: where runs are kept.
        progress: called after every step.

    Raises:
        TokenizerMismatchError: the models do not share a token-id map.
        UsageError: the new model is clearly worse than the old one, unless `config.force`.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    from uphold.repair.distill import ArmSpec, run_repair
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    options = config or configure(MuscleConfig(), "muscle", recipe_for(chosen))

    def objective(mask: Mask | None, weight: float) -> Callable[[Loaded, Loaded], Objective]:
        return lambda old, new: (
            lambda module, batch: step_loss(module, old.model, new.model, batch, options, mask, weight)
        )

    arms = [ArmSpec("repaired", "MUSCLE", objective(options.mask, options.weight))]
    if options.controls:
        arms.append(ArmSpec("control-ce", "control: cross-entropy only", objective(None, 0.0), control=True))
        arms.append(ArmSpec("control-new", "control: new teacher only", objective(None, options.weight), control=True))
    return run_repair(
        "muscle",
        PAPER,
        old,
        new,
        chosen,
        arms,
        out=Path(out),
        config=options,
        force=options.force,
        store=store,
        progress=progress,
    )


def step_loss(
    student: Any, old: Any, new: Any, batch: Batch, config: MuscleConfig, mask: Mask | None, weight: float
) -> StepLoss:
    """MUSCLE's loss of one micro-batch, summed over the trained tokens.

    Args:
        student: the model in training.
        old: the frozen old model.
        new: the frozen new model.
        batch: what both teachers and the student read.
        config: gives the temperature and the trained tokens.
        mask: which tokens follow the old model; None for none.
        weight: lambda of lambda·L + (1 - lambda)·cross-entropy.
    """
    import torch

    from uphold.models import divergence
    from uphold.models.train import StepLoss, flat_logits, predictions

    trained = predictions(batch, config.tokens)
    own = flat_logits(student, batch)
    total = own.new_zeros((), dtype=torch.float32)
    logs: dict[str, tuple[float, float]] = {}
    if weight > 0:
        with torch.no_grad():
            new_logits = flat_logits(new, batch)
            old_logits = flat_logits(old, batch) if mask is not None else new_logits
        use_old = token_mask(mask, own, old_logits, new_logits, trained)
        terms = divergence.two_teacher_kl(own, old_logits, new_logits, trained.rows, use_old, config.temperature)
        total = total + weight * terms.sum()
        logs |= _logs(terms.detach(), use_old, trained.is_answer)
    if weight < 1:
        crossed = divergence.cross_entropy(own, trained.rows, trained.targets)
        total = total + (1 - weight) * crossed.sum()
        logs["cross_entropy"] = (float(crossed.detach().sum()), float(len(crossed)))
    logs["loss"] = (float(total.detach()), float(len(trained.rows)))
    return StepLoss(total, logs)


def token_mask(
    mask: Mask | None,
    student: torch.Tensor,
    old: torch.Tensor,
    new: torch.Tensor,
    trained: Predictions,
) -> torch.Tensor:
    """Which trained tokens follow the old model (MUSCLE, Eq. 1 and Table 7), shape (trained tokens,), no gradient.

    Args:
        mask: the rule; None for none.
        student: flat logits, shape (positions, vocabulary); so are `old` and `new`.
        old: of the old model.
        new: of the new model.
        trained: which predictions are trained, and their targets.
    """
    import torch

    from uphold.models.divergence import gold_statistics

    if mask is None or mask == "old-only":
        return torch.full_like(trained.is_answer, mask == "old-only")
    judge = {"new-wrong": new, "old-correct": old}.get(mask, student)
    own = gold_statistics(judge, trained.rows, trained.targets)
    if mask == "old-correct":
        return own.right
    if mask in ("student-wrong", "new-wrong"):
        return ~own.right
    theirs = gold_statistics(old, trained.rows, trained.targets)
    if mask == "likelihood-token":
        return own.logprob < theirs.logprob
    sums = torch.zeros(2, int(trained.sequence.max()) + 1, device=own.logprob.device)
    sums.index_add_(1, trained.sequence, torch.stack([own.logprob, theirs.logprob]))
    return (sums[0] < sums[1])[trained.sequence]


def _logs(terms: torch.Tensor, use_old: torch.Tensor, is_answer: torch.Tensor) -> Mapping[str, tuple[float, float]]:
    """Mask rate and both divergences, apart for prompt and answer tokens: a long prompt would drown the answer."""
    logs = {}
    for where, chosen in (("prompt", ~is_answer), ("answer", is_answer)):
        masked, kept = use_old & chosen, ~use_old & chosen
        logs[f"mask_rate_{where}"] = (float(masked.sum()), float(chosen.sum()))
        logs[f"kl_old_{where}"] = (float(terms[masked].sum()), float(masked.sum()))
        logs[f"kl_new_{where}"] = (float(terms[kept].sum()), float(kept.sum()))
    return logs
