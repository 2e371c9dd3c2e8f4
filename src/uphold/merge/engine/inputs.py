"""The models of a merge: their weights, opened, and what their configs say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uphold.core.errors import CorruptError, ModelError, UsageError
from uphold.core.hashing import sha256_of, sha256_of_file
from uphold.core.storage import read_json
from uphold.merge.engine.lora import Update, read_updates
from uphold.models.checkpoint import Checkpoint, open_checkpoint
from uphold.models.endpoint_reference import is_endpoint
from uphold.models.fingerprint import weights_hash
from uphold.models.load import ADAPTER_FACTS
from uphold.models.reference import ModelFiles, find_model

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Input:
    """One model."""

    name: str
    """As the recipe names it."""
    checkpoint: Checkpoint
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its config.json; empty where there is none."""
    updates: Mapping[str, Update] = field(default_factory=dict)
    """What its adapter changes, by the names of weights."""
    files: ModelFiles | None = None
    """None for a single file of weights, and for tensors in memory."""
    adapter: Checkpoint | None = None

    @property
    def folder(self) -> Path | None:
        """The folder of config and tokenizer."""
        return self.files.base if self.files is not None else None

    def text_config(self, key: str) -> Any:
        """A value of the config, or of its part about text; None where there is none."""
        if key in self.config:
            return self.config[key]
        part = self.config.get("text_config")
        return part.get(key) if isinstance(part, dict) else None

    def facts(self, weights: str) -> dict[str, Any]:
        """What provenance says of it: its name, and hashes: of its weights (given), config, tokenizer and adapter."""
        adapter = None
        if self.adapter is not None:
            config = sha256_of_file(self.adapter.path / "adapter_config.json")
            adapter = sha256_of([self.adapter.content_hash(), config])
        return {
            "model": self.name,
            "weights": weights,
            "config": sha256_of(self.config),
            "tokenizer": tokenizer_facts(self),
            "adapter": adapter,
        }

    def close(self) -> None:
        """Let go of its files."""
        self.checkpoint.close()
        if self.adapter is not None:
            self.adapter.close()


def open_input(reference: str) -> Input:
    """Open a model: a reference as everywhere else, with a LoRA or without, or a single file of weights.

    Raises:
        ModelError: it cannot be opened, or its weights are quantised.
        UsageError: it is an endpoint or a pair, which have no weights of their own.
    """
    if is_endpoint(reference):
        raise UsageError(f"'{reference}' is an endpoint: there are no weights to merge")
    path = Path(reference).expanduser()
    if path.suffix in WEIGHT_FILES and path.is_file():
        return Input(reference, open_checkpoint(path))
    files = find_model(reference)
    if files.pair is not None:
        raise UsageError(f"'{reference}' is a pair of models: name one of the two")
    if files.is_gguf:
        raise ModelError(f"'{reference}' is a GGUF file: only safetensors and torch checkpoints can be merged")
    config = read_json(files.base / "config.json")
    if not isinstance(config, dict):
        raise CorruptError(f"{files.base / 'config.json'} is no mapping; copy it again")
    if config.get("quantization_config"):
        raise ModelError(f"'{reference}' is quantised: merge the unquantised weights")
    checkpoint = open_checkpoint(files.base)
    if files.adapter is None:
        return Input(reference, checkpoint, config, files=files)
    _check_base(files.adapter, files.base, reference)
    updates, adapter = read_updates(files.adapter, checkpoint, reference)
    return Input(reference, checkpoint, config, updates, files, adapter)


def _check_base(adapter: Path, base: Path, name: str) -> None:
    path = adapter / ADAPTER_FACTS
    facts = read_json(path) if path.is_file() else {}
    if facts.get("base_weights") not in (None, weights_hash(base)):
        raise ModelError(
            f"'{name}': the adapter was trained on another base ('{facts.get('base', 'unknown')}'): "
            "name that one before the +"
        )


def tokenizer_facts(one: Input) -> str | None:
    """A hash of a model's token-id map; None where it has no tokenizer file."""
    path = one.folder / "tokenizer.json" if one.folder is not None else None
    if path is None or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        added = [[token["id"], token["content"]] for token in content.get("added_tokens") or []]
        return sha256_of([content["model"].get("vocab"), added])
    except (ValueError, KeyError, TypeError, AttributeError):
        return sha256_of_file(path)
