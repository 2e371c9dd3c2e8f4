"""Losses for training: a student beside any number of frozen teachers, weighed by a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from uphold.models.distillation import distillation_loss
from uphold.models.encode import Batch
from uphold.models.projection import Logits, Projected, Reader, Whole
from uphold.models.rules import Rule, Tokens, Trained, Weights
from uphold.models.targets import NotKeptError
from uphold.models.train import StepLoss, selected_tokens, trained_tokens
from uphold.models.train import Tokens as Which


class Teacher(Protocol):
    """Gives next-token logits that are not trained."""

    def logits(self, batch: Batch, trained: Trained) -> Logits:
        """Those of the trained predictions of a batch."""
        ...


@runtime_checkable
class StandIn(Protocol):
    """A teacher in whose place another may be asked, because it does not know all that the other does."""

    @property
    def teacher(self) -> Teacher:
        """The other."""
        ...


class FrozenTeacher:
    """A model, put in eval mode and read anew for every batch."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self._reader = Reader(model)

    def logits(self, batch: Batch, trained: Trained) -> Projected | Whole:
        """See `Teacher`."""
        with torch.no_grad():
            return self._reader.logits(batch, trained.sequence, trained.position)


class Distillation:
    """The loss of `uphold.models.distillation` as an `uphold.models.train.Objective`."""

    def __init__(self, rule: Rule, teachers: Sequence[Teacher], tokens: Which) -> None:
        """Prepare.

        Args:
            rule: what counts for each token.
            teachers: those that the rule's terms name by number.
            tokens: which tokens are trained.
        """
        self.rule, self.teachers, self.tokens = rule, tuple(teachers), tokens
        self._student: Reader | None = None

    def __call__(self, model: Any, batch: Batch) -> StepLoss:
        """The loss summed over the trained tokens of one micro-batch."""
        if self._student is None or self._student.model is not model:
            self._student = Reader(model)
        trained = trained_tokens(batch, self.tokens)
        student = self._student.logits(batch, trained.sequence, trained.position)
        try:
            return StepLoss(*distillation_loss(student, self._say(batch, trained), trained, self.rule))
        except NotKeptError:
            # The rule needs more than a stand-in knows, and will again.
            self.teachers = tuple(one.teacher if isinstance(one, StandIn) else one for one in self.teachers)
            return StepLoss(*distillation_loss(student, self._say(batch, trained), trained, self.rule))

    def _say(self, batch: Batch, trained: Trained) -> list[Logits]:
        return [teacher.logits(batch, trained) for teacher in self.teachers]

    def count(self, batch: Batch) -> int:
        """The trained tokens."""
        return int(selected_tokens(batch, self.tokens).sum())


class GoldOnly:
    """The rule of plain fine-tuning: cross-entropy, the same for every token."""

    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.distillation.Rule`."""
        return Weights(cross_entropy=torch.ones_like(tokens.none))


def cross_entropy(tokens: Which) -> Distillation:
    """The next-token cross-entropy over the trained tokens."""
    return Distillation(GoldOnly(), (), tokens)
