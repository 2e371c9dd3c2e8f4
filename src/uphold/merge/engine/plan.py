"""From a recipe and the headers of its checkpoints to the list of tensors that the result has.

Nothing but headers is read here. What cannot be merged is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from uphold.core.errors import ModelError, UsageError
from uphold.merge.engine.inputs import Input
from uphold.merge.engine.names import belongs_to, comes_first, is_buffer, is_embedding, is_head, layer_of, stacks_of
from uphold.merge.engine.recipe import Module, Recipe, Slice
from uphold.merge.engine.settings import Place, Scope, resolve
from uphold.merge.engine.sources import Permuted, Source, Stored
from uphold.merge.protocol import MergeMethod, Settings
from uphold.models.vocabulary import Vocabulary

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Planned:
    """One tensor of the result."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    settings: Settings | None
    """The method's parameters; None for a tensor that is copied."""
    base: Source | None
    """The base's part; of a tensor that is copied, what is copied."""
    models: tuple[Source, ...] = ()

    @property
    def elements(self) -> int:
        """How many it has."""
        return torch.Size(self.shape).numel()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Everything that is read for it."""
        return (*([self.base] if self.base is not None else []), *self.models)


@dataclass(frozen=True)
class Plan:
    """What a merge is going to write."""

    recipe: Recipe
    method: MergeMethod
    donor: Input
    """The base, else the first model: config, tokenizer and the order of the tensors are its."""
    tensors: tuple[Planned, ...]
    origins: tuple[tuple[Input, int], ...]
    """Where each layer of the result comes from, where slices make them: the first source, and its layer."""
    rows: int | None
    """Rows of the embeddings, where they are not the donor's."""
    vocabulary: Vocabulary | None = None
    warnings: tuple[str, ...] = ()

    def warned(self, warnings: Sequence[str]) -> Plan:
        """The same plan with these warnings, each once."""
        return replace(self, warnings=tuple(dict.fromkeys(warnings)))


class _Entry(NamedTuple):
    """One model's part, as the recipe lists it."""

    model: Input
    name: str
    parameters: Scope
    listed: bool


@dataclass
class _Planner:
    recipe: Recipe
    method: MergeMethod
    inputs: Mapping[str, Input]
    vocabulary: Vocabulary | None
    donor: Input
    planned: dict[str, Planned] = field(default_factory=dict)
    origins: list[tuple[Input, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    rows: int | None = None

    # ---- which tensors -------------------------------------------------------------------------------------------

    def module(self, label: str, module: Module) -> None:
        names = [name for name in self.donor.checkpoint.infos if belongs_to(name, label)]
        if not names:
            known = sorted({name.split(".")[0] for name in self.donor.checkpoint.infos})
            raise UsageError(
                f"the module '{label}' names no tensor of {self.donor.name}; expected default, or a part of the names, "
                f"which begin with {', '.join(known[:5])}"
            )
        if module.slices:
            self.slices(label, module, names)
        else:
            self.models(label, module, names)

    def models(self, label: str, module: Module, names: Sequence[str]) -> None:
        listed = [(self.inputs[entry.model], entry.parameters) for entry in module.models]
        base = self.recipe.base_model
        if base is not None and self.method.base != "refused" and base not in [entry.model for entry in module.models]:
            listed.append((self.inputs[base], {}))
        implied = len(listed) > len(module.models)
        counts = stacks_of(names)
        for one, _ in listed:
            own = stacks_of(name for name in one.checkpoint.infos if belongs_to(name, label))
            if own != counts and self.recipe.missing == "error":
                raise UsageError(
                    f"'{one.name}' has {_layers(own)} and '{self.donor.name}' {_layers(counts)}: give slices with "
                    "layer_range, or models of one depth"
                )
        self.check_extra(label, [one for one, _ in listed])
        for name in names:
            layer = layer_of(name)
            fraction = _fraction(layer.number, counts[layer.stack]) if layer is not None else 0.0
            entries = [
                _Entry(one, name, parameters, not (implied and index == len(listed) - 1))
                for index, (one, parameters) in enumerate(listed)
            ]
            self.tensor(Place(name, fraction), entries, base, [module.parameters])

    def check_extra(self, label: str, models: Sequence[Input]) -> None:
        """Tensors of other models that the donor does not have."""
        known = self.donor.checkpoint
        for one in models:
            extra = [
                name
                for name in one.checkpoint.infos
                if belongs_to(name, label) and name not in known.infos and not is_buffer(name)
            ]
            extra = [name for name in extra if not self.is_tied_head(name, one)]
            if extra and self.recipe.missing == "error":
                raise ModelError(
                    f"'{one.name}' has {len(extra)} tensors that '{self.donor.name}' lacks, the first is {extra[0]}; "
                    "'missing: base' in the recipe leaves them out"
                )
            if extra:
                self.warnings.append(f"left out {len(extra)} tensors that only '{one.name}' has, such as {extra[0]}")

    def is_tied_head(self, name: str, model: Input) -> bool:
        """Whether it is an output head that repeats the model's embeddings."""
        if not is_head(name) or name in model.checkpoint.tied:
            return name in model.checkpoint.tied
        embedding = _embedding(model)
        infos = model.checkpoint.infos
        if embedding is None or infos[embedding].shape != infos[name].shape:
            return False
        return torch.equal(model.checkpoint.tensor(embedding), model.checkpoint.tensor(name))

    def slices(self, label: str, module: Module, names: Sequence[str]) -> None:
        stacks = stacks_of(names)
        if len(stacks) != 1:
            raise UsageError(
                f"'{self.donor.name}' has {_layers(stacks)}: slices need one stack of layers; "
                "give 'modules' with slices for each"
            )
        stack = next(iter(stacks))
        outside = [name for name in names if layer_of(name) is None]
        for name in filter(comes_first, outside):
            self.in_slice(Place(name, 0.0), module.slices[0], module, [name] * len(module.slices[0].sources))
        count = 0
        for part in module.slices:
            first, end = part.sources[0].layer_range
            for source in part.sources:
                have = stacks_of(self.inputs[source.model].checkpoint.infos).get(stack, 0)
                if source.layer_range[1] > have:
                    raise UsageError(
                        f"the slice {list(source.layer_range)} of '{source.model}' ends behind its {have} layers"
                    )
            leading = self.inputs[part.sources[0].model].checkpoint.infos
            for step in range(end - first):
                for rest in _rests(leading, stack, first + step):
                    place = Place(f"{stack}{count}{rest}", _fraction(step, end - first))
                    own = [f"{stack}{source.layer_range[0] + step}{rest}" for source in part.sources]
                    self.in_slice(place, part, module, own)
                self.origins.append((self.inputs[part.sources[0].model], first + step))
                count += 1
        for name in outside:
            if not comes_first(name):
                self.in_slice(Place(name, 0.0), module.slices[-1], module, [name] * len(module.slices[-1].sources))

    def in_slice(self, place: Place, part: Slice, module: Module, names: Sequence[str]) -> None:
        base = part.base_model or self.recipe.base_model
        entries = [
            _Entry(self.inputs[source.model], name, source.parameters, True)
            for source, name in zip(part.sources, names, strict=True)
        ]
        self.tensor(place, entries, base, [part.parameters, module.parameters])

    # ---- one tensor ----------------------------------------------------------------------------------------------

    def tensor(self, place: Place, entries: list[_Entry], base: str | None, scopes: Sequence[Scope]) -> None:
        at = next((index for index, entry in enumerate(entries) if entry.model.name == base), None)
        if self.method.base == "refused":
            at = None
        found = [self.stored(entry) for entry in entries]
        leading = found[at if at is not None else 0]
        if any(one is None for one in found) or not self.mergeable(leading):
            self.copied(place, entries, found, at)
            return
        stored = [one for one in found if one is not None]
        dtype = self.dtype(stored[at or 0])
        sources = self.sized(place.name, entries, stored)
        rest = [index for index in range(len(entries)) if index != at]
        self.check_count(place, len(rest), base, at)
        settings = resolve(
            self.recipe.merge_method,
            self.method.parameters,
            place,
            [(entries[index].model.name, entries[index].name, entries[index].parameters) for index in rest],
            (entries[at].name, entries[at].parameters) if at is not None and entries[at].listed else None,
            [*scopes, self.recipe.parameters],
        )
        self.add(
            Planned(
                place.name,
                dtype,
                sources[0].shape,
                settings,
                sources[at] if at is not None else None,
                tuple(sources[index] for index in rest),
            )
        )

    def add(self, tensor: Planned) -> None:
        if tensor.name in self.planned:
            raise UsageError(f"two modules of the recipe make the tensor {tensor.name}; expected one")
        self.planned[tensor.name] = tensor

    def stored(self, entry: _Entry) -> Stored | None:
        infos, tied = entry.model.checkpoint.infos, entry.model.checkpoint.tied
        name = tied.get(entry.name, entry.name)
        if name in infos:
            return Stored(entry.model, name)
        embedding = _embedding(entry.model)
        tied_head = is_head(entry.name) and entry.name.endswith("weight")
        if tied_head and embedding is not None and entry.model.text_config("tie_word_embeddings") is not False:
            return Stored(entry.model, embedding)
        return None

    def mergeable(self, one: Stored | None) -> bool:
        if one is None:
            return False
        dtype = one.model.checkpoint.infos[one.name].dtype
        if dtype.itemsize == 1 and dtype.is_floating_point:
            raise ModelError(f"'{one.model.name}' has {one.name} in 8-bit floats; merge the unquantised weights")
        return dtype in FLOATS and one.model.checkpoint.infos[one.name].elements > 0

    def copied(self, place: Place, entries: list[_Entry], found: list[Stored | None], at: int | None) -> None:
        """An integer, or a tensor that not all models have: as the base has it, or the first model."""
        order = [at, *range(len(found))] if at is not None else list(range(len(found)))
        source = next((found[index] for index in order if found[index] is not None), None)
        lacking = [entry.model.name for entry, one in zip(entries, found, strict=True) if one is None]
        assert source is not None
        if lacking and not is_buffer(place.name):
            if self.recipe.missing == "error":
                raise ModelError(
                    f"'{lacking[0]}' lacks {place.name}, which '{source.model.name}' has; "
                    "'missing: base' in the recipe leaves such tensors as the base has them"
                )
            self.warnings.append(f"{place.name} is as in '{source.model.name}': '{lacking[0]}' lacks it")
        dtype = self.dtype(source) if self.mergeable(source) else source.model.checkpoint.infos[source.name].dtype
        self.add(Planned(place.name, dtype, source.shape, None, source))

    def dtype(self, one: Stored) -> torch.dtype:
        wanted = self.recipe.out_dtype or self.recipe.dtype
        return getattr(torch, wanted) if wanted else one.model.checkpoint.infos[one.name].dtype

    def sized(self, name: str, entries: list[_Entry], stored: list[Stored]) -> list[Source]:
        """The sources in one shape: rows by token, or the largest common part of the embeddings."""
        is_table = is_embedding(name) or is_head(name)
        if is_table and self.vocabulary is not None:
            return [self.permuted(one, stored) for one in stored]
        shapes = {one.shape for one in stored}
        if len(shapes) == 1:
            return list(stored)
        if not is_table or len({shape[1:] for shape in shapes}) > 1:
            first, other = stored[0], next(one for one in stored if one.shape != stored[0].shape)
            raise ModelError(
                f"{name} has shape {first.shape} in '{first.model.name}' and {other.shape} in '{other.model.name}': "
                "models of one architecture and size are needed"
            )
        self.rows = min(shape[0] for shape in shapes)
        self.warnings.append(
            f"the vocabularies have {' and '.join(str(shape[0]) for shape in sorted(shapes))} rows: the first "
            f"{self.rows} are merged, the others left out; 'tokenizer_source: union' keeps all tokens"
        )
        return [Stored(one.model, one.name, self.rows) for one in stored]

    def permuted(self, one: Stored, stored: list[Stored]) -> Permuted:
        assert self.vocabulary is not None
        parts = {other.model.name: other for other in stored}
        others = self.vocabulary.others(list(parts))
        for name in others.keys() - parts.keys():
            lent = self.stored(_Entry(self.inputs[name], one.name, {}, True))
            if lent is None:
                raise ModelError(f"'{name}', which a token's embedding is to come from, lacks {one.name}")
            parts[name] = lent
        self.rows = self.vocabulary.size
        rows = self.vocabulary.own[one.model.name]
        return Permuted(
            one, rows, tuple((parts[name], places) for name, places in others.items()), self.vocabulary.padding
        )

    def check_count(self, place: Place, count: int, base: str | None, at: int | None) -> None:
        method, recipe = self.method, self.recipe
        if method.base == "required" and at is None:
            what = "needs a base_model" if base is None else f"needs '{base}' among the sources of {place.name}"
            raise UsageError(f"'{recipe.merge_method}' {what}: name it in the recipe")
        most = method.at_most
        if count < method.at_least or (most is not None and count > most):
            expected = f"at least {method.at_least}" if most is None else f"{method.at_least}"
            if most is not None and most != method.at_least:
                expected += f" to {most}"
            noun = "model" if expected.endswith("1") else "models"
            beside = f"{noun} beside the base" if at is not None else noun
            raise UsageError(
                f"'{recipe.merge_method}' takes {expected} {beside}, and {place.name} has {count}: "
                "change 'models', or the method"
            )


def make_plan(
    recipe: Recipe, method: MergeMethod, inputs: Mapping[str, Input], vocabulary: Vocabulary | None = None
) -> Plan:
    """The tensors of the result.

    Args:
        recipe: what to do.
        method: its merge method.
        inputs: the models by the names that the recipe gives them.
        vocabulary: of the result, where the recipe asks for one.

    Raises:
        UsageError: the recipe and the models do not fit together.
        ModelError: a tensor is missing in a model, or has another shape.
    """
    donor = inputs[recipe.references()[0]]
    planner = _Planner(recipe, method, inputs, vocabulary, donor)
    for label, module in recipe.parts().items():
        planner.module(label, module)
    left = [name for name in donor.checkpoint.infos if not any(belongs_to(name, label) for label in recipe.parts())]
    if left and recipe.missing == "error":
        raise UsageError(f"no module of the recipe makes {left[0]}; 'missing: base' leaves it as the base has it")
    for name in left:
        planner.copied(Place(name, 0.0), [_Entry(donor, name, {}, True)], [Stored(donor, name)], None)
    warnings = [*planner.warnings, *_unused_filters(recipe, planner.planned)]
    return Plan(
        recipe,
        method,
        donor,
        _in_order(planner.planned, donor),
        tuple(planner.origins),
        planner.rows,
        vocabulary,
        tuple(dict.fromkeys(warnings)),
    )


def _in_order(planned: Mapping[str, Planned], donor: Input) -> tuple[Planned, ...]:
    """In the order in which the donor stores what is read, so that a disk is read from front to back."""
    order = {name: index for index, name in enumerate(donor.checkpoint.infos)}
    return tuple(sorted(planned.values(), key=lambda one: order.get(one.name, len(order))))


def _unused_filters(recipe: Recipe, planned: Mapping[str, Planned]) -> Iterator[str]:
    from uphold.merge.engine.recipe import Conditional

    for _, scope in recipe.scopes():
        for parameter, setting in scope.items():
            for entry in setting if isinstance(setting, tuple) else ():
                if isinstance(entry, Conditional) and not any(map(entry.fits, planned)):
                    yield f"the filter '{entry.filter}' of '{parameter}' fits no tensor"


def _rests(names: Iterable[str], stack: str, number: int) -> list[str]:
    """What follows the number in the names of one layer's tensors."""
    layers = (layer_of(name) for name in names)
    return [layer.rest for layer in layers if layer is not None and (layer.stack, layer.number) == (stack, number)]


def _embedding(model: Input) -> str | None:
    return next((name for name in model.checkpoint.infos if is_embedding(name)), None)


def _fraction(index: int, count: int) -> float:
    """Position of a layer among `count`, in [0, 1]; a single layer stands at the end."""
    return index / (count - 1) if count > 1 else 1.0


def _layers(stacks: Mapping[str, int]) -> str:
    return " and ".join(f"{count} layers in {stack}*" for stack, count in sorted(stacks.items())) or "no layers"
