"""Pairs of models: made in memory, written to a folder, loaded again.

A pair is a `Loaded` like any other: it can be named wherever a model can be named, evaluated and compared. Its model is
a `ModelPair`; there are no weights to train or to export.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import CorruptError, ModelError
from uphold.models.load import Loaded, check_same_tokenizer, check_single, load_files
from uphold.models.pair_file import GATE, Gating, Member, PairFile, Parameters, content_of, gate_hash, read_pair
from uphold.models.pair_model import Gate, ModelPair
from uphold.models.processes import current

if TYPE_CHECKING:
    from uphold.models.reference import ModelFiles


def pair_of(old: Loaded, new: Loaded, parameters: Parameters, gate: Gate | None = None, name: str = "pair") -> Loaded:
    """Two models as one.

    Args:
        old: the version that users have.
        new: the version that is to replace it.
        parameters: how they are asked.
        gate: for `Gating`; what is in it now goes into the fingerprint.
        name: what it is called.

    Raises:
        TokenizerMismatchError: the models do not share a token-id map.
        UsageError: one of them is a pair itself.
    """
    check_single(old)
    check_single(new)
    check_same_tokenizer(old, new)
    model: Any = ModelPair(old, new, parameters, gate)
    return Loaded(model, new.tokenizer, name, description(model).fingerprint(name), None)


def save_pair(pair: Loaded, folder: Path) -> Loaded:
    """Write a pair's description, and its gate, to `folder`; returns it under the name of that folder."""
    current().once(lambda: description(pair.model).save(folder, gate_bytes(pair.model.gate)))
    return pair._replace(name=str(folder), fingerprint=pair.fingerprint | {"name": str(folder)})


def load_pair(files: ModelFiles, fingerprint: dict[str, Any], device_map: str | None = None) -> Loaded:
    """The pair that a reference names, whose fingerprint is known.

    Raises:
        ModelError: one of its models cannot be loaded.
        CorruptError: its gate cannot be read.
    """
    assert files.pair is not None
    old, new = (load_files(one, device_map) for one in (files.pair.old, files.pair.new))
    how = read_pair(files.pair.folder).parameters
    made = pair_of(old, new, how, _load_gate(files.pair.folder / GATE, new, how), files.name)
    return made._replace(fingerprint=fingerprint)


def description(model: ModelPair) -> PairFile:
    """What the folder of a pair says."""
    old, new = (Member(_reference(one), content_of(one.fingerprint)) for one in model.members)
    return PairFile(model.how, old, new, gate_hash(gate_bytes(model.gate)))


def gate_bytes(gate: Gate | None) -> bytes | None:
    """A gate as a safetensors file."""
    from safetensors.torch import save

    if gate is None:
        return None
    return bytes(save({name: value.detach().cpu().contiguous() for name, value in gate.state_dict().items()}))


def fresh_gate(new: Loaded, width: int, seed: int) -> Gate:
    """An untrained gate for the hidden states before the new model's output head.

    Raises:
        ModelError: the model does not show them.
    """
    head = new.model.get_output_embeddings()
    if head is None:
        raise ModelError(f"'{new.name}' does not show the hidden states before its output head, which a gate needs")
    return Gate(int(head.weight.shape[1]), width, seed).to(new.model.device)


def _load_gate(path: Path, new: Loaded, how: Parameters) -> Gate | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not isinstance(how, Gating):
        return None
    gate = fresh_gate(new, how.width, 0)
    try:
        gate.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CorruptError(
            f"the gate {path} cannot be read ({str(error).splitlines()[0]}); make the pair again"
        ) from error
    return gate.eval()


def _reference(loaded: Loaded) -> str | None:
    """What leads to a model from any folder; None for one that was handed over loaded."""
    files = loaded.files
    if files is None:
        return None
    typed = files.name if files.adapter is None else files.name.rpartition("+")[0]
    place = Path(typed).expanduser()
    base = str(place.resolve()) if place.exists() else typed
    return base if files.adapter is None else f"{base}+{files.adapter.resolve()}"
