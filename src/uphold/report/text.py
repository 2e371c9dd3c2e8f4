"""Text that other people wrote, made fit to be shown: nothing invisible, nothing endless, no NaN."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

_HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Letters and marks by category, but drawn as nothing.
_BLANK = {"\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u2800", "\u3164", "\uffa0"}
_KEPT = {"\n", "\t"}


def visible(text: object) -> str:
    """`text` with every invisible or direction-changing character written out, e.g. `⟨U+202E⟩`.

    A right-to-left override or a zero-width joiner in a model's answer would otherwise make two different
    answers look equal, or change how the text around it reads.
    """
    plain = str(text).replace("\r\n", "\n")
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(f"⟨U+{ord(char):04X}⟩" if _hidden(char) else char for char in plain)


def _hidden(char: str) -> bool:
    return char not in _KEPT and (unicodedata.category(char) in _HIDDEN_CATEGORIES or char in _BLANK)


def clip(text: str, limit: int) -> str:
    """`text` cut in its middle to about `limit` characters, with a count of what is missing.

    The end is kept longer than the beginning: a prompt's question comes last. A text that is a little longer
    stays whole, as the count would take the room that it saves.
    """
    if len(text) <= 1.2 * limit + 20:
        return text
    head, tail = limit // 3, limit - limit // 3
    return f"{text[:head]} […{len(text) - head - tail} characters left out…] {text[-tail:]}"


def finite(value: Any) -> Any:
    """`value` (nested JSON) with NaN and infinity as None, as JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def short(value: float | None, unit: str = "share") -> str:
    """`value` as a sentence says it: one decimal of a percent, two below one percent."""
    if value is None:
        return "undefined"
    if unit != "share":
        return f"{value:.3f}"
    return f"{100 * value:.1f}%" if abs(value) >= 0.01 or value == 0 else f"{100 * value:.2f}%"


def p_value(value: float) -> str:
    """A p-value with its relation sign: `p = 0.031`, `p < 0.0001`."""
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def signed_percent(change: float | None) -> str:
    """A relative change with a true minus sign, e.g. `−23.4%`."""
    return "undefined" if change is None else f"{100 * change:+.1f}%".replace("-", "−")
