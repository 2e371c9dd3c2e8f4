"""What is typed behind a task's name: `NAME:option=value,...`, checked against the function that loads the task.

A source's function takes the name as its first argument, where it has one, and its options as the arguments after it;
their annotations are the schema. `label` (what was typed) and `progress` are filled in where the function takes them.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_type_hints

from uphold.core.errors import UsageError, unknown_name
from uphold.core.progress import Progress
from uphold.tasks.base import FixedTask

FILLED_IN = ("label", "progress")
"""Arguments of a loading function that no user types."""
_FIRST_OPTION = re.compile(r":\s*\w+\s*=")
_OPENING, _CLOSING = "[{", "]}"
_ESCAPES = {'"': ('\\"', "\\\\"), "'": ("''",)}
"""The quotes of YAML, and what stands for a quote or a backslash between them."""


def split_name(text: str) -> tuple[str, str]:
    """The name and the options of `NAME[:options]`; colons in a name are kept where an option follows."""
    first = _FIRST_OPTION.search(text)
    if first:
        return text[: first.start()], text[first.start() + 1 :]
    name, _, options = text.partition(":")
    return name, options


def read_options(task: str, text: str) -> dict[str, Any]:
    """The options in `key=value,key=value`, each value read as YAML; `task` is what messages call the task.

    Raises:
        UsageError: a part is no `option=value`, a value is no YAML, or an option is given twice.
    """
    import yaml

    options: dict[str, Any] = {}
    for part in split_at_commas(text):
        key, separator, value = part.partition("=")
        key = key.strip()
        if not separator:
            raise UsageError(f"task '{task}': expected option=value, found '{part}'")
        if key in options:
            raise UsageError(f"task '{task}': the option '{key}' is given twice; give it once")
        try:
            options[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"task '{task}': the value of '{part}' cannot be read; quote it") from error
    return options


def split_at_commas(text: str) -> list[str]:
    """The parts between commas; a value that begins with a quote or a bracket goes on to where that is closed."""
    parts, start, position = [], 0, 0
    while position < len(text):
        if text[position] == ",":
            parts.append(text[start:position])
            start = position + 1
        elif text[position] == "=":
            value = position + 1 + len(text[position + 1 :]) - len(text[position + 1 :].lstrip())
            position = max(position, _end_of_value(text, value) - 1)
        position += 1
    return [part for part in [*parts, text[start:]] if part.strip()]


def _end_of_value(text: str, start: int) -> int:
    """Where the quoted or bracketed value that begins at `start` ends; `start` itself where it is neither."""
    if start >= len(text) or text[start] not in (*_OPENING, *_ESCAPES):
        return start
    depth, quote, position = 0, "", start
    while position < len(text):
        character = text[position]
        if quote:
            if text[position : position + 2] in _ESCAPES[quote]:
                position += 1
            elif character == quote:
                quote = ""
        elif character in _ESCAPES and text[:position].rstrip()[-1:] in ("=", ",", ":", "[", "{"):
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        position += 1
        if depth <= 0 and not quote:
            return position
    return len(text)


def option_names(function: Callable[..., FixedTask], named: bool) -> list[str]:
    """The options that a loading function takes."""
    parameters = list(inspect.signature(function).parameters.values())
    return [
        parameter.name
        for parameter in parameters[1 if named else 0 :]
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in FILLED_IN
    ]


def call_with_options(
    function: Callable[..., FixedTask], task: str, name: str | None, options: Mapping[str, Any], progress: Progress
) -> FixedTask:
    """The task that `function` loads.

    Args:
        function: the loading function of a source.
        task: what was typed, for messages and as the task's label.
        name: first argument of `function`; None where it takes no name.
        options: the other arguments.
        progress: passed on where `function` takes it.

    Raises:
        UsageError: an option is unknown, or its value has the wrong type.
    """
    parameters = inspect.signature(function).parameters
    known = option_names(function, name is not None)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = get_type_hints(function)
    values: dict[str, Any] = {}
    for key, value in options.items():
        if key not in known and not open_ended:
            raise unknown_name("option", key, known, f"It stands in '{task}'.")
        values[key] = _typed(task, key, value, hints[key]) if key in known else value
    missing = [key for key in known if key not in values and parameters[key].default is inspect.Parameter.empty]
    if missing:
        raise UsageError(
            f"task '{task}' needs {' and '.join(missing)}: add {','.join(f'{key}=...' for key in missing)}"
        )
    filled = {"label": task, "progress": progress}
    values |= {key: value for key, value in filled.items() if key in parameters}
    return function(*([] if name is None else [name]), **values)


def _typed(task: str, key: str, value: Any, hint: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError

    if isinstance(value, str) and hint == tuple[str, ...]:
        value = (value,)
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].lower()
        advice = " (quote text)" if hint is str else ""
        raise UsageError(f"task '{task}': {key}: {message}{advice}") from error


def unknown_among_many(kind: str, name: str, known: Collection[str], examples: Collection[str]) -> UsageError:
    """`unknown_name` for lists too long to print: the nearest name, else how many there are and a few of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return UsageError(f"unknown {kind} '{name}': did you mean '{near[0]}'?")
    shown = [example for example in examples if example in known] or sorted(known)[:3]
    return UsageError(f"unknown {kind} '{name}': there are {len(known)}, for example {', '.join(shown)}")


def one_line(error: BaseException, longest: int = 200) -> str:
    """What a foreign exception says, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"
