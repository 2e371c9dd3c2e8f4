from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import make_record, make_run, write_task
from uphold.cli import main


def uphold(*arguments: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """`uphold` as its user types it."""
    return subprocess.run(
        [sys.executable, "-m", "uphold", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=300,
        check=False,
    )


def assert_refused(run: subprocess.CompletedProcess[str], *parts: str, code: int = 2) -> None:
    """One line on stderr, the exit code, nothing on stdout."""
    assert run.returncode == code, run.stderr
    assert run.stdout == ""
    [line] = [line for line in run.stderr.splitlines() if not line.startswith("recipe:")]
    assert line.startswith("uphold: ")
    assert "Traceback" not in run.stderr
    for part in parts:
        assert part in line


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    """100 instances: 50 stay right, 10 negative flips, 15 positive flips, 25 stay wrong."""
    old = [make_record(i, i < 60, "right" if i < 60 else "wrong") for i in range(100)]
    new = [make_record(i, i < 50 or 60 <= i < 75, "right" if i < 50 or 60 <= i < 75 else "wrong") for i in range(100)]
    make_run(tmp_path / "old", old, "old")
    make_run(tmp_path / "new", new, "new")
    return tmp_path / "old", tmp_path / "new"


def test_two_stored_runs_are_compared_without_task_or_torch(two_runs: tuple[Path, Path]) -> None:
    code = (
        "import sys; from uphold.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules], code, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "compare", *map(str, two_runs)], capture_output=True, text=True, check=True
    )
    assert run.stderr.splitlines()[-1] == "[] 0"
    assert "NFR                  10.00%" in run.stdout
    assert "50 stay right, 10 negative flips, 15 positive flips, 25 stay wrong" in run.stdout


def test_the_gate_decides_the_exit_code(two_runs: tuple[Path, Path]) -> None:
    # 10 flips in 100: the exact one-sided 95% bounds are 5.5% and 16.4%.
    passed, undecided, failed = (uphold("compare", *two_runs, "--max-nfr", limit) for limit in ("0.17", "0.16", "0.05"))
    assert (passed.returncode, undecided.returncode, failed.returncode) == (0, 3, 1)
    assert "10.00%  5.53% to 16.37%  <= 17.00%  pass" in passed.stdout
    assert "between 5.53% and 16.37%, the limit is 16.00%" in undecided.stdout
    assert "at least 5.53% at 95% confidence, above 5.00%" in failed.stdout


def test_json_on_stdout_is_for_programs(two_runs: tuple[Path, Path]) -> None:
    values = json.loads(uphold("compare", *two_runs, "--json", "--max-nfr", "0.5").stdout)
    assert values["matrix"]["negative_flips"] == 10
    assert values["verdict"]["verdict"] == "pass"
    assert {rate["name"]: rate["value"] for rate in values["rates"]}["nfr"] == 0.1


def test_runs_that_cannot_be_compared(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert_refused(uphold("compare", two_runs[0], two_runs[0]), "one and the same run", code=4)
    make_run(tmp_path / "other", [make_record(1, True, "x")], "other", scorer="exact.v1")
    assert_refused(uphold("compare", two_runs[0], tmp_path / "other"), "not comparable", "scorer", code=4)


def test_bad_input_is_one_line_and_exit_code_2(two_runs: tuple[Path, Path], task_file: Path, tmp_path: Path) -> None:
    assert_refused(uphold("compare", "./v1", "./v2"), "no stored run", "--task")
    assert_refused(uphold("compare", "./v1", "./v2", "--task", task_file), "no such folder")
    assert_refused(uphold("compare", "v1\ny", "v2", "--task", task_file), "not a model reference")
    assert_refused(uphold("compare", "x", "y", "--task", "rg:chain_smu"), "did you mean 'chain_sum'?")
    assert_refused(uphold("report", tmp_path), "no comparison in")
    assert_refused(uphold("demo", "--preset", "embeded"), "did you mean 'embedded'?")
    assert_refused(uphold("adapt", "x", "--task", task_file, "--out", tmp_path / "o", "--recipe", "papr"), "'paper'")
    assert_refused(uphold("repair", "muscel", "x", "y"), "did you mean 'muscle'?")
    (two_runs[0] / "records.parquet").write_bytes(b"broken")
    assert_refused(uphold("compare", *two_runs), "records.parquet", "evaluate the model again")
    (tmp_path / "file").write_text("")
    assert_refused(uphold("compare", two_runs[1], two_runs[1], "--out", tmp_path / "file"), "is a file")


def test_adapt_compare_repair_report_as_a_user_types_them(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 80)
    recipe = tmp_path / "recipe.yaml"
    tiny = "{epochs: 1, learning_rate: 0.005, warmup_steps: 2, batch_size: 16, micro_batch: 8, rank: 4, alpha: 8}"
    recipe.write_text(f"adapt: {tiny}\nmuscle: {tiny}\n")
    common = ["--task", task, "--recipe", recipe]
    for base, name in ((model_v1, "old"), (model_v2, "new")):
        run = uphold("adapt", base, *common, "--out", name, "--tokens", "answer", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert "validation accuracy" in run.stdout
        assert json.loads((tmp_path / name / "adapt.json").read_text())["config"]["tokens"] == "answer"
    pair = [f"{model_v1}+old", f"{model_v2}+new"]
    compared = uphold("compare", *pair, "--task", task, cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "evaluating" not in compared.stdout
    repaired = uphold(
        "repair", "muscle", *pair, *common, "--out", "fixed", "--force", "--mask", "old-only", cwd=tmp_path
    )
    assert repaired.returncode == 0, repaired.stderr
    assert "control: cross-entropy only" in repaired.stdout
    assert (tmp_path / "fixed" / "report.html").is_file()
    again = uphold("compare", f"{model_v1}+old", f"{model_v2}+fixed", "--task", task, "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["count"] == 40


def test_an_interrupt_is_one_line_and_loses_nothing(model_v1: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("adapt: {epochs: 400, learning_rate: 0.001, batch_size: 4, micro_batch: 4, rank: 2, alpha: 2}\n")
    command = ["adapt", model_v1, "--task", write_task(tmp_path), "--out", tmp_path / "out", "--recipe", recipe]
    process = subprocess.Popen(
        [sys.executable, "-m", "uphold", *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("training/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.splitlines()[-1] == (
        "uphold: interrupted; what was finished is kept: type the same command again to go on"
    )
    assert "Traceback" not in err
    [saved] = (tmp_path / "out").glob("training/step-*")
    recipe.write_text(recipe.read_text().replace("epochs: 400", "epochs: 400, select: last"))
    assert_refused(uphold(*command), "holds another training")
    assert saved.is_dir()


def test_a_crash_is_not_a_failed_gate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def crash() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(main, "app", crash)
    # The handler would outlive this test in the tests' own process.
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == ["ZeroDivisionError", "uphold: this is a bug in Uphold: please report it with the lines above"]


def test_a_reader_that_goes_away_does_not_let_an_update_pass(two_runs: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "uphold", "compare", *map(str, two_runs), "--max-nfr", "0.01"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        run = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (run.returncode, run.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line(two_runs: tuple[Path, Path]) -> None:
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run(
            [sys.executable, "-m", "uphold", "compare", *map(str, two_runs)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.splitlines() == [f"uphold: the operating system refused: [Errno 28] {os.strerror(28)}"]


def test_names_are_spelt_out_where_the_output_is_not_unicode(tmp_path: Path) -> None:
    for name in ("älter", "neuer"):
        make_run(tmp_path / name, [make_record(i, i > 3, name) for i in range(20)], name)
    run = uphold("history", tmp_path / "älter", tmp_path / "neuer", PYTHONIOENCODING="ascii")
    assert run.returncode == 0, run.stderr
    assert "\\xe4lter" in run.stdout


def test_a_closed_stderr_leaves_stdout_to_the_result(two_runs: tuple[Path, Path]) -> None:
    command = f'exec "{sys.executable}" -m uphold "$@" 2>&-'
    ran, refused = (
        subprocess.run(["sh", "-c", command, "sh", *map(str, arguments)], stdout=subprocess.PIPE, check=False)
        for arguments in (("compare", *two_runs, "--json"), ("compare", two_runs[0], two_runs[0]))
    )
    assert json.loads(ran.stdout)["count"] == 100
    assert (refused.returncode, refused.stdout) == (4, b"")
