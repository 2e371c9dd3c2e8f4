"""MUSCLE's loss with an old model of another vocabulary: `uphold.models.aligned_loss` as an objective.

Segments of text take the place of tokens: those that the mask picks follow the old model, all tokens of the others the
new one, whose vocabulary is the student's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch

from uphold.models.aligned_loss import AcrossVocabularies, first_tokens_loss, segments_loss
from uphold.models.alignment import Segment, Tokenised
from uphold.models.distillation import distillation_loss
from uphold.models.divergence import ForwardKL
from uphold.models.encode import Batch, collate
from uphold.models.gold_logprobs import gold_logprobs, gold_rights
from uphold.models.projection import Projected, Reader, Whole
from uphold.models.rules import Term, Trained, Weights
from uphold.models.rules import Tokens as Seen
from uphold.models.train import StepLoss, Tokens, selected_tokens

SegmentMask = Literal["flips", "student-wrong", "new-wrong", "old-correct", "old-only"]
SEGMENT_MASKS: tuple[SegmentMask, ...] = get_args(SegmentMask)


class AlignedText(NamedTuple):
    """A prompt and its answer as both models read it."""

    student: Tokenised
    teacher: Tokenised
    segments: Sequence[Segment]


class _Places(NamedTuple):
    """Predictions in the rows of a batch: those of the first token of each of k segments in front."""

    trained: Trained
    segment: torch.Tensor
    """Which segment each belongs to, shape (n,); k where to none."""


@dataclass(frozen=True)
class _FixedWeights:
    """The rule that teacher 0 counts so much for every token, given beforehand by row and position."""

    weight: torch.Tensor
    temperature: float
    whole_sequences = False

    def __call__(self, tokens: Seen) -> Weights:
        """See `uphold.models.rules.Rule`."""
        weight = self.weight[tokens.trained.sequence, tokens.trained.position]
        return Weights((Term("kl_new", ForwardKL(self.temperature), 0, weight),))


class AlignedDistillation:
    """The loss as an `uphold.models.train.Objective`."""

    def __init__(
        self,
        texts: Sequence[AlignedText],
        old: Any,
        new: Any,
        divergence: AcrossVocabularies,
        mask: SegmentMask,
        tokens: Tokens,
    ) -> None:
        """Prepare.

        Args:
            texts: by the instance's number; a batch's rows are their `student` rows.
            old: the teacher with another vocabulary, in eval mode.
            new: the teacher with the student's vocabulary, in eval mode.
            divergence: compares first tokens; its temperature is that of the new teacher's KL as well.
            mask: which segments follow the old model: those that the student flips (old right in all their tokens,
                student not), that the student or the new model gets wrong, that the old model gets right, or all.
            tokens: train prompt and answer, or the answer only.
        """
        self.texts, self.divergence, self.mask, self.tokens = texts, divergence, mask, tokens
        self._old, self._new = Reader(old), Reader(new)
        self._student: Reader | None = None

    def __call__(self, model: Any, batch: Batch) -> StepLoss:
        """The loss summed over the trained tokens of one micro-batch."""
        if self._student is None or self._student.model is not model:
            self._student = Reader(model)
        texts = [self.texts[number] for number in batch.instance.tolist()]
        segments = [(row, one) for row, text in enumerate(texts) for one in self._trained(text)]
        theirs = collate([text.teacher.row for text in texts]).to(batch.input_ids.device)
        mine = _places(batch, [(row, one.student) for row, one in segments], selected_tokens(batch, self.tokens))
        others = _places(theirs, [(row, one.teacher) for row, one in segments], None)
        student = self._student.logits(batch, mine.trained.sequence, mine.trained.position)
        with torch.no_grad():
            old = self._old.logits(theirs, others.trained.sequence, others.trained.position)
            new = self._new.logits(batch, mine.trained.sequence, mine.trained.position)
            follow = self._follows(len(segments), (student, mine), (old, others), (new, mine))
        first, values = first_tokens_loss(student, old, follow.float(), self.divergence)
        long = torch.tensor([len(one.student) > 1 or len(one.teacher) > 1 for _, one in segments], device=follow.device)
        counted = follow & long.to(torch.bool)
        whole = self._whole(student, old, mine, others, counted)
        kept = torch.zeros(batch.input_ids.shape, device=follow.device)
        with_new = ~torch.cat([follow, follow.new_zeros(1)])[mine.segment]
        kept[mine.trained.sequence[with_new], mine.trained.position[with_new]] = 1.0
        anchor, logs = distillation_loss(
            student, (new,), mine.trained, _FixedWeights(kept, self.divergence.temperature)
        )
        total = first + whole + anchor
        count = float(len(mine.trained.targets))
        logs |= {
            "loss": (float(total.detach()), count),
            "old_first_token": (float(values.sum()), float(follow.sum())),
            "old_segment": (float(whole.detach()), float(counted.sum())),
            "old_rate": (float(follow.sum()), float(len(segments))),
        }
        return StepLoss(total, logs)

    def count(self, batch: Batch) -> int:
        """The trained tokens."""
        return int(selected_tokens(batch, self.tokens).sum())

    def _trained(self, text: AlignedText) -> list[Segment]:
        """The segments of a text that are trained: all, or those that begin in the student's answer."""
        if self.tokens == "all":
            return list(text.segments)
        return [one for one in text.segments if one.student.start >= len(text.student.row.prompt)]

    def _follows(
        self,
        count: int,
        student: tuple[Projected | Whole, _Places],
        old: tuple[Projected | Whole, _Places],
        new: tuple[Projected | Whole, _Places],
    ) -> torch.Tensor:
        """Which segments follow the old model, booleans of shape (count,)."""
        match self.mask:
            case "flips":
                return ~_right(*student, count) & _right(*old, count)
            case "student-wrong":
                return ~_right(*student, count)
            case "new-wrong":
                return ~_right(*new, count)
            case "old-correct":
                return _right(*old, count)
            case "old-only":
                return student[1].segment.new_ones(count, dtype=torch.bool)

    def _whole(
        self, student: Projected | Whole, old: Projected | Whole, mine: _Places, others: _Places, counted: torch.Tensor
    ) -> torch.Tensor:
        """The loss of whole segments of several tokens."""
        if not bool(counted.any()):
            return student.source.new_zeros((), dtype=torch.float32)
        own = _summed(gold_logprobs(student, mine.trained.targets), mine, len(counted))
        with torch.no_grad():
            theirs = _summed(gold_logprobs(old, others.trained.targets), others, len(counted))
        return segments_loss(own, theirs, counted.float())


def _places(batch: Batch, parts: Sequence[tuple[int, range]], trained: torch.Tensor | None) -> _Places:
    """The predictions of all tokens of `parts`, first tokens in front, and of the other `trained` ones behind.

    Args:
        batch: whose rows they are in.
        parts: row and positions of each segment's tokens.
        trained: which predictions are trained, shape (rows, length - 1); None for those of `parts` only.
    """
    device = batch.input_ids.device
    rows = [row for row, _ in parts]
    cells = [(row, one.start - 1, number) for number, (row, one) in enumerate(parts)]
    cells += [(row, at - 1, number) for number, (row, one) in enumerate(parts) for at in one[1:]]
    if trained is not None:
        left = trained.clone()
        for row, at, _ in cells:
            left[row, at] = False
        cells += [(row, at, len(rows)) for row, at in left.nonzero().tolist()]
    sequence, position, segment = (
        torch.tensor([cell[index] for cell in cells], dtype=torch.long, device=device) for index in range(3)
    )
    found = Trained(
        sequence,
        position,
        batch.input_ids[sequence, position + 1],
        batch.is_answer[sequence, position + 1],
        batch.instance[sequence],
    )
    return _Places(found, segment)


def _right(logits: Projected | Whole, places: _Places, count: int) -> torch.Tensor:
    """Whether every token of each segment is the likeliest one, booleans of shape (count,)."""
    wrong = (~gold_rights(logits, places.trained.targets)).long()
    return wrong.new_zeros(count + 1).index_add(0, places.segment, wrong)[:count] == 0


def _summed(logprobs: torch.Tensor, places: _Places, count: int) -> torch.Tensor:
    """Log-probabilities of whole segments, shape (count,)."""
    return logprobs.new_zeros(count + 1).index_add(0, places.segment, logprobs)[:count]
