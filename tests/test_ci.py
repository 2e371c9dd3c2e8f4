"""The files for CI, run as the plain commands that they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gate_runs import update
from uphold.core.policy import load_policy

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "ci"

UPDATES: dict[str, tuple[dict[str, int], int]] = {
    "better": ({"count": 800, "right": 600, "positive": 40}, 0),
    "equal": ({"count": 800, "right": 600}, 0),
    "worse": ({"count": 800, "right": 600, "negative": 120}, 1),
    "too little data": ({"count": 60, "right": 45}, 3),
    "one must-keep broken": ({"count": 800, "right": 600, "negative": 2, "positive": 40}, 1),
}
"""What five updates do to the instances, and the exit code of the gate."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A shell in which `uphold` and `python` are those that run the tests, outside of any CI."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, module in (("uphold", "-m uphold "), ("python", "")):
        (bin / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        (bin / name).chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GITHUB_", "GIT_"))}
    identity = {f"GIT_{who}_{what}": "x@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**kept, **identity, "PATH": f"{bin}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def run(*command: str | Path, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def repository(folder: Path, env: dict[str, str]) -> Path:
    """A throw-away git repository with the example's files."""
    shutil.copytree(EXAMPLES, folder)
    assert run("git", "init", "--quiet", cwd=folder, env=env).returncode == 0
    return folder


@pytest.mark.parametrize("name", UPDATES)
def test_the_gate_fails_a_build_exactly_when_it_should(name: str, tmp_path: Path, environment: dict[str, str]) -> None:
    changes, code = UPDATES[name]
    repo = repository(tmp_path / "repo", environment)
    update(repo / "runs", **changes)
    run("git", "add", ".", cwd=repo, env=environment)
    assert run("git", "commit", "--quiet", "-m", name, cwd=repo, env=environment).returncode == 0
    clone = tmp_path / "clone"
    assert run("git", "clone", "--quiet", repo, clone, cwd=tmp_path, env=environment).returncode == 0
    build = run("./ci.sh", cwd=clone, env=environment)
    assert build.returncode == code, build.stdout + build.stderr
    assert ("may ship" in build.stdout) == (code == 0)
    verdict = json.loads((clone / "build" / "gate" / "gate.json").read_text())
    assert verdict["exit_code"] == code
    failed = [(check["slice"], check["rule"]) for check in verdict["checks"] if check["verdict"] == "fail"]
    if name == "worse":
        assert (None, "max_nfr") in failed
        assert (None, "margin") in failed
    elif name == "one must-keep broken":
        assert failed == [(None, "must_keep")]
    else:
        assert failed == []
    assert (clone / "build" / "gate" / "gate.xml").is_file()
    assert "[!" in (clone / "build" / "gate" / "comment.md").read_text()


@pytest.mark.parametrize(("name", "refused"), [("better", False), ("worse", True)])
def test_the_hook_lets_a_commit_pass_or_not(
    name: str, refused: bool, tmp_path: Path, environment: dict[str, str]
) -> None:
    repo = repository(tmp_path / "repo", environment)
    update(repo / "runs", **UPDATES[name][0])
    shutil.copy(repo / "pre-commit", repo / ".git" / "hooks" / "pre-commit")
    run("git", "add", ".", cwd=repo, env=environment)
    commit = run("git", "commit", "-m", name, cwd=repo, env=environment)
    assert (commit.returncode != 0) is refused, commit.stderr
    assert ("gate FAIL" in commit.stdout + commit.stderr) is refused


def test_the_pre_commit_files_name_the_same_command(tmp_path: Path, environment: dict[str, str]) -> None:
    repo = repository(tmp_path / "repo", environment)
    update(repo / "runs", **UPDATES["worse"][0])
    [published] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    [local] = yaml.safe_load((repo / "pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert published["id"] == local["id"] == "uphold-gate"
    assert not published["pass_filenames"]
    assert not local["pass_filenames"]
    for command in (f"{published['entry']} gate.yml", local["entry"]):
        found = run("sh", "-c", command, cwd=repo, env=environment)
        assert found.returncode == 1, found.stderr
        assert "gate FAIL" in found.stdout


def test_the_sample_policy_is_one() -> None:
    policy = load_policy(EXAMPLES / "gate.yml")
    assert len(policy.limits) == 2
    assert len(policy.must_keep) == 2


def action() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return loaded


def step(name: str) -> dict[str, Any]:
    [found] = [step for step in action()["runs"]["steps"] if step.get("name") == name]
    assert found["shell"] == "bash"
    return dict(found)


def run_step(name: str, inputs: dict[str, str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A `run` step as the runner does it: inputs put into `env`, and the script given to bash in a file."""
    values = {key: str(entry.get("default", "")) for key, entry in action()["inputs"].items()} | inputs
    own = {}
    for variable, text in step(name)["env"].items():
        for key, value in values.items():
            text = text.replace("${{ inputs." + key + " }}", value)
        assert "${{" not in text
        own[variable] = text
    script = cwd / "step.sh"
    script.write_text(step(name)["run"])
    return run("bash", "--noprofile", "--norc", "-eo", "pipefail", script, cwd=cwd, env={**env, **own})


@pytest.fixture
def github(tmp_path: Path, environment: dict[str, str]) -> dict[str, str]:
    """The environment of a step on GitHub."""
    return {
        **environment,
        "GITHUB_ACTIONS": "true",
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }


@pytest.mark.parametrize(
    ("name", "verdict", "code"), [("better", "pass", 0), ("worse", "fail", 1), ("too little data", "inconclusive", 3)]
)
def test_the_action_gates(name: str, verdict: str, code: int, tmp_path: Path, github: dict[str, str]) -> None:
    repo = tmp_path / "repo"
    shutil.copytree(EXAMPLES, repo)
    update(repo / "my runs", **UPDATES[name][0])
    inputs = {"policy": "gate.yml", "old": "my runs/old", "new": "my runs/new", "args": "--task task --json"}
    done = run_step("Gate", inputs, repo, github)
    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["verdict"] == verdict
    outputs = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
    assert outputs == {
        "verdict": verdict,
        "junit": "uphold-gate/gate.xml",
        "comment": "uphold-gate/comment.md",
    }
    assert set(outputs) == set(action()["outputs"])
    assert all((repo / outputs[key]).is_file() for key in ("junit", "comment"))
    assert (tmp_path / "summary.md").read_text().startswith("## gate ")
    assert ("::error " in done.stderr) == (code == 1)


def test_the_action_says_when_there_is_no_verdict(tmp_path: Path, github: dict[str, str]) -> None:
    stale = tmp_path / "uphold-gate" / "gate.json"
    stale.parent.mkdir()
    stale.write_text('{"verdict": "pass"}')
    done = run_step("Gate", {"policy": "absent.yml"}, tmp_path, github)
    assert done.returncode == 2
    assert "verdict=error" in (tmp_path / "output").read_text()


def test_the_action_runs_no_text_from_its_inputs(tmp_path: Path, github: dict[str, str]) -> None:
    for key in ("policy", "old", "args", "out"):
        hostile = f"$(touch {tmp_path}/owned); `touch {tmp_path}/owned`"
        run_step("Gate", {"policy": "absent.yml", key: hostile}, tmp_path, github)
    assert not (tmp_path / "owned").exists()
    for one in action()["runs"]["steps"]:
        assert "${{" not in one.get("run", "")


@pytest.mark.parametrize(("extras", "target"), [("", f"{ROOT}"), ("lm-eval,api", f"{ROOT}[lm-eval,api]")])
def test_the_action_installs_its_own_checkout(extras: str, target: str, tmp_path: Path, github: dict[str, str]) -> None:
    (tmp_path / "bin" / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    done = run_step("Install uphold", {"extras": extras}, tmp_path, github)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", target]


def test_the_example_workflow_uses_what_the_action_has() -> None:
    workflow = yaml.safe_load((EXAMPLES / "workflow.yml").read_text())
    steps = workflow["jobs"]["gate"]["steps"]
    [used] = [one for one in steps if one.get("id") == "gate"]
    assert set(used["with"]) <= set(action()["inputs"])
    text = (EXAMPLES / "workflow.yml").read_text()
    for output in ("verdict", "comment"):
        assert f"steps.gate.outputs.{output}" in text
        assert output in action()["outputs"]
