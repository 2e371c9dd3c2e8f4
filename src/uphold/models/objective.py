"""Losses for training: a student beside any number of frozen teachers, weighed by a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from uphold.models.distillation import distillation_loss
from uphold.models.encode import Batch
from uphold.models.projection import Logits, Reader
from uphold.models.rules import Rule, Tokens, Trained, Weights
from uphold.models.train import StepLoss, selected_tokens, trained_tokens
from uphold.models.train import Tokens as Which


class Teacher(Protocol):
    """Gives next-token logits that are not trained."""

    def logits(self, batch: Batch, trained: Trained) -> Logits:
        """Those of the trained predictions of a batch."""
        ...


class FrozenTeacher:
    """A model in eval mode, read anew for every batch."""

    def __init__(self, model: Any) -> None:
        self._reader = Reader(model)

    def logits(self, batch: Batch, trained: Trained) -> Logits:
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
        self.rule, self.teachers, self.tokens = rule, teachers, tokens
        self._student: Reader | None = None

    def __call__(self, model: Any, batch: Batch) -> StepLoss:
        """The loss summed over the trained tokens of one micro-batch."""
        if self._student is None or self._student.model is not model:
            self._student = Reader(model)
        trained = trained_tokens(batch, self.tokens)
        teachers = [teacher.logits(batch, trained) for teacher in self.teachers]
        student = self._student.logits(batch, trained.sequence, trained.position)
        return StepLoss(*distillation_loss(student, teachers, trained, self.rule))

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
