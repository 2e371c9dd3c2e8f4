"""Spreading the weights of a training over its processes (PyTorch's FSDP2), where `accelerate launch --use_fsdp` asks.

What is spread are copies that live as long as the training: each layer of student and teachers is gathered when it is
needed and let go of again. The models themselves wait in the host's memory meanwhile, and the student comes back for
each validation, so one model must fit on one device, but not three, nor their activations beside them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from uphold.models.shared import shared_copy

if TYPE_CHECKING:
    import torch


def wanted() -> bool:
    """Whether the launcher asked for it."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def sharded(model: Any, own: str | None = None) -> Any:
    """A copy of `model` whose weights are spread over all processes, layer by layer.

    Args:
        model: any causal language model.
        own: an adapter that is trained.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = model.device.type
    made = shared_copy(model, own)
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in _layers(made):
        fully_shard(layer, mesh=mesh)
    fully_shard(made, mesh=mesh)
    made.train(model.training)
    assert isinstance(made, torch.nn.Module)
    return made


def whole(value: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be spread, on the CPU, as a copy; every process must ask."""
    from torch.distributed.tensor import DTensor

    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu().clone()


def local(value: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that may be spread."""
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def spread_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`value`, of which every process has all, spread as `like` is, and on its device."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def move(models: Iterable[Any], device: Any) -> None:
    """Move models to a device together: what they share stays shared."""
    moved: dict[tuple[int, int], torch.Tensor] = {}
    for model in models:
        for value in (*model.parameters(), *model.buffers()):
            if value.device != device:
                value.data = moved.setdefault((value.data_ptr(), value.numel()), value.data.to(device))


def _layers(model: Any) -> list[Any]:
    """The blocks that a model repeats: the longest list of modules in it."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=()))
