"""Whether two runs answered the same questions in the same way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from uphold.core.errors import NotComparableError
from uphold.core.runs import Run, run_key
from uphold.measure.joined import joined

_HASH = re.compile(r"(sha256:)?[0-9a-f]{16,}")
_LONGEST = 40
_MISSING = object()


def check_comparable(old: Run, new: Run, allow_mismatch: bool = False) -> list[str]:
    """Remarks on how two comparable runs still differ (kernel, dtype, library versions).

    Args:
        old: the run of the version that users have.
        new: the run of the version that is to replace it.
        allow_mismatch: remark on what was asked differently, instead of refusing.

    Raises:
        NotComparableError: they are the same run, or did not answer the same questions in the same way; the message
            lists every difference.
    """
    if run_key(old.fingerprint) == run_key(new.fingerprint):
        raise NotComparableError(
            f"'{old.name}' and '{new.name}' are one and the same run (equal weights, task and settings): "
            "name two different versions"
        )
    ours, theirs = (
        {key: value for key, value in run.fingerprint["task"].items() if key != "name"} for run in (old, new)
    )
    differing = list(_differences(ours, theirs))
    imported = "format" in ours and "format" in theirs
    described = [
        f"{key} ({_prompts(old, new) if imported and key == 'prompts' else _both(mine, other)})"
        for key, mine, other in differing
    ]
    if described and not allow_mismatch:
        raise NotComparableError(
            f"the runs of '{old.name}' and '{new.name}' on '{old.task}' are not comparable, they differ in "
            f"{', '.join(described)}: evaluate both in the same way, or go on with --allow-mismatch"
        )
    return [f"mismatch allowed: {text}" for text in described] + _remarks(old, new, imported)


def _remarks(old: Run, new: Run, imported: bool) -> list[str]:
    found = []
    for where, keys in (("model", ("dtype", "attention", "device")), ("batching", None), ("versions", None)):
        mine, other = (dict(run.fingerprint.get(where, {})) for run in (old, new))
        if keys is not None:
            mine, other = ({key: own.get(key) for key in keys} for own in (mine, other))
        found += [(f"{where}.{key}", a, b) for key, a, b in _differences(mine, other)]
    if imported and found:
        # What another tool was run with is its user's concern: one line is enough.
        return [f"the logs differ in {', '.join(f'{key} ({_both(a, b)})' for key, a, b in found)}"]
    return [f"the runs differ in {key}: {_short(a)} (old) against {_short(b)} (new)" for key, a, b in found]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, old value, new value) of every entry that differs; those of nested mappings have dotted names."""
    for key in sorted(old.keys() | new.keys(), key=str):
        mine, other = old.get(key, _MISSING), new.get(key, _MISSING)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            yield from ((f"{key}.{inner}", a, b) for inner, a, b in _differences(mine, other))
        elif mine != other:
            yield str(key), mine, other


def _both(old: Any, new: Any) -> str:
    if all(isinstance(value, str) and _HASH.fullmatch(value) for value in (old, new)):
        return "differs"
    ours, theirs = _short(old), _short(new)
    return f"{ours} against {theirs}" if ours != theirs else "differs"


def _short(value: Any) -> str:
    """One line of at most `_LONGEST` characters; a hash by its first digits."""
    if value is _MISSING:
        return "not set"
    text = " ".join(str(value).split())
    limit = 8 if _HASH.fullmatch(text) else _LONGEST
    return text if len(text) <= limit else text[:limit] + "…"


def _prompts(old: Run, new: Run) -> str:
    """How many instances were asked with another prompt, for runs that say so by a hash only."""
    with joined(old, new) as connection:
        shared, changed, example, alone = connection.execute(_PROMPTS).fetchall()[0]
    text = f"{changed} of {shared} shared instances were asked with another prompt"
    if example is not None:
        text += f", e.g. {_short(example)}"
    return text + (f"; {alone} instances are in one run only" if alone else "")


_PROMPTS = """
SELECT count(*) FILTER (shared), count(*) FILTER (shared AND changed), min(id) FILTER (shared AND changed),
       count(*) FILTER (NOT shared)
FROM (
    SELECT old_id AS id, old_id IS NOT NULL AND new_id IS NOT NULL AS shared,
           old_input IS DISTINCT FROM new_input AS changed
    FROM pairs
)
"""
