"""A patched copy of a model, in a folder or file of its own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.storage import atomic_folder, atomic_path, disk_errors, read_json, write_json
from uphold.models.checkpoint_writer import SHARD_SIZE, CheckpointWriter
from uphold.models.load import ADAPTER_FACTS
from uphold.models.patches.apply import check_fit
from uphold.models.patches.journal import Place, settle, sync
from uphold.models.patches.ledger import Entry, Ledger, Pristine, read_ledger
from uphold.models.patches.patch import Patch, in_order
from uphold.models.patches.place import Switched
from uphold.models.patches.source import weights_path
from uphold.models.patches.write import Tally, pieces, write_patched

_TORCH_WEIGHTS = (".bin", ".bin.index.json", ".pt", ".pth")


def apply_to_copy(
    model: str | Path,
    patches: Sequence[Patch],
    out: Path,
    strengths: Sequence[float] | None = None,
    *,
    files: Sequence[str] = (),
    force: bool = False,
    progress: Progress = silent,
) -> Switched:
    """Write a copy of a model with patches on it; the model itself is not touched.

    Patches that are on the model in place are part of the sum. Weights of torch are written as safetensors.

    Args:
        model: a model reference, an adapter folder or a weights file.
        patches: at least one; their order does not count.
        out: a folder that does not exist or is empty; a `.safetensors` file where `model` is a file.
        strengths: one for each; 1 by default.
        files: what the patches' files are called.
        force: also where the weights are not those that the patches were made from. Shapes must fit all the same.
        progress: called after each tensor.

    Raises:
        UsageError: a patch does not fit, or there is something at `out`.
        StorageError: the disk refused; nothing is left at `out`.
    """
    place = Place(weights_path(model).resolve())
    out = Path(out)
    _check_out(place, out)
    in_order(patches, strengths)
    strengths = [1.0] * len(patches) if strengths is None else list(strengths)
    called = list(files) or [""] * len(patches)
    settle(place)
    ledger = read_ledger(place)
    new = [Entry(patch, float(one), force, name) for patch, one, name in zip(patches, strengths, called, strict=True)]
    ahead = Ledger([*ledger.entries, *new])
    with Pristine(place, ledger) as pristine:
        for patch in patches:
            check_fit(patch, pristine.tensor, pristine.checkpoint.infos, str(model), force)
        names = {name for one in ahead.entries for name in one.patch.names}
        tally, done = Tally(), 0

        def step() -> None:
            nonlocal done
            done += 1
            progress("write weights", min(done, len(names)), len(names))

        if any(info.start < 0 for info in pristine.checkpoint.infos.values()):
            if place.path.is_file():
                written = _write_anew_file(place, out, pristine, ahead, tally, step)
            else:
                written = _write_anew(place, out, pristine, ahead, tally, step)
        elif place.path.is_file():
            with atomic_path(out) as temporary:
                _write_file(place.path, temporary, pristine, ahead, tally, step)
            written = [out.name]
        else:
            written = _write_folder(place, out, pristine, ahead, tally, step)
    return Switched(out, ahead.entries, written, [], tally.asked, tally.lost)


def _check_out(place: Place, out: Path) -> None:
    if place.path.is_file() and out.suffix != ".safetensors":
        raise UsageError(f"{place.path} is a file: name a .safetensors file with --out, not '{out}'")
    if place.path.is_dir() and out.resolve().is_relative_to(place.path):
        raise UsageError(f"{out} is in the folder of the model itself: name a place beside it with --out")
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise UsageError(f"there is something at {out} already: name a new place with --out")


def _write_file(
    source: Path, target: Path, pristine: Pristine, ahead: Ledger, tally: Tally, step: Callable[[], None]
) -> None:
    names = {name for one in ahead.entries for name in one.patch.names}
    infos = pristine.checkpoint.infos
    tensors = [
        (name, infos[name], tensor)
        for name in infos
        if name in names and infos[name].file.name == source.name and (tensor := pristine.tensor(name)) is not None
    ]
    write_patched(source, target, tensors, ahead.touching, tally, step)


def _write_folder(
    place: Place, out: Path, pristine: Pristine, ahead: Ledger, tally: Tally, step: Callable[[], None]
) -> list[str]:
    names = {name for one in ahead.entries for name in one.patch.names}
    files = {info.file.name for name, info in pristine.checkpoint.infos.items() if name in names}
    with atomic_folder(out) as temporary:
        _copy_others(place, temporary, lambda name: name in files)
        for file in sorted(files):
            _write_file(place.path / file, temporary / file, pristine, ahead, tally, step)
            sync(temporary / file)
        _write_facts(place, temporary, ahead)
    return sorted(files)


def _write_anew_file(
    place: Place, out: Path, pristine: Pristine, ahead: Ledger, tally: Tally, step: Callable[[], None]
) -> list[str]:
    """A weights file that torch wrote, as one safetensors file."""
    folder = out.with_name(f".{out.name}.new")
    (file,) = _write_anew(place, folder, pristine, ahead, tally, step, shard_size=sys.maxsize)
    with disk_errors(out):
        os.replace(folder / file, out)
        shutil.rmtree(folder)
    return [out.name]


def _write_anew(
    place: Place,
    out: Path,
    pristine: Pristine,
    ahead: Ledger,
    tally: Tally,
    step: Callable[[], None],
    *,
    shard_size: int = SHARD_SIZE,
) -> list[str]:
    """Weights that torch wrote, as safetensors."""
    infos = pristine.checkpoint.infos
    stem = "adapter_model" if (place.path / "adapter_config.json").is_file() else "model"
    announced = {name: (info.dtype, info.shape) for name, info in infos.items()}
    with CheckpointWriter(out, announced, shard_size=shard_size, stem=stem) as writer:
        for name in infos:
            tensor = pristine.tensor(name)
            assert tensor is not None
            touching = ahead.touching(name)
            for piece in pieces(name, tensor.contiguous(), touching):
                writer.write(name, piece.values, piece.start)
                tally.asked, tally.lost = tally.asked + piece.asked, tally.lost + piece.lost
            if touching:
                step()
        if place.path.is_dir():
            _copy_others(place, writer.folder, lambda name: name.endswith(_TORCH_WEIGHTS))
        _write_facts(place, writer.folder, ahead)
        return sorted(path.name for path in writer.folder.glob("*.safetensors"))


def _copy_others(place: Place, target: Path, weights: Callable[[str], bool]) -> None:
    """Everything of a model's folder but its patched weights and what `uphold patch` keeps there."""
    own = (place.state.name, place.staging.name)
    for path in sorted(place.path.iterdir()):
        if path.name in own or weights(path.name):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _write_facts(place: Place, folder: Path, ahead: Ledger) -> None:
    """Say in the model's side file which patches are part of its weights."""
    source = place.path / ADAPTER_FACTS
    found: Any = read_json(source) if place.path.is_dir() and source.is_file() else {}
    facts = found if isinstance(found, dict) else {}
    earlier = facts.get("patches", [])
    patches = [*(earlier if isinstance(earlier, list) else []), *(one.facts() for one in ahead.entries)]
    write_json(folder / ADAPTER_FACTS, facts | {"patches": patches})
