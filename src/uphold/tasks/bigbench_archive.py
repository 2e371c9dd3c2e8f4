"""The release of BIG-bench: downloaded once, checked, and unpacked into the cache.

Its source archive (358 MB) holds all JSON tasks. pip fetches it, so that the user's own index, proxy and certificates
count. Nothing of it is installed or run: before pip keeps an archive it asks a build backend for the name and version,
and the backend it finds here answers without looking.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from uphold.core.errors import CorruptError, DataError, UsageError
from uphold.core.hashing import sha256_of_file
from uphold.core.progress import Progress
from uphold.core.storage import atomic_folder, disk_errors

RELEASE = "1.0.0"
ARCHIVE = f"bigbench-{RELEASE}.tar.gz"
SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
MEGABYTE = 1_000_000
_TASK = re.compile(rf"bigbench-{re.escape(RELEASE)}/bigbench/benchmark_tasks/(\w[\w.-]*(?:/\w[\w.-]*)?)/task\.json")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_BACKEND = f'''"""Names the archive without running anything that is in it."""

import os


class __legacy__:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
        name = "bigbench-{RELEASE}.dist-info"
        os.mkdir(os.path.join(metadata_directory, name))
        with open(os.path.join(metadata_directory, name, "METADATA"), "w") as file:
            file.write("Metadata-Version: 2.1\\nName: bigbench\\nVersion: {RELEASE}\\n")
        return name
'''


def cache_folder() -> Path:
    """Where the release is kept: `$XDG_CACHE_HOME/uphold` (`~/.cache/uphold`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uphold"


def release_folder(progress: Progress) -> Path:
    """The folder with `TASK[/SUBTASK]/task.json.gz` of the whole release; it is made when it is not there.

    A second process waits for the first. What was interrupted leaves no half of a file, and is taken up at its last
    finished step. Making it takes 3 GB of room, keeping it 0.4 GB.

    Raises:
        UsageError: pip is needed and missing.
        DataError: the archive cannot be downloaded.
        CorruptError: it is not the release.
        StorageError: the disk refused a write.
    """
    folder = cache_folder() / f"bigbench-{RELEASE}"
    if folder.is_dir():
        return folder
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder, progress):
        if not folder.is_dir():
            for left in folder.parent.glob(f".{folder.name}.*/"):
                shutil.rmtree(left, ignore_errors=True)
            archive = folder.parent / ARCHIVE
            if not (archive.is_file() and sha256_of_file(archive) == SHA256):
                _download(archive, progress)
            unpack(archive, folder, progress)
            archive.unlink()
    return folder


@contextlib.contextmanager
def _alone(folder: Path, progress: Progress) -> Iterator[None]:
    """Keep other processes from making `folder` meanwhile, or wait until they have made it."""
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        what = "waiting for another process that downloads BIG-bench"
        progress(what, 0, 1)
        lock.acquire()
        progress(what, 1, 1)
    try:
        yield
    finally:
        lock.release()


def _download(archive: Path, progress: Progress) -> None:
    """Put the archive at `archive`, whole and with the right checksum."""
    if importlib.util.find_spec("pip") is None:
        raise UsageError(
            f"BIG-bench is downloaded with pip, which is missing: python -m ensurepip, or put {ARCHIVE} into "
            f"{archive.parent}"
        )
    with (
        disk_errors(archive),
        tempfile.TemporaryDirectory(dir=archive.parent, prefix=f".bigbench-{RELEASE}.") as name,
    ):
        folder = Path(name)
        backend = folder / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(_BACKEND, encoding="utf-8")
        (folder / "requirements.txt").write_text(f"bigbench=={RELEASE} --hash=sha256:{SHA256}\n", encoding="utf-8")
        _run_pip(folder, archive.parent, progress)
        found = folder / "found" / ARCHIVE
        if not found.is_file() or sha256_of_file(found) != SHA256:
            raise CorruptError(f"pip found no {ARCHIVE} with the checksum {SHA256[:12]}…; check which index it asks")
        os.replace(found, archive)


def _run_pip(folder: Path, cache: Path, progress: Progress) -> None:
    """Let pip download what `folder/requirements.txt` names into `folder/found`."""
    paths = [str(folder / "backend"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # The archive's own folder: pip unpacks 1.8 GB, which is more than some systems have in their temporary one.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(folder)}
    # Before 25.3, pip would otherwise ask the archive's own setup.py; as an option, later versions do not know it.
    environment["PIP_USE_PEP517"] = "1"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--require-hashes"]
    command += ["--progress-bar", "raw" if _pip_at_least(24, 1) else "off"]
    command += ["-r", str(folder / "requirements.txt"), "-d", str(folder / "found")]
    lines = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                found = _PROGRESS.match(line)
                if found:
                    done, total = (-(-int(size) // MEGABYTE) for size in found.groups())
                    progress("downloading BIG-bench", done, total, "MB")
                elif line.strip():
                    lines.append(line.strip())
        finally:
            if pip.poll() is None:
                pip.kill()
    if pip.returncode:
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["no message"]
        raise DataError(
            f"pip cannot download BIG-bench {RELEASE} ({errors[0].removeprefix('ERROR:').strip()[:200]}); check the "
            f"network and pip's index, or put {ARCHIVE} into {cache}"
        )


def _pip_at_least(*wanted: int) -> bool:
    return tuple(int(part) for part in re.findall(r"\d+", version("pip"))[:2]) >= wanted


def unpack(archive: Path, folder: Path, progress: Progress) -> None:
    """Write the `task.json` files of `archive` to `folder`, compressed each by itself; other files are not looked at.

    Raises:
        CorruptError: the archive cannot be read, or holds no tasks.
        StorageError: the disk refused a write.
    """
    count = 0
    with atomic_folder(folder) as temporary:
        for name, content in _task_files(archive, progress):
            target = temporary / name / "task.json.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(gzip.compress(content, compresslevel=1, mtime=0))
            count += 1
        if not count:
            raise CorruptError(f"{archive} holds no BIG-bench tasks; remove it and type the same command again")


def _task_files(archive: Path, progress: Progress) -> Iterator[tuple[str, bytes]]:
    """Name and content of each task; a member of any other name is passed over, so that none can lead elsewhere."""
    total = -(-archive.stat().st_size // MEGABYTE)
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r|gz") as members:
            for member in members:
                name = _TASK.fullmatch(member.name)
                if name and member.isfile():
                    content = members.extractfile(member)
                    assert content is not None
                    yield name[1], content.read()
                    progress("unpacking BIG-bench", min(total - 1, file.tell() // MEGABYTE), total, "MB")
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorruptError(f"{archive} cannot be read ({error}); remove it and type the same command again") from error
    progress("unpacking BIG-bench", total, total, "MB")
