"""A patch: named changes of weights that can be applied at any strength, added up, and taken off again.

    patch = make("v1", "v2", keep=0.1)             uphold.models.patches.make
    save_patch(patch, "p.safetensors")             uphold.models.patches.file
    with apply(model, patch, strengths=0.5): ...   uphold.models.patches.apply
    apply_in_place("model", [patch])               uphold.models.patches.place

Applied is always one sum from the pristine weights, `w + sum_i s_i d_i`, in float32 (float64 for float64 weights), cast
once: the order of patches does not count, and taking a patch off means putting the others together again, since
(x + d) - d is not x in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from uphold.core.errors import UsageError
from uphold.core.hashing import canonical_json, sha256_of, sha256_of_parts
from uphold.models.fingerprint import bytes_of
from uphold.models.patches.delta import CHUNK, Delta, dtype_name, place_dtype, replaced, total
from uphold.models.patches.quantise import Quantised, Scheme


@dataclass(frozen=True)
class Manifest:
    """Where a patch comes from. All of it is plain JSON."""

    method: str
    """What made it: `difference`, `compose`, or the name of a repair method."""
    pristine: Mapping[str, str]
    """`value_hash` of every touched tensor as it was before; see `pristine_hashes`."""
    paper: str = ""
    """The method's source (`arXiv:...`), or ""."""
    source: str = ""
    """How its maker named the model that it was made from."""
    weights: str = ""
    """Hash of all weights of that model (`models.fingerprint.weights_hash`), or "" where it was in memory only."""
    scale: float = 1.0
    """Every delta counts this many times."""
    quantiser: str = ""
    """`int8`, `int4`, `log:L`, `linear:L`, `tanh:L`, or "" for float32."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What was measured: `{"before": {...}, "after": {...}}`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that belongs to it: prompt and target, the data that batch-norm statistics come from."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the libraries that made it."""


@dataclass(frozen=True, eq=False)
class Patch:
    """Named weight changes with their provenance."""

    deltas: Mapping[str, Delta]
    """What is added, by the tensor's name in the checkpoint."""
    manifest: Manifest
    replacements: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Tensors that are replaced as a whole, at any strength but 0: batch-norm statistics, integer buffers."""

    def __post_init__(self) -> None:
        both = sorted(self.deltas.keys() & self.replacements.keys())
        if both:
            raise UsageError(f"a patch cannot both add to and replace '{both[0]}'")
        if not self.names:
            raise UsageError("a patch needs at least one delta or replacement")
        unknown = sorted(set(self.names) ^ self.manifest.pristine.keys())
        if unknown:
            raise UsageError(f"the manifest's pristine hashes and the touched tensors differ in '{unknown[0]}'")

    def __repr__(self) -> str:
        """Short: a patch's numbers would fill the screen."""
        return f"<Patch {self.id[:12]} ({self.manifest.method}), {len(self.names)} tensors>"

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that it touches, sorted."""
        return tuple(sorted([*self.deltas, *self.replacements]))

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers in a file."""
        added = sum(delta.nbytes for delta in self.deltas.values())
        return added + sum(tensor.nbytes for tensor in self.replacements.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the tensor `name` must have."""
        return self.deltas[name].shape if name in self.deltas else tuple(self.replacements[name].shape)

    @cached_property
    def id(self) -> str:
        """SHA-256 (64 hex digits) of its content; what it is called by in ledgers."""
        tensors, layout = parts_of(self)
        hashes = {name: [str(value.dtype), list(value.shape), _bytes_hash(value)] for name, value in tensors.items()}
        return sha256_of([manifest_json(self.manifest), layout, hashes])

    def save(self, path: str | Path) -> Path:
        """Write it as one safetensors file; see `uphold.models.patches.file`."""
        from uphold.models.patches.file import save_patch

        return save_patch(self, path)


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain JSON.

    Raises:
        UsageError: something in it is not.
    """
    values = {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(manifest).items()}
    try:
        canonical_json(values).encode()
        if not math.isfinite(manifest.scale):
            raise ValueError(f"a scale of {manifest.scale}")
    except (TypeError, ValueError) as error:
        raise UsageError(f"a patch's manifest holds plain JSON only ({error})") from error
    return values


def parts_of(patch: Patch) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """The tensors that a file holds, by their names there, and what is to be known of each delta beside them."""
    tensors: dict[str, torch.Tensor] = {}
    layout: dict[str, dict[str, Any]] = {}
    for name in patch.names:
        if name in patch.replacements:
            tensors[f"replacement/{name}"] = patch.replacements[name].detach().cpu().contiguous()
            continue
        delta = patch.deltas[name]
        layout[name] = {"shape": list(delta.shape)}
        if delta.indices is not None:
            tensors[f"indices/{name}"] = delta.indices.to(place_dtype(delta)).contiguous()
        if delta.dim is not None:
            layout[name]["dim"] = delta.dim
        if isinstance(delta.values, Quantised):
            tensors[f"codes/{name}"] = delta.values.codes
            layout[name] |= delta.values.facts()
        else:
            tensors[f"values/{name}"] = delta.values.contiguous()
    return tensors, layout


def scale(patch: Patch, factor: float) -> Patch:
    """The patch with every delta multiplied by `factor`. Replacements are not scaled."""
    factor = _finite(factor)
    return replace(patch, manifest=replace(patch.manifest, scale=patch.manifest.scale * factor))


def quantised(patch: Patch, how: Scheme) -> Patch:
    """The patch with few bits for each number. Replacements are kept as they are.

    Raises:
        UsageError: a number is not finite.
    """
    deltas = {name: delta.quantised(how) for name, delta in patch.deltas.items()}
    return replace(patch, deltas=deltas, manifest=replace(patch.manifest, quantiser=str(how)))


def compose(patches: Sequence[Patch], strengths: Sequence[float] | None = None, *, force: bool = False) -> Patch:
    """One patch that changes what `patches` change together: applied, it gives the same bits.

    Args:
        patches: at least one; their order does not count. What is quantised is turned into float32.
        strengths: one for each; 1 by default.
        force: compose also patches that were made from different weights. Where they differ, the result fits no
            weights without force.

    Raises:
        UsageError: two of them contradict each other in shape, in weights, or in what they add to or replace.
    """
    weighted = in_order(patches, strengths)
    names = sorted({name for patch, strength in weighted if strength for name in patch.names})
    deltas: dict[str, Delta] = {}
    replacements: dict[str, torch.Tensor] = {}
    pristine: dict[str, str] = {}
    for name in names:
        added, put = terms_of([(patch, strength, name) for patch, strength in weighted if name in patch.names])
        if added:
            deltas[name] = total(added)
        else:
            replacements[name] = replaced(name, put[0][1], put)
        hashes = {patch.manifest.pristine.get(name, "") for patch, _ in weighted if name in patch.names}
        if len(hashes) > 1 and not force:
            raise UsageError(f"these patches were made from different weights ('{name}'): give --force to compose them")
        pristine[name] = hashes.pop() if len(hashes) == 1 else ""
    if not names:
        raise UsageError("every strength is 0: there is nothing to compose")
    whole = {patch.manifest.weights for patch, _ in weighted}
    sources = sorted({patch.manifest.source for patch, _ in weighted})
    parts = [{"id": patch.id, "strength": strength, "method": patch.manifest.method} for patch, strength in weighted]
    manifest = Manifest(
        "compose",
        pristine,
        source=", ".join(sources),
        weights=whole.pop() if len(whole) == 1 else "",
        facts={"parts": parts},
        versions=weighted[0][0].manifest.versions,
    )
    return Patch(deltas, manifest, replacements)


def in_order(patches: Sequence[Patch], strengths: Sequence[float] | None = None) -> list[tuple[Patch, float]]:
    """Patches with their strengths, in the one order in which they are summed, whatever order they come in.

    Raises:
        UsageError: there are none, or not one strength for each; a strength is not finite; or a patch is there twice.
    """
    if not patches:
        raise UsageError("no patch was given: name at least one")
    strengths = [1.0] * len(patches) if strengths is None else list(strengths)
    if len(strengths) != len(patches):
        raise UsageError(f"{len(strengths)} strengths for {len(patches)} patches: give one for each")
    found = sorted(zip(patches, map(_finite, strengths), strict=True), key=lambda pair: pair[0].id)
    if len({patch.id for patch, _ in found}) < len(found):
        raise UsageError("the same patch is there twice: give it once, with the sum of the strengths")
    return found


def terms_of(
    touching: Sequence[tuple[Patch, float, str]],
) -> tuple[list[tuple[float, Delta]], list[tuple[float, torch.Tensor]]]:
    """What patches add to one tensor and what they replace it by; one of the two lists is empty.

    Args:
        touching: patches, their strengths, and what each calls the tensor.

    Raises:
        UsageError: one adds to what another replaces, or they need different shapes.
    """
    active = [entry for entry in touching if entry[1]]
    added = [(one * patch.manifest.scale, patch.deltas[name]) for patch, one, name in active if name in patch.deltas]
    put = [(one, patch.replacements[name]) for patch, one, name in active if name in patch.replacements]
    if added and put:
        raise UsageError(f"one patch adds to '{active[0][2]}' and another replaces it: apply one of them")
    shapes = sorted({patch.shape(name) for patch, _, name in active})
    if len(shapes) > 1:
        raise UsageError(f"'{active[0][2]}' has shape {shapes[0]} in one patch and {shapes[1]} in another")
    return added, put


def value_hash(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's values: of its bytes as float32, so that it survives loading bf16 weights as float32.

    float64 and integer tensors are hashed as they are. The shape does not count.
    """
    flat = tensor.detach().reshape(-1)
    wide = flat.is_floating_point() and flat.dtype != torch.float64
    parts = [dtype_name(tensor).encode() if not wide else b"float32"]
    for start in range(0, flat.numel(), CHUNK):
        piece = flat[start : start + CHUNK].cpu()
        parts.append(sha256_of_parts([bytes_of(piece.float() if wide else piece)]).encode())
    return sha256_of_parts(parts)


def pristine_hashes(before: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, str]:
    """What `Manifest.pristine` holds: the `value_hash` of each of the tensors `names` in `before`."""
    return {name: value_hash(before[name]) for name in names}


def _bytes_hash(tensor: torch.Tensor) -> str:
    return sha256_of_parts([bytes_of(tensor)])


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise UsageError(f"a patch cannot be scaled by {number}: expected a finite number")
    return float(number)
