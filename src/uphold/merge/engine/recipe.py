"""Recipes of merges, with the keys that mergekit's recipes have.

    merge_method: slerp
    base_model: general
    models:                          # or slices, or modules
      - model: general
      - model: domain+adapter
    parameters:
      t:
        - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
        - value: 0.5
    dtype: bfloat16

Two keys are our own: `random_seed`, and `missing: base`, which leaves tensors that not all models have as the base has
them. Paths are relative to the current folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from uphold.core.errors import DataError, UsageError, unknown_name

MOST_MODELS = 256
_MOST_BYTES = 300_000
_MOST_VALUES = 200_000
_DEEPEST = 20
_DTYPES = ("float32", "float16", "bfloat16", "float64")
Scalar = bool | int | float | str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Conditional(_Strict):
    """A value for the tensors whose name contains `filter`."""

    filter: str | None = None
    """Part of a tensor's name; None or `*` for all."""
    value: Annotated[Scalar | tuple[Scalar, ...], BeforeValidator(lambda value: _plain(value))]

    def fits(self, name: str) -> bool:
        """Whether it is for the tensor called `name`."""
        return self.filter in (None, "*") or str(self.filter) in name


Setting = Scalar | tuple[Scalar, ...] | tuple[Conditional, ...]
"""What a recipe may say of a parameter: a value, a gradient over the layers, or values by filter."""


def _setting(value: Any) -> Any:
    if isinstance(value, Conditional | dict):
        value = [value]
    if isinstance(value, list | tuple) and any(isinstance(entry, Conditional | dict) for entry in value):
        if not all(isinstance(entry, Conditional | dict) for entry in value):
            raise ValueError("either a list of values or a list of {filter, value}, not both in one list")
        return tuple(entry if isinstance(entry, Conditional) else Conditional(**_named(entry)) for entry in value)
    return _plain(value)


def _named(entry: dict[Any, Any]) -> dict[str, Any]:
    for key in entry:
        if key not in ("filter", "value"):
            raise ValueError(f"{key!r} beside a filter; expected filter and value only")
    if "value" not in entry:
        raise ValueError("a filter without a value")
    return entry


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("an empty list; expected a value or a gradient such as [0, 0.5, 1]")
        return tuple(_scalar(entry) for entry in value)
    return _scalar(value)


def _scalar(value: Any) -> Scalar:
    if isinstance(value, str):
        try:
            value = float(value)  # YAML takes 1e-5 for text
        except ValueError:
            return str(value)
    if not isinstance(value, bool | int | float):
        raise ValueError(f"{_kind(value)}; expected a number, a list of numbers, or filters with values")
    if not math.isfinite(value):
        raise ValueError(f"{value}; expected a finite number")
    return value


def _reference(value: Any) -> Any:
    """The text that names a model, where a mapping does."""
    if not isinstance(value, dict):
        return value
    for key in value:
        if key not in ("model", "lora", "path", "revision"):
            raise ValueError(f"{key!r} in a model; expected a name, or path and revision, or model and lora")
    if "path" in value:
        text = str(value["path"])
        return f"{text}@{value['revision']}" if value.get("revision") else text
    if "model" not in value:
        raise ValueError("a model without a path")
    text = str(_reference(value["model"]))
    return f"{text}+{_reference(value['lora'])}" if value.get("lora") else text


Model = Annotated[str, BeforeValidator(_reference), Field(min_length=1, max_length=4096)]
Parameters = dict[str, Annotated[Setting, BeforeValidator(_setting)]]


class ModelEntry(_Strict):
    """A model that is merged as a whole."""

    model: Model
    parameters: Parameters = {}


class SliceSource(_Strict):
    """Layers of one model."""

    model: Model
    layer_range: tuple[int, int]
    """First layer, and the one behind the last."""
    parameters: Parameters = {}

    @model_validator(mode="after")
    def _forward(self) -> SliceSource:
        first, end = self.layer_range
        if not 0 <= first < end:
            raise ValueError(f"layer_range [{first}, {end}]; expected [FIRST, END] with 0 <= FIRST < END")
        return self


class Slice(_Strict):
    """Layers of the result, merged from as many layers of each source."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    base_model: Model | None = None
    parameters: Parameters = {}

    @model_validator(mode="after")
    def _equally_long(self) -> Slice:
        lengths = {end - first for first, end in (source.layer_range for source in self.sources)}
        if len(lengths) > 1:
            raise ValueError(f"the sources of one slice have {sorted(lengths)} layers; expected equally many")
        return self


class Module(_Strict):
    """A part of the model with layers of its own (`default` for all of it, or such as `model.encoder`)."""

    models: tuple[ModelEntry, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: Parameters = {}

    @model_validator(mode="after")
    def _one_form(self) -> Module:
        if bool(self.models) == bool(self.slices):
            raise ValueError("expected either models or slices")
        return self


class ModelToken(_Strict):
    """The embedding of a token of a model."""

    kind: Literal["model_token"]
    model: Model
    token: str | None = None
    token_id: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_of_both(self) -> ModelToken:
        if (self.token is None) == (self.token_id is None):
            raise ValueError("expected either token or token_id")
        return self


class Zero(_Strict):
    """An embedding of zeros."""

    kind: Literal["zero"]


def _token_source(value: Any) -> Any:
    if isinstance(value, dict) and "kind" in value:
        kinds: dict[Any, type[BaseModel]] = {"model_token": ModelToken, "zero": Zero}
        if value["kind"] not in kinds:
            raise ValueError(f"the kind {value['kind']!r}; expected model_token or zero")
        return kinds[value["kind"]](**value)
    return _reference(value)


class Token(_Strict):
    """Where the embedding of a token comes from that a model does not have."""

    source: Annotated[ModelToken | Zero | str | None, BeforeValidator(_token_source)] = None
    force: bool = False
    """Also where the model has it."""


class TokenizerChoice(_Strict):
    """The result's tokenizer."""

    source: Model = "union"
    """`union`, `base`, or a model."""
    tokens: dict[str, Token] = {}
    pad_to_multiple_of: int | None = Field(default=None, ge=1, le=1_000_000)


class Recipe(_Strict):
    """A merge, as its recipe says it."""

    merge_method: str
    base_model: Model | None = None
    models: tuple[ModelEntry, ...] = ()
    slices: tuple[Slice, ...] = ()
    modules: dict[str, Module] = {}
    parameters: Parameters = {}
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = None
    out_dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = None
    """Wins over `dtype`: arithmetic is in float32 in any case."""
    tokenizer_source: Model | None = None
    tokenizer: TokenizerChoice | None = None
    chat_template: str | None = None
    random_seed: int = Field(default=0, ge=0, lt=2**63)
    missing: Literal["error", "base"] = "error"
    """What becomes of tensors that not all models have."""
    name: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        if sum(map(bool, (self.models, self.slices, self.modules))) != 1:
            raise ValueError("expected exactly one of models, slices and modules, with something in it")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("expected tokenizer or tokenizer_source, not both")
        if len(self.references()) > MOST_MODELS:
            raise ValueError(f"{len(self.references()):,} models; at most {MOST_MODELS} are merged at once")
        return self

    def references(self) -> list[str]:
        """Every model that is named, once: the base first, then in the recipe's order."""
        return list(dict.fromkeys(self._named()))

    def vocabulary(self) -> TokenizerChoice | None:
        """What it says of the tokenizer, in one form."""
        if self.tokenizer is not None or self.tokenizer_source is None:
            return self.tokenizer
        return TokenizerChoice(source=self.tokenizer_source)

    def parts(self) -> dict[str, Module]:
        """The recipe's modules; `default` where it names none."""
        return self.modules or {"default": Module(models=self.models, slices=self.slices)}

    def scopes(self) -> Iterator[tuple[str, Mapping[str, Setting]]]:
        """All parameters that are set anywhere, with where that is."""
        yield "parameters", self.parameters
        for module in self.parts().values():
            yield "module", module.parameters
            for entry in module.models:
                yield f"model {entry.model}", entry.parameters
            for part in module.slices:
                yield "slice", part.parameters
                for source in part.sources:
                    yield f"slice source {source.model}", source.parameters

    def _named(self) -> Iterator[str]:
        if self.base_model is not None:
            yield self.base_model
        for module in self.parts().values():
            for entry in module.models:
                yield entry.model
            for part in module.slices:
                if part.base_model is not None:
                    yield part.base_model
                for source in part.sources:
                    yield source.model

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON without what is left at its default."""
        return self.model_dump(mode="json", exclude_defaults=True)


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """The recipe in a YAML file, or one that is a mapping already.

    Raises:
        DataError: the file cannot be read, or a value is not what it should be.
        UsageError: a key that recipes do not have; the message suggests the nearest one.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        return _checked(dict(source), "the recipe")
    path = Path(source)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes: that is no recipe, {_MOST_BYTES:,} are allowed")
        text = path.read_text(encoding="utf-8")
        if _depth(text) > _DEEPEST:
            raise DataError(f"{path} has brackets in brackets, more than {_DEEPEST} deep: that is no recipe")
        content = _Loader(text).get_single_data()
    except OSError as error:
        raise DataError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must be a mapping with merge_method and models, not {_kind(content)}")
    _bounded(content, str(path))
    return _checked(content, str(path))


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key '{key.value}' stands there twice")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _kind(content: Any) -> str:
    names = {type(None): "empty", list: "a list", str: "text", int: "a number", float: "a number"}
    return names.get(type(content), f"a {type(content).__name__}")


def _depth(text: str) -> int:
    """How deep brackets lie in brackets: the time that the YAML reader takes grows with its square."""
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _bounded(content: Any, name: str) -> None:
    """Refuse what aliases blow up, or tie into a knot, before anything walks through it."""
    count = 0
    waiting: list[tuple[Any, int]] = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise DataError(f"{name} has too many values, or aliases that contain themselves: write them out")
        if isinstance(value, dict):
            waiting += [(entry, depth + 1) for entry in value.values()]
        elif isinstance(value, list):
            waiting += [(entry, depth + 1) for entry in value]


def _checked(content: dict[Any, Any], name: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise _first_problem(error, name) from error
    except TypeError as error:
        raise DataError(f"{name}: {' '.join(str(error).split())}") from error


def _first_problem(error: ValidationError, name: str) -> Exception:
    problems = error.errors(include_url=False)
    unknown = next((problem for problem in problems if problem["type"] == "extra_forbidden"), None)
    if unknown is not None:
        *place, key = map(str, unknown["loc"])
        where = f" in {'.'.join(place)}" if place else ""
        return unknown_name(f"key{where} of {name}", key, _known(place))
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    what = " ".join(str(first["msg"]).removeprefix("Value error, ").split())
    if first["type"] == "missing":
        return UsageError(f"{name} lacks '{where}'")
    if first["type"] == "literal_error" and where.endswith("dtype"):
        what = f"{first['input']!r}; expected one of {', '.join(_DTYPES)}"
    return DataError(f"{name}: {where or 'the recipe'}: {what[0].lower() + what[1:]}")


def _known(place: list[str]) -> list[str]:
    """Keys that the mapping at `place` may have."""
    owners: dict[str, type[BaseModel]] = {
        "models": ModelEntry,
        "slices": Slice,
        "sources": SliceSource,
        "modules": Module,
        "tokenizer": TokenizerChoice,
        "tokens": Token,
    }
    owner = next((owners[part] for part in reversed(place) if part in owners), Recipe)
    return list(owner.model_fields)
