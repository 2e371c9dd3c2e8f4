"""A policy: what an update must keep before it may ship, as a YAML file that is reviewed like code.

    old: runs/old                      # optional: what to compare; the command line may name others
    new: runs/new
    tasks: [demo]                      # optional: what to ask where old and new are models
    alpha: 0.05                        # how often a verdict may be wrong; see uphold.measure.gate
    cluster: passage                   # optional: the tag that says which instances belong together
    limits:
      - max_nfr: 2%                    # share of instances that the update may break
        margin: 0.01                   # how much lower the accuracy (or mean score) may be
        equivalence: 0.05              # how far it may be either way
        max_inconsistency: 5%          # NFR^mc: new wrong with another answer than the old one
      - task: demo*                    # a pattern; every task by default
        slice: difficulty=hard         # TAG=VALUE, or a pattern; the whole task by default
        max_nfr: 0.05
    must_keep: [0123456789abcdef]      # instances that may not flip; or {file: must_keep.txt}
    allowed_flips:                     # reviewed exceptions to must_keep
      - {id: 0123456789abcdef, expires: 2026-12-31, reason: "the gold answer is wrong"}

Paths are relative to the file. Every limit that matches holds; a loose one does not lift a strict one.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from uphold.core.errors import DataError, unknown_name
from uphold.core.text import one_line

LimitRule = Literal["max_nfr", "margin", "max_gain", "max_inconsistency"]
_SMALLEST_ALPHA = 1e-12
"""Below, 1 - alpha is too coarse a number to compute bounds with."""


def share(value: Any) -> float:
    """A number in [0, 1], also written as `2%`.

    Raises:
        ValueError: `value` is none.
    """
    number, percent = value, False
    if isinstance(value, str):
        text = value.strip()
        percent = text.endswith("%")
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"{value!r} is not a share: write 0.02 or 2%")
    # Compared before it is divided: an integer may be too large for a float.
    if not 0 <= number <= (100 if percent else 1):
        hint = f"; {number:g}% is written {number:g}% or {number / 100:g}" if 1 < number <= 100 and not percent else ""
        raise ValueError(f"{one_line(str(value), 40)} is not in [0, 1]{hint}")
    return number / 100 if percent else float(number)


def _positive_share(value: Any) -> float:
    number = share(value)
    if number == 0:
        raise ValueError(
            "no number of instances can show that a share is 0: write a small one, such as 0.1%, "
            "or name instances in must_keep"
        )
    return number


def _margin(value: Any) -> float:
    number = share(value)
    if number == 1:
        raise ValueError("a margin of 1 allows anything: write a share such as 0.01")
    return number


def _alpha(value: Any) -> float:
    number = share(value)
    if not _SMALLEST_ALPHA <= number < 0.5:
        raise ValueError(f"{value} is not between {_SMALLEST_ALPHA:g} and 0.5: 0.05 is usual")
    return number


Text = Annotated[str, Field(min_length=1)]
Margin = Annotated[float, BeforeValidator(_margin)]
PositiveShare = Annotated[float, BeforeValidator(_positive_share)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limit(_Strict):
    """What must hold on some tasks, as a whole or on one slice of them."""

    task: Text = "*"
    """Name of a task, or a pattern with `*`, `?` and `[...]`."""
    slice: Text | None = None
    """`TAG=VALUE` as `compare` lists it, or a pattern; None for the whole task."""
    max_nfr: PositiveShare | None = None
    """Highest share of instances, in (0, 1], that the update may break (score falls where scores are continuous)."""
    margin: Margin | None = None
    """How much lower, in [0, 1), the new model's accuracy (mean score) may be than the old one's."""
    equivalence: PositiveShare | None = None
    """How far, in (0, 1), the new accuracy (mean score) may be from the old one's either way: two one-sided tests
    (Schuirmann 1987), the rules `margin` and `max_gain`."""
    max_inconsistency: PositiveShare | None = None
    """Highest NFR^mc, in (0, 1]: new wrong, with another answer than the old model's."""

    @model_validator(mode="after")
    def _limits_something(self) -> Limit:
        if not self.rules:
            raise ValueError("a limit needs one of max_nfr, margin, equivalence, max_inconsistency")
        if self.equivalence == 1:
            raise ValueError("an equivalence of 1 allows anything: write a share such as 0.01")
        return self

    @property
    def rules(self) -> dict[LimitRule, float]:
        """The limits that are given, by rule."""
        margins = [value for value in (self.margin, self.equivalence) if value is not None]
        found: dict[LimitRule, float | None] = {
            "max_nfr": self.max_nfr,
            "margin": min(margins, default=None),
            "max_gain": self.equivalence,
            "max_inconsistency": self.max_inconsistency,
        }
        return {name: value for name, value in found.items() if value is not None}


class AllowedFlip(_Strict):
    """A reviewed exception: this must-keep instance may flip for a while."""

    id: Text
    expires: datetime.date
    """The last day on which it is allowed."""
    reason: Text


class Policy(_Strict):
    """What an update must keep; see the module for the file."""

    old: Text | None = None
    new: Text | None = None
    tasks: tuple[Text, ...] = ()
    alpha: Annotated[float, BeforeValidator(_alpha)] = 0.05
    """How often a verdict may be wrong, in (0, 0.5); see `uphold.measure.gate.gate`."""
    cluster: Text | None = None
    limits: tuple[Limit, ...] = ()
    must_keep: tuple[Text, ...] = ()
    allowed_flips: tuple[AllowedFlip, ...] = ()

    @model_validator(mode="after")
    def _decides_something(self) -> Policy:
        if not self.limits and not self.must_keep:
            raise ValueError("it limits nothing: give limits or must_keep")
        ids = [flip.id for flip in self.allowed_flips]
        for name in ids:
            if ids.count(name) > 1:
                raise ValueError(f"allowed_flips has '{name}' twice")
            if name not in self.must_keep:
                raise ValueError(f"allowed_flips excuses '{name}', which is not in must_keep: remove it there")
        return self


class _KeepFile(_Strict):
    file: Text


def load_policy(path: str | Path) -> Policy:
    """The policy in a YAML file; `old`, `new`, task files and `must_keep: {file: ...}` are found beside it.

    Raises:
        DataError: the file cannot be read, or does not say what a policy says; the message names key and line.
    """
    where = Path(path)
    root, values = _parsed(where)
    if isinstance(values.get("must_keep"), dict):
        values["must_keep"] = _kept(_validated(_KeepFile, values["must_keep"], where, root, ("must_keep",)), where)
    policy: Policy = _validated(Policy, values, where, root)
    folder = where.parent
    return policy.model_copy(
        update={
            "old": policy.old and _placed(policy.old, folder),
            "new": policy.new and _placed(policy.new, folder),
            "tasks": tuple(
                _placed(task, folder) if task.endswith((".yaml", ".yml")) else task for task in policy.tasks
            ),
        }
    )


def _parsed(path: Path) -> tuple[yaml.Node, dict[Any, Any]]:
    """The nodes of a policy file, which know their lines, and its values."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise DataError(f"{path} is not a policy: expected keys such as limits and must_keep")
        _check_keys(root, path, set())
        _keep_ids_as_text(root)
        return root, loader.construct_document(root)
    except OSError as error:
        raise DataError(f"cannot read the policy {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the policy {path} is not a UTF-8 text file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        yield from (value for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_keys(node: yaml.Node, path: Path, seen: set[int]) -> None:
    """Refuse a key that stands twice in one mapping, of which YAML would keep the last."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in keys:
                raise DataError(f"{path}, line {key.start_mark.line + 1}: the key '{key.value}' stands here twice")
            keys.add(str(key.value))
    for child in _children(node):
        _check_keys(child, path, seen)


def _entry(node: yaml.Node | None, key: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """The nodes of a key and its value; of a list's entry, twice its value."""
    if isinstance(node, yaml.MappingNode):
        return next(((name, value) for name, value in node.value if name.value == key), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key]
    return None


def _keep_ids_as_text(root: yaml.Node) -> None:
    """Read ids as they are written: `0000000000000012` is a number to YAML."""
    kept, allowed = _entry(root, "must_keep"), _entry(root, "allowed_flips")
    ids = list(_children(kept[1])) if kept and isinstance(kept[1], yaml.SequenceNode) else []
    for flip in _children(allowed[1]) if allowed else ():
        named = _entry(flip, "id")
        ids += [named[1]] if named else []
    for node in ids:
        if isinstance(node, yaml.ScalarNode):
            node.tag = "tag:yaml.org,2002:str"


def _validated(
    model: type[BaseModel], values: Mapping[Any, Any], path: Path, root: yaml.Node, inside: tuple[str | int, ...] = ()
) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # A misspelt key also leaves its right spelling missing: the first is the cause.
        first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        location = (*inside, *first["loc"])
        line, shown = _line(root, location), ".".join(str(part) for part in location)
        place = f"{path}, line {line}" if location else str(path)
        raise DataError(f"{place}: {_problem(model, first, shown)}") from error


def _line(root: yaml.Node, location: Sequence[str | int]) -> int:
    node, line = root, root.start_mark.line
    for part in location:
        entry = _entry(node, part)
        if entry is None:
            break
        line, node = entry[0].start_mark.line, entry[1]
    return line + 1


def _problem(model: type[BaseModel], first: Mapping[str, Any], shown: str) -> str:
    if first["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {"limits": Limit, "allowed_flips": AllowedFlip}
        owner = parts.get(str(first["loc"][0]), model) if len(first["loc"]) > 1 else model
        return str(unknown_name("key", str(first["loc"][-1]), owner.model_fields))
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "model_type":
        message = "expected keys with their values"
    elif first["type"] != "value_error":
        message = message[:1].lower() + message[1:].replace("valid tuple", "list")
    return f"{shown}: {message}" if shown else message


def _kept(named: _KeepFile, policy: Path) -> tuple[str, ...]:
    """The ids in a must-keep file: one a line, `#` begins a comment."""
    path = policy.parent / named.file
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "not a UTF-8 text file"
        raise DataError(f"{policy}: must_keep.file: cannot read {path}: {what}") from error
    ids = tuple(text for line in lines if (text := line.split("#", 1)[0].strip()))
    if not ids:
        raise DataError(f"{policy}: must_keep.file: there are no ids in {path}: write one a line")
    return ids


def _placed(text: str, folder: Path) -> str:
    """`text` with the paths in it (of a model and its adapter) that exist beside the policy."""
    if os.path.exists(folder / text):
        return str(folder / text)
    return "+".join(str(folder / part) if part and os.path.exists(folder / part) else part for part in text.split("+"))
