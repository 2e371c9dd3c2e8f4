"""Robust weight signatures: small, removable patches that make a model robust to one kind of damage.

Cai, Zhang and Wang, "Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?", ICML 2023,
arXiv:2302.12480.

    R_c = p_c - (<a, p_c> / <a, a>) a      a = theta_standard - theta_initial, p_c = theta_robust,c - theta_initial
    theta_patched = theta_target + sum_c w_c R_c      in the first n layers; w_c = strength / number of signatures

Each signature is a `Patch`, so that it is saved, applied, composed and taken off like any other. What batch-norm
layers hold is replaced, not added to. `uphold.repair.signature_choice` finds n and the strength.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from uphold.core.errors import NotComparableError, UsageError
from uphold.core.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from uphold.models.forward_order import Unit
    from uphold.models.patches.patch import Patch
    from uphold.models.patches.source import Weights, WeightsLike
    from uphold.models.signatures import Projection

PAPER = "arXiv:2302.12480"
METHOD = "signature"
Compat = Literal["paper", "authors"]
UNRELATED = 0.2
"""Cosine of two signatures from which they count as alike. A hint only: see docs/methods/signatures.md for how often
it foretold the outcome."""
FOREIGN = 0.7
"""|R| / |theta_standard| of a layer from which the trainings probably had two starts. Measured: 1.4 to 1.8 in the
largest layer where they had, at most 0.44 in all reproductions."""


def signature(
    initial: WeightsLike,
    standard: WeightsLike,
    robust: WeightsLike,
    *,
    layers: int | Sequence[str] | None = None,
    order: Sequence[Unit] | None = None,
    quantiser: str = "",
    strength: float = 1.0,
    compat: Compat = "paper",
    batch_norm: Mapping[str, torch.Tensor] | None = None,
    progress: Progress = silent,
) -> Patch:
    """The signature of one kind of damage: what robust training changed orthogonally to clean training.

    Files are read tensor by tensor; only kept layers are looked at. Biases belong to their layers, integer buffers
    are left alone.

    Args:
        initial: the weights that both trainings started from: a reference, folder or file, a state dict or a module.
        standard: after training on clean data.
        robust: after training on damaged data.
        layers: the first so many layers of a forward pass, or the names of modules; None for all but the head, the
            last one, which is never counted.
        order: the layers in forward order, by `uphold.models.forward_order.forward_order`; where None, as the numbers
            in the tensors' names have it.
        quantiser: `int8`, `int4`, `linear:L`, `tanh:L`, `log` or `log:L`; "" keeps float32.
        strength: alpha, by which the signature is multiplied.
        compat: `authors` multiplies by strength squared, as their code does.
        batch_norm: what the kept batch-norm tensors are replaced by, such as `reestimated` of
            `uphold.models.batch_norm` gives; the robust model's own where None.
        progress: called after every tensor.

    Raises:
        UsageError: the three models differ in names or shapes of kept tensors, the order of layers is open, or nothing
            was trained.
        ModelError, CorruptError: weights cannot be read.
    """
    from contextlib import ExitStack

    from uphold.models.batch_norm import batch_norm_tensors
    from uphold.models.patches.patch import quantised
    from uphold.models.patches.quantise import scheme
    from uphold.models.patches.source import open_weights
    from uphold.models.signatures import check_same

    how = scheme(quantiser) if quantiser else None
    times = factor(strength, compat)
    units = kept_layers(standard, layers, order)
    names = [name for unit in units for name in unit.tensors]
    with ExitStack() as opened:
        three = {
            role: opened.enter_context(open_weights(source))
            for role, source in (("standard", standard), ("initial", initial), ("robust", robust))
        }
        check_same({f"the {role} model {one.name}".rstrip(): one for role, one in three.items()}, names)
        normal = [name for name in batch_norm_tensors(three["standard"].names) if name in set(names)]
        projections = _project(three, [name for name in names if name not in normal], progress)
        replacements = _replacements(three["robust"], normal, batch_norm)
        made_from = "given" if batch_norm else "robust model" if replacements else ""
        facts = {"compat": compat, "batch_norm": made_from, "layers": _kept(units, [*projections, *replacements])}
        patch = _patch(three, projections, replacements, times, facts)
    return quantised(patch, how) if how is not None else patch


def kept_layers(
    weights: WeightsLike, layers: int | Sequence[str] | None = None, order: Sequence[Unit] | None = None
) -> list[Unit]:
    """The layers that a signature of `weights` keeps, in forward order; see `signature`.

    Raises:
        UsageError: there are not that many, a name names nothing, or the order of layers is open.
    """
    from uphold.models.forward_order import Unit, block_order, first_units, named_tensors
    from uphold.models.signatures import names_and_blocks

    names, blocks = names_and_blocks(weights)
    if layers is not None and not isinstance(layers, int):
        if isinstance(layers, str):
            raise UsageError(f"layers are a number or a list of names, not the text '{layers}'")
        named_tensors(names, layers)
        return [Unit(name, tuple(named_tensors(names, [name]))) for name in layers]
    units = list(order) if order is not None else list(block_order(names, blocks))
    kept = first_units(units, len(units) - 1 if layers is None else layers)
    strange = sorted({name for unit in kept for name in unit.tensors} - set(names))
    if strange:
        raise UsageError(f"the standard model has no tensor {strange[0]}: take the order of layers from that model")
    return kept


def restricted(patch: Patch, layers: int) -> Patch:
    """The signature of the first `layers` layers that a signature keeps.

    Raises:
        UsageError: it does not keep that many.
    """
    units = _layers_of(patch)
    if not 1 <= layers <= len(units):
        raise UsageError(f"this signature keeps {len(units)} layers: give 1 to {len(units)}, not {layers}")
    names = {name for _, tensors in units[:layers] for name in tensors}
    manifest = patch.manifest
    facts = {**manifest.facts, "layers": units[:layers]}
    for part in ("initial", "projection"):
        facts[part] = {name: value for name, value in facts[part].items() if name in names}
    pristine = {name: value for name, value in manifest.pristine.items() if name in names}
    return replace(
        patch,
        deltas={name: delta for name, delta in patch.deltas.items() if name in names},
        replacements={name: tensor for name, tensor in patch.replacements.items() if name in names},
        manifest=replace(manifest, facts=facts, pristine=pristine),
    )


def layer_sizes(patch: Patch) -> dict[str, float]:
    """|R| / |theta_standard| of each kept layer, before the strength counts; infinite where all weights are zero.

    Raises:
        UsageError: the patch is no signature.
    """
    found: dict[str, float] = {}
    projections = patch.manifest.facts.get("projection", {})
    for layer, names in _layers_of(patch):
        norms, lengths = (
            [projections[name][what] for name in names if name in projections] for what in ("norm", "length")
        )
        norm, length = math.hypot(*norms), math.hypot(*lengths)
        found[layer] = norm / length if length else (math.inf if norm else 0.0)
    return found


def foreign_layers(patch: Patch) -> list[str]:
    """The layers of a signature that are so large that its two trainings hardly had one start; see `FOREIGN`.

    Raises:
        UsageError: the patch is no signature.
    """
    return [layer for layer, size in layer_sizes(patch).items() if size >= FOREIGN]


def factor(strength: float, compat: Compat = "paper") -> float:
    """What a signature is multiplied by: the strength, or its square as in the authors' code.

    Raises:
        UsageError: the strength is not finite, or `compat` is unknown.
    """
    if not math.isfinite(strength):
        raise UsageError(f"a signature's strength is a finite number, not {strength}")
    if compat not in ("paper", "authors"):
        raise UsageError(f"compat is 'paper' or 'authors', not '{compat}'")
    return strength if compat == "paper" else strength**2


def coefficients(
    patches: Sequence[Patch],
    strength: float = 1.0,
    weights: Sequence[float] | None = None,
    compat: Compat = "paper",
) -> tuple[float, ...]:
    """The w_c with which several signatures are applied together: strength / number, unless given.

    Pass them to `compose` or `apply` as strengths.

    Args:
        patches: signatures of one start.
        strength: alpha; without effect where `weights` are given.
        weights: one w_c for each signature.
        compat: `authors` squares them, as their code does by multiplying twice.

    Raises:
        UsageError: there are no signatures, or not one weight for each.
        NotComparableError: two of them were made from different initial weights.
    """
    if not patches:
        raise UsageError("no signature was given: name at least one")
    check_same_start(patches)
    chosen = [strength / len(patches)] * len(patches) if weights is None else list(weights)
    if len(chosen) != len(patches):
        raise UsageError(f"{len(chosen)} weights for {len(patches)} signatures: give one for each")
    return tuple(factor(one, compat) for one in chosen)


def check_same_start(patches: Sequence[Patch]) -> None:
    """Refuse signatures whose trainings did not start from the same weights, as far as they recorded it.

    Raises:
        NotComparableError: the message names the first tensor that differs.
    """
    known: dict[str, str] = {}
    for patch in patches:
        for name, value in patch.manifest.facts.get("initial", {}).items():
            if known.setdefault(name, value) != value:
                raise NotComparableError(
                    f"these signatures started from different weights ({name} differs): "
                    "make them from models that were trained from one start"
                )


@dataclass(frozen=True)
class Transfer:
    """How like two signatures are."""

    name: str
    """Of the known signature."""
    cosine: float
    """Between the two over the first layers, in [-1, 1]."""

    @property
    def expected(self) -> bool:
        """Whether they are alike enough for one to be expected to help where the other was made."""
        return self.cosine >= UNRELATED

    def __str__(self) -> str:
        return f"{self.name}: cosine {self.cosine:.2f}, transfer {'expected' if self.expected else 'not expected'}"


def transfer(patch: Patch, known: Mapping[str, Patch], layers: int = 2) -> tuple[Transfer, ...]:
    """How like a signature is to known ones, the most similar first: a forecast of whether they can stand in for it.

    Args:
        patch: a signature.
        known: others, by name, of the same architecture; of other data, or of other damage.
        layers: how many of the first layers are compared.

    Raises:
        UsageError: they have no layers in common, or are zero there.
    """
    from uphold.models.signatures import cosine_between

    names = [name for _, tensors in _layers_of(patch)[:layers] for name in tensors if name in patch.deltas]
    mine = {name: patch.deltas[name].tensor() for name in names}
    found = []
    for label, other in known.items():
        for name in names:
            if name not in other.deltas or other.deltas[name].shape != patch.deltas[name].shape:
                raise UsageError(f"'{label}' does not touch {name} in this shape: compare signatures of one network")
        theirs = {name: other.deltas[name].tensor() for name in names}
        sign = math.copysign(1.0, patch.manifest.scale * other.manifest.scale)
        found.append(Transfer(label, sign * cosine_between(mine, theirs)))
    return tuple(sorted(found, key=lambda one: -one.cosine))


def _project(three: Mapping[str, Weights], names: Sequence[str], progress: Progress) -> dict[str, Projection]:
    """The signature of each of the tensors `names` that is a weight."""
    from uphold.models.signatures import projected

    found: dict[str, Projection] = {}
    for done, name in enumerate(names, start=1):
        initial, standard, robust = (three[role].tensor(name) for role in ("initial", "standard", "robust"))
        if any(one.is_complex() for one in (initial, standard, robust)):
            raise UsageError(f"{name} holds complex numbers: leave its layer out")
        if all(one.is_floating_point() for one in (initial, standard, robust)):
            found[name] = projected(initial, standard, robust)
            if not bool(found[name].residual.isfinite().all()):
                raise UsageError(f"{name} holds numbers that are not finite: a signature needs three sound models")
        progress(METHOD, done, len(names))
    if not found:
        raise UsageError("the layers that were named hold no weights: name others")
    if not any(one.residual.any() for one in found.values()):
        raise UsageError(
            "nothing is left of the robust model's change beside the standard model's: both are equal, or the robust "
            "one was not trained; check the order INITIAL, STANDARD, ROBUST"
        )
    return found


def _replacements(
    robust: Weights, names: Sequence[str], given: Mapping[str, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """What stands in the kept batch-norm layers; tensors that are not given are the robust model's."""
    strange = sorted((given or {}).keys() - set(names))
    if strange:
        raise UsageError(f"'{strange[0]}' is no batch-norm tensor of a kept layer: leave it out of batch_norm")
    return {
        name: (given[name] if given and name in given else robust.tensor(name)).detach().cpu().clone() for name in names
    }


def _kept(units: Sequence[Unit], names: Sequence[str]) -> list[list[Any]]:
    kept = set(names)
    return [[unit.name, [name for name in unit.tensors if name in kept]] for unit in units]


def _patch(
    three: Mapping[str, Weights],
    projections: Mapping[str, Projection],
    replacements: Mapping[str, torch.Tensor],
    times: float,
    facts: Mapping[str, Any],
) -> Patch:
    from uphold.models.load import library_versions
    from uphold.models.patches.delta import Delta
    from uphold.models.patches.patch import Manifest, Patch, value_hash

    initial, standard = three["initial"], three["standard"]
    names = [*projections, *replacements]
    manifest = Manifest(
        METHOD,
        {name: value_hash(standard.tensor(name)) for name in names},
        paper=PAPER,
        source=standard.name,
        weights=standard.hash,
        scale=times,
        facts={
            **facts,
            "initial": {name: value_hash(initial.tensor(name)) for name in names},
            "models": {
                role: {"source": three[role].name, "weights": three[role].hash} for role in ("initial", "robust")
            },
            "projection": {name: _facts(found) for name, found in projections.items()},
        },
        versions=library_versions(),
    )
    return Patch({name: Delta.dense(found.residual) for name, found in projections.items()}, manifest, replacements)


def _facts(found: Projection) -> dict[str, float]:
    return {name: getattr(found, name) for name in ("share", "cosine", "norm", "length")}


def _layers_of(patch: Patch) -> list[Any]:
    units = patch.manifest.facts.get("layers")
    if patch.manifest.method != METHOD or not isinstance(units, list):
        raise UsageError(
            f"this patch was made by '{patch.manifest.method}', not by 'signature': its layers are unknown"
        )
    return units
