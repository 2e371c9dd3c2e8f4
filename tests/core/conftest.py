"""What tests of the sandbox share."""

from __future__ import annotations

import subprocess
import time
import uuid
from pathlib import Path

import pytest

from uphold.core import sandbox
from uphold.core.sandbox import Backend

MARKED = "import ctypes, os, time\nctypes.CDLL(None).prctl(15, b'{}', 0, 0, 0)\n"
"""Gives the program a name that it shares with its children and that is seen from outside."""

PROBES = {
    "bwrap": ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--tmpfs", "/tmp", "true"],
    "unshare": ["unshare", "-Urmpinu", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/tmp"],
}


def working(backend: Backend) -> Backend:
    """`backend`, where this machine gives it; a sandbox that we broke ourselves is a failure and not skipped."""
    reason = sandbox._what_fails(backend)
    if reason and backend in PROBES:
        try:
            given = subprocess.run(PROBES[backend], capture_output=True).returncode == 0
        except FileNotFoundError:
            given = False
        assert not given, f"the machine gives namespaces, but {reason}"
    if reason:
        pytest.skip(f"this machine does not give it: {reason}")
    return backend


@pytest.fixture(params=["bwrap", "unshare"])
def isolated(request: pytest.FixtureRequest) -> Backend:
    return working(request.param)


@pytest.fixture(params=["bwrap", "unshare", "none"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return working(request.param)


@pytest.fixture
def name() -> str:
    """A name for a program, for `MARKED`."""
    return f"up{uuid.uuid4().hex[:10]}"


def alive(name: str) -> list[str]:
    """The processes called `name`, on the whole machine."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/comm"):
        try:
            if entry.read_text().strip() == name:
                found.append(entry.parent.name)
        except OSError:
            continue
    return found


def gone(name: str, seconds: float = 3) -> bool:
    """Whether the last process called `name` ends within `seconds`."""
    deadline = time.monotonic() + seconds
    while alive(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
