"""Vocabulary-defined semantics: for each token the hidden vector that means it, and directions made of these.

Gu et al., "Neuron Patching: Semantic-based Neuron-level Language Model Repair for Code Generation", arXiv:2312.05356.

    B   = (W_U^T)^+ = W_U (W_U^T W_U)^-1                           rows B[v]: what has logits nearest to one-hot(v)
    v_l = (B[t] - B[a]) (l + 1) / L                                t the right token, a the wrong one
    p_l = v_l / (max v_l - min v_l)                                the depth cancels: one p for all layers

The paper's pseudo-inverse is a singular value decomposition of V x d; at full rank the d x d normal equations give the
same, and only those rows of B are made that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uphold.core.errors import ModelError
from uphold.models.neurons.neurons import Anatomy

_RIDGE = 1e-10
"""Of the mean diagonal: enough to solve a singular system, too little to be seen in float32 elsewhere."""
_ROWS = 1 << 14
"""Tokens of W_U that are held in float64 at once."""
_REMAINDER = 1e-8
"""A direction that has less than this left beside earlier ones is used as it was."""
_LEAST_GAIN = 0.01
"""Gains below this share of the median one are taken for it: dividing by them would leave nothing of the others."""


class SemanticBasis:
    """Rows of B for one output matrix. It stays valid while feed-forward neurons are edited: the head is untouched."""

    def __init__(self, head: torch.Tensor, vocabulary: int | None = None) -> None:
        """Solve the normal equations, in float64 on the CPU.

        Args:
            head: W_U, shape (V, d).
            vocabulary: rows from here on belong to no token and are left out; none where None.

        Raises:
            ModelError: W_U has a value that is no number.
        """
        self._head = head[:vocabulary].detach()
        width = int(head.shape[1])
        gram = torch.zeros(width, width, dtype=torch.float64)
        for start in range(0, len(self._head), _ROWS):
            part = self._head[start : start + _ROWS].double().cpu()
            gram += part.T @ part
        if not bool(gram.isfinite().all()):
            raise ModelError("the output projection holds values that are not numbers: its weights are broken")
        ridge = _RIDGE * gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        self._factor = torch.linalg.cholesky(gram + ridge * torch.eye(width, dtype=torch.float64))
        self.leverage: float = float(torch.cholesky_solve(gram, self._factor).trace())
        """Trace of the hat matrix W_U B^T, the rank of W_U: d, unless it is deficient."""

    def rows(self, tokens: Sequence[int]) -> torch.Tensor:
        """B of some tokens, shape (n, d), in float64 on the CPU."""
        chosen = self._head[list(tokens)].double().cpu()
        found: torch.Tensor = torch.cholesky_solve(chosen.T, self._factor).T
        return found


def unit_range(vector: torch.Tensor) -> torch.Tensor | None:
    """`vector` scaled to max - min = 1; None where all its entries are equal."""
    span = vector.max() - vector.min()
    return vector / span if float(span) > 0 else None


def delta_direction(basis: SemanticBasis, target: int, wrong: int) -> torch.Tensor:
    """B[t] - B[a], shape (d,), in float64: the same for every layer but for a factor that cancels."""
    both = basis.rows([target, wrong])
    return both[0] - both[1]


def basis_direction(basis: SemanticBasis, target: int, start: torch.Tensor, layer: int, layers: int) -> torch.Tensor:
    """From the last prompt token's embedding towards B[t], by depth: E + (B[t] - E) (l + 1) / L.

    Args:
        basis: of the output matrix.
        target: t, the right token.
        start: E, shape (d,).
        layer: l, from 0.
        layers: L.
    """
    embedded = start.double().cpu()
    return torch.lerp(embedded, basis.rows([target])[0], (layer + 1) / layers)


def orthogonal_to(vector: torch.Tensor, history: Sequence[torch.Tensor]) -> torch.Tensor:
    """`vector` made orthogonal to unit vectors one after the other, and as long as before.

    Orthogonal to all of them where these are mutually so. Where less than 1e-8 is left, it is returned as it was.
    """
    made = vector
    for one in history:
        made = made - (made @ one) * one
    left = made.norm()
    return vector if float(left) < _REMAINDER else made * (vector.norm() / left)


class NormGain:
    """What the final norm does to a small change before the head sees it, but for the scale of the whole vector."""

    def __init__(self, anatomy: Anatomy) -> None:
        """Find the gain by trying: it need not be stored as such (Gemma's is 1 + weight).

        Raises:
            ModelError: the model has no final norm that is known.
        """
        if anatomy.norm is None:
            raise ModelError("the model has no final norm that is known here: give its path as norm=, or go without")
        width = int(anatomy.head.shape[1])
        parameter = next(iter(anatomy.norm.parameters()), anatomy.head)
        # Mean 0 and variance 1, no entry near 0: neither kind of norm changes it but by its gain and bias.
        probe = torch.ones(width, dtype=torch.float64)
        probe[1::2] = -1
        probe = (probe - probe.mean()) / (probe - probe.mean()).square().mean().sqrt()

        norm = anatomy.norm

        def normed(vector: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                made: torch.Tensor = norm(vector.to(parameter.device, parameter.dtype)[None, None])
            return made[0, 0].double().cpu()

        self.gain = (normed(probe) - normed(-probe)) / 2 / probe
        """g, shape (d,)."""
        shifted = normed(probe + 0.5)
        self.centres: bool = bool((shifted - normed(probe)).abs().max() < 0.05 * self.gain.abs().max())
        """Whether the norm subtracts the mean, as LayerNorm does."""

    def before(self, direction: torch.Tensor) -> torch.Tensor:
        """What must be added before the norm for `direction` to come out of it: direction / g, centred if it is."""
        least = _LEAST_GAIN * self.gain.abs().median()
        gain = torch.where(self.gain < 0, -1.0, 1.0) * self.gain.abs().clamp(min=least)
        made = direction / gain
        return made - made.mean() if self.centres else made
