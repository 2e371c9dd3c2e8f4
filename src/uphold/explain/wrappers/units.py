"""What can be pruned in a model: rows of weight matrices, single weights, rank-one parts of a low-rank adapter.

The score of a unit is the sum of theta * dL/dtheta over its weights (section 3.2 of arXiv:2311.12786), with its sign:
setting theta to 0 changes the loss by minus that, to first order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from uphold.core.errors import UsageError
from uphold.explain.wrappers.config import UnitKind
from uphold.explain.wrappers.skill import Skill
from uphold.models.sites.run import ready

_FACTOR_B = re.compile(r"(^|\.)lora_(embedding_)?B(\.|$)")
"""The second factor of a low-rank update B A, in PEFT and elsewhere: one column for each rank-one part."""


@dataclass(frozen=True)
class Unit:
    """Something that can be pruned."""

    parameter: str
    """As `named_parameters` calls it."""
    index: int
    """Of the row or column, or of the weight in the flattened parameter."""
    score: float
    """Sum of theta * dL/dtheta before pruning."""
    norm: float
    """Euclidean norm of its weights."""


@dataclass(frozen=True)
class Part:
    """A parameter, and the dimension that counts its units; -1 where every weight is one."""

    name: str
    dim: int
    count: int


class Units:
    """All that may be pruned in a model."""

    def __init__(self, model: nn.Module, kind: UnitKind, skill: Skill, *, ends: bool = False) -> None:
        """Find it.

        Args:
            model: whose units they are.
            kind: of unit.
            skill: what is run once to see which matrix is called last.
            ends: whether embeddings and the last matrix, the output head, count.

        Raises:
            UsageError: there are none.
        """
        self.model, self.kind = model, kind
        parameters = dict(model.named_parameters())
        transposed = {f"{path}.weight" for path, module in model.named_modules() if type(module).__name__ == "Conv1D"}
        left_out = set() if ends else _ends(model, skill)
        self.parts: list[Part] = []
        for name, parameter in parameters.items():
            if kind == "adapter":
                if is_adapter_factor(name) and parameter.dim() >= 2:
                    self.parts.append(Part(name, 1, parameter.shape[1]))
            elif parameter.dim() >= 2 and id(parameter) not in left_out:
                dim = -1 if kind == "weights" else int(name in transposed)
                self.parts.append(Part(name, dim, parameter.numel() if dim < 0 else parameter.shape[dim]))
        self.total = sum(part.count for part in self.parts)
        if not self.total:
            found = "no low-rank adapter (lora_B)" if kind == "adapter" else "no weight matrix but its ends"
            raise UsageError(f"{type(model).__name__} has {found} to prune; name other units or include the ends")

    def scores(self, skill: Skill) -> torch.Tensor:
        """Sum of theta * dL/dtheta of each unit, float64 of shape (total,)."""
        named = self._tensors()
        # A frozen parameter has a gradient too, only nobody asked for it.
        frozen = [tensor for tensor in named if not tensor.requires_grad]
        try:
            for tensor in frozen:
                tensor.requires_grad_(True)
            with ready(self.model, grad=True):
                loss = skill.loss(skill.answers(self.model), skill.labels)
                gradients = torch.autograd.grad(loss, named, allow_unused=True)
        finally:
            for tensor in frozen:
                tensor.requires_grad_(False)
        found = []
        for part, tensor, gradient in zip(self.parts, named, gradients, strict=True):
            product = torch.zeros_like(tensor) if gradient is None else tensor.detach() * gradient
            found.append(_by_unit(product.double(), part.dim).sum(1).cpu())
        return torch.cat(found)

    def norms(self) -> torch.Tensor:
        """Euclidean norm of each unit, float64 of shape (total,)."""
        pairs = zip(self.parts, self._tensors(), strict=True)
        return torch.cat([_by_unit(tensor.detach().double(), part.dim).norm(dim=1).cpu() for part, tensor in pairs])

    def place(self, number: int) -> tuple[Part, int]:
        """The parameter of a unit, and its index there."""
        for part in self.parts:
            if number < part.count:
                return part, number
            number -= part.count
        raise UsageError(f"there are {self.total} units")

    def zero(self, numbers: Sequence[int], *, bias: bool = False) -> None:
        """Set units to zero, in place; with `bias` also the biases of rows."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for number in numbers:
                part, index = self.place(number)
                tensor = parameters[part.name]
                if part.dim < 0:
                    tensor.view(-1)[index] = 0
                    continue
                tensor.select(part.dim, index).zero_()
                beside = parameters.get(_bias_of(part.name))
                if bias and self.kind == "neurons" and beside is not None:
                    beside[index] = 0

    @contextmanager
    def without(self, numbers: Sequence[int], *, bias: bool = False) -> Iterator[None]:
        """Units at zero, as `zero` sets them, for a while; afterwards every weight is what it was, bit for bit."""
        parts = {self.place(number)[0].name for number in numbers}
        names = parts | {_bias_of(part) for part in parts}
        touched = [one for name, one in self.model.named_parameters() if name in names]
        before = [one.detach().clone() for one in touched]
        try:
            self.zero(numbers, bias=bias)
            yield
        finally:
            with torch.no_grad():
                for tensor, values in zip(touched, before, strict=True):
                    tensor.copy_(values)

    def _tensors(self) -> list[torch.Tensor]:
        parameters = dict(self.model.named_parameters())
        return [parameters[part.name] for part in self.parts]


def is_adapter_factor(name: str) -> bool:
    """Whether a parameter is the factor B of a low-rank update B A."""
    return _FACTOR_B.search(name) is not None


def _bias_of(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"


def _by_unit(values: torch.Tensor, dim: int) -> torch.Tensor:
    return values.reshape(-1, 1) if dim < 0 else values.transpose(0, dim).flatten(1)


def _ends(model: nn.Module, skill: Skill) -> set[int]:
    """Embeddings and the matrix that is called last, with all that is tied to them, as ids of parameters."""
    called: list[nn.Module] = []
    owners = [
        module
        for module in model.modules()
        if any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))
    ]
    handles = [module.register_forward_hook(lambda one, *_: called.append(one)) for module in owners]
    try:
        with ready(model):
            skill.rows(slice(0, 1)).answers(model)
    finally:
        for handle in handles:
            handle.remove()
    ends: list[nn.Module] = [module for module in owners if isinstance(module, nn.Embedding)]
    # A network of one matrix has no head beside it.
    order = list(dict.fromkeys(called))
    ends += order[-1:] if len(order) > 1 else []
    return {id(parameter) for module in ends for parameter in module.parameters(recurse=False)}
