"""Whether models belong together, before any of their weights are added up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from uphold.core.errors import ModelError
from uphold.merge.engine.inputs import Input, tokenizer_facts
from uphold.merge.engine.plan import Plan
from uphold.merge.engine.sources import Source
from uphold.models.vocabulary import token_map

_DECISIVE = (
    "model_type",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rotary base",
    "rotary scaling",
)
"""Where these differ, equal weights compute different things."""
_TELLING = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "sliding_window", "partial_rotary_factor")
_UNRELATED = 1.0
"""Distance to the base relative to its norm, from which on two models were hardly trained from one another: it is the
square root of 2 for independent weights of one scale."""
_SAMPLE = 65_536
_SAMPLED = 8


def check_configs(inputs: Sequence[Input], force: bool = False) -> list[str]:
    """Warnings of what differs between the configs of the models and the first one's.

    Args:
        inputs: the models; those without a config are passed over.
        force: warn of what would be refused.

    Raises:
        ModelError: they compute different things with equal weights.
    """
    warnings: list[str] = []
    known = [one for one in inputs if one.config]
    for other in known[1:]:
        first = known[0]
        ours, theirs = _values(first), _values(other)
        for key in (*_DECISIVE, *_TELLING):
            unknown = key != "rotary scaling" and (ours.get(key) is None or theirs.get(key) is None)
            if unknown or ours.get(key) == theirs.get(key):
                continue
            found = (
                f"'{first.name}' and '{other.name}' differ in {key} ({_shown(ours.get(key))} and "
                f"{_shown(theirs.get(key))})"
            )
            if key in _DECISIVE and not force:
                raise ModelError(
                    f"{found}: their weights do not mean the same; merge models of one base, or go on with --force"
                )
            warnings.append(found)
    return warnings


def check_tokenizers(inputs: Sequence[Input], has_choice: bool) -> list[str]:
    """Warnings of models whose token ids mean other tokens than the first one's.

    Args:
        inputs: the models.
        has_choice: whether the recipe says what becomes of the tokenizers.
    """
    facts = [(one, found) for one in inputs if (found := tokenizer_facts(one)) is not None]
    if has_choice or len(facts) < 2:
        return []
    (first, ours), *rest = facts
    warnings = []
    for other, theirs in rest:
        if ours == theirs:
            continue
        one, two = (token_map(model.files) for model in (first, other) if model.files is not None)
        moved = [token for token in one if token in two and one[token] != two[token]]
        if moved:
            warnings.append(
                f"'{first.name}' and '{other.name}' have other ids for {len(moved)} tokens, such as {moved[0]!r}: rows "
                "of different tokens are merged; 'tokenizer_source: union' puts them in order"
            )
        elif one != two:
            warnings.append(
                f"'{first.name}' has {len(one)} tokens and '{other.name}' {len(two)}: the result has the tokenizer of "
                "the first; 'tokenizer_source: union' keeps all"
            )
    return warnings


def check_lineage(plan: Plan) -> list[str]:
    """Warnings of models that do not look like they were trained from the base, or from one another.

    From a sample of a few large matrices: ||theta_i - theta_0|| / ||theta_0||.
    """
    large = sorted(
        (one for one in plan.tensors if one.settings is not None and len(one.shape) > 1),
        key=lambda one: -one.elements,
    )[:_SAMPLED]
    distances: dict[str, list[float]] = {}
    first = ""
    for tensor in large:
        start, *others = tensor.sources
        first = _name(start)
        for other in others:
            if _name(other):
                distances.setdefault(_name(other), []).append(_distance(start, other, tensor.elements))
    return [
        f"'{name}' is far from '{first}' (relative distance {_middle(values):.2f}, as of independent weights): merging "
        "models that were not trained from one base gives noise"
        for name, values in distances.items()
        if name != first and _middle(values) >= _UNRELATED
    ]


def _name(source: Source) -> str:
    model = getattr(source, "model", None)
    return str(model.name) if model is not None else ""


def _distance(one: Source, other: Source, elements: int) -> float:
    start = max(0, elements // 2 - _SAMPLE // 2)
    stop = min(elements, start + _SAMPLE)
    ours, theirs = one.read(start, stop), other.read(start, stop)
    norm = float(torch.linalg.vector_norm(ours))
    distance = float(torch.linalg.vector_norm(theirs - ours)) / norm if norm else 0.0
    return distance if math.isfinite(distance) else 0.0


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _values(one: Input) -> dict[str, Any]:
    keys = (*_DECISIVE, *_TELLING)
    found = {key: value for key in keys if (value := one.text_config(key)) is not None}
    rotary = one.text_config("rope_parameters") or one.text_config("rope_scaling") or {}
    if isinstance(rotary, Mapping):
        theta = rotary.get("rope_theta", one.text_config("rope_theta"))
        found["rotary base"] = float(theta) if isinstance(theta, int | float) else theta
        scaling = {str(key): value for key, value in rotary.items() if key not in ("rope_theta", "type", "rope_type")}
        kind = rotary.get("rope_type", rotary.get("type", "default"))
        found["rotary scaling"] = None if kind == "default" and not scaling else {"rope_type": kind, **scaling}
    heads, width = found.get("num_attention_heads"), found.get("hidden_size")
    found.setdefault("num_key_value_heads", heads)
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        found.setdefault("head_dim", width // heads)
    return found


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
