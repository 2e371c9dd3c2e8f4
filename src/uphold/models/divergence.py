"""Token losses that never hold more than a chunk of (tokens x vocabulary) beside the logits themselves.

Every function takes flat logits of shape (positions, vocabulary) and `rows`, the positions that count. Forward
and backward walk over `rows` in chunks and compute in float32; backward recomputes the chunk's softmax instead
of keeping it, and writes into the one gradient of the logits that the model's own backward needs anyway.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

CHUNK = 1024
"""Rows per chunk."""


def cross_entropy(logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """-log softmax(logits)[target] per row, shape (rows,), differentiable in `logits`."""
    return _CrossEntropy.apply(logits, rows, targets, chunk)  # type: ignore[no-any-return, no-untyped-call]


def two_teacher_kl(
    student: torch.Tensor,
    old: torch.Tensor,
    new: torch.Tensor,
    rows: torch.Tensor,
    use_old: torch.Tensor,
    temperature: float,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """KL(teacher || student) per row at a temperature, shape (rows,), differentiable in `student`.

    The teacher is `old` where `use_old` holds and `new` elsewhere (MUSCLE, Eq. 1): with z the logits,
    KL(softmax(z_teacher / T) || softmax(z_student / T)). No factor T².
    """
    return _TwoTeacherKL.apply(student, old, new, rows, use_old, temperature, chunk)  # type: ignore[no-any-return, no-untyped-call]


class GoldStatistics(NamedTuple):
    """How a model likes the gold token at each row; no gradients."""

    right: torch.Tensor
    """Whether the gold token is the most likely one, shape (rows,)."""
    logprob: torch.Tensor
    """Its log-probability at temperature 1, shape (rows,)."""


def gold_statistics(
    logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, chunk: int = CHUNK
) -> GoldStatistics:
    """`GoldStatistics` of the targets under `logits`."""
    right = torch.empty(len(rows), dtype=torch.bool, device=logits.device)
    logprob = torch.empty(len(rows), dtype=torch.float32, device=logits.device)
    with torch.no_grad():
        for part in _chunks(len(rows), chunk):
            picked = logits[rows[part]].float()
            gold = targets[part, None]
            right[part] = picked.argmax(dim=-1) == gold[:, 0]
            logprob[part] = picked.gather(1, gold)[:, 0] - picked.logsumexp(dim=-1)
    return GoldStatistics(right, logprob)


def _chunks(count: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, count, chunk)]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
        ctx.save_for_backward(logits, rows, targets)
        ctx.chunk = chunk
        return -gold_statistics(logits, rows, targets, chunk).logprob

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, rows, targets = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        for part in _chunks(len(rows), ctx.chunk):
            share = logits[rows[part]].float().softmax(dim=-1)
            share.scatter_add_(1, targets[part, None], share.new_full((len(share), 1), -1.0))
            gradient[rows[part]] = (share * grads[0][part, None]).to(gradient.dtype)
        return gradient, None, None, None


class _TwoTeacherKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: torch.Tensor,
        old: torch.Tensor,
        new: torch.Tensor,
        rows: torch.Tensor,
        use_old: torch.Tensor,
        temperature: float,
        chunk: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(student, old, new, rows, use_old)
        ctx.temperature, ctx.chunk = temperature, chunk
        divergence = torch.empty(len(rows), dtype=torch.float32, device=student.device)
        for part in _chunks(len(rows), chunk):
            teacher = _teacher(old, new, rows[part], use_old[part], temperature).log_softmax(dim=-1)
            own = (student[rows[part]].float() / temperature).log_softmax(dim=-1)
            divergence[part] = (teacher.exp() * (teacher - own)).sum(dim=-1)
        return divergence

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        student, old, new, rows, use_old = ctx.saved_tensors
        gradient = torch.zeros_like(student)
        for part in _chunks(len(rows), ctx.chunk):
            teacher = _teacher(old, new, rows[part], use_old[part], ctx.temperature).softmax(dim=-1)
            own = (student[rows[part]].float() / ctx.temperature).softmax(dim=-1)
            gradient[rows[part]] = ((own - teacher) * (grads[0][part, None] / ctx.temperature)).to(gradient.dtype)
        return gradient, None, None, None, None, None, None


def _teacher(
    old: torch.Tensor, new: torch.Tensor, rows: torch.Tensor, use_old: torch.Tensor, temperature: float
) -> torch.Tensor:
    return torch.where(use_old[:, None], old[rows].float(), new[rows].float()) / temperature
