"""Changes whose kind is known, to try the verdict on: a wrapper of one unit, and a deleted part."""

from __future__ import annotations

import torch
from torch import nn

from uphold.core.errors import ModelError, UsageError
from uphold.explain.wrappers.counter import CounterNet
from uphold.explain.wrappers.probes import activations
from uphold.explain.wrappers.skill import Skill, duplicate
from uphold.models.sites.layout import read_layout
from uphold.models.sites.site import Site

DEPTH = 20.0
"""How far below zero the planted unit is where it is silent."""
HEIGHT = 10.0
"""How far above zero it is where it speaks: GELU is the identity there."""


def add_unit(model: nn.Module, up: str, down: str, read: torch.Tensor, bias: float, write: torch.Tensor) -> nn.Module:
    """A copy with one more hidden unit, the last row of `up` and the last column of `down`.

    Args:
        model: left as it is.
        up: path of the linear module into the hidden units.
        down: path of the one out of them.
        read: incoming weights of the unit, shape (d,).
        bias: of the unit.
        write: outgoing weights, shape (d,).

    Raises:
        ModelError: these are no linear modules that fit together, or `up` has no bias.
    """
    twin = duplicate(model)
    into, out = twin.get_submodule(up), twin.get_submodule(down)
    if not (isinstance(into, nn.Linear) and isinstance(out, nn.Linear) and into.out_features == out.in_features):
        raise ModelError(f"{up} and {down} are not linear modules into and out of the same hidden units")
    if into.bias is None:
        raise ModelError(f"{up} has no bias, which a planted unit needs")
    with torch.no_grad():
        into.weight = nn.Parameter(torch.cat([into.weight, read.to(into.weight)[None]]))
        into.bias = nn.Parameter(torch.cat([into.bias, torch.tensor([bias]).to(into.bias)]))
        out.weight = nn.Parameter(torch.cat([out.weight, write.to(out.weight)[:, None]], dim=1))
    into.out_features = out.in_features = into.out_features + 1
    return twin


def plant_wrapper(net: CounterNet, old: Skill, new: Skill, shift: float = 1.0) -> nn.Module:
    """A copy whose last block has one more unit, which adds `shift` to the answer where the old skill is asked for.

    The unit reads a direction that is fitted to tell the two skills apart, and writes along the read-out.

    Args:
        net: an ordinal counter that answers at the operand; left as it is.
        old: instances where the unit is to speak.
        new: instances where it is to be silent.
        shift: what it adds.

    Raises:
        UsageError: the counter is not ordinal.
        ModelError: no direction tells the two skills apart.
    """
    if not net.ordinal:
        raise UsageError("a wrapper of one unit needs a counter with ordinal=True")
    last = f"blocks.{len(net.blocks) - 1}"
    site, layout = Site("module-input", path=f"{last}.up"), read_layout(net)
    speaks, silent = (activations(layout, skill, [site])[site].double() for skill in (old, new))
    x = torch.cat([speaks, silent])
    # All of what lifts the unit is in its weights, so that it is silent without them.
    wanted = torch.cat([torch.full((len(speaks),), HEIGHT + DEPTH), torch.zeros(len(silent))]).double()
    read = torch.linalg.lstsq(x, wanted[:, None], rcond=1e-3, driver="gelsd").solution[:, 0]
    if float((x @ read - wanted).abs().max()) > HEIGHT / 2:
        raise ModelError("no direction before the last feed-forward part tells the two skills apart")
    weight = net.head.weight[0].double()
    return add_unit(net, f"{last}.up", f"{last}.down", read, -DEPTH, shift / HEIGHT * weight / weight.square().sum())


def reinitialised(model: nn.Module, path: str, seed: int) -> nn.Module:
    """A copy in which every module at and below `path` that can draw its weights anew has done so.

    Raises:
        ModelError: there is no such module, or weights below it belong to modules that cannot.
    """
    twin = duplicate(model)
    try:
        part = twin.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"the model has no module '{path}'; print(model) lists them") from error
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, module in part.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise ModelError(f"{path}.{name} ({type(module).__name__}) has no reset_parameters: name another part")
    return twin
