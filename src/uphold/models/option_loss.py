"""Distillation of whole options: one loss per instance over the likelihoods of all its options.

    s_o = sum over the tokens of option o of log p(token) * scale_o;   q = softmax(s / T)
    L_i = KL(target_i || q_i),   the target old's or new's distribution over the same options

Only texts are compared, so that teacher and student need not share a vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from uphold.core.errors import UsageError
from uphold.models.encode import Batch
from uphold.models.gold_logprobs import gold_logprobs
from uphold.models.projection import Reader
from uphold.models.train import StepLoss, trained_tokens

OptionMask = Literal["flips", "student-wrong", "new-wrong", "old-correct", "old-only"]
OPTION_MASKS: tuple[OptionMask, ...] = get_args(OptionMask)


@dataclass(frozen=True)
class OptionTargets:
    """What the options of one instance are to be taught."""

    scales: tuple[float, ...]
    """What each option's summed log-likelihood is multiplied with before it is compared; of k options."""
    gold: int
    """The right option; -1 where none is."""
    new: tuple[float, ...]
    """The new model's probabilities of the options, at the temperature of the loss."""
    new_right: bool
    old: tuple[float, ...] | None
    """The old model's; None where no answer was recorded."""
    old_right: bool = False


def option_probabilities(logprobs: Sequence[float], scales: Sequence[float], temperature: float) -> tuple[float, ...]:
    """softmax(scale · log-likelihood / T) over the options.

    Raises:
        UsageError: no option has a finite log-likelihood.
    """
    scaled = torch.tensor(logprobs, dtype=torch.float64) * torch.tensor(scales, dtype=torch.float64) / temperature
    if not bool(scaled.isfinite().any()) or bool(scaled.isnan().any()):
        raise UsageError("an instance's recorded log-likelihoods are not numbers: record its answer anew")
    return tuple(scaled.softmax(dim=-1).tolist())


class OptionDistillation:
    """The loss as an `uphold.models.train.Objective`; an example is all options of an instance, in their order."""

    def __init__(self, targets: Sequence[OptionTargets], mask: OptionMask, temperature: float) -> None:
        """Prepare.

        Args:
            targets: by the instance's number.
            mask: whose distribution the student follows: the old model's on the instances that the student flips (old
                right, student wrong), that the student gets wrong, that the new model gets wrong, that the old model
                gets right, or on all; the new model's elsewhere.
            temperature: T.
        """
        self.targets, self.mask, self.temperature = targets, mask, temperature
        self._student: Reader | None = None

    def __call__(self, model: Any, batch: Batch) -> StepLoss:
        """The loss summed over the instances of one micro-batch."""
        if self._student is None or self._student.model is not model:
            self._student = Reader(model)
        trained = trained_tokens(batch, "answer")
        logits = self._student.logits(batch, trained.sequence, trained.position)
        tokens = gold_logprobs(logits, trained.targets)
        scores = tokens.new_zeros(len(batch.instance)).index_add(0, trained.sequence, tokens)
        old: list[torch.Tensor] = []
        new: list[torch.Tensor] = []
        right = start = 0
        for number in _instances(batch):
            target = self.targets[number]
            own = scores[start : start + len(target.scales)]
            start += len(target.scales)
            own = own * own.new_tensor(target.scales)
            wrong = int(own.argmax()) != target.gold
            right += not wrong
            follow = self._follows(target, wrong)
            goal = target.old if follow and target.old is not None else target.new
            (old if follow else new).append(_divergence(own.new_tensor(goal), own / self.temperature))
        total = torch.stack([*old, *new]).sum()
        count = float(len(old) + len(new))
        logs = {
            "loss": (float(total.detach()), count),
            "kl_old": (float(sum(one.detach() for one in old)), float(len(old))),
            "kl_new": (float(sum(one.detach() for one in new)), float(len(new))),
            "kl_old_rate": (float(len(old)), count),
            "student_right": (float(right), count),
        }
        return StepLoss(total, logs)

    def count(self, batch: Batch) -> int:
        """The instances."""
        return len(_instances(batch))

    def _follows(self, target: OptionTargets, student_wrong: bool) -> bool:
        """Whether an instance follows the old model."""
        if target.old is None:
            return False
        match self.mask:
            case "flips":
                return student_wrong and target.old_right
            case "student-wrong":
                return student_wrong
            case "new-wrong":
                return not target.new_right
            case "old-correct":
                return target.old_right
            case "old-only":
                return True


def _instances(batch: Batch) -> list[int]:
    """The numbers of the instances whose options follow each other in a batch."""
    return torch.unique_consecutive(batch.instance).tolist()  # type: ignore[no-any-return]


def _divergence(target: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """KL(target || softmax(scores)); an option without mass in the target adds nothing."""
    own = scores.log_softmax(dim=-1)
    value: torch.Tensor = (target.xlogy(target) - target * own.masked_fill(target == 0, 0)).sum()
    return value
