from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.patches.patched import change, copy, hashes, network_file, sharded
from uphold.core.errors import CorruptError, ModelError, StorageError
from uphold.models.checkpoint import open_checkpoint
from uphold.models.patches.journal import Place, changing, settle
from uphold.models.patches.place import applied_to, apply_in_place, remove_in_place

ROOT = Path(__file__).parents[3]


def test_a_kill_at_any_step_leaves_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    folder, file = sharded(tmp_path / "m"), network_file(tmp_path / "cnn.safetensors")
    scenarios = [f"apply={folder}", f"remove-one={folder}", f"remove-last={folder}", f"apply-second={file}"]
    command = [sys.executable, "-m", "tests.models.patches.killed", str(tmp_path / "scratch"), *scenarios]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    assert len(found) == len(scenarios)
    for scenario, counts in found.items():
        assert counts["steps"] > 20
        assert not any(count for name, count in counts.items() if "MIXED" in name or "WRONG" in name), counts
        assert counts["ended new new"] == 1
        assert {"left old", "left new", "settled old", "settled new"} <= counts.keys()
        # While several files change hands, nothing can be loaded; one file is simply exchanged.
        assert ("left none" in counts) == (scenario != "apply-second"), counts


def staged(model: Path) -> Path:
    place = Place(model.resolve())
    (place.staging / "new").mkdir(parents=True)
    (place.staging / "new" / "x").write_text("half")
    return place.staging


def test_what_was_begun_is_cleared_away(tmp_path: Path) -> None:
    model = sharded(tmp_path / "m")
    before = hashes(model)
    staged(model)
    assert applied_to(model) == []
    assert hashes(model) == before
    staged(model)
    patch = change(model, 1)
    apply_in_place(model, [patch])
    staged(model)
    remove_in_place(model)
    assert hashes(model) == before


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"files": ["../../x"], "state": true}', '{"files": [".."], "state": true}',
     '{"files": "x", "state": true}', '{"files": ["x"]}', '{"files": [3], "state": false}'],
)  # fmt: skip
def test_a_journal_that_is_not_ours_is_left_alone(tmp_path: Path, content: str) -> None:
    model = sharded(tmp_path / "m")
    staging = staged(model)
    (staging / "journal.json").write_text(content)
    before = hashes(tmp_path)
    with pytest.raises(CorruptError) as caught:
        settle(Place(model.resolve()))
    assert "\n" not in str(caught.value)
    assert hashes(tmp_path) == before
    with pytest.raises(ModelError, match="interrupted; run 'uphold patch show "):
        open_checkpoint(model)


def test_an_exception_before_the_commit_leaves_nothing(tmp_path: Path) -> None:
    model = network_file(tmp_path / "cnn.safetensors")
    before = hashes(tmp_path)

    def fail() -> None:
        with changing(Place(model)) as staging:
            staging.file("cnn.safetensors").write_text("new")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert hashes(tmp_path) == before


def test_a_full_disk_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy(network_file(tmp_path / "n.safetensors"), tmp_path / "cnn.safetensors")
    before = hashes(tmp_path)
    patch = change(model, 1, ["half"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(StorageError, match="no space left"):
        apply_in_place(model, [patch])
    assert hashes(tmp_path) == before
