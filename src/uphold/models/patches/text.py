"""Patches in words, for people and programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from uphold.models.patches.delta import Delta, dtype_name
from uphold.models.patches.ledger import Entry
from uphold.models.patches.patch import Patch, manifest_json
from uphold.models.patches.place import Switched
from uphold.models.patches.quantise import Quantised

_ROWS = 40
"""Tensors that a table lists."""
_LONG = 200
"""Characters of JSON from which a table only counts what a fact holds."""


def describe_patch(patch: Patch) -> str:
    """One line: how much of a model it changes, and how large it is."""
    changed = sum(delta.count for delta in patch.deltas.values())
    whole = sum(delta.elements for delta in patch.deltas.values())
    parts = [f"{changed:,} of {whole:,} numbers in {_many(len(patch.deltas), 'tensor')}"] if patch.deltas else []
    if patch.replacements:
        parts.append(f"{_many(len(patch.replacements), 'tensor')} replaced")
    how = f", {patch.manifest.quantiser}" if patch.manifest.quantiser else ""
    return f"patch {patch.id[:12]} ({patch.manifest.method}): {', '.join(parts)}{how}, {size(patch.nbytes)}"


def patch_table(patch: Patch) -> str:
    """What a patch is, what it was made from, and which tensors it touches."""
    manifest = patch.manifest
    lines = [describe_patch(patch)]
    lines.append(f"made from {manifest.source or 'a model in memory'}, weights {manifest.weights[:12] or 'unknown'}")
    if manifest.paper:
        lines.append(f"paper {manifest.paper}")
    if manifest.scale != 1:
        lines.append(f"scale {manifest.scale:g}")
    for title, facts in (("figures", manifest.figures), ("facts", manifest.facts)):
        lines += [f"{title} {name}: {_short(value)}" for name, value in facts.items()]
    rows = [(name, *_row(patch, name)) for name in patch.names]
    width = max(len(name) for name, *_ in rows[:_ROWS])
    lines += [f"  {name:<{width}}  {shape:<16}  {kind}" for name, shape, kind in rows[:_ROWS]]
    if len(rows) > _ROWS:
        lines.append(f"  and {len(rows) - _ROWS:,} more (--json lists all)")
    return "\n".join(lines)


def patch_facts(patch: Patch, file: str) -> dict[str, Any]:
    """All of it but the numbers, as plain JSON."""
    layers = {}
    for name in patch.names:
        one: Any = patch.deltas.get(name, patch.replacements.get(name))
        layers[name] = {"shape": list(patch.shape(name)), "kind": _row(patch, name)[1], "bytes": one.nbytes}
    return {
        "file": file,
        "id": patch.id,
        "bytes": patch.nbytes,
        "manifest": manifest_json(patch.manifest),
        "layers": layers,
    }


def describe_entries(model: str, entries: Sequence[Entry]) -> str:
    """Which patches are on a model."""
    if not entries:
        return f"{model}: no patch is applied in place"
    lines = [f"{model}: {_many(len(entries), 'patch', 'patches')} applied"]
    for one in entries:
        forced = ", forced" if one.forced else ""
        lines.append(f"  {one.file or '-'} x {one.strength:g}{forced}: {describe_patch(one.patch)}")
    return "\n".join(lines)


def describe_switched(done: Switched) -> str:
    """What a change of files did."""
    on = ", ".join(f"{one.file or one.patch.id[:12]} x {one.strength:g}" for one in done.applied) or "no patch"
    lines = [f"{done.path}: {on}; {_many(len(done.files), 'file')} written"]
    if done.lost:
        lines.append(f"{done.lost:,} of {done.asked:,} changes are lost to rounding: the weights' type is too coarse")
    if done.restored:
        lines.append(f"{_many(len(done.restored), 'file')} restored: every byte as before the first patch (SHA-256)")
    return "\n".join(lines)


def size(count: int) -> str:
    """Bytes in words."""
    for unit, limit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} bytes"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    listed = isinstance(value, dict | list) and len(text) > _LONG
    return f"{_many(len(value), 'entry', 'entries')} (--json lists all)" if listed else text


def _row(patch: Patch, name: str) -> tuple[str, str]:
    shape = "x".join(map(str, patch.shape(name))) or "scalar"
    if name in patch.replacements:
        return shape, f"replaced ({dtype_name(patch.replacements[name])})"
    return shape, _kind(patch.deltas[name])


def _kind(delta: Delta) -> str:
    numbers = str(delta.values.scheme) if isinstance(delta.values, Quantised) else "float32"
    if delta.indices is None:
        return f"dense {numbers}"
    if delta.dim is None:
        return f"{delta.count:,} of {delta.elements:,} elements, {numbers}"
    what = {0: "row", 1: "column"}.get(delta.dim, f"slice of dimension {delta.dim}")
    named = ", ".join(map(str, delta.indices[:8].tolist())) + (", ..." if len(delta.indices) > 8 else "")
    return f"{_many(len(delta.indices), what)} ({named}), {numbers}"


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"
