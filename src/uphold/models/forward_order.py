"""The layers of a network in the order in which a forward pass meets them.

Names do not say it: "features.10" sorts before "features.2". A module is asked by running it; where there are only
names on disk, the numbers in them are read as numbers, and a layout that leaves the order open is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from uphold.core.errors import UsageError

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configs call the number of blocks."""
_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")
_HEAD = re.compile(
    r"(^|[._])(lm_head|embed_out|head|classifier|fc|score|output|norm|norm_f|ln_f|ln_out|final_layer_?norm)([._]|$)"
)
_EMBEDDING = re.compile(r"(^|[._])(embed|emb|wte|wpe)")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
_ADAPTER = "base_model.model."
"""What every name in a file of PEFT begins with."""
Block = str | type[nn.Module]


class Unit(NamedTuple):
    """One layer, or a block of layers that counts as one."""

    name: str
    """Of the module, or of the first one where several belong together."""
    tensors: tuple[str, ...]
    """Its parameters and buffers, as a state dict calls them."""


def forward_order(
    model: nn.Module, *inputs: Any, blocks: Sequence[Block] = (), **named_inputs: Any
) -> tuple[Unit, ...]:
    """The layers of `model` in the order of their first call in a forward pass, the head last.

    A layer is a module with weights of at least two dimensions (convolution, linear, embedding). What has none, such
    as a normalisation, belongs to the layer before it. A decoder of transformers is the embedding (everything before
    the first block), every block, and the head (everything after the last one). What is never called has no place.

    Args:
        model: run once in eval mode without gradients; its mode and hooks are as before afterwards.
        inputs: what it is run on; values do not matter.
        blocks: names or types of modules that count as one layer, such as a residual block; the outermost decides.
        named_inputs: further arguments of the forward pass.

    Raises:
        UsageError: no layer was called.
    """
    called = _calls(model, inputs, named_inputs)
    modules = dict(model.named_modules())
    decoder = _decoder_blocks(model)
    kinds: tuple[type[nn.Module], ...] = tuple(one for one in blocks if isinstance(one, type))
    kinds += (nn.MultiheadAttention,)
    whole = {
        name
        for name, module in modules.items()
        if name and (name in blocks or name in decoder or isinstance(module, kinds))
    }
    keys = list(model.state_dict())
    units: list[tuple[str, list[str]]] = []
    places: dict[str, list[str]] = {}
    waiting: list[str] = []
    for name in called:
        block = _outermost(name, whole)
        if block is not None:
            if block not in places:
                places[block] = [key for key in keys if key.startswith(f"{block}.")]
                units.append((block, places[block]))
                waiting = _prepend(waiting, places[block])
            continue
        own = [key for key in keys if key.rpartition(".")[0] == name]
        if own if decoder else _starts_layer(modules[name]):
            waiting = _prepend(waiting, own)
            units.append((name, own))
        elif units and _is_leaf(modules[name]):
            units[-1][1].extend(own)
        else:
            waiting += own
    if not units:
        raise UsageError("the forward pass called no layer with weights: expected a module with convolutions or linear")
    units[-1][1].extend(waiting)
    found = [Unit(name, tuple(tensors)) for name, tensors in units]
    return _as_decoder(found, decoder) if decoder else tuple(found)


def block_order(names: Iterable[str], count: int | None = None) -> tuple[Unit, ...]:
    """The layers of a checkpoint as its tensor names tell them: embedding, numbered blocks, head.

    Args:
        names: of all tensors.
        count: the number of blocks, where a config says it; extra ones (for predicting further tokens) go to the head.

    Raises:
        UsageError: the names leave the order open.
    """
    groups: dict[str, dict[int, list[str]]] = {}
    outside: list[str] = []
    for name in names:
        match = _NUMBER.search(name)
        if match is None:
            outside.append(name)
        else:
            groups.setdefault(name[: match.start(1)], {}).setdefault(int(match.group(1)), []).append(name)
    fitting = [prefix for prefix, found in groups.items() if count is None or found.keys() >= set(range(count))]
    if len(fitting) != 1:
        raise _open_order(f"{len(fitting)} series of numbered layers ({', '.join(sorted(fitting)) or 'none'})")
    prefix = fitting[0]
    blocks = groups.pop(prefix)
    outside += [name for found in groups.values() for tensors in found.values() for name in tensors]
    first = [name for name in outside if _EMBEDDING.search(name) and not _HEAD.search(name)]
    last = [name for name in outside if name not in first]
    unplaced = [name for name in last if count is None and not _HEAD.search(name)]
    if unplaced:
        raise _open_order(f"{unplaced[0]!r} stands outside the series {prefix!r}")
    if count is not None:
        last += [name for number in sorted(blocks) if number >= count for name in blocks[number]]
    units = [
        Unit(f"{prefix}{number}", tuple(blocks[number])) for number in sorted(blocks) if not count or number < count
    ]
    if first:
        units.insert(0, Unit(_layer_of(first[0]), tuple(first)))
    if last:
        units.append(Unit(_layer_of(last[0]), tuple(last)))
    elif prefix.startswith(_ADAPTER):
        units.append(Unit("head", ()))  # Not in the file, so the last block is none.
    return tuple(units)


def first_units(units: Sequence[Unit], layers: int) -> list[Unit]:
    """The first `layers` units; the last unit is the head, which is never counted.

    Raises:
        UsageError: there are not that many before the head.
    """
    most = len(units) - 1
    if not 1 <= layers <= most:
        raise UsageError(f"{layers} layers are asked for, but this model has {most} before its head: give 1 to {most}")
    return list(units[:layers])


def named_tensors(names: Iterable[str], layers: Sequence[str]) -> list[str]:
    """The tensors of the modules called `layers`, in the order of `layers`; the name of one tensor is taken as well.

    Raises:
        UsageError: one of `layers` names nothing, or none is given.
    """
    known, found = list(names), dict[str, None]()
    if not layers:
        raise UsageError("no layers are named: give a number, or the names of modules")
    for layer in layers:
        tensors = [name for name in known if name == layer or name.startswith(f"{layer}.")]
        if not tensors:
            example = ", ".join(list(dict.fromkeys(map(_layer_of, known)))[:5])
            raise UsageError(f"no tensor belongs to the layer '{layer}': the model has {example}, ...")
        found.update(dict.fromkeys(tensors))
    return list(found)


def _calls(model: nn.Module, inputs: Sequence[Any], named_inputs: dict[str, Any]) -> list[str]:
    """Names of the modules in the order of their first call."""
    called: dict[str, None] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: called.setdefault(name))
        for name, module in model.named_modules()
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(*inputs, **named_inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return list(called)


def _starts_layer(module: nn.Module) -> bool:
    wide = any(value.dim() > 1 for value in module.parameters(recurse=False))
    return wide and _is_leaf(module) and not isinstance(module, _NORMS)


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for child in module.children() for _ in child.parameters())


def _outermost(name: str, whole: set[str]) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return next((prefix for prefix in prefixes if prefix in whole), None)


def _prepend(waiting: list[str], tensors: list[str]) -> list[str]:
    """Give what was called before the first layer to it."""
    tensors[:0] = waiting
    return []


def _decoder_blocks(model: nn.Module) -> list[str]:
    """Names of the blocks of a decoder of transformers, in order; none for other modules."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return []
    count = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{name}.{index}" for index in range(len(module))]
    return []


def _as_decoder(units: list[Unit], decoder: list[str]) -> tuple[Unit, ...]:
    places = [index for index, unit in enumerate(units) if unit.name in decoder]
    before, after = units[: places[0]], units[places[-1] + 1 :]
    groups = [before, *([unit] for unit in units[places[0] : places[-1] + 1]), after]
    return tuple(
        Unit(group[0].name, tuple(name for unit in group for name in unit.tensors)) for group in groups if group
    )


def _layer_of(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _open_order(found: str) -> UsageError:
    return UsageError(
        f"the names of the tensors do not say which layers come first ({found}): "
        "name the layers instead of giving their number"
    )
