from __future__ import annotations

import shutil
import signal
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.core.conftest import MARKED, alive, working
from uphold.core import sandbox
from uphold.core.errors import UsageError
from uphold.core.sandbox import Backend, Limits, check_sandbox, run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")

# What a program that means no harm can expect.


def test_a_program_that_reaches_its_end_has_passed(backend: Backend) -> None:
    outcome = run_python("print('é' + str(1 + 1))", backend=backend)

    assert (outcome.status, outcome.exit_code, outcome.stdout, outcome.stderr) == ("passed", 0, "é2\n", "")
    assert 0 <= outcome.seconds < 5


@pytest.mark.parametrize(
    ("code", "exit_code", "says"),
    [
        ("assert 1 == 2, 'not equal'", 1, "AssertionError: not equal"),
        ("1 +", 1, "SyntaxError"),
        ("a\0b", 1, "null bytes"),
        ("x = '\ud800'", 1, "surrogates not allowed"),
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
        ("import sys; sys.exit(3)", 3, "SystemExit: 3"),
        ("input()", 1, "EOFError"),
    ],
)
def test_a_program_that_does_not_reach_its_end_has_failed(code: str, exit_code: int, says: str) -> None:
    outcome = run_python(code, backend=working("unshare"))

    assert (outcome.status, outcome.exit_code) == ("failed", exit_code)
    assert says in outcome.stderr
    assert "sandbox_inside" not in outcome.stderr
    assert "in run" not in outcome.stderr


def test_a_crash_is_told_from_a_failure(backend: Backend) -> None:
    outcome = run_python("import ctypes; ctypes.string_at(0)", backend=backend)

    assert (outcome.status, outcome.exit_code) == ("killed", -signal.SIGSEGV)


def test_it_is_main_and_does_not_see_the_code_around_it(backend: Backend) -> None:
    outcome = run_python(
        "import __main__, sys\n"
        "assert __name__ == '__main__' and sys.modules['__main__'] is __main__\n"
        "assert not {'watch', 'run', 'annotations'} & set(vars(__main__))\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Point:\n    x: int\n"
        "assert Point.__annotations__['x'] is int\n",
        backend=backend,
    )

    assert outcome.status == "passed", outcome.stderr


def test_the_same_program_does_the_same_every_time(backend: Backend) -> None:
    code = "import random; print(list({'a', 'b', 'c', 'd', 'e', 'f'}), random.random())"
    first, second = (run_python(code, backend=backend) for _ in range(2))

    assert first.status == "passed"
    assert first.stdout == second.stdout


def test_what_it_prints_is_kept_to_the_end_only(backend: Backend) -> None:
    outcome = run_python("print('a' * 9999 + 'end')", backend=backend, limits=Limits(output=8))

    assert outcome.stdout == "aaaaend\n"


def test_it_may_close_its_own_output(backend: Backend) -> None:
    code = "import os, sys\nsys.stdout.close()\nos.close(2)\nsys.stdout = sys.stderr = None"

    assert run_python(code, backend=backend).status == "passed"


def test_several_threads_run_programs_at_once(backend: Backend) -> None:
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda n: run_python(f"print({n})\nassert {n} % 3", backend=backend), range(8)))

    assert [outcome.stdout for outcome in outcomes] == [f"{n}\n" for n in range(8)]
    assert [outcome.status == "passed" for outcome in outcomes] == [n % 3 != 0 for n in range(8)]


# What it cannot take.


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal, time\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)\ntime.sleep(60)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["spin", "sleep", "ignores signals", "catches everything", "stops itself"],
)
def test_its_time_ends(backend: Backend, code: str) -> None:
    outcome = run_python(code, timeout_s=0.2, backend=backend)

    assert (outcome.status, outcome.exit_code) == ("timed_out", None)
    assert 0.2 <= outcome.seconds < 2


def test_memory_is_limited(backend: Backend) -> None:
    code = "kept = []\nfor _ in range(50): kept.append(bytearray(8 << 20))"
    outcome = run_python(code, limits=Limits(memory=200 << 20), backend=backend)

    assert outcome.status == "failed"
    assert "MemoryError" in outcome.stderr


def test_endless_output_is_read_and_forgotten(backend: Backend) -> None:
    tracemalloc.start()
    try:
        outcome = run_python("import os\nwhile True: os.write(1, b'x' * 65536)", timeout_s=0.5, backend=backend)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert outcome.status == "timed_out"
    assert outcome.stdout == "x" * Limits().output
    assert peak < 4 << 20


def test_a_file_cannot_grow_without_end(backend: Backend) -> None:
    code = "with open('big', 'wb') as file:\n    for _ in range(20): file.write(bytes(1 << 20))"
    outcome = run_python(code, limits=Limits(file=4 << 20), backend=backend)

    assert outcome.status == "failed"
    assert "File too large" in outcome.stderr


def test_many_files_cannot_fill_the_disk(isolated: Backend) -> None:
    code = "for n in range(99):\n    with open(str(n), 'wb') as file: file.write(bytes(1 << 20))"
    outcome = run_python(code, limits=Limits(folder=8 << 20), backend=isolated)

    assert outcome.status == "failed"
    assert "No space left" in outcome.stderr


def test_open_files_are_limited(backend: Backend) -> None:
    outcome = run_python("kept = [open('/dev/null') for _ in range(99)]", backend=backend)

    assert outcome.status == "failed"
    assert "Too many open files" in outcome.stderr


def test_processes_are_limited(isolated: Backend) -> None:
    code = (
        "import os, time\n"
        "try:\n"
        "    for made in range(99):\n"
        "        if os.fork() == 0: time.sleep(60)\n"
        "except BlockingIOError: print(made)\n"
    )
    outcome = run_python(code, limits=Limits(processes=10), backend=isolated)

    assert outcome.status == "passed", outcome.stderr
    assert 5 <= int(outcome.stdout) < 10, "the program itself counts, and what starts it may"


def test_a_fork_bomb_ends_with_its_time(isolated: Backend, name: str) -> None:
    # Twelve rounds are 4096 processes where there is no limit: enough to fail, and the machine survives it.
    bomb = "for _ in range(12):\n    try: os.fork()\n    except OSError: pass\ntime.sleep(60)"
    outcome = run_python(MARKED.format(name) + bomb, timeout_s=0.5, backend=isolated)

    assert outcome.status == "timed_out"
    assert alive(name) == []
    assert run_python("pass", backend=isolated).status == "passed"


# When there is no sandbox.


@pytest.mark.parametrize(("bwrap", "remedy"), [(None, "install bubblewrap"), ("/bwrap", "allow user namespaces here")])
def test_the_reason_and_the_ways_out_are_said_in_one_line(
    bwrap: str | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(sandbox.ALLOWED_WITHOUT, raising=False)
    monkeypatch.setattr(sandbox, "_what_fails", lambda backend: f"{backend}: not here")
    monkeypatch.setattr(shutil, "which", lambda name: bwrap)

    with pytest.raises(UsageError) as error:
        check_sandbox()

    assert str(error.value) == (
        "there is no sandbox for model-written programs here (bwrap: not here; unshare: not here): "
        f"{remedy}, or set UPHOLD_UNSANDBOXED=1 to run them as yourself with process limits only"
    )


def test_going_without_has_to_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_what_fails", lambda backend: "" if backend == "none" else "not here")
    monkeypatch.setenv(sandbox.ALLOWED_WITHOUT, "0")
    with pytest.raises(UsageError):
        check_sandbox()

    monkeypatch.setenv(sandbox.ALLOWED_WITHOUT, "1")
    assert check_sandbox() == "none"
    assert run_python("pass").status == "passed"


def test_a_sandbox_is_used_even_where_going_without_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sandbox.ALLOWED_WITHOUT, "1")
    monkeypatch.setattr(sandbox, "_what_fails", lambda backend: "not here" if backend == "bwrap" else "")

    assert check_sandbox() == "unshare"


def test_other_systems_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    with pytest.raises(UsageError, match="are run on Linux only, this is darwin"):
        check_sandbox()


def test_a_sandbox_that_does_not_come_up_is_an_error_and_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'no permission to make namespaces' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))

    with pytest.raises(UsageError, match=r"bwrap: the sandbox does not come up \(.+\)"):
        run_python("pass", backend="bwrap")

    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="bubblewrap is not installed"):
        run_python("pass", backend="bwrap")


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_programs_time_is_positive_and_ends(timeout_s: float) -> None:
    with pytest.raises(UsageError, match="positive number of seconds"):
        run_python("pass", timeout_s=timeout_s)
