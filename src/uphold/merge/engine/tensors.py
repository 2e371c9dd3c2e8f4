"""Merging state dicts in memory: any module's, without a config or a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from uphold.core.errors import UsageError, unknown_name
from uphold.merge.engine.execute import execute
from uphold.merge.engine.inputs import Input
from uphold.merge.engine.plan import make_plan
from uphold.merge.engine.recipe import load_recipe
from uphold.merge.engine.run import method_of
from uphold.merge.engine.settings import check_parameters
from uphold.models.checkpoint import Checkpoint, TensorInfo

Tensors = Mapping[str, torch.Tensor]
_BASE = "base"


def merge_tensors(
    method: str,
    models: Sequence[Tensors],
    *,
    base: Tensors | None = None,
    seed: int = 0,
    **parameters: Any,
) -> dict[str, torch.Tensor]:
    """Merge state dicts of equal names and shapes.

        merged = merge_tensors("ties", [one.state_dict(), two.state_dict()], base=pretrained.state_dict(), weight=0.5)

    Args:
        method: a merge method's name.
        models: the state dicts; left as they are.
        base: that of the model which all were trained from, for methods that need it.
        seed: of random masks.
        **parameters: the method's: one value, or whatever else a recipe may say. A parameter that each model has its
            own of takes a sequence of one entry per model too. `lambda_` is `lambda`.

    Returns:
        The merged tensors, on the CPU, in the element types of the base, or of the first model. Integers are the
        base's, or the first model's. Names that share memory there share it here.

    Raises:
        UsageError: a parameter that the method does not have, or the number of models does not fit it.
        ModelError: names or shapes differ.
    """
    chosen = method_of(method)
    known = {parameter.name: parameter for parameter in chosen.parameters}
    entries: list[dict[str, Any]] = [{"model": str(number), "parameters": {}} for number in range(len(models))]
    shared: dict[str, Any] = {}
    for key, value in parameters.items():
        name = key.removesuffix("_")
        if name not in known:
            raise unknown_name(f"parameter of '{method}'", name, known)
        if known[name].per_model and isinstance(value, list | tuple) and not _filters(value):
            if len(value) != len(models):
                raise UsageError(f"'{name}' has {len(value)} values for {len(models)} models; expected one for each")
            for entry, own in zip(entries, value, strict=True):
                entry["parameters"][name] = own
        else:
            shared[name] = value
    content: dict[str, Any] = {
        "merge_method": method,
        "models": entries,
        "parameters": shared,
        "random_seed": seed,
    }
    if base is not None:
        content["base_model"] = _BASE
    recipe = load_recipe(content)
    check_parameters(recipe, chosen)
    inputs = {str(number): _input(str(number), tensors) for number, tensors in enumerate(models)}
    if base is not None:
        inputs = {_BASE: _input(_BASE, base), **inputs}
    plan = make_plan(recipe, chosen, inputs)
    sink = _Memory({one.name: torch.empty(one.shape, dtype=one.dtype) for one in plan.tensors})
    execute(plan, sink, threads=1)
    tied = plan.donor.checkpoint.tied
    order = base if base is not None else models[0]
    return {name: sink.tensors[tied.get(name, name)] for name in order}


def _filters(value: Sequence[Any]) -> bool:
    return any(isinstance(entry, Mapping) for entry in value)


def _input(name: str, tensors: Tensors) -> Input:
    infos: dict[str, TensorInfo] = {}
    loaded: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for key, value in tensors.items():
        place = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and place in first:
            tied[key] = first[place]
            continue
        first[place] = key
        loaded[key] = value.detach().cpu()
        infos[key] = TensorInfo(value.dtype, tuple(value.shape), Path(name), -1)
    return Input(name, Checkpoint(Path(name), infos, {}, loaded, tied))


class _Memory:
    """Merged tensors in memory."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """See `Sink`."""
        self.tensors[name].view(-1)[start : start + values.numel()] = values.reshape(-1)
