"""A rate: one number of a comparison with its interval and its noise floor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """One measured number."""

    name: str
    """Registry-stable name, e.g. `nfr`."""
    label: str
    """What a table calls it, e.g. `NFR`."""
    value: float | None
    """None where the definition divides by zero: undefined, neither 0 nor NaN."""
    low: float | None = None
    """Lower end of the confidence interval; None when undefined."""
    high: float | None = None
    """Upper end of the confidence interval; None when undefined."""
    floor: float | None = None
    """The same number for the old model against itself; None when it was not measured or means nothing."""
    unit: str = "share"
    """`share` (in [0, 1], or [-1, 1] for differences; shown in %), `ratio` or `score`."""
    better: str = ""
    """`lower` or `higher`, or "" where neither is meant."""

    def __str__(self) -> str:
        text = f"{self.label} {format_value(self.value, self.unit)}"
        if self.low is not None and self.high is not None:
            text += f" [{format_value(self.low, self.unit)}, {format_value(self.high, self.unit)}]"
        return text


def format_value(value: float | None, unit: str) -> str:
    """`value` as a table shows it; `undefined` for None."""
    if value is None:
        return "undefined"
    return f"{100 * value:.2f}%" if unit == "share" else f"{value:.3f}"
