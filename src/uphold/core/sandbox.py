"""Running a program that a model wrote, where it can harm nobody and cannot write its own verdict.

    outcome = run_python("assert 1 + 1 == 2", timeout_s=5)
    outcome.status  # "passed"

Three processes stand behind it: this one, a watcher of ours that is the first process of the sandbox
(`uphold.core.sandbox_inside`), and the program, which the watcher forks. When this process ends, for whatever reason,
the watcher ends, and the kernel then ends every process of the sandbox's process namespace.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import math
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uphold.core.errors import UsageError

Status = Literal["passed", "failed", "timed_out", "killed"]
Backend = Literal["bwrap", "unshare", "none"]


@dataclass(frozen=True)
class Limits:
    """What a program may use. Sizes are bytes; `memory`, `file` and `open_files` hold for each of its processes."""

    memory: int = 512 * 2**20
    """Address space."""
    file: int = 16 * 2**20
    """The largest file that can be written."""
    folder: int = 64 * 2**20
    """All files in its folder together; not enforced without a sandbox."""
    open_files: int = 64
    """File descriptors."""
    processes: int = 16
    """Processes and threads at the same time, ours around the program included. Without a sandbox, all processes of
    the user count, and none of root's."""
    output: int = 4096
    """The end of standard output, and of standard error, that is kept."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    status: Status
    """`passed`: its last statement was reached. `failed`: it raised an exception or left early, with whatever exit
    code. `timed_out`: its time was up. `killed`: a signal ended it."""
    exit_code: int | None
    """The program's exit code, the negative number of the signal that ended it, or None when it had none yet."""
    stdout: str
    """The end of what it printed; undecodable bytes are replaced."""
    stderr: str
    """The end of its standard error, with the traceback of the exception that ended it."""
    seconds: float
    """Wall-clock time of the program, the start of the sandbox not included."""


ALLOWED_WITHOUT = "UPHOLD_UNSANDBOXED"
START_S = 30.0
"""How long a sandbox may take to come up; none of it counts as the program's time."""
STOP_S = 2.0
"""How long a sandbox may take to end by itself before it is killed."""
_INSIDE_ID = "1000"
# Root's processes are counted nowhere; a sandbox that could not take root from a program would not hold a fork bomb.
_TRIAL = f"""import os, re
try:
    for _ in range({Limits().processes}):
        if os.fork() == 0: os._exit(0)
except BlockingIOError: pass
else: raise SystemExit('the number of processes cannot be limited')
"""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def run_python(
    code: str, *, timeout_s: float = 5.0, limits: Limits = Limits(), backend: Backend | None = None
) -> Outcome:
    """Run `code` as a Python program of its own. Can be called from several threads at once.

    The program sees the standard library, an empty folder, no input, no network and no variable of this process. Its
    hash seed and its global random generator are fixed, so that the same program gets the same verdict.

    Args:
        code: the program; text that is no Python is a failed program.
        timeout_s: wall-clock seconds, > 0, until everything it has started is killed.
        limits: what it may use.
        backend: how it is kept apart; `check_sandbox` chooses when it is None.

    Raises:
        UsageError: there is no sandbox here, it does not come up, or `timeout_s` is out of range.
    """
    if not 0 < timeout_s < math.inf:
        raise UsageError(f"timeout_s is {timeout_s}: expected a positive number of seconds, e.g. timeout_s=5")
    chosen = backend or check_sandbox()
    with _folder(chosen) as folder, _request(code, timeout_s, limits, chosen, folder) as request:
        return _run(request, folder, timeout_s, limits, chosen)


def check_sandbox() -> Backend:
    """How model-written programs are kept apart on this machine: by bubblewrap, or by namespaces of our own.

    The first call runs a trivial program, later ones remember that it worked.

    Raises:
        UsageError: neither works, and UPHOLD_UNSANDBOXED=1 does not allow to go without ("none").
    """
    if sys.platform != "linux":
        raise UsageError(f"model-written programs are run on Linux only, this is {sys.platform}: score them there")
    backends: tuple[Backend, ...] = ("bwrap", "unshare")
    reasons = []
    for backend in backends:
        reason = _what_fails(backend)
        if not reason:
            return backend
        reasons.append(reason)
    if os.environ.get(ALLOWED_WITHOUT) == "1":
        reason = _what_fails("none")
        if not reason:
            return "none"
        raise UsageError(f"model-written programs cannot be run here at all ({reason}): score them on another machine")
    remedy = "allow user namespaces here" if shutil.which("bwrap") else "install bubblewrap"
    raise UsageError(
        f"there is no sandbox for model-written programs here ({'; '.join(reasons)}): {remedy}, or set "
        f"{ALLOWED_WITHOUT}=1 to run them as yourself with process limits only"
    )


@functools.cache
def _what_fails(backend: Backend) -> str:
    """Why a trivial program does not pass with `backend`; empty when it does."""
    try:
        outcome = run_python("import re" if backend == "none" else _TRIAL, timeout_s=START_S, backend=backend)
    except UsageError as error:
        return str(error)
    return "" if outcome.status == "passed" else f"{backend}: {_last_line(outcome.stderr) or outcome.status}"


@contextlib.contextmanager
def _folder(backend: Backend) -> Iterator[str]:
    """The program's folder: one in memory that nobody else sees, or without a sandbox one on disk."""
    if backend != "none":
        yield "/tmp"
        return
    with tempfile.TemporaryDirectory(prefix="uphold-program-", ignore_cleanup_errors=True) as folder:
        yield folder


@contextlib.contextmanager
def _request(code: str, timeout_s: float, limits: Limits, backend: Backend, folder: str) -> Iterator[int]:
    """A file in memory, as a descriptor, from which the watcher reads what to run."""
    request = {
        "code": code,
        "isolated": backend != "none",
        "folder": folder,
        "limits": {
            # The wall clock is the limit; this one holds when many threads burn time at once.
            "CPU": (math.ceil(timeout_s) + 1, math.ceil(timeout_s) + 2),
            "AS": (limits.memory, limits.memory),
            "FSIZE": (limits.file, limits.file),
            "NOFILE": (limits.open_files, limits.open_files),
            "NPROC": (limits.processes, limits.processes),
            "CORE": (0, 0),
        },
    }
    with open(os.memfd_create("program"), "w+b") as file:
        marshal.dump(request, file)
        file.seek(0)
        yield file.fileno()


def _run(request: int, folder: str, timeout_s: float, limits: Limits, backend: Backend) -> Outcome:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = _start(_command(theirs.fileno(), limits, backend), request, theirs.fileno(), folder)
        try:
            talk = _Talk(ours, process, limits.output)
            seconds = talk.follow(timeout_s)
        finally:
            ours.close()
            _end(process, backend)
    if not talk.started:
        reason = _last_line(talk.text("stderr")) or f"exit code {process.returncode}"
        raise UsageError(f"{backend}: the sandbox does not come up ({reason})")
    status, exit_code = _judged(talk.verdict, seconds >= timeout_s)
    return Outcome(status, exit_code, talk.text("stdout"), talk.text("stderr"), seconds)


def _judged(verdict: str, late: bool) -> tuple[Status, int | None]:
    """Status and exit code for what the watcher said last: `passed`, `exit CODE`, or nothing of the kind."""
    if verdict == "passed":
        return "passed", 0
    if not verdict.startswith("exit "):
        return "timed_out" if late else "killed", None
    exit_code = int(verdict.removeprefix("exit "))
    if exit_code >= 0:
        return "failed", exit_code
    return "timed_out" if exit_code == -signal.SIGXCPU else "killed", exit_code


def _start(command: Sequence[str], request: int, channel: int, folder: str) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[channel],
            env=_environment(folder),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise UsageError(f"the sandbox cannot be started: {command[0]}: {error.strerror}") from error


def _end(process: subprocess.Popen[bytes], backend: Backend) -> None:
    """Wait until nothing of the sandbox is left."""
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    if backend == "none":
        # The watcher is gone, or stuck. Nobody waited for it yet, so the group's number cannot be another's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Talk:
    """What a sandbox says: its watcher line by line on a channel, the program on its two outputs."""

    def __init__(self, channel: socket.socket, process: subprocess.Popen[bytes], output: int) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._channel = channel
        self._output = output
        self._open = {
            channel.fileno(): "channel",
            process.stdout.fileno(): "stdout",
            process.stderr.fileno(): "stderr",
        }
        self._said = {name: bytearray() for name in self._open.values()}

    @property
    def started(self) -> bool:
        """Whether the program was run at all."""
        return self._said["channel"].startswith(b"ready\n")

    @property
    def verdict(self) -> str:
        """What the watcher said last."""
        return _last_line(self.text("channel"))

    def text(self, source: str) -> str:
        """The end of what came from `source`."""
        return self._said[source].decode("utf-8", "replace")

    def follow(self, timeout_s: float) -> float:
        """Read until all is said or given up; the program's wall-clock seconds."""
        self._read(START_S, lines=1)
        start = time.monotonic()
        if self.started:
            self._read(timeout_s, lines=2)
        seconds = time.monotonic() - start
        # The watcher takes the end of its channel as the order to end.
        self._channel.shutdown(socket.SHUT_WR)
        self._read(STOP_S)
        return seconds

    def _read(self, seconds: float, lines: int | None = None) -> None:
        """Read for `seconds`, or until all sources are closed, or the channel is or has said so many `lines`."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for descriptor in self._open:
                selector.register(descriptor, selectors.EVENT_READ)
            while self._open and (lines is None or self._awaits(lines)):
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                for key, _ in selector.select(left):
                    if not self._take(key.fd):
                        selector.unregister(key.fd)

    def _awaits(self, lines: int) -> bool:
        return "channel" in self._open.values() and self._said["channel"].count(b"\n") < lines

    def _take(self, descriptor: int) -> bool:
        """Read once; False at the end of the source."""
        data = os.read(descriptor, 1 << 16)
        said = self._said[self._open[descriptor]]
        said += data
        if descriptor != self._channel.fileno():
            del said[: max(0, len(said) - self._output)]
        if not data:
            del self._open[descriptor]
        return bool(data)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _command(channel: int, limits: Limits, backend: Backend) -> list[str]:
    """The command line that ends in the watcher."""
    watcher = [*_interpreter(), "watch", str(channel)]
    if backend == "none":
        return watcher
    if backend == "unshare":
        user = "own" if _has_users_to_give() else "same"
        return [*_interpreter(), "isolate", user, str(limits.folder), os.pathsep.join(_read_only()), *watcher]
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UsageError("bwrap: bubblewrap is not installed")
    wrapped = [bwrap, *_bubblewrap(limits)]
    if _has_users_to_give():
        return [*_interpreter(), "new_user", *wrapped, "--", *watcher]
    return [*wrapped, "--unshare-user", "--disable-userns", "--uid", _INSIDE_ID, "--gid", _INSIDE_ID, "--", *watcher]


def _has_users_to_give() -> bool:
    """Whether this is root, and not root of a container that knows no other user."""
    ranges = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    return os.geteuid() == 0 and any(int(line.split()[2]) > 1 for line in ranges)


def _bubblewrap(limits: Limits) -> list[str]:
    arguments = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    arguments += ["--die-with-parent", "--new-session", "--as-pid-1"]
    arguments += ["--proc", "/proc", "--perms", "1777", "--size", str(limits.folder), "--tmpfs", "/tmp"]
    shown = _read_only()
    # Left to itself, bubblewrap makes folders on the way to a private one private, too.
    parents = {str(parent) for path in [*shown, *_DEVICES] for parent in Path(path).parents}
    for parent in sorted(parents - {"/", "/tmp"}):
        arguments += ["--perms", "0755", "--dir", parent]
    for path in shown:
        arguments += ["--ro-bind", path, path]
    for device in _DEVICES:
        arguments += ["--dev-bind", device, device]
    return [*arguments, "--remount-ro", "/", "--chdir", "/tmp"]


@functools.cache
def _interpreter() -> tuple[str, ...]:
    """A bare interpreter that runs the text of `sandbox_inside`: no site packages, nothing from the working folder."""
    text = Path(__file__).with_name("sandbox_inside.py").read_text(encoding="utf-8")
    return (_executable(), "-P", "-s", "-S", "-B", "-X", "utf8", "-c", text)


def _executable() -> str:
    """The interpreter that a virtual environment was made from, or the running one."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _read_only() -> list[str]:
    """The paths that a sandbox shows: the interpreter and what it is linked against."""
    prefix = os.path.realpath(sys.base_prefix)
    wanted = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", os.path.join(prefix, "lib"), _executable()]
    wanted.append(os.path.realpath(sysconfig.get_path("stdlib")))
    shown: list[str] = []
    for path in wanted:
        if os.path.exists(path) and not any(Path(path).is_relative_to(other) for other in shown):
            shown.append(path)
    return shown


def _environment(folder: str) -> dict[str, str]:
    """All variables of the sandbox; a fixed hash seed lets the same program get the same verdict."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
    }
