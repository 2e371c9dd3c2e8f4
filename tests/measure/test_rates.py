from __future__ import annotations

import pytest

from uphold.measure.rates import Rate, format_value


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1027, "share", "10.27%"),
        (-0.05, "share", "-5.00%"),
        (0.0, "share", "0.00%"),
        (0.5212, "ratio", "0.521"),
        (0.25, "score", "0.250"),
        (None, "share", "undefined"),
        (None, "ratio", "undefined"),
    ],
)
def test_values_are_shown_in_their_unit(value: float | None, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


def test_a_rate_prints_its_interval() -> None:
    assert str(Rate("nfr", "NFR", 0.1, 0.05, 0.15)) == "NFR 10.00% [5.00%, 15.00%]"


def test_a_rate_without_interval_prints_its_value() -> None:
    assert str(Rate("nfi", "NFI", None)) == "NFI undefined"
    assert str(Rate("m_g", "M_g", 0.5, unit="score")) == "M_g 0.500"
