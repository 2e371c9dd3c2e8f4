"""Patches on a model folder, adapter folder or safetensors file where it lies: put on, and taken off byte for byte.

The weight files keep their headers and their size; only the bytes of the touched tensors change. What is written is
checked by hash before it takes its place, and a kill at any moment leaves the old files or the new ones
(`uphold.models.patches.journal`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uphold.core.errors import CorruptError, UsageError
from uphold.core.hashing import sha256_of_file
from uphold.core.progress import Progress, silent
from uphold.models.patches.apply import check_fit
from uphold.models.patches.journal import Place, Staging, changing, settle
from uphold.models.patches.ledger import Entry, Hashes, Ledger, Pristine, find_entries, read_ledger, write_pristine
from uphold.models.patches.patch import Patch, in_order
from uphold.models.patches.source import weights_path
from uphold.models.patches.write import Tally, write_patched


@dataclass(frozen=True)
class Switched:
    """What a change of files did."""

    path: Path
    """The folder or file that was changed."""
    applied: Sequence[Entry]
    """All patches that are on it now."""
    files: Sequence[str]
    """The files that were written."""
    restored: Sequence[str]
    """Files that have, by hash, every byte that they had before the first patch; without a patch, all that ever were
    written."""
    asked: int
    """How many elements the patches on the written files were to change."""
    lost: int
    """How many of those did not change, since the files' dtype has no number that near."""


def apply_in_place(
    model: str | Path,
    patches: Sequence[Patch],
    strengths: Sequence[float] | None = None,
    *,
    files: Sequence[str] = (),
    force: bool = False,
    progress: Progress = silent,
) -> Switched:
    """Put patches on the files of a model, beside those that are on it already.

    Needs room on the disk for a second copy of each file that changes, and keeps the touched tensors as they were.

    Args:
        model: a model folder, an adapter folder or a safetensors file.
        patches: at least one; their order does not count.
        strengths: one for each; 1 by default.
        files: what the patches' files are called, for the ledger.
        force: also where the weights are not those that the patches were made from. Shapes must fit all the same.
        progress: called after each tensor.

    Raises:
        UsageError: a patch does not fit or is on it already, or the files are not ones to write to.
        CorruptError: the files are not as the last patch left them.
        StorageError: the disk refused; the model is as it was.
    """
    place = place_at(model)
    in_order(patches, strengths)
    strengths = [1.0] * len(patches) if strengths is None else list(strengths)
    called = list(files) or [""] * len(patches)
    with changing(place) as staging:
        ledger = read_ledger(place)
        for patch in patches:
            known = next((one for one in ledger.entries if one.patch.id == patch.id), None)
            if known is not None:
                raise UsageError(
                    f"this patch is on {place.path} already, at strength {known.strength:g}: "
                    "take it off first (uphold patch remove)"
                )
        with Pristine(place, ledger) as pristine:
            for patch in patches:
                check_fit(patch, pristine.tensor, pristine.checkpoint.infos, str(place.path), force)
            new = [
                Entry(patch, float(strength), force, name)
                for patch, strength, name in zip(patches, strengths, called, strict=True)
            ]
            return _switch(staging, ledger, [*ledger.entries, *new], pristine, progress)


def remove_in_place(model: str | Path, wanted: Sequence[str] | None = None, *, progress: Progress = silent) -> Switched:
    """Take patches off the files of a model; the others are put together again from the pristine weights.

    Args:
        model: what they were applied to.
        wanted: patch files, the names that they had, or starts of ids; all by default.
        progress: called after each tensor.

    Raises:
        UsageError: nothing is applied, or not what is wanted.
        CorruptError: the files are not as the last patch left them.
        StorageError: the disk refused; the model is as it was.
    """
    place = place_at(model)
    with changing(place) as staging:
        ledger = read_ledger(place)
        if not ledger.entries:
            raise UsageError(f"no patch is applied to {place.path}: there is nothing to take off")
        gone = ledger.entries if wanted is None else find_entries(ledger, wanted, str(place.path))
        with Pristine(place, ledger) as pristine:
            left = [one for one in ledger.entries if one not in gone]
            return _switch(staging, ledger, left, pristine, progress)


def applied_to(model: str | Path) -> list[Entry]:
    """The patches that are on the files of a model, in the order in which they were put on.

    A change that was killed half-way is finished or cleared away first.

    Raises:
        CorruptError: what was kept of them does not hold what was written to it.
    """
    place = Place(weights_path(model).resolve())
    settle(place)
    return list(read_ledger(place).entries)


def place_at(model: str | Path) -> Place:
    """The files of a model, where they may be changed.

    Raises:
        UsageError: it is not a folder or safetensors file of the user's own.
    """
    path = Path(model).expanduser()
    if not path.exists():
        raise UsageError(
            f"'{model}' is no folder or file here: only those are patched in place; "
            "'uphold patch apply' with --out makes a patched copy"
        )
    return Place(path.resolve() if path.is_dir() else path.parent.resolve() / path.name)


def _switch(
    staging: Staging, ledger: Ledger, entries: Sequence[Entry], pristine: Pristine, progress: Progress
) -> Switched:
    """Write the model with `entries` on it beside the old one, check it, and put it in its place."""
    place, infos = staging.place, pristine.checkpoint.infos
    names = {name for one in entries for name in one.patch.names}
    ahead = Ledger(entries, tensors={name: infos[name].file.name for name in infos if name in names})
    changes = [name for name in infos if ledger.touching(name) != ahead.touching(name)]
    files = sorted({infos[name].file.name for name in changes})
    before = {file: _unchanged(place, file, ledger) for file in files}
    tally, hashes = Tally(), {file: known for file, known in ledger.files.items() if file not in files}
    done = 0
    every = [name for name in infos if infos[name].file.name in files and (name in names or name in ledger.tensors)]

    def step() -> None:
        nonlocal done
        done += 1
        progress("write weights", done, len(every))

    restored = []
    for file in files:
        tensors = [
            (name, infos[name], tensor)
            for name in every
            if infos[name].file.name == file and (tensor := pristine.tensor(name)) is not None
        ]
        target = staging.file(file)
        write_patched(place.folder / file, target, tensors, ahead.touching, tally, step)
        now = sha256_of_file(target)
        hashes[file] = Hashes(before[file], now)
        if file not in ahead.tensors.values():
            if now != before[file]:
                raise CorruptError(f"{place.folder / file} cannot be restored: what was kept of it has been changed")
            restored.append(file)
    if entries:
        staging.state.mkdir()
        kept = {name: tensor for name in ahead.tensors if (tensor := pristine.tensor(name)) is not None}
        write_pristine(staging.state, kept)
        Ledger(entries, hashes, ahead.tensors).write(staging.state)
    else:
        earlier = [place.folder / file for file in hashes if file not in files]
        whole = [path for path in earlier if path.is_file() and sha256_of_file(path) == hashes[path.name].pristine]
        restored += [path.name for path in whole]
    staging.commit(files)
    return Switched(place.path, entries, files, sorted(restored), tally.asked, tally.lost)


def _unchanged(place: Place, file: str, ledger: Ledger) -> str:
    """The hash that `file` had before the first patch.

    Raises:
        UsageError: it is not a file that is safe to replace.
        CorruptError: something else has changed it since the last patch.
    """
    path = place.folder / file
    if path.suffix != ".safetensors":
        raise UsageError(f"{path} is not safetensors: patch it into a new folder with --out")
    if path.is_symlink():
        raise UsageError(f"{path} is a link (to a download cache?): patch it into a new folder with --out")
    found = sha256_of_file(path)
    known = ledger.files.get(file)
    if known is None or known.now == known.pristine:
        return found
    if found != known.now:
        raise CorruptError(
            f"{path} was changed since it was patched: put the patched file back, or start from a fresh copy"
        )
    return known.pristine
