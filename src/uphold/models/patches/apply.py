"""Patches on a model in memory: put on, and taken off so that every bit is back.

    with apply(model, patch, strengths=0.5):
        ...                                        patched
                                                   as before, also after an exception

The originals of the touched tensors are kept. Whatever is put on and taken off, and in whatever order, a tensor always
holds one sum from its original (`uphold.models.patches.delta.fused`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch

from uphold.core.errors import ModelError, UsageError, unknown_name
from uphold.models.patches.delta import dtype_name, fused, replaced
from uphold.models.patches.patch import Patch, in_order, terms_of, value_hash
from uphold.models.patches.source import place_of, state_of


class _Held:
    """One patched tensor in memory, its original, and what is on it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.original = tensor.detach().clone(memory_format=torch.contiguous_format)
        self.on: list[tuple[object, Patch, float, str]] = []
        self.asked = self.lost = 0

    def write(self) -> None:
        """Put the original, with everything that is on it, into the tensor."""
        weighted = sorted(self.on, key=lambda entry: (entry[1].id, entry[2]))
        name = weighted[0][3] if weighted else ""
        added, put = terms_of([entry[1:] for entry in weighted])
        self.asked = self.lost = 0
        with torch.no_grad():
            if put:
                self.tensor.copy_(replaced(name, self.original, put))
            elif not added:
                self.tensor.copy_(self.original)
            else:
                new = torch.empty_like(self.original)
                for piece in fused(name, self.original, added):
                    new.view(-1)[piece.start : piece.start + len(piece.values)] = piece.values
                    self.asked, self.lost = self.asked + piece.asked, self.lost + piece.lost
                self.tensor.copy_(new)


_HELD: WeakSet[_Held] = WeakSet()
"""Patched tensors. They are kept alive by the handles, and found by where they lie: a model and its state dict are the
same memory."""


class Applied:
    """Patches that are on a model; `remove` takes them off. A context manager.

    A handle that is thrown away takes the originals with it: the patches then stay on.
    """

    def __init__(self, held: Sequence[_Held]) -> None:
        """Use `apply`."""
        self._held = list(held)

    @property
    def asked(self) -> int:
        """How many elements the patches on these tensors were to change."""
        return sum(one.asked for one in self._held)

    @property
    def lost(self) -> int:
        """How many of those did not change, since their dtype has no number that near: patch in float32 instead."""
        return sum(one.lost for one in self._held)

    def remove(self) -> None:
        """Take these patches off; others stay on. What was done to the touched tensors otherwise is undone as well."""
        held, self._held = self._held, []
        for one in held:
            one.on = [entry for entry in one.on if entry[0] is not self]
            one.write()

    def __enter__(self) -> Applied:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the patches off, also after an exception."""
        self.remove()


def apply(
    model: Any,
    patches: Patch | Sequence[Patch],
    strengths: float | Sequence[float] | None = None,
    *,
    force: bool = False,
) -> Applied:
    """Put patches on a model in memory. All is checked before the first weight changes.

    Args:
        model: a module (transformers, PEFT or any other) or a state dict; its tensors are changed in place. The names
            in a patch are those of the checkpoint; for a PEFT model, those of its base or of its active adapter.
        patches: one or several; their order does not count.
        strengths: one for all, or one for each; 1 by default.
        force: also where the weights are not those that the patches were made from. Shapes must fit all the same.

    Raises:
        UsageError: a patch does not fit; the model is as it was.
    """
    patches = [patches] if isinstance(patches, Patch) else list(patches)
    if isinstance(strengths, int | float):
        strengths = [float(strengths)] * len(patches)
    weighted = in_order(patches, strengths)
    tensors = names_in(model)
    patched = {place_of(held.tensor): held for held in _HELD}

    def original(name: str) -> torch.Tensor | None:
        tensor = tensors.get(name)
        held = None if tensor is None else patched.get(place_of(tensor))
        return tensor if held is None else held.original

    for patch, _ in weighted:
        check_fit(patch, original, tensors, "this model", force)
    handle = Applied([])
    found: dict[tuple[Any, ...], _Held] = {}
    for patch, strength in weighted:
        for name in _once_each(patch, tensors):
            place = place_of(tensors[name])
            held = found.get(place) or patched.get(place) or _Held(tensors[name])
            found[place] = held
            held.on.append((handle, patch, strength, name))
    handle._held = list(found.values())
    try:
        for held in found.values():
            held.write()
    except BaseException:
        handle.remove()
        raise
    _HELD.update(found.values())
    return handle


def check_fit(
    patch: Patch,
    tensor: Callable[[str], torch.Tensor | None],
    known: Sequence[str] | Mapping[str, Any],
    where: str,
    force: bool,
) -> None:
    """Refuse a patch that does not belong on these weights.

    Args:
        patch: what is to be put on.
        tensor: the tensor of a name as it was before any patch, None where there is none.
        known: all names, for the message.
        where: what the weights are called in the message.
        force: allow other weights than those that it was made from, of the same shapes.

    Raises:
        UsageError: it does not fit; the message says where.
    """
    found = {name: tensor(name) for name in patch.names}
    for name, one in found.items():
        if one is None:
            raise unknown_name(f"tensor of a patch for {where}:", name, known, "This patch needs another architecture.")
        if tuple(one.shape) != patch.shape(name):
            raise UsageError(
                f"'{name}' has shape {tuple(one.shape)} in {where} and {patch.shape(name)} in the patch: "
                "it is for another architecture or size"
            )
        if one.is_meta:
            raise ModelError(f"'{name}' of {where} is not in memory (a meta tensor): load the weights first")
        if name in patch.deltas and not one.is_floating_point():
            raise UsageError(f"'{name}' of {where} holds integers: nothing can be added to it, only replaced")
        put = patch.replacements.get(name, one)
        if put.is_floating_point() != one.is_floating_point():
            kinds = f"{dtype_name(one)} in {where} and {dtype_name(put)} in the patch"
            raise UsageError(f"'{name}' holds {kinds}: expected one kind")
    if force:
        return
    different = [
        name for name, one in found.items() if one is not None and value_hash(one) != patch.manifest.pristine[name]
    ]
    if different:
        raise UsageError(
            f"{len(different)} of {len(found)} tensors of {where} are not those that the patch was made from "
            f"(the first is '{different[0]}'): give --force (force=True) to patch them all the same"
        )


def names_in(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model in memory by the names that checkpoints have for them.

    Those of a PEFT model are there under their own names, those of its base also under the base's, and those of its
    active adapters also under the names in an adapter's file.
    """
    tensors = dict(state_of(model))
    peft = model if hasattr(model, "peft_config") else getattr(model, "model", None)
    active: Any = getattr(peft, "active_adapters", []) if hasattr(peft, "peft_config") else []
    adapters = list(active() if callable(active) else active)
    for name, tensor in list(tensors.items()) if adapters else []:
        plain = name
        for adapter in adapters:
            plain = re.sub(rf"(\.modules_to_save)?\.{re.escape(adapter)}(?=\.|$)", "", plain)
        if plain == name:
            plain = re.sub(r"\.(base_layer|original_module)(?=\.)", "", name.removeprefix("base_model.model."))
        tensors.setdefault(plain, tensor)
    return tensors


def _once_each(patch: Patch, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The patch's names, of those that are tied in this model only the first."""
    names: dict[tuple[Any, ...], str] = {}
    for name in patch.names:
        tensor = tensors[name]
        if not tensor.numel():
            continue
        first = names.setdefault(place_of(tensor), name)
        if first != name and not _same_change(patch, first, name):
            raise UsageError(f"'{first}' and '{name}' are one tensor here, but the patch changes them differently")
    return list(names.values())


def _same_change(patch: Patch, one: str, other: str) -> bool:
    if one in patch.replacements or other in patch.replacements:
        both = [patch.replacements.get(name) for name in (one, other)]
        return all(tensor is not None for tensor in both) and torch.equal(*both)  # type: ignore[arg-type]
    return torch.equal(patch.deltas[one].tensor(), patch.deltas[other].tensor())
