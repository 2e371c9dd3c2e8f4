"""What is applied to a model folder, and what is needed to take it off again.

`uphold-patches/` in the folder holds

    ledger.json      which patches, at which strength; hashes of the files before the first patch and now
    pristine/        the touched tensors as they were before the first patch
    ID.safetensors   each patch, since taking one off means adding the others up again
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from uphold.core.errors import CorruptError, UsageError
from uphold.core.storage import read_json, write_json
from uphold.models.checkpoint import Checkpoint, open_checkpoint
from uphold.models.checkpoint_writer import CheckpointWriter
from uphold.models.patches.file import load_patch, save_patch
from uphold.models.patches.journal import Place, is_plain
from uphold.models.patches.patch import Patch

LEDGER = "ledger.json"
_PRISTINE = "pristine"
_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """A patch that is applied."""

    patch: Patch
    strength: float
    forced: bool
    """Whether it was put on weights that it was not made from."""
    file: str
    """What its file was called."""

    def facts(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"id": self.patch.id, "strength": self.strength, "forced": self.forced, "file": self.file}


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of one file's bytes."""

    pristine: str
    """Before the first patch."""
    now: str
    """With the patches that are applied."""


@dataclass(frozen=True)
class Ledger:
    """All patches that are applied in one place, in the order in which they were."""

    entries: Sequence[Entry] = ()
    files: Mapping[str, Hashes] = field(default_factory=dict)
    """The files that were written since the first patch that is still on."""
    tensors: Mapping[str, str] = field(default_factory=dict)
    """The touched tensors and the files that they are in."""

    def touching(self, name: str) -> list[tuple[Patch, float, str]]:
        """The patches that touch the tensor `name`, in the order in which they are summed."""
        found = [(one.patch, one.strength, name) for one in self.entries if name in one.patch.names]
        return sorted(found, key=lambda entry: entry[0].id)

    def write(self, folder: Path) -> None:
        """Write the ledger and the patches into `folder`."""
        folder.mkdir(exist_ok=True)
        for one in self.entries:
            save_patch(one.patch, folder / f"{one.patch.id}.safetensors")
        content = {
            "format": _FORMAT,
            "patches": [one.facts() for one in self.entries],
            "files": {name: vars(hashes) for name, hashes in self.files.items()},
            "tensors": dict(self.tensors),
        }
        write_json(folder / LEDGER, content)


def read_ledger(place: Place) -> Ledger:
    """What is applied at `place`; an empty ledger where nothing is.

    Raises:
        CorruptError: its files do not hold what was written to them.
    """
    path = place.state / LEDGER
    if not place.state.exists():
        return Ledger()
    content = read_json(path)
    try:
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}, this version of Uphold reads {_FORMAT}")
        entries = [_entry(place, facts) for facts in content["patches"]]
        files = {str(name): Hashes(str(one["pristine"]), str(one["now"])) for name, one in content["files"].items()}
        tensors = {str(name): str(file) for name, file in content["tensors"].items()}
        strange = [name for name in files if not is_plain(name)] + sorted(set(tensors.values()) - files.keys())
        if strange:
            raise ValueError(f"the file {strange[0]!r}")
        if {name for one in entries for name in one.patch.names} != tensors.keys():
            raise ValueError("its patches and its tensors do not belong together")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptError(f"{path} does not hold what was written to it ({reason}); copy the folder again") from error
    return Ledger(entries, files, tensors)


def _entry(place: Place, facts: Mapping[str, Any]) -> Entry:
    name, strength = facts["id"], facts["strength"]
    if not isinstance(name, str) or not is_plain(name) or type(strength) is not float or not math.isfinite(strength):
        raise ValueError("an entry that is none")
    path = place.state / f"{name}.safetensors"
    patch = load_patch(path)
    if patch.id != name:
        raise CorruptError(f"{path} is not the patch that was applied; copy the folder again")
    return Entry(patch, strength, facts["forced"] is True, str(facts["file"]))


def pristine_folder(state: Path) -> Path:
    """Where the pristine tensors lie in a state folder."""
    return state / _PRISTINE


def write_pristine(state: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Keep `tensors`, bit for bit."""
    plan = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with CheckpointWriter(pristine_folder(state), plan) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


class Pristine(AbstractContextManager["Pristine"]):
    """A model's tensors as they were before the first patch."""

    def __init__(self, place: Place, ledger: Ledger) -> None:
        """Open them; to be used in a `with` block.

        Raises:
            CorruptError: a touched tensor is not among those that were kept, or not as it is in the model.
        """
        self.checkpoint = open_checkpoint(place.path)
        self._kept: Checkpoint | None = open_checkpoint(pristine_folder(place.state)) if ledger.tensors else None
        self._tensors = ledger.tensors
        for name, file in ledger.tensors.items():
            kept = self._kept.infos.get(name) if self._kept else None
            info = self.checkpoint.infos.get(name)
            if info is None or kept is None or (info.dtype, info.shape, info.file.name) != (*kept[:2], file):
                raise CorruptError(
                    f"{place.state} does not keep '{name}' as {place.path} needs it; copy the folder again"
                )

    def tensor(self, name: str) -> torch.Tensor | None:
        """The tensor `name` before the first patch; None where there is none of that name."""
        if self._kept is not None and name in self._tensors:
            return self._kept.tensor(name)
        return self.checkpoint.tensor(name) if name in self.checkpoint.infos else None

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self.checkpoint.close()
        if self._kept is not None:
            self._kept.close()


def find_entries(ledger: Ledger, wanted: Sequence[str], where: str) -> list[Entry]:
    """The applied patches that `wanted` names: by a patch file, by the name it had, or by the start of an id.

    Raises:
        UsageError: one is not applied, or a start fits several.
    """
    found: list[Entry] = []
    for text in wanted:
        own = load_patch(text).id if Path(text).is_file() else ""
        exact = [one for one in ledger.entries if one.patch.id in (own, text) or one.file == text]
        hits = exact or [one for one in ledger.entries if len(text) >= 4 and one.patch.id.startswith(text)]
        if len(hits) != 1:
            applied = ", ".join(f"{one.patch.id[:12]} ({one.file})" for one in ledger.entries) or "none"
            what = "fits several patches" if hits else "is not applied"
            raise UsageError(f"'{text}' {what} in {where}; applied there: {applied}")
        found += [one for one in hits if one not in found]
    return found
