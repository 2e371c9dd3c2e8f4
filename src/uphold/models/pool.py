"""Models on loan, one base in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uphold.models.encode import Encoder
from uphold.models.endpoint_reference import is_endpoint, parse_endpoint
from uphold.models.engine import EndpointEngine, Engine, LocalEngine, Meter
from uphold.models.fingerprint import files_fingerprint
from uphold.models.load import Loaded, ModelLike, attach_adapter, load, load_base, load_files
from uphold.models.reference import ModelFiles, find_model


class ModelPool:
    """Lends models one after the other.

    Models that share a base and differ by adapters are served by one base in memory: asking for the next one takes the
    adapter of the last one off, so a `Loaded` from here is good until the next call of `load`. Models with one
    tokenizer share what was tokenised.
    """

    def __init__(self, device_map: str | None = None) -> None:
        """Start empty.

        Args:
            device_map: how a model is spread over several devices (accelerate's `auto`, `balanced`, `sequential`); None
                puts it on one.
        """
        self.device_map = device_map
        self._base: Any = None
        self._tokenizer: Any = None
        self._key: tuple[Any, ...] = ()
        self._encoders: dict[str | int, Encoder] = {}
        self._weights: dict[str, tuple[int, int, int]] = {}

    def engine(self, model: ModelLike, batch_tokens: int, meter: Meter | None = None) -> Engine:
        """`model` ready to be asked; a reference is loaded only if it is not here already."""
        if is_endpoint(model):
            return EndpointEngine(parse_endpoint(model), meter)
        loaded = self.load(model)
        # Only the hash of a tokenizer's files says all that it does: one in memory is hashed by its token ids, and all
        # GGUF files give one word.
        by_files = loaded.files is not None and not loaded.files.is_gguf
        key = str(loaded.fingerprint["tokenizer"]) if by_files else id(loaded.tokenizer)
        encoder = self._encoders.setdefault(key, Encoder(loaded.tokenizer))
        if "pair" in loaded.fingerprint:
            from uphold.models.pair_engine import pair_engine

            return pair_engine(loaded, batch_tokens, encoder, meter)
        return LocalEngine(loaded, batch_tokens, encoder, meter)

    def load(self, model: ModelLike) -> Loaded:
        """`model` loaded; see `uphold.models.load.load` for the errors."""
        if not isinstance(model, str | Path):
            return load(model)
        files = find_model(model)
        fingerprint = files_fingerprint(files)
        key = (fingerprint["weights"], fingerprint["config"], fingerprint["tokenizer"])
        if self._key != key:
            self._release()
            self._load(files)
            self._key = key
        if files.pair is not None:
            return Loaded(self._base, self._tokenizer, files.name, fingerprint, None)
        return Loaded(self._dressed(files, fingerprint), self._tokenizer, files.name, fingerprint, files)

    def _dressed(self, files: ModelFiles, fingerprint: dict[str, Any]) -> Any:
        """The base with the adapter that `files` names, and no other."""
        if hasattr(self._base, "peft_config"):
            self._base = self._base.unload()
            if _identity(self._base) != self._weights:
                # The adapter put weights of its own in their place (modules_to_save), or wrote to them (PiSSA, OLoRA).
                self._base = None
                self._load(files)
        if files.adapter is not None:
            self._base = attach_adapter(self._base, files, fingerprint["weights"])
        return self._base.eval()

    def _load(self, files: ModelFiles) -> None:
        if files.pair is not None:
            pair = load_files(files, self.device_map)
            self._base, self._tokenizer, self._weights = pair.model, pair.tokenizer, {}
            return
        self._base, self._tokenizer = load_base(files, self.device_map)
        self._weights = _identity(self._base)

    def _release(self) -> None:
        self._base, self._tokenizer, self._key = None, None, ()


def _identity(model: Any) -> dict[str, tuple[int, int, int]]:
    """Which tensors a model's weights are, where they are, and how often each was written to."""
    return {name: (id(value), value.data_ptr(), value._version) for name, value in model.named_parameters()}
