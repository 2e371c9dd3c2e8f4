"""What a program cannot see, reach, leave behind or forge."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.conftest import MARKED, alive, gone, working
from uphold.core import sandbox
from uphold.core.sandbox import Backend, run_python
from uphold.core.sandbox_inside import SYSTEM_CALLS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")

# What it cannot leave behind.

DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for descriptor in range(3): os.close(descriptor)
        time.sleep(60)
    os._exit(0)
time.sleep(0.1)
"""


@pytest.mark.parametrize("end", ["", "assert False", "time.sleep(60)"], ids=["passes", "fails", "times out"])
def test_no_daemon_outlives_it(backend: Backend, name: str, end: str) -> None:
    seen = run_python(MARKED.format(name) + DAEMON + end, timeout_s=0.7, backend=backend)

    assert seen.status == {"": "passed", "assert False": "failed"}.get(end, "timed_out"), seen
    assert alive(name) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_we_are_interrupted(
    backend: Backend, name: str, number: signal.Signals, tmp_path: Path
) -> None:
    code = MARKED.format(name) + "open('file', 'w').close()\ntime.sleep(60)"
    ours = f"from uphold.core.sandbox import run_python\nrun_python({code!r}, timeout_s=60, backend={backend!r})"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", ours], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not alive(name) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert alive(name)

    process.send_signal(number)
    process.wait(10)

    assert gone(name)
    deadline = time.monotonic() + 3
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []


def test_its_folder_is_empty_at_first_and_gone_at_last(backend: Backend) -> None:
    code = "import os\nassert os.listdir('.') == []\nopen('file', 'w').close()\nprint(os.getcwd())"
    outcomes = [run_python(code, backend=backend) for _ in range(2)]

    assert [outcome.status for outcome in outcomes] == ["passed", "passed"]
    assert not any(Path(outcome.stdout.strip(), "file").exists() for outcome in outcomes)


# What it cannot see and reach. Without a sandbox it can: that is how the attacks themselves are tested.


@pytest.fixture
def secrets(tmp_path: Path) -> Iterator[list[Path]]:
    """Files of the user, in a temporary folder and at home."""
    paths = [tmp_path / "secret.txt", Path.home() / f"uphold-secret-{uuid.uuid4().hex}.txt"]
    try:
        for path in paths:
            path.write_text("tell nobody")
        yield paths
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def test_the_users_files_cannot_be_read(backend: Backend, secrets: list[Path]) -> None:
    shown = [str(path) for path in secrets]
    code = f"for path in {shown}:\n    try: print(open(path).read())\n    except FileNotFoundError: pass"
    outcome = run_python(code, backend=backend)

    assert outcome.status == "passed", outcome.stderr
    assert outcome.stdout.count("tell nobody") == (2 if backend == "none" else 0)


def test_this_package_and_the_working_folder_cannot_be_read(isolated: Backend) -> None:
    places = [str(Path(sandbox.__file__).resolve()), os.getcwd(), "/etc/passwd", "/home", "/var", "/sys"]
    outcome = run_python(f"import os\nprint([path for path in {places} if os.path.exists(path)])", backend=isolated)

    assert outcome.stdout == "[]\n"


def test_its_file_system_holds_nothing_but_the_interpreter_and_its_libraries(isolated: Backend) -> None:
    outcome = run_python("import os; print(os.listdir('/'), os.listdir('/dev'))", backend=isolated)
    top, devices = eval(outcome.stdout.replace("] [", "], ["))

    assert set(top) == {"dev", "proc", "tmp"} | {Path(path).parts[1] for path in sandbox._read_only()}
    assert set(devices) == {"null", "zero", "random", "urandom"}


def test_variables_of_this_process_cannot_be_read(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "tell-nobody")
    outcome = run_python("import os; print(dict(os.environ))", backend=backend)

    assert "tell-nobody" not in outcome.stdout
    assert "'HOME'" in outcome.stdout
    assert set(eval(outcome.stdout)) <= {"HOME", "LANG", "LC_CTYPE", "PATH", "PWD", "PYTHONHASHSEED", "TMPDIR"}


def test_there_is_no_network(backend: Backend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=2)"
        outcome = run_python(code, backend=backend)
        if backend == "none":
            server.accept()[0].close()
        else:
            with pytest.raises(TimeoutError):
                server.accept()

    assert outcome.status == ("passed" if backend == "none" else "failed")


def test_nothing_can_be_written_outside_its_folder(isolated: Backend, name: str) -> None:
    code = (
        "import os, sys\n"
        f"places = ['/', '/usr', '/dev', '/proc', '/lib', {str(Path.home())!r}, os.path.dirname(os.__file__)]\n"
        "for place in places:\n"
        "    try:\n"
        f"        open(os.path.join(place, {name!r}), 'w')\n"
        "        print('wrote in', place)\n"
        "    except OSError: pass\n"
        f"open('/tmp/{name}', 'w').close()\n"
    )
    outcome = run_python(code, backend=isolated)

    assert (outcome.status, outcome.stdout) == ("passed", ""), outcome
    assert not Path("/tmp", name).exists()


def test_it_has_no_power_over_the_kernel(isolated: Backend) -> None:
    code = (
        "import ctypes, os, socket\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert os.getuid() == os.geteuid() == 1000\n"
        "status = open('/proc/self/status').read()\n"
        "assert 'CapEff:\\t0000000000000000' in status and 'CapPrm:\\t0000000000000000' in status\n"
        "assert 'NoNewPrivs:\\t1' in status\n"
        "assert libc.unshare(0x10000000) == -1, 'a further user namespace'\n"
        "assert libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == -1, 'a mount'\n"
        "assert [n for n in os.listdir('/proc') if n.isdigit()] == ['1', '2']\n"
        "assert [name for _, name in socket.if_nameindex()] == ['lo']\n"
    )
    outcome = run_python(code, backend=isolated)

    assert outcome.status == "passed", outcome.stderr


@pytest.mark.skipif(os.uname().machine not in SYSTEM_CALLS, reason="no numbers of system calls for this machine")
def test_what_namespaces_do_not_hold_back_is_refused(isolated: Backend) -> None:
    code = (
        "import ctypes, os, socket\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"for number in {SYSTEM_CALLS[os.uname().machine][2]}:\n"
        "    assert (libc.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno()) == (-1, 1), number\n"
        "for family in (socket.AF_VSOCK, socket.AF_PACKET, 38):\n"
        "    try: socket.socket(family, socket.SOCK_STREAM)\n"
        "    except PermissionError: continue\n"
        "    raise AssertionError(family)\n"
        "for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6): socket.socket(family).close()\n"
    )
    outcome = run_python(code, backend=isolated)

    assert outcome.status == "passed", outcome.stderr


def test_it_cannot_reach_into_its_watcher(isolated: Backend) -> None:
    code = (
        "import ctypes, os\n"
        "for path in ('mem', 'environ', 'fd', 'maps'):\n"
        "    try: os.listdir('/proc/1/fd') if path == 'fd' else open('/proc/1/' + path, 'rb').read(1)\n"
        "    except OSError: continue\n"
        "    print('read', path)\n"
        "assert ctypes.CDLL(None).ptrace(16, 1, None, None) == -1, 'it can be traced'\n"
        "assert os.readlink('/proc/self/fd/0') == '/dev/null'\n"
        "print(len(os.listdir('/proc/self/fd')))\n"
    )
    outcome = run_python(code, backend=isolated)

    # Three standard streams, two pipes to the watcher, and the listed folder itself.
    assert (outcome.status, outcome.stdout) == ("passed", "6\n"), outcome


# How it cannot be judged better than it is.

SPRAY = """
import os
def spray(words):
    for descriptor in range(3, 64):
        os.set_blocking(descriptor, False) if os.path.exists(f'/proc/self/fd/{descriptor}') else None
        for word in words:
            try: os.write(descriptor, word)
            except OSError: break
"""
FORGERIES = {
    "exits": "import sys; sys.exit(0)",
    "exits at once": "import os; os._exit(0)",
    "quits": "quit() if 'quit' in dir(__builtins__) else exit(0)",
    "is replaced": "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'pass'])",
    "exits in a thread": "import os, time, threading as t\nt.Thread(target=os._exit, args=[0]).start(); time.sleep(9)",
    "exits at the end": "import atexit, os; atexit.register(os._exit, 0); assert False",
    "prints markers": "print('ready', 'passed', 'exit 0', sep='\\n', flush=True); assert False",
    "writes markers everywhere": SPRAY + "spray([b'passed\\n', b'ready\\npassed\\n', b'ready'])\nos._exit(0)",
    "replaces builtins": (
        "import builtins\n"
        "for name in ('exec', 'compile', 'print', 'isinstance', 'type', 'int', 'AssertionError', 'BaseException'):\n"
        "    setattr(builtins, name, lambda *a, **k: None)\n"
        "raise ValueError"
    ),
    "replaces how it leaves": (
        "import os, sys\n"
        "leave = os._exit\n"
        "os._exit = sys.exit = lambda code=0: leave(0)\n"
        "sys.excepthook = sys.__excepthook__ = lambda *a: leave(0)\n"
        "assert False"
    ),
    "replaces its caller's functions": (
        "import sys, types\n"
        "around = sys._getframe(1).f_globals\n"
        "for name, value in list(around.items()):\n"
        "    if callable(value): around[name] = lambda *a, **k: 0\n"
        "assert False"
    ),
    "replaces its caller's variables": (
        "import sys\nsys._getframe(1).f_locals.update(leave=lambda code: None, own=0, exit_code=0)\nassert False"
    ),
    "says what it finds in memory": SPRAY
    + (
        "import gc, sys\n"
        "found, frame = [], sys._getframe()\n"
        "while frame: found += frame.f_locals.values(); frame = frame.f_back\n"
        "for item in gc.get_objects(): found += gc.get_referents(item)\n"
        "spray([word for word in found if type(word) is bytes and len(word) == 16][:99])\nos._exit(0)"
    ),
    "echoes what it can read": SPRAY
    + (
        "for _ in range(3):\n"
        "    for descriptor in range(3, 64):\n"
        "        try: os.set_blocking(descriptor, False); spray([os.read(descriptor, 99)])\n"
        "        except OSError: pass\n"
        "os._exit(0)"
    ),
    "ends as its own child": "import os\nif os.fork(): os.waitpid(-1, 0); os._exit(0)",
    "kills its watcher": "import os\nos.kill(os.getppid(), 9)\nassert False",
    "stops its watcher": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nassert False",
    "kills everybody": "import os\nos.kill(-1 if os.getppid() == 1 else os.getppid(), 9)\nassert False",
    "is judged by itself": "def check(f): pass\ncheck(None)\ndef check(f): assert f() == 1\ncheck(lambda: 2)",
}


@pytest.mark.parametrize("code", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_verdict_cannot_be_forged(isolated: Backend, code: str) -> None:
    assert run_python(code, timeout_s=1, backend=isolated).status != "passed"


@pytest.mark.parametrize("how", ["exits at once", "writes markers everywhere", "kills its watcher", "kills everybody"])
def test_a_verdict_cannot_be_forged_without_a_sandbox_either(how: str) -> None:
    assert run_python(FORGERIES[how], timeout_s=1, backend=working("none")).status != "passed"
