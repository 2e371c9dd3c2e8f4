from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uphold.core.text import one_line


def test_white_space_is_folded_and_length_limited() -> None:
    assert one_line("You are\n::error::here\u2028 now\t") == "You are ::error::here now"
    assert one_line("x" * 80) == "x" * 80
    assert one_line("x" * 81) == "x" * 79 + "…"


@given(st.text())
def test_it_is_one_short_line(text: str) -> None:
    shown = one_line(text, 20)
    assert len(shown) <= 20
    assert len(shown.splitlines()) <= 1
