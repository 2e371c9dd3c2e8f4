"""The folder of a pair: two models that are asked together, and how.

    pair.json           kind, parameters, and for each of old and new its reference and the hashes of its content
    gate.safetensors    the weights of a learnt gate, where the kind has one

The models themselves are not copied. One that has changed since the pair was made is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from uphold.core.errors import CorruptError, ModelError, UsageError, unknown_name
from uphold.core.hashing import sha256_of, sha256_of_parts
from uphold.core.storage import atomic_folder, read_json, write_json

FILE = "pair.json"
GATE = "gate.safetensors"
Kind = Literal["ensemble", "bcr", "gated-fusion"]
CONTENT = ("weights", "config", "tokenizer", "adapter")
"""What of a model's fingerprint says what it computes."""
P = TypeVar("P")


@dataclass(frozen=True)
class Averaging:
    """How an ensemble averages next-token probabilities."""

    share: float = 0.5
    """How much of the old model is in the average, from 0 (the new model alone) to 1 (the old one alone)."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"the old model's share must be in [0, 1], not {self.share}")


@dataclass(frozen=True)
class Reranking:
    """How the new model's candidates are found, and ranked by the old one."""

    options: int = 2
    """Candidates of a choice: so many of the options that the new model finds likeliest. With all of them the answer is
    the old model's."""
    candidates: int = 10
    """Candidates of a generated answer: the new model's own one, and so many less one sampled from it."""
    sampling_temperature: float = 1.0
    """Of the sampled candidates."""
    top_p: float = 0.9
    """Nucleus of the sampled candidates, in (0, 1]."""
    normalise: bool = False
    """Rank generated candidates by log-likelihood per token, not by their sum."""
    seed: int = 0
    """Of the sampled candidates; each instance draws from a generator of its own."""

    def __post_init__(self) -> None:
        if self.options < 1 or self.candidates < 1 or self.sampling_temperature <= 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                "reranking needs options and candidates of at least 1, a sampling temperature above 0 and top_p in "
                f"(0, 1], not {asdict(self)}"
            )


@dataclass(frozen=True)
class Gating:
    """How a gate fuses logits: z = g z_new + (1 - g) z_old / T with g = sigmoid(MLP(h_new))."""

    old_temperature: float = 1.0
    """T, by which the old model's logits are divided."""
    width: int = 64
    """Units in the gate's hidden layer."""

    def __post_init__(self) -> None:
        if self.old_temperature <= 0 or self.width < 1:
            raise UsageError(f"a gate needs a temperature above 0 and a width of at least 1, not {asdict(self)}")


Parameters = Averaging | Reranking | Gating
PARAMETERS: Mapping[Kind, type[Parameters]] = {"ensemble": Averaging, "bcr": Reranking, "gated-fusion": Gating}


def parameters_of(config: Any, kind: type[P]) -> P:
    """Those fields of a method's options that are parameters of the pair it makes."""
    return kind(**{entry.name: getattr(config, entry.name) for entry in fields(kind)})  # type: ignore[arg-type]


def kind_of(parameters: Parameters) -> Kind:
    """The kind of pair that has such parameters."""
    return next(kind for kind, own in PARAMETERS.items() if isinstance(parameters, own))


@dataclass(frozen=True)
class Member:
    """One of the two models, as the pair's file names it."""

    reference: str | None
    """What leads to it; None for a model that was handed over loaded."""
    content: Mapping[str, Any]
    """The hashes of its content."""


@dataclass(frozen=True)
class PairFile:
    """What `pair.json` says."""

    parameters: Parameters
    old: Member
    new: Member
    gate: str | None = None
    """The hash of the gate's file."""

    def save(self, folder: Path, gate: bytes | None = None) -> Path:
        """Write the folder as a whole; `gate` is the gate's safetensors file."""
        with atomic_folder(folder) as temporary:
            if gate is not None:
                (temporary / GATE).write_bytes(gate)
            write_json(
                temporary / FILE,
                {
                    "kind": kind_of(self.parameters),
                    "parameters": asdict(self.parameters),
                    "old": asdict(self.old),
                    "new": asdict(self.new),
                    "gate": self.gate,
                },
            )
        return folder

    def fingerprint(self, name: str) -> dict[str, Any]:
        """The model part of a run's fingerprint: made of both models' and of how they are asked."""
        parts = {
            "kind": kind_of(self.parameters),
            "parameters": asdict(self.parameters),
            "old": dict(self.old.content),
            "new": dict(self.new.content),
            "gate": self.gate,
        }
        return {
            "name": name,
            "weights": sha256_of(parts),
            "config": sha256_of([parts["kind"], parts["parameters"]]),
            "tokenizer": self.new.content["tokenizer"],
            "adapter": None,
            "pair": parts,
        }

    def check(self, name: str, old: Mapping[str, Any], new: Mapping[str, Any], gate: bytes | None) -> None:
        """Refuse models that are not those that the pair was made of.

        Args:
            name: of the pair.
            old: the fingerprint of what the old model's reference leads to now.
            new: the same of the new one.
            gate: what the gate's file holds.

        Raises:
            ModelError: a model differs.
            CorruptError: the gate differs.
        """
        for role, member, found in (("old", self.old, old), ("new", self.new, new)):
            differing = [key for key in CONTENT if member.content.get(key) != found.get(key)]
            if differing:
                raise ModelError(
                    f"'{name}': the {role} model of the pair, '{member.reference}', has changed since the pair was "
                    f"made (its {differing[0]} differs): put it back, or make the pair again"
                )
        if gate_hash(gate) != self.gate:
            raise CorruptError(f"'{name}': {GATE} is not the one that the pair was made with; make the pair again")


def content_of(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a model's fingerprint that says what it computes."""
    return {key: fingerprint[key] for key in CONTENT}


def gate_hash(gate: bytes | None) -> str | None:
    """The hash of a gate's file."""
    return None if gate is None else sha256_of_parts([gate])


def pair_folder(text: str) -> Path | None:
    """The folder with a `pair.json` that a reference names: itself, or the folder of a repair with one in it."""
    path = Path(text).expanduser()
    return next((folder for folder in (path, path / "pair") if (folder / FILE).is_file()), None)


def read_pair(folder: Path) -> PairFile:
    """What the pair in `folder` says.

    Raises:
        CorruptError: it does not hold what was written.
    """
    saved = read_json(folder / FILE)
    try:
        kind = saved["kind"]
        if kind not in get_args(Kind):
            raise unknown_name("kind of pair", str(kind), get_args(Kind))
        parameters = PARAMETERS[kind](**saved["parameters"])
        old, new = (Member(**saved[role]) for role in ("old", "new"))
        return PairFile(parameters, old, new, saved["gate"])
    except (KeyError, TypeError, UsageError) as error:
        raise CorruptError(
            f"{folder / FILE} does not describe a pair of models ({error}); make the pair again"
        ) from error
