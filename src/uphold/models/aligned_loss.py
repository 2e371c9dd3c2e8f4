"""Distillation from a teacher with another vocabulary, on texts that both read.

Both tokenisations are cut into segments (`uphold.models.alignment`). For every segment that follows the teacher:

- its first token: with M the tokens that stand for the same text in both vocabularies, p the teacher's and q the
  student's distribution at temperature T, and p_rest, q_rest what is left outside of M,
      D = sum over M of p log(p / q)  +  p_rest log(p_rest / q_rest)  +  w |sorted p outside M - sorted q outside M|_1
  The first two are a KL divergence, that of the distributions with everything outside of M made one event. The third is
  the universal logit distillation of what cannot be matched (Boizard et al. 2024, arXiv:2402.12030): the k largest
  probabilities of both sides, in order, and the mass behind them. The split in matched and unmatched tokens is that of
  GOLD (Patiño et al. 2025, in TRL).
- where a side has several tokens: with P and Q the probabilities of the whole segment, products over its tokens at
  temperature 1, KL(Bernoulli(P) || Bernoulli(Q)): the text continues with this segment, or with another one.

With one vocabulary every token is a segment, M is all of it, and the loss is the plain forward KL.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from uphold.models.alignment import SameTokens
from uphold.models.distillation import CHUNK_LOGITS
from uphold.models.divergence import Valued
from uphold.models.projection import Logits, Projected, Whole


class Vocabularies:
    """How two vocabularies belong together, for models with so many logits."""

    def __init__(self, same: SameTokens, student_size: int, teacher_size: int) -> None:
        pairs = [(a, b) for a, b in zip(*same, strict=True) if a < student_size and b < teacher_size]
        self.student = torch.tensor([a for a, _ in pairs], dtype=torch.long)
        self.teacher = torch.tensor([b for _, b in pairs], dtype=torch.long)
        self.student_rest = _others(self.student, student_size)
        self.teacher_rest = _others(self.teacher, teacher_size)

    def to(self, device: torch.device) -> Vocabularies:
        """The same on another device; nothing is copied where it is there."""
        if self.student.device != device:
            for name in ("student", "teacher", "student_rest", "teacher_rest"):
                setattr(self, name, getattr(self, name).to(device))
        return self


def _others(chosen: torch.Tensor, size: int) -> torch.Tensor:
    left = torch.ones(size, dtype=torch.bool)
    left[chosen] = False
    return left.nonzero()[:, 0]


@dataclass(frozen=True)
class AcrossVocabularies:
    """D of the module's docstring, with its gradient in closed form."""

    vocabularies: Vocabularies
    temperature: float = 2.0
    unmatched: float = 0.0
    """W."""
    top: int = 64
    """K."""

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor) -> Valued:
        """Value, shape (n,), and derivative with respect to the student's logits.

        Args:
            student: logits of shape (n, student's vocabulary).
            teacher: logits of shape (n, teacher's vocabulary).
        """
        both = self.vocabularies.to(student.device)
        own = (student / self.temperature).log_softmax(dim=-1)
        theirs = (teacher / self.temperature).log_softmax(dim=-1)
        p, q = theirs[:, both.teacher], own[:, both.student]
        value = (p.exp() * (p - q)).masked_fill(p.exp() == 0, 0).sum(dim=-1)
        share = own.exp()
        # The derivative of KL by z is (q - p) / T; outside of M, p_rest counts in proportion to q.
        gradient = share.clone()
        gradient.index_add_(1, both.student, -p.exp())
        rest_q = own[:, both.student_rest]
        rest_p = theirs[:, both.teacher_rest]
        if rest_q.shape[1]:
            log_q = rest_q.logsumexp(dim=-1)
            log_p = rest_p.logsumexp(dim=-1) if rest_p.shape[1] else torch.full_like(log_q, -torch.inf)
            mass = log_p.exp()
            value = value + (mass * (log_p - log_q)).masked_fill(mass == 0, 0)
            gradient.index_add_(1, both.student_rest, -(rest_q - log_q[:, None]).exp() * mass[:, None])
            if self.unmatched and rest_p.shape[1]:
                sorted_value, slope = _sorted_distance(rest_p.exp(), rest_q.exp(), self.top)
                value = value + self.unmatched * sorted_value
                whole = torch.zeros_like(share).index_add_(1, both.student_rest, slope)
                weighed = share * whole
                gradient += self.unmatched * (weighed - share * weighed.sum(dim=-1, keepdim=True))
        return Valued(value, gradient / self.temperature)


def _sorted_distance(p: torch.Tensor, q: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The L1 distance of the `top` largest values in order and of what is behind them; its derivative by q.

    Args:
        p: shape (n, any).
        q: shape (n, other).
        top: how many.
    """
    count = min(top, p.shape[1], q.shape[1])
    first_p, (first_q, place) = p.topk(count, dim=-1).values, q.topk(count, dim=-1)
    tail = (q.sum(-1) - first_q.sum(-1)) - (p.sum(-1) - first_p.sum(-1))
    # A tail that is only rounding has no direction.
    sign = tail.sign() * (tail.abs() > 1e-7)
    slope = sign[:, None].expand_as(q).clone() if count < q.shape[1] else torch.zeros_like(q)
    slope.scatter_(1, place, (first_q - first_p).sign())
    return (first_q - first_p).abs().sum(dim=-1) + tail.abs() * (count < max(p.shape[1], q.shape[1])), slope


def first_tokens_loss(
    student: Projected | Whole, teacher: Logits, weights: torch.Tensor, divergence: AcrossVocabularies
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted divergences of the first tokens of k segments.

    Args:
        student: logits of n >= k positions, those of the k first tokens in front.
        teacher: logits of m >= k positions, those of the same segments in front.
        weights: shape (k,); what has weight 0 costs nothing but its projection.
        divergence: what is summed.

    Returns:
        The sum, with gradient where gradients are on, and the k unweighted values, 0 where the weight is.
    """
    wanted = torch.is_grad_enabled() and student.source.requires_grad
    values = weights.new_zeros(len(weights))
    gradient = torch.zeros_like(student.source)
    with torch.no_grad():
        for part in _parts(student, teacher, len(weights)):
            counted = weights[part].nonzero()[:, 0]
            if not len(counted):
                continue
            own = student.chunk(part)
            valued = divergence(own[counted], teacher.chunk(part)[counted])
            values[part][counted] = valued.value
            if wanted:
                of_logits = torch.zeros_like(own)
                of_logits[counted] = weights[part][counted, None] * valued.gradient
                gradient[part] = student.pull_back(of_logits).to(gradient.dtype)
        total = (weights * values).sum()
    if not wanted:
        return total, values
    # Of value 0, with the gradient that was found.
    known = (student.source.float() * gradient.float()).sum()
    return total + (known - known.detach()), values


def _parts(student: Projected | Whole, teacher: Logits, count: int) -> list[slice]:
    if not count:
        return []
    widest = max(logits.chunk(slice(0, 1)).shape[-1] for logits in (student, teacher))
    size = max(1, CHUNK_LOGITS // widest)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def segments_loss(student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """KL(Bernoulli(P) || Bernoulli(Q)) summed with weights; 0 for a segment of weight 0.

    Args:
        student: log Q of k segments, with gradient.
        teacher: log P, without.
        weights: shape (k,).
    """
    counted = weights.nonzero()[:, 0]
    log_q, log_p = student[counted], teacher[counted].clamp(max=0)
    # A probability of 1 up to rounding has a complement that is not 0.
    not_q, not_p = _complement(log_q), _complement(log_p)
    values = log_p.exp() * (log_p - log_q) + not_p.exp() * (not_p - not_q)
    return (weights[counted] * values).sum()


def _complement(logprob: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(logprob))."""
    return (-torch.expm1(logprob.clamp(max=-1e-6))).log()
