from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.tasks.bigbench_data import write_task
from uphold.core.errors import CorruptError, DataError, UsageError
from uphold.core.hashing import sha256_of_file
from uphold.core.progress import silent
from uphold.tasks import bigbench_archive as archive
from uphold.tasks.base import split_sizes
from uphold.tasks.bigbench import bigbench_task
from uphold.tasks.load import load_task


def add(members: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    members.addfile(entry, io.BytesIO(content))


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny source archive in a folder that pip is told to look in, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / archive.ARCHIVE
    root = f"bigbench-{archive.RELEASE}"
    with tarfile.open(path, "w:gz") as members:
        add(members, f"{root}/setup.py", b"raise SystemExit('nothing of the archive may be run')")
        add(members, f"{root}/PKG-INFO", b"Metadata-Version: 2.1\nName: bigbench\nVersion: 1.0.0\n")
        for name in ("colours", "many/one", "many/two"):
            content = write_task(tmp_path / "made" / name).read_bytes()
            add(members, f"{root}/bigbench/benchmark_tasks/{name}/task.json", content)
    monkeypatch.setattr(archive, "SHA256", sha256_of_file(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def test_a_task_of_the_release_is_downloaded_once(release: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    task = load_task("bigbench:colours:shots=1", lambda what, done, total, note="": seen.append(what))

    assert sum(split_sizes(task).values()) == 19
    assert "unpacking BIG-bench" in seen
    kept = sorted(
        str(path.relative_to(tmp_path / "cache")) for path in (tmp_path / "cache").rglob("*") if path.is_file()
    )
    folder = f"uphold/bigbench-{archive.RELEASE}"
    assert kept == [
        f"uphold/.bigbench-{archive.RELEASE}.lock",
        f"{folder}/colours/task.json.gz",
        f"{folder}/many/one/task.json.gz",
        f"{folder}/many/two/task.json.gz",
    ]
    release.unlink()
    assert load_task("bigbench:colours:shots=1").instances("test") == task.instances("test")
    assert load_task("bigbench:many/two").instances("test")


def test_a_name_that_is_not_in_the_release_is_suggested(release: Path) -> None:
    with pytest.raises(UsageError, match="unknown BIG-bench JSON task 'colour': did you mean 'colours'"):
        bigbench_task("colour")
    with pytest.raises(
        UsageError, match="unknown BIG-bench JSON task '9': there are 3, for example colours, many/one, many/two"
    ):
        bigbench_task("9")
    with pytest.raises(UsageError, match=r"unknown BIG-bench JSON task 'colours/\.\./many'"):
        bigbench_task("colours/../many")


def test_another_archive_than_the_pinned_one_is_refused(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "SHA256", "0" * 64)

    with pytest.raises(
        DataError, match=r"pip cannot download BIG-bench 1\.0\.0 \(.*\); check the network and pip's index"
    ) as caught:
        bigbench_task("colours")
    assert "\n" not in str(caught.value)
    assert not list(archive.cache_folder().glob("*.tar.gz"))


def test_without_network_the_message_says_what_to_do(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(release.parent / "nowhere"))

    with pytest.raises(
        DataError, match=r"check the network and pip's index, or put bigbench-1\.0\.0\.tar\.gz into .*uphold"
    ):
        bigbench_task("colours")


def test_an_archive_put_there_by_hand_is_used(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_download", None)
    archive.cache_folder().mkdir(parents=True)
    release.rename(archive.cache_folder() / archive.ARCHIVE)

    assert bigbench_task("colours").instances("test")
    assert not (archive.cache_folder() / archive.ARCHIVE).exists()


def test_what_an_interrupted_download_left_is_removed(release: Path) -> None:
    cache = archive.cache_folder()
    left = cache / f".bigbench-{archive.RELEASE}.abc"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    (cache / archive.ARCHIVE).write_bytes(b"half of an archive")

    assert bigbench_task("colours").instances("test")
    assert not left.exists()


def test_an_interrupted_unpacking_is_taken_up(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compress = gzip.compress
    monkeypatch.setattr(gzip, "compress", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bigbench_task("colours")
    assert not (archive.cache_folder() / f"bigbench-{archive.RELEASE}").exists()
    assert sha256_of_file(archive.cache_folder() / archive.ARCHIVE) == archive.SHA256
    monkeypatch.setattr(gzip, "compress", compress)
    monkeypatch.setattr(archive, "_download", None)

    assert bigbench_task("colours").instances("test")


def test_two_processes_download_once(release: Path, tmp_path: Path) -> None:
    code = (
        "from uphold.tasks import bigbench_archive as archive\n"
        f"archive.SHA256 = {archive.SHA256!r}\n"
        "run = archive._run_pip\n"
        "archive._run_pip = lambda *rest: (print('pip'), run(*rest))\n"
        "seen = {}\n"
        "found = archive.release_folder(lambda what, done, total, note='': seen.setdefault(what.split()[0]))\n"
        "print(len(list(found.rglob('*.gz'))), *seen)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = "".join(process.communicate(timeout=120)[0] for process in both).split()

    assert sorted(set(printed) - {"waiting"}) == ["3", "pip", "unpacking"]
    assert (printed.count("3"), printed.count("pip"), printed.count("unpacking")) == (2, 1, 1)


@pytest.mark.parametrize(
    "name",
    [
        "../evil/task.json",
        "/tmp/evil/task.json",
        f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/../evil/task.json",
        f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/a/../../evil/task.json",
        f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/a/b/c/task.json",
        f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/.hidden/task.json",
    ],
)
def test_members_that_lead_elsewhere_are_passed_over(tmp_path: Path, name: str) -> None:
    path = tmp_path / "made.tar.gz"
    with tarfile.open(path, "w:gz") as members:
        add(members, name, b"{}")
        link = tarfile.TarInfo(f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/link/task.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        members.addfile(link)
        add(members, f"bigbench-{archive.RELEASE}/bigbench/benchmark_tasks/good/task.json", b"{}")

    archive.unpack(path, tmp_path / "out" / "release", silent)

    assert [str(found.relative_to(tmp_path / "out")) for found in (tmp_path / "out").rglob("*.gz")] == [
        "release/good/task.json.gz"
    ]
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00"])
def test_an_archive_that_cannot_be_read_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "made.tar.gz").write_bytes(content)

    with pytest.raises(CorruptError, match=r"remove it and type the same command again") as caught:
        archive.unpack(tmp_path / "made.tar.gz", tmp_path / "release", silent)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "release").exists()


def test_a_missing_pip_says_what_to_do(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))

    with pytest.raises(
        UsageError, match=r"pip, which is missing: python -m ensurepip, or put bigbench-1\.0\.0\.tar\.gz into"
    ):
        bigbench_task("colours")
