from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "uphold", "serve", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_serves_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "--port", "0")
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert b"There is nothing to show yet" in answer.read()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "Ctrl-C ends it\n")


def test_a_taken_port_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    first = start(tmp_path, "--port", "0")
    assert first.stdout is not None
    port = first.stdout.readline().strip().rstrip("/").rpartition(":")[2]
    out, err = start(tmp_path, "--port", port).communicate(timeout=30)
    first.terminate()
    first.communicate(timeout=30)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in err


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    process = start(tmp_path / "nothing")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "is no folder" in err
