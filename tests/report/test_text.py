from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from uphold.report.text import clip, finite, p_value, short, signed_percent, visible


def test_invisible_characters_are_written_out() -> None:
    assert visible("a\u202eb\u200bc\x1bd") == "a⟨U+202E⟩b⟨U+200B⟩c⟨U+001B⟩d"
    assert visible("\ud800\u2028\U000e0041") == "⟨U+D800⟩⟨U+2028⟩⟨U+E0041⟩"
    assert visible("two\r\nlines\tand é 漢 🙂") == "two\nlines\tand é 漢 🙂"


@given(st.text())
def test_visible_text_stays_as_it_is_when_seen_again(text: str) -> None:
    once = visible(text)
    assert visible(once) == once
    once.encode()


def test_clip_keeps_both_ends_and_counts_the_rest() -> None:
    text = "a" * 100 + "b" * 900 + "c" * 100
    clipped = clip(text, 90)
    assert clipped.startswith("a" * 30 + " […1010 characters left out…] ")
    assert clipped.endswith("c" * 60)
    assert clip("x" * 100, 90) == "x" * 100


def test_numbers_in_words() -> None:
    assert (short(0.0812), short(0.0013), short(0.0), short(None)) == ("8.1%", "0.13%", "0.0%", "undefined")
    assert short(0.4567, "score") == "0.457"
    assert (signed_percent(-0.234), signed_percent(0.1), signed_percent(None)) == ("−23.4%", "+10.0%", "undefined")
    assert (p_value(0.031), p_value(1e-9), p_value(1.0)) == ("p = 0.031", "p < 0.0001", "p = 1")


def test_finite_knows_no_nan() -> None:
    assert finite({"a": [math.nan, 1.5, (math.inf,)], "b": "nan"}) == {"a": [None, 1.5, [None]], "b": "nan"}
