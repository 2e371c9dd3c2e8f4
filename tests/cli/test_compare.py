from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_main import assert_refused, uphold
from tests.conftest import make_record, make_run, write_task


def runs(folder: Path, task: str, broken: int, **changes: object) -> None:
    """A run of 100 instances in `old/TASK` and `new/TASK`; of 60 right ones, the new model breaks some."""
    for version, right in (("old", 60), ("new", 60 - broken)):
        records = [make_record(n, n < right, str(n < right), tags={"part": str(n // 20)}) for n in range(100)]
        make_run(folder / version / task, records, version, name=task, **changes)


def log(path: Path, right: int, **changes: object) -> Path:
    rows = [
        {
            "qid": n,
            "question": f"{n}?",
            "reply": "yes" if n < right else "no",
            "gold": "yes",
            "ok": n < right,
            **changes,
        }
        for n in range(100)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_several_tasks_stand_in_one_table(tmp_path: Path) -> None:
    runs(tmp_path, "art", 1)
    runs(tmp_path, "law", 12)

    run = uphold("compare", tmp_path / "old", tmp_path / "new", "--out", tmp_path / "out", "--max-nfr", "0.05")

    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["task", "art", "law"]
    assert (tmp_path / "out" / "law" / "report.html").is_file()
    assert json.loads((tmp_path / "out" / "art" / "gate.json").read_text())["verdict"] == "fail"
    assert run.returncode == 1
    chosen = uphold("compare", tmp_path / "old", tmp_path / "new", "--task", "a*", "--json")
    assert json.loads(chosen.stdout)["old"]["fingerprint"]["task"]["name"] == "art"


def test_a_task_on_one_side_only_is_refused_before_any_number(tmp_path: Path) -> None:
    runs(tmp_path, "art", 1)
    runs(tmp_path, "law", 1)
    make_run(tmp_path / "new" / "tax", [make_record(1, True, "x")], "new", name="tax")

    assert_refused(uphold("compare", tmp_path / "old", tmp_path / "new"), "only the new side has the task tax", code=4)
    allowed = uphold("compare", tmp_path / "old", tmp_path / "new", "--allow-mismatch")
    assert allowed.returncode == 0
    assert "mismatch allowed: only the new side has the task tax" in allowed.stderr


def test_logs_with_columns_of_their_own(tmp_path: Path) -> None:
    old, new = log(tmp_path / "old.jsonl", 60), log(tmp_path / "new.jsonl", 55)
    columns = "id=qid,input=question,output=reply,target=gold,correct=ok"

    run = uphold("compare", old, new, "--columns", columns, "--out", tmp_path / "out")

    assert run.returncode == 0, run.stderr
    assert "55 stay right, 5 negative flips, 0 positive flips, 40 stay wrong" in run.stdout
    assert (tmp_path / "out" / "report.html").is_file()
    assert_refused(uphold("compare", old, new, "--columns", "id"), "--columns id: expected WHAT=COLUMN")


def test_a_mismatch_is_said_before_any_number(tmp_path: Path) -> None:
    runs(tmp_path / "a", "art", 1, fewshot=0)
    runs(tmp_path / "b", "art", 3, fewshot=5)
    pair = tmp_path / "a" / "old", tmp_path / "b" / "new"

    assert_refused(uphold("compare", *pair), "not comparable", "fewshot (0 against 5)", "--allow-mismatch", code=4)
    allowed = uphold("compare", *pair, "--allow-mismatch", "--max-nfr", "0.2")
    assert allowed.returncode == 0
    assert allowed.stderr.splitlines()[0] == "mismatch allowed: fewshot (0 against 5)"
    assert "mismatch allowed: fewshot (0 against 5)" in allowed.stdout


def test_clusters_are_said(tmp_path: Path) -> None:
    runs(tmp_path, "art", 10)

    run = uphold("compare", tmp_path / "old", tmp_path / "new", "--cluster", "part", "--json")

    assert json.loads(run.stdout)["cluster"] == "part"
    assert_refused(uphold("compare", tmp_path / "old", tmp_path / "new", "--cluster", "prat"), "prat")


def test_a_policy_is_a_gate(tmp_path: Path) -> None:
    runs(tmp_path, "art", 1)
    policy = tmp_path / "policy.yml"
    policy.write_text("limits:\n  - {max_nfr: 10%, margin: 10%}\n")
    pair = tmp_path / "old", tmp_path / "new"

    passed = uphold("compare", *pair, "--policy", policy)
    stricter = uphold("compare", *pair, "--policy", policy, "--max-nfr", "0.001")

    assert (passed.returncode, stricter.returncode) == (0, 3)
    policy.write_text("limit:\n  - {max_nfr: 10%}\n")
    assert_refused(uphold("compare", *pair, "--policy", policy), "policy.yml", "did you mean 'limits'?")
    assert_refused(uphold("compare", *pair, "--max-nfr", "0"), "no number of instances")


@pytest.mark.parametrize("more", [[], ["--max-nfr", "0.5", "--task", "demo", "--task", "humaneval"]])
def test_until_decided_needs_a_gate_and_one_task(more: list[str], tmp_path: Path) -> None:
    assert_refused(uphold("compare", "a", "b", "--until-decided", *more), "--until-decided needs one --task and a gate")


def test_until_decided(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, count=600)

    run = uphold("compare", model_v1, model_v2, "--task", task, "--max-nfr", "0.9", "--until-decided", "--quiet")

    assert run.returncode == 0, run.stderr
    assert "note: stopped after " in run.stdout
    assert "of 300 instances, when the gate was decided" in run.stdout
    assert "<= 90.00%  pass" in run.stdout
    assert run.stdout.count("note: stopped after ") == 1
    assert run.stderr == ""


def test_until_decided_takes_no_second_measurement() -> None:
    more = ["--task", "demo", "--max-nfr", "0.1", "--again", "c"]
    assert_refused(uphold("compare", "a", "b", "--until-decided", *more), "--again goes with two stored runs")


def test_a_dry_run_knows_what_is_stored(model_v1: Path, tmp_path: Path) -> None:
    runs(tmp_path, "first-letter", 1)
    task, old = write_task(tmp_path), tmp_path / "old" / "first-letter"

    one = uphold("compare", old, model_v1, "--task", task, "--dry-run")
    none = uphold("compare", old, tmp_path / "new", "--dry-run", "--out", tmp_path / "out")

    assert one.stdout.startswith(f"{model_v1} on first-letter: 30 instances, 0 of them stored; 120 requests"), (
        one.stderr
    )
    assert len(one.stdout.splitlines()) == 1
    assert none.stdout == "nothing to evaluate\n"
    assert not (tmp_path / "out").exists()


def test_shares_are_typed_as_in_a_policy(tmp_path: Path) -> None:
    runs(tmp_path, "art", 1)
    pair = tmp_path / "old", tmp_path / "new"

    assert "<= 10.00%  pass" in uphold("compare", *pair, "--max-nfr", "10%").stdout
    wrong = uphold("compare", *pair, "--max-nfr", "10")
    assert wrong.returncode == 2
    assert "10 is not in [0, 1]" in wrong.stderr


def test_a_tag_of_several_lines_stays_on_one(tmp_path: Path) -> None:
    for version, right in (("old", 60), ("new", 30)):
        tags = [{"system\nprompt": "Be kind.\n::error::no\x1b[2J" if n < 60 else "Be brief."} for n in range(100)]
        make_run(
            tmp_path / version, [make_record(n, n < right, str(n < right), tags=tags[n]) for n in range(100)], version
        )
    policy = tmp_path / "policy.yml"
    policy.write_text("limits: [{max_nfr: 10%, slice: 'system*'}]")

    run = uphold("compare", tmp_path / "old", tmp_path / "new", "--policy", policy)

    assert run.returncode == 1, run.stderr
    assert "\x1b" not in run.stdout
    assert not [line for line in run.stdout.splitlines() if line.startswith("::")]
    name = "system prompt=Be kind. ::error::no⟨U+001B⟩[2J"
    assert f"slice with a high NFR: {name}: NFR 50.00%" in run.stdout
    assert f"FAIL task, {name}, NFR: 30 negative flips in 60" in run.stdout
