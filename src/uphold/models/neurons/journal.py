"""What a repair of neurons has done so far, on disk: an interrupted call that is repeated goes on where it stopped.

One safetensors file, written anew after each failure and renamed into place: the columns of all edits, and in its
header which they are and how each failure ended.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from uphold.core.errors import CorruptError
from uphold.core.hashing import sha256_of
from uphold.core.storage import atomic_path
from uphold.models.neurons.config import Failure, Guard, NeuronConfig
from uphold.models.neurons.edits import Edit
from uphold.models.neurons.guard import Drift
from uphold.models.neurons.neurons import Anatomy
from uphold.models.neurons.report import TokenRepair, Tried
from uphold.models.patches.patch import value_hash

_KEY = "uphold-neurons"
_COLUMNS = ("before", "after", "delta")


@dataclass(frozen=True)
class Journal:
    """The file of one call."""

    path: Path
    key: str
    """Of what decides the edits; another call's journal is not gone on with."""

    def save(self, tried: Sequence[Tried], edits: Sequence[Edit]) -> None:
        """Write how the first failures ended and all edits that are in the model.

        Raises:
            StorageError: the disk refused; the file is as it was.
        """
        from safetensors.torch import save_file

        columns = {
            name: torch.stack([getattr(edit, name) for edit in edits]).cpu().contiguous()
            for name in (_COLUMNS if edits else ())
        }
        facts = {
            "key": self.key,
            "tried": [asdict(one) for one in tried],
            "edits": [
                [edit.down.layer, edit.index, edit.strength, edit.number, edit.position, edit.wrong, edit.target]
                for edit in edits
            ],
        }
        with atomic_path(self.path) as temporary:
            save_file(columns, str(temporary), metadata={_KEY: json.dumps(facts)})

    def load(self, anatomy: Anatomy) -> tuple[list[Tried], list[Edit]]:
        """How the first failures ended, and the edits made for them; nothing where this call left no journal.

        Raises:
            CorruptError: the file does not hold what was written.
        """
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return [], []
        try:
            with safe_open(str(self.path), "pt") as file:
                facts = json.loads((file.metadata() or {})[_KEY])
                if facts["key"] != self.key:
                    return [], []
                columns = {name: file.get_tensor(name) for name in (_COLUMNS if facts["edits"] else ())}
            tried = [_tried(one) for one in facts["tried"]]
            edits = [
                _edit(anatomy, entry, *(columns[name][place] for name in _COLUMNS))
                for place, entry in enumerate(facts["edits"])
            ]
        except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
            raise CorruptError(f"{self.path} is not a whole journal ({error}); remove it to start anew") from error
        return tried, edits


def journal_key(anatomy: Anatomy, failures: Sequence[Failure], config: NeuronConfig, guard: Guard | None) -> str:
    """Hash of everything that decides the edits, all weights of the model included, but for the guard's check."""
    model = anatomy.model
    weights = {name: value_hash(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
    rows = [] if guard is None else [[row.prompt, row.answer] for row in guard.rows]
    head = value_hash(anatomy.head)
    return sha256_of([weights, head, anatomy.vocabulary, [asdict(one) for one in failures], asdict(config), rows])


def _tried(values: dict[str, object]) -> Tried:
    given = dict(values)
    tokens = given.pop("tokens")
    drift = given.pop("drift")
    assert isinstance(tokens, list)
    return Tried(
        **given,  # type: ignore[arg-type]
        tokens=tuple(
            TokenRepair(**{**one, "neurons": tuple((layer, index) for layer, index in one["neurons"])})
            for one in tokens
        ),
        drift=Drift(**drift) if isinstance(drift, dict) else None,
    )


def _edit(
    anatomy: Anatomy, entry: Sequence[float], before: torch.Tensor, after: torch.Tensor, delta: torch.Tensor
) -> Edit:
    layer, index, strength, number, position, wrong, target = entry
    return Edit(
        anatomy.downs[int(layer)],
        int(index),
        strength,
        before,
        after,
        delta,
        int(number),
        int(position),
        int(wrong),
        int(target),
    )
