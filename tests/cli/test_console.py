from __future__ import annotations

import json

import pytest

from uphold.cli import console
from uphold.cli.console import print_result, progress_to_stderr, say


def test_progress_goes_to_stderr_in_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_to_stderr() as progress:
        for done in range(1, 1001):
            progress("working", done, 1000, "note")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["working: 1000/1000, 0 s (note)"]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_to_stderr(quiet=True) as progress:
        progress("working", 1, 1)
    assert capsys.readouterr().err == ""


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True)
    with progress_to_stderr() as progress:
        progress("[not markup]", 1, 2)
        progress("[not markup]", 2, 2)
    assert "[not markup]" in capsys.readouterr().err


def test_json_refuses_what_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    print_result("text", {"a": 1}, as_json=True)
    print_result("text", {"a": 1}, as_json=False)
    assert capsys.readouterr().out == '{\n  "a": 1\n}\ntext\n'
    with pytest.raises(ValueError, match="Out of range"):
        print_result("", {"a": float("nan")}, as_json=True)


def test_names_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[31mred\u202e\x9b\ud800"
    print_result(hostile, {}, as_json=False)
    print_result("", {"name": hostile}, as_json=True)
    say(hostile)
    captured = capsys.readouterr()
    shown = "⟨U+001B⟩[31mred⟨U+202E⟩⟨U+009B⟩⟨U+D800⟩"
    assert captured.err == f"{shown}\n"
    text, values = captured.out.split("\n", 1)
    assert text == shown
    assert values.isascii()
    assert json.loads(values) == {"name": hostile}
