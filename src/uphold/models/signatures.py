"""What robust training changed beside what clean training changed, tensor by tensor.

Cai, Zhang and Wang, "Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?", ICML 2023,
arXiv:2302.12480.

    a = theta_standard - theta_initial        p = theta_robust - theta_initial
    R = p - (<a, p> / <a, a>) a

The projection is one scalar per tensor, computed in float64. Where clean training left a tensor as it was, R = p.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from uphold.core.errors import UsageError
from uphold.core.storage import read_json
from uphold.models.forward_order import DEPTH_KEYS
from uphold.models.patches.source import Weights, WeightsLike, open_weights, weights_path

UNTRAINED = 1e-16
"""<a, a> / <theta, theta> up to which clean training left a tensor as it was: below the rounding of float32."""
_CHUNK = 1 << 21


class Projection(NamedTuple):
    """One tensor's signature, and how it came about."""

    residual: torch.Tensor
    """R, float32, of the tensor's shape."""
    share: float
    """s = <a, p> / <a, a>: how much of the clean change the robust one holds; 0 where there was no clean change."""
    cosine: float
    """Between a and p, in [-1, 1]; 0 where one of them is zero."""
    norm: float
    """|R|."""
    length: float
    """|theta_standard|."""


def names_and_blocks(source: WeightsLike) -> tuple[tuple[str, ...], int | None]:
    """The names of all tensors, and how many numbered blocks the model's config says there are (None without one).

    Raises:
        UsageError, ModelError: there are no weights.
    """
    with open_weights(source) as weights:
        names = weights.names
    if isinstance(source, str | Path):
        path = weights_path(source) / "config.json"
        return names, _blocks(read_json(path)) if path.is_file() else None
    described = getattr(getattr(source, "config", None), "to_dict", None)
    return names, _blocks(described()) if described is not None else None


def projected(initial: torch.Tensor, standard: torch.Tensor, robust: torch.Tensor) -> Projection:
    """The signature of one tensor: the part of the robust change that is orthogonal to the clean one.

    Args:
        initial: floating-point values that both trainings started from, any shape.
        standard: after clean training, of the same shape.
        robust: after training on damaged data, of the same shape.
    """
    three = (initial, standard, robust)
    aa = ap = pp = start = length = 0.0
    for first, clean, hard in _chunks(*three):
        a, p = clean - first, hard - first
        aa, ap, pp = aa + float(a @ a), ap + float(a @ p), pp + float(p @ p)
        start, length = start + float(first @ first), length + float(clean @ clean)
    trained = aa > UNTRAINED * start
    share = ap / aa if trained else 0.0
    residual = torch.empty(initial.numel())
    squares, done = 0.0, 0
    for first, clean, hard in _chunks(*three):
        rest = (hard - first) - share * (clean - first)
        squares += float(rest @ rest)
        residual[done : done + len(rest)] = rest
        done += len(rest)
    cosine = ap / math.sqrt(aa * pp) if trained and pp else 0.0
    cosine = max(-1.0, min(1.0, cosine))
    return Projection(residual.reshape(initial.shape), share, cosine, math.sqrt(squares), math.sqrt(length))


def check_same(named: Mapping[str, Weights], names: Sequence[str]) -> None:
    """Refuse models that do not hold the tensors `names` in the same shapes.

    Args:
        named: the models, by what messages call them; the first one has all of `names`.
        names: of tensors.

    Raises:
        UsageError: the message names the first difference.
    """
    first = next(iter(named))
    for name in names:
        shapes = {}
        for label, one in named.items():
            if name not in one.names:
                raise UsageError(
                    f"{label} has no tensor {name}, but {first} has: a signature needs three models of one architecture"
                )
            shapes[label] = list(one.tensor(name).shape)
        if any(shape != shapes[first] for shape in shapes.values()):
            found = ", ".join(f"{shape} in {label}" for label, shape in shapes.items())
            raise UsageError(f"{name} is {found}: a signature needs three models that started from the same weights")


def cosine_between(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Cosine of the angle between two sets of tensors with the same names and shapes, each taken as one vector.

    Raises:
        UsageError: one of them is zero.
    """
    products = [0.0, 0.0, 0.0]
    for name, mine in one.items():
        x, y = mine.reshape(-1).double(), other[name].reshape(-1).double()
        products = [sum(pair) for pair in zip(products, (float(x @ y), float(x @ x), float(y @ y)), strict=True)]
    if not products[1] or not products[2]:
        raise UsageError("a signature that is zero everywhere has no direction: compare others")
    return products[0] / math.sqrt(products[1] * products[2])


def _chunks(*tensors: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    flat = [one.detach().reshape(-1) for one in tensors]
    for start in range(0, flat[0].numel(), _CHUNK):
        yield [one[start : start + _CHUNK].cpu().double() for one in flat]


def _blocks(config: Any) -> int | None:
    for part in (config.get("text_config"), config) if isinstance(config, dict) else ():
        found = [part[key] for key in DEPTH_KEYS if key in part] if isinstance(part, dict) else []
        if found and isinstance(found[0], int):
            return found[0]
    return None
