"""A patch out of two versions of a model: what the second changed, tensor by tensor."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from uphold.core.errors import EmptyError, UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.models.load import library_versions
from uphold.models.patches.delta import Delta, dtype_name
from uphold.models.patches.patch import Manifest, Patch, value_hash
from uphold.models.patches.quantise import Scheme, scheme
from uphold.models.patches.source import Weights, WeightsLike, open_weights

REGEX = "re:"
_STATISTICS = ("running_mean", "running_var")
"""What is replaced and not added to: a sum of variances may be negative."""


def make(
    before: WeightsLike,
    after: WeightsLike,
    *,
    names: Sequence[str] = (),
    keep: float | None = None,
    threshold: float = 0.0,
    quantiser: str | Scheme | None = None,
    scale: float = 1.0,
    method: str = "difference",
    paper: str = "",
    figures: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Patch:
    """What `after` changed against `before`.

    Tensors are read one by one; those that are equal are left out. Integer tensors and batch-norm statistics that
    differ become replacements. A delta is stored sparse where that is smaller. Memory: the patch, and one tensor.

    Args:
        before: what the patch is made from and meant for.
        after: what it leads to, with the same tensors.
        names: which tensors: names, globs, or regular expressions after `re:`; all by default.
        keep: share of each tensor's elements that is kept, those that changed most, in (0, 1].
        threshold: changes of at most this absolute size are left out.
        quantiser: `int8`, `int4`, `log`, `log:L`, `linear:L` or `tanh:L`; float32 by default.
        scale: every delta counts this many times.
        method: what the manifest says made it.
        paper: the method's source.
        figures: what was measured, for the manifest.
        facts: what else belongs to it, for the manifest.
        progress: called after each tensor.

    Raises:
        UsageError: the two do not have the same tensors, a pattern matches nothing, or an option is out of range.
        EmptyError: the two do not differ.
        ModelError: there are no weights at a place.
        CorruptError: a file does not hold what was written to it.
    """
    how = scheme(quantiser) if isinstance(quantiser, str) else quantiser
    if keep is not None and not 0 < keep <= 1:
        raise UsageError(f"cannot keep a share of {keep}: expected more than 0 and at most 1")
    if not (threshold >= 0 and math.isfinite(threshold)):
        raise UsageError(f"a threshold of {threshold}: expected a finite number, 0 or more")
    with open_weights(before) as old, open_weights(after) as new:
        chosen = _chosen(old, new, names)
        deltas: dict[str, Delta] = {}
        replacements: dict[str, torch.Tensor] = {}
        for done, name in enumerate(chosen, start=1):
            ours, theirs = old.tensor(name), new.tensor(name)
            _check_alike(name, ours, theirs)
            if not ours.is_floating_point() or name.rpartition(".")[2] in _STATISTICS:
                if not torch.equal(ours, theirs):
                    replacements[name] = theirs.to("cpu", ours.dtype, copy=True)
            else:
                delta = _difference(name, ours, theirs, keep, threshold)
                if delta is not None:
                    deltas[name] = delta if how is None else delta.quantised(how)
            progress("make a patch", done, len(chosen))
        touched = [*deltas, *replacements]
        if not touched:
            size = f" by more than {threshold:g}" if threshold else ""
            raise EmptyError(f"nothing to put into a patch: {len(chosen)} tensors were compared and none differs{size}")
        manifest = Manifest(
            method,
            {name: value_hash(old.tensor(name)) for name in touched},
            paper=paper,
            source=old.name,
            weights=old.hash,
            scale=scale,
            quantiser=str(how or ""),
            figures=figures or {},
            facts={"after": {"source": new.name, "weights": new.hash}, **(facts or {})},
            versions=library_versions(),
        )
    return Patch(deltas, manifest, replacements)


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Those of `names`, in their order, that one of `patterns` matches; all where there are no patterns.

    Args:
        names: of tensors.
        patterns: names, globs (`model.layers.0.*`), or regular expressions after `re:` (matched as a whole).

    Raises:
        UsageError: a pattern matches nothing, or is no regular expression.
    """
    found: set[str] = set()
    for pattern in patterns:
        try:
            expression = pattern.removeprefix(REGEX) if pattern.startswith(REGEX) else fnmatch.translate(pattern)
            compiled = re.compile(expression)
        except re.error as error:
            raise UsageError(f"'{pattern}' is no regular expression ({error})") from error
        hits = [name for name in names if compiled.fullmatch(name)]
        if not hits:
            hint = "a pattern is a name, a glob such as 'model.layers.0.*', or a regular expression after re:."
            raise unknown_name("layer", pattern, names, hint)
        found.update(hits)
    return [name for name in names if name in found] if patterns else list(names)


def _chosen(old: Weights, new: Weights, patterns: Sequence[str]) -> list[str]:
    every = [*old.names, *(name for name in new.names if name not in set(old.names))]
    chosen = matching(every, patterns)
    for one, other in ((old, new), (new, old)):
        lacking = sorted(set(chosen) - set(other.names))
        if lacking:
            raise UsageError(
                f"'{lacking[0]}' is in {one.name or 'one state dict'} and not in {other.name or 'the other'}: "
                "a patch needs two versions of one architecture; choose what both have with --layers"
            )
    return chosen


def _check_alike(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    if ours.shape != theirs.shape:
        raise UsageError(
            f"'{name}' has shape {tuple(ours.shape)} before and {tuple(theirs.shape)} after: "
            "a patch needs two versions of one architecture; choose what is alike with --layers"
        )
    if ours.is_floating_point() != theirs.is_floating_point():
        raise UsageError(f"'{name}' holds {dtype_name(ours)} before and {dtype_name(theirs)} after: expected one kind")


def _difference(
    name: str, ours: torch.Tensor, theirs: torch.Tensor, keep: float | None, threshold: float
) -> Delta | None:
    """What is added to `ours` to get `theirs`; None where that is nothing."""
    wide = torch.float64 if torch.float64 in (ours.dtype, theirs.dtype) else torch.float32
    change = (theirs.cpu().to(wide) - ours.cpu().to(wide)).float().reshape(-1)
    if not bool(torch.isfinite(change).all()):
        raise UsageError(f"'{name}' holds a number that is not finite, or changes by too much: leave it out (--layers)")
    size = change.abs()
    kept = size > threshold
    if keep is not None and change.numel():
        top = torch.zeros_like(kept)
        top[torch.topk(size, math.ceil(keep * change.numel()), sorted=False).indices] = True
        kept &= top
    if not bool(kept.any()):
        return None
    if bool(kept.all()):
        return Delta(tuple(ours.shape), change)
    indices = kept.nonzero().reshape(-1)
    return Delta(tuple(ours.shape), change[indices], indices).smallest()
