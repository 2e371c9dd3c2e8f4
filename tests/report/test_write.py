from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from uphold.core.errors import DataError
from uphold.report import write_report

Save = Callable[..., Path]
NAMES = ("report.html", "report.json", "report.md")


def test_three_files_beside_the_comparison(save_comparison: Save) -> None:
    folder = save_comparison()
    assert write_report(folder) == folder / "report.html"
    assert all((folder / name).is_file() for name in NAMES)
    report = json.loads((folder / "report.json").read_text())
    assert report["kind"] == "comparison"
    assert report["verdict"] in (folder / "report.html").read_text()


def test_the_same_folder_gives_the_same_bytes(save_repair: Save, tmp_path: Path) -> None:
    folder = save_repair()
    first, second = tmp_path / "first", tmp_path / "second"
    assert write_report(folder, first) == first / "report.html"
    write_report(folder, second)
    for name in NAMES:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert not (folder / "report.html").exists()


def test_a_folder_with_neither_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="uphold compare"):
        write_report(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_writing_a_report_needs_no_torch(save_repair: Save) -> None:
    code = (
        "import sys; from uphold.report import write_report; assert 'jinja2' not in sys.modules; "
        "write_report(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(save_repair())], capture_output=True, text=True, check=True, env=_environment()
    )
    assert done.stdout.strip() == "False"


def _environment() -> dict[str, str]:
    import os

    source = Path(__file__).parents[2] / "src"
    return {**os.environ, "PYTHONPATH": str(source)}


@pytest.mark.parametrize("form", ["weights", "pair"])
def test_repairs_of_every_form_without_controls_or_training(form: str, save_repair: Save) -> None:
    path = write_report(save_repair(form=form, controls=False, trained=False))
    saved = json.loads(path.with_name("report.json").read_text())
    assert (saved["repair"]["form"], saved["repair"]["artifact"]) == (form, form)
    assert [arm["role"] for arm in saved["arms"]] == ["old", "new", "repaired"]
    assert "No training history was recorded." in path.read_text()
    both = "The repaired version asks both models for every instance."
    assert (both in saved["remarks"]) == (form == "pair")


def test_validation_stands_beside_test(save_repair: Save) -> None:
    path = write_report(save_repair())
    arm = next(
        one for one in json.loads(path.with_name("report.json").read_text())["arms"] if one["role"] == "repaired"
    )
    assert arm["validation"]["nfr"]["value"] == pytest.approx(0.075)
    assert "On validation" in path.read_text()
