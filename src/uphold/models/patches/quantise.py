"""Few-bit forms of a patch's numbers. Zero always comes back as exactly zero.

    int8, int4    x = code * step, symmetric: step = max|x| / 127 or / 7; error at most step / 2
    linear:L      L evenly spaced levels from min to max (arXiv:2302.12480), and zero;
                  error at most (max - min) / (2 (L - 1))
    tanh:L        the same of tanh(x) (arXiv:2302.12480); the bound holds for tanh(x). A number far below 1, as changes
                  of weights are, is its own tanh: this is `linear` then
    log:L         sign and L/2 evenly spaced levels of log2|x| (arXiv:2302.12480), and zero;
                  |log2 error| at most (max - min) / (L - 2), both of log2|x|

Codes of up to 4 bits are packed two to a byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from uphold.core.errors import CorruptError, UsageError

Kind = Literal["int8", "int4", "linear", "tanh", "log"]
_DEFAULT_LEVELS = 254
_MOST_LEVELS = 32_766
_SYMMETRIC: Mapping[str, int] = {"int8": 127, "int4": 7}
_CHUNK = 1 << 22
_MOST_TANH = 18.0
"""Beyond it, tanh is 1 in float64."""
_LOG_RANGE = 24.0
"""Powers of two below the largest number at which the log quantiser calls a number zero: one part in 16 million."""


@dataclass(frozen=True)
class Scheme:
    """How numbers are quantised: what `--quantise` names."""

    kind: Kind
    levels: int
    """Number of values beside zero, for `linear`, `tanh` and `log`; largest code, for `int8` and `int4`."""

    def codes(self, zero: bool) -> int:
        """How many codes there are, stored as 0 to `codes` - 1; one is for zero, where there are zeros."""
        return 2 * self.levels + 1 if self.kind in _SYMMETRIC else self.levels + int(zero)

    def packed(self, zero: bool) -> bool:
        """Whether a byte holds two codes."""
        return self.codes(zero) <= 16

    def storage(self, zero: bool) -> torch.dtype:
        """What the codes are stored as."""
        return torch.uint8 if self.codes(zero) <= 256 else torch.int16

    def __str__(self) -> str:
        return self.kind if self.kind in _SYMMETRIC else f"{self.kind}:{self.levels}"


def scheme(text: str) -> Scheme:
    """The scheme that `text` names: `int8`, `int4`, `log`, `log:L`, `linear:L` or `tanh:L`.

    Raises:
        UsageError: it names none, or L is out of range.
    """
    kind, colon, number = text.partition(":")
    if kind in _SYMMETRIC and not colon:
        return Scheme(kind, _SYMMETRIC[kind])  # type: ignore[arg-type]
    if kind == "log" and not colon:
        return Scheme("log", _DEFAULT_LEVELS)
    if kind not in ("linear", "tanh", "log") or not number.isdecimal():
        raise UsageError(f"unknown quantiser '{text}': expected int8, int4, log, log:L, linear:L or tanh:L (L levels)")
    levels = int(number) if len(number) < 9 else _MOST_LEVELS + 1
    if not 2 <= levels <= _MOST_LEVELS or (kind == "log" and (levels % 2 or levels < 4)):
        expected = f"2 to {_MOST_LEVELS}" if kind != "log" else f"an even number from 4 to {_MOST_LEVELS}"
        raise UsageError(f"the quantiser '{text}' has {number} levels: expected {expected}")
    return Scheme(kind, levels)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Quantised:
    """A sequence of numbers, quantised."""

    scheme: Scheme
    codes: torch.Tensor
    """Shape (count,), or (ceil(count / 2),) where two codes share a byte, the first in its low half."""
    count: int
    low: float
    """Lowest level (of log2|x| for `log`, of tanh(x) for `tanh`); 0 for `int8` and `int4`."""
    high: float
    """Highest level (likewise); largest |x| for `int8` and `int4`."""
    zero: bool
    """Whether code 0 of `linear`, `tanh` and `log` is zero: it is where there are zeros."""

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return self.codes.nbytes

    @property
    def error(self) -> float:
        """Largest |x - x'| that quantising can have caused; for `log`, of log2|x|; for `tanh`, of tanh(x).

        A number at most one part in 2^24 of the largest is zero under `log`, whatever its logarithm was.
        """
        if self.scheme.kind in _SYMMETRIC:
            return self.high / self.scheme.levels / 2
        steps = self.scheme.levels // 2 - 1 if self.scheme.kind == "log" else self.scheme.levels - 1
        return (self.high - self.low) / steps / 2

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Numbers `start` to `stop` (excluded), float32, shape (stop - start,)."""
        code = self._unpacked(start, stop)
        levels = self.scheme.levels
        if self.scheme.kind in _SYMMETRIC:
            return ((code - levels).double() * (self.high / levels)).float()
        level = code - int(self.zero)
        if self.scheme.kind != "log":
            found = level.double() / (levels - 1) * (self.high - self.low) + self.low
            if self.scheme.kind == "tanh":
                found = found.clamp(self.low, self.high).atanh()
        else:
            half = levels // 2
            size = torch.exp2((level % half).double() / (half - 1) * (self.high - self.low) + self.low)
            found = torch.where(level < half, size, -size)
        return torch.where(level < 0, 0.0, found).float()

    def check(self) -> Quantised:
        """Itself, where it can be what `quantise` made.

        Raises:
            CorruptError: it cannot.
        """
        length = (self.count + 1) // 2 if self.scheme.packed(self.zero) else self.count
        if self.codes.dtype != self.scheme.storage(self.zero) or tuple(self.codes.shape) != (length,):
            raise CorruptError(f"{self.scheme} codes of another type or number than its {self.count:,} values need")
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low > self.high:
            raise CorruptError(f"{self.scheme} levels from {self.low} to {self.high}")
        if self.scheme.kind == "log" and self.high > 128:
            raise CorruptError(f"{self.scheme} levels up to 2^{self.high}")
        if self.scheme.kind == "tanh" and not -1 < self.low <= self.high < 1:
            raise CorruptError(f"{self.scheme} levels from {self.low} to {self.high}")
        for start in range(0, self.count, _CHUNK):
            codes = self._unpacked(start, min(start + _CHUNK, self.count))
            if int(codes.max()) >= self.scheme.codes(self.zero) or int(codes.min()) < 0:
                raise CorruptError(f"a code beyond the {self.scheme.codes(self.zero)} of {self.scheme}")
        return self

    def facts(self) -> dict[str, Any]:
        """What a file needs beside the codes."""
        return {
            "quantiser": str(self.scheme),
            "count": self.count,
            "low": self.low,
            "high": self.high,
            "zero": self.zero,
        }

    def _unpacked(self, start: int, stop: int) -> torch.Tensor:
        if not self.scheme.packed(self.zero):
            return self.codes[start:stop].to(torch.int32)
        pairs = self.codes[start // 2 : (stop + 1) // 2]
        both = torch.stack([pairs & 15, pairs >> 4], dim=1).reshape(-1)
        return both[start % 2 : start % 2 + stop - start].to(torch.int32)


def quantise(values: torch.Tensor, how: Scheme) -> Quantised:
    """`values` (finite floats, any shape; flattened) with few bits each.

    Raises:
        UsageError: a value is not a finite number, or too large for `tanh`.
    """
    flat = values.detach().reshape(-1).double().cpu()
    if not bool(torch.isfinite(flat).all()):
        raise UsageError(f"{how} cannot hold what is not a finite number: leave that tensor out")
    if how.kind in _SYMMETRIC:
        high = float(flat.abs().max()) if flat.numel() else 0.0
        code = torch.round(flat * (how.levels / high)) if high else torch.zeros_like(flat)
        return _packed(how, code + how.levels, flat.numel(), 0.0, high, False)
    zero = flat == 0
    if how.kind == "tanh" and bool((flat.abs() > _MOST_TANH).any()):
        raise UsageError(f"{how} holds numbers up to {_MOST_TANH:g}, not {float(flat.abs().max()):g}: use linear:L")
    size = flat.tanh() if how.kind == "tanh" else flat.abs() if how.kind == "log" else flat
    if how.kind == "log" and not bool(zero.all()):
        zero |= size <= size.max() * 2.0**-_LOG_RANGE
        size = torch.log2(torch.where(zero, 1.0, size))
    if bool(zero.all()):
        return _packed(how, torch.zeros_like(flat), flat.numel(), 0.0, 0.0, True)
    low, high = float(size[~zero].min()), float(size[~zero].max())
    if how.kind != "log":
        # The levels span all values, as in the paper, also those that are zero.
        low, high = float(size.min()), float(size.max())
    steps = how.levels // 2 - 1 if how.kind == "log" else how.levels - 1
    place = torch.round((size - low) * (steps / (high - low))) if high > low else torch.zeros_like(size)
    if how.kind == "log":
        place += torch.where(flat < 0, how.levels // 2, 0)
    any_zero = bool(zero.any())
    code = torch.where(zero, 0.0, place + int(any_zero))
    return _packed(how, code, flat.numel(), low, high, any_zero)


def _packed(how: Scheme, code: torch.Tensor, count: int, low: float, high: float, zero: bool) -> Quantised:
    stored = code.to(how.storage(zero))
    if how.packed(zero):
        if count % 2:
            stored = torch.cat([stored, stored.new_zeros(1)])
        stored = stored[0::2] | (stored[1::2] << 4)
    return Quantised(how, stored.contiguous(), count, low, high, zero)
