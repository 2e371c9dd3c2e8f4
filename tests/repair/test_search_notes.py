from __future__ import annotations

from pathlib import Path

from tests.repair.search_fakes import NEW_RIGHT, OLD_RIGHT, Fake, Look, always


def test_nothing_is_chosen_where_nothing_helps(look: Look, tmp_path: Path) -> None:
    result = look(Fake("useless", always(NEW_RIGHT)), Fake("copy-of-old", always(OLD_RIGHT)))
    assert result.chosen is None
    assert "none to ship" in result.verdict()
    assert not (tmp_path / "out" / "repair.json").exists()
    assert "no repair has fewer negative flips" in str(result)


def test_what_a_choice_rests_on_is_said(look: Look) -> None:
    """40 validation instances cannot show that a repair that changes two of them is at most half a point worse."""
    result = look(Fake("better", always(NEW_RIGHT | {0, 1})), trials=1)
    first, second, last = result.notes
    assert first.startswith("40 validation instances do not show that its accuracy is at most 0.5 points below")
    assert "it was chosen because it was not observed to be lower; about 5,412 instances would show it" in first
    assert second.startswith("the test split does not show")
    assert "with one seed" in last
    both = look(
        Fake("better", always(NEW_RIGHT | {0, 1})), Fake("other", always(NEW_RIGHT | {0})), trials=2, out="both"
    )
    assert both.notes[0].startswith("chosen as the lowest validation NFR among 2 repairs: that NFR is the best of")
    strict = look(Fake("better", always(NEW_RIGHT | {0, 1})), trials=1, strict=True, out="strict")
    assert [note.partition(": ")[2] for note in strict.notes] == ["--strict asks for a shown one"]
