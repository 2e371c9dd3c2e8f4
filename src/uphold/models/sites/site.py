"""Names of places in a network.

residual.3      what block 3 adds up to: its output. residual.-1 is the input of the first block
head.3.5        output of attention head 5 of block 3, at the input of the output projection
query.3.5       of head 5, before any rotation; key.3.1 and value.3.1 are of key-value head 1
attention.3     what the attention of block 3 writes to the residual stream; mlp.3 likewise
hidden.3        activations of the feed-forward units of block 3: the input of the down-projection
module:a.b.c    the output of any module; its input after `module<a.b.c`
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, cast, get_args

from uphold.core.errors import UsageError, unknown_name

Kind = Literal["residual", "head", "query", "key", "value", "attention", "mlp", "hidden", "module", "module-input"]
PER_HEAD: tuple[Kind, ...] = ("head", "query", "key", "value")
_MARKS: dict[str, Kind] = {":": "module", "<": "module-input"}


class Site(NamedTuple):
    """A place in a network."""

    kind: Kind
    layer: int = -1
    """Number of the block, from 0; -1 is what goes into the first one, or no block."""
    head: int = -1
    """Number of the head, from 0; -1 where the kind has none."""
    path: str = ""
    """Of a module, where the kind is one."""

    def __str__(self) -> str:
        if self.kind == "module":
            return f"module:{self.path}"
        if self.kind == "module-input":
            return f"module<{self.path}"
        return f"{self.kind}.{self.layer}" + (f".{self.head}" if self.kind in PER_HEAD else "")


def parse_site(text: str) -> Site:
    """The site that `text` names.

    Raises:
        UsageError: it names none.
    """
    for mark, kind in _MARKS.items():
        before, found, path = text.partition(mark)
        if found and before == "module" and path:
            return Site(kind, path=path)
    kind_name, *numbers = text.split(".")
    wanted = 2 if kind_name in PER_HEAD else 1
    kinds = [kind for kind in get_args(Kind) if not kind.startswith("module")]
    try:
        found_numbers = [int(number) for number in numbers]
    except ValueError:
        found_numbers = []
    if kind_name not in kinds or len(found_numbers) != wanted:
        raise UsageError(
            f"'{text}' is no site: expected e.g. residual.3, head.3.5, query.3.5, key.3.0, value.3.0, "
            "attention.3, mlp.3, hidden.3, or module:PATH"
        )
    return Site(kind_name, *found_numbers)  # type: ignore[arg-type]


def parse_kinds(names: Iterable[str]) -> tuple[Kind, ...]:
    """Kinds of sites that a decoder's blocks have, by name.

    Raises:
        UsageError: one is unknown.
    """
    known = [kind for kind in get_args(Kind) if not kind.startswith("module")]
    for name in names:
        if name not in known:
            raise unknown_name("kind of site", name, known)
    return cast(tuple[Kind, ...], tuple(dict.fromkeys(names)))
