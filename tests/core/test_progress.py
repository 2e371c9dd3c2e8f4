from __future__ import annotations

import pytest

from uphold.core.progress import Progress, silent


def test_silence_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress: Progress = silent

    progress("evaluating", 1, 2)
    progress("evaluating", 2, 2, "done")

    assert capsys.readouterr() == ("", "")
