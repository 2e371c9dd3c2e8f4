"""The registry of methods. A method registers itself by decorator; nothing else needs to know of it.

    @repair("muscle", paper="arXiv:2407.09435")
    def muscle(old, new, task, *, config=MuscleConfig(), ...) -> Repair: ...

Methods of this package are found by importing every module of their room. Third parties name a module in the
entry-point group `uphold.methods`; importing it runs its decorators.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from uphold.core.errors import UpholdError, UsageError, unknown_name

F = TypeVar("F", bound=Callable[..., Any])
ROOMS = ("measure", "explain", "repair", "merge", "verify", "generate")
ENTRY_POINTS = "uphold.methods"


@dataclass(frozen=True)
class Method:
    """A registered method."""

    room: str
    """The verb it belongs to: one of `ROOMS`."""
    name: str
    """What a user types, in kebab case."""
    paper: str
    """Where it comes from (`arXiv:...`), or "" for one of our own."""
    function: Callable[..., Any]
    """What runs; its `config` parameter, a frozen dataclass, is the method's options."""

    @property
    def summary(self) -> str:
        """The first line of the method's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def config(self) -> type | None:
        """The dataclass of the method's options: what its `config` parameter is annotated with.

        Only that one annotation is resolved, so that the others may name types of heavy libraries.
        """
        parameter = inspect.signature(self.function).parameters.get("config")
        if parameter is None:
            return None
        hint: Any = parameter.annotation
        if isinstance(hint, str):
            hint = self.function.__globals__.get(hint.removesuffix("| None").strip())
        if not inspect.isclass(hint) or not is_dataclass(hint):
            raise UsageError(
                f"{self.room} method '{self.name}': its config parameter must be annotated with a dataclass of its "
                f"module, not {parameter.annotation!r}"
            )
        return hint


_methods: dict[tuple[str, str], Method] = {}
_plugins_of: list[str] | None = None
"""The import paths whose plug-ins are imported."""


def _register(room: str, name: str, paper: str) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        known = _methods.get((room, name))
        if known is not None and known.function.__module__ != function.__module__:
            raise UsageError(
                f"{room} method '{name}' of {function.__module__} is already registered by "
                f"{known.function.__module__}: give one of them another name"
            )
        _methods[room, name] = Method(room, name, paper, function)
        return function

    return decorate


def measure(name: str, paper: str = "") -> Callable[[F], F]:
    """Register a method of the room `measure`."""
    return _register("measure", name, paper)


def explain(name: str, paper: str = "") -> Callable[[F], F]:
    """Register a method of the room `explain`."""
    return _register("explain", name, paper)


def repair(name: str, paper: str = "") -> Callable[[F], F]:
    """Register a method of the room `repair`."""
    return _register("repair", name, paper)


def merge(name: str, paper: str = "") -> Callable[[F], F]:
    """Register a merge method, a class as `uphold.merge.protocol` describes it."""
    return _register("merge", name, paper)


def verify(name: str, paper: str = "") -> Callable[[F], F]:
    """Register a method of the room `verify`."""
    return _register("verify", name, paper)


def methods(room: str | None = None) -> list[Method]:
    """All registered methods, sorted by room and name; of one `room` when given."""
    _discover()
    found = [method for method in _methods.values() if room in (None, method.room)]
    return sorted(found, key=lambda method: (ROOMS.index(method.room), method.name))


def method(room: str, name: str) -> Method:
    """The method called `name`.

    Raises:
        UsageError: there is none; the message suggests the nearest name.
    """
    _discover()
    if (room, name) not in _methods:
        names = [known for known_room, known in _methods if known_room == room]
        raise unknown_name(f"{room} method", name, names, "'uphold methods' lists them.")
    return _methods[room, name]


def _discover() -> None:
    """Import every module of every room, then every entry point. Repeated calls cost a dictionary look-up each."""
    for room in ROOMS:
        package = f"uphold.{room}"
        if importlib.util.find_spec(package) is None:
            continue
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")
    # Reading what is installed takes milliseconds; it changes with the paths only.
    global _plugins_of
    if _plugins_of != sys.path:
        import_plugins(ENTRY_POINTS)
        _plugins_of = list(sys.path)


def import_plugins(group: str) -> None:
    """Import every module that third parties name in the entry-point group `group`.

    Raises:
        UsageError: one cannot be imported; the message names the plug-in.
    """
    for point in entry_points(group=group):
        try:
            point.load()
        except UpholdError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(
                f"the plug-in '{point.name}' ({point.value}) cannot be imported ({reason}); "
                "reinstall or remove the package that brings it"
            ) from error
