from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from uphold.core.errors import CorruptError, DataError, StorageError
from uphold.core.storage import (
    atomic_folder,
    atomic_path,
    disk_errors,
    read_json,
    unreadable,
    writable_folder,
    write_json,
    write_text,
)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", place], check=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent  # the same file system, so that renaming is atomic
        assert not path.exists()

    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_is_as_it_was_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def stop_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_half_way()

    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old.txt").write_text("old")

    with atomic_folder(path) as temporary:
        (temporary / "new.txt").write_text("new")
        assert names(path) == ["old.txt"]

    assert names(path) == ["new.txt"]
    assert names(tmp_path) == ["folder"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_a_file_can_be_read_by_all_however_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with atomic_path(path) as temporary:
        private = tmp_path / "private"
        private.touch(0o600)
        private.replace(temporary)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_folder_is_as_it_was_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old.txt").write_text("old")

    def stop_half_way() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "new.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()

    assert names(path) == ["old.txt"]
    assert names(tmp_path) == ["folder"]


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "fo[l]der"
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from uphold.core.storage import atomic_folder\n"
        f"with atomic_folder(Path({str(path)!r})) as temporary:\n"
        "    (temporary / 'new.txt').write_text('half')\n"
        "    print(temporary, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    left = Path(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip())
    assert left.is_dir()
    os.utime(left, (0, 0))

    with atomic_folder(path) as temporary:
        assert not left.exists()
        os.utime(temporary, (0, 0))
        with atomic_folder(path):
            assert temporary.exists()

    assert names(tmp_path) == ["fo[l]der"]


def test_a_refused_rename_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"no space left on the disk while writing .*file\.txt"):
        write_text(path, "new")

    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_disk_that_is_really_full(tiny_disk: Path) -> None:
    path = tiny_disk / "file.txt"
    write_text(path, "old")

    with pytest.raises(StorageError, match="free some room and type the same command again") as caught:
        write_text(path, "x" * 200_000)

    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert names(tiny_disk) == ["file.txt"]


def test_a_library_that_rewords_a_full_disk_is_understood(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no space left on the disk"), disk_errors(tmp_path / "weights"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"), disk_errors(tmp_path / "weights"):
        raise RuntimeError("something else")


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")

    with pytest.raises(StorageError, match=r"cannot write .* choose another"):
        write_text(tmp_path / "taken" / "file.txt", "text")
    with pytest.raises(StorageError, match="is a file, but a folder is needed"):
        writable_folder(tmp_path / "taken")


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = writable_folder(tmp_path / "a" / "b")

    assert folder.is_dir()
    assert names(folder) == []


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": "naïve – 語"}
    write_json(tmp_path / "value.json", value)

    assert read_json(tmp_path / "value.json") == value
    assert "naïve – 語" in (tmp_path / "value.json").read_text(encoding="utf-8")


def test_json_keeps_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", 1)

    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "value.json", float("nan"))
    assert json.loads((tmp_path / "value.json").read_text()) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\xff\xfe"])
def test_a_file_that_is_no_json_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "value.json").write_bytes(content)

    with pytest.raises(CorruptError, match=r"value\.json is not valid JSON") as caught:
        read_json(tmp_path / "value.json")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*value\.json: No such file"):
        read_json(tmp_path / "value.json")


def test_a_folder_that_may_not_be_read_is_not_passed_over() -> None:
    unreadable(FileNotFoundError(2, "gone meanwhile", "folder"))
    with pytest.raises(DataError, match="cannot read folder: Permission denied"):
        unreadable(PermissionError(13, "Permission denied", "folder"))
