"""Logs of lm-evaluation-harness for tests: written by the harness itself, and by hand in its shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tasks.lm_eval_data import generate_task, write_task

DATE = "2026-01-02T03-04-05.000006"


def harness_writes(out: Path, model: Path, tasks: Sequence[Path], **options: Any) -> None:
    """Evaluate `model` as `lm_eval run --log_samples --output_path out` does."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(out))
    results = simple_evaluate(
        model="hf",
        model_args=f"pretrained={model},dtype=float32,max_length=128",
        tasks=[str(task) for task in tasks],
        task_manager=TaskManager(include_defaults=False),
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
        evaluation_tracker=tracker,
        **{"gen_kwargs": "max_gen_toks=8", **options},
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)


def harness_tasks(folder: Path) -> list[Path]:
    """A multiple-choice task, and a generated one whose answers are scored by two filters."""
    for name in ("choice", "written"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    letters = "abcdefgh"
    rows = [
        {
            "question": f"{n} + 1 =",
            "choices": [letters[(n + k) % 8] + letters[(3 * n + 2 * k) % 8] + "z" * (k == 2) for k in range(3)],
            "answer": n % 3,
        }
        for n in range(40)
    ]
    data = folder / "choice" / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = write_task(
        folder / "choice",
        dataset_kwargs={"data_files": {"train": str(data), "validation": str(data)}},
    )
    written = generate_task(folder / "written")
    spec = json.loads(written.read_text())
    for split, name in spec["dataset_kwargs"]["data_files"].items():
        spec["dataset_kwargs"]["data_files"][split] = str(folder / "written" / name)
    written.write_text(json.dumps(spec))
    return [choice, written]


def sample(number: int, right: bool = True, *, doc: Any = None, **changes: Any) -> dict[str, Any]:
    """A line on a question with three options, the second of which is right."""
    logprobs = [-3.0, -1.0, -2.0] if right else [-1.0, -3.0, -2.0]
    prompt = f"Question {number}:"
    doc = {"question": prompt, "subject": "abc"[number % 3]} if doc is None else doc
    row = {
        "doc_id": number,
        "doc": doc,
        "target": "1",
        "arguments": {
            f"gen_args_{index}": {"arg_0": prompt, "arg_1": f" {option}"}
            for index, option in enumerate(["red", "green", "blue"])
        },
        "resps": [[[str(value), "False"]] for value in logprobs],
        "filtered_resps": [[str(value), "False"] for value in logprobs],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": json.dumps(doc, sort_keys=True),
        "prompt_hash": "p",
        "target_hash": "t",
        "acc": float(right),
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def results(task: str = "colours", model: str = "org/old", **changes: Any) -> dict[str, Any]:
    """What stands in `results_<date>.json`; `changes` replace whole entries."""
    return {
        "results": {task: {"alias": task, "acc,none": 0.5, "acc_stderr,none": 0.1}},
        "configs": {task: {"task": task, "output_type": "multiple_choice", "target_delimiter": " "}},
        "versions": {task: 1.0},
        "n-shot": {task: 0},
        "higher_is_better": {task: {"acc": True}},
        "config": {
            "model": "hf",
            "model_args": f"pretrained={model},dtype=float32",
            "model_dtype": "torch.float32",
            "batch_size": 4,
            "limit": None,
            "fewshot_seed": 1234,
        },
        "transformers_version": "5.23.0",
        "lm_eval_version": "0.4.13",
        "model_name": model,
        "chat_template_sha": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": False,
    } | changes


def write_log(
    folder: Path,
    samples: Sequence[dict[str, Any]],
    task: str = "colours",
    date: str = DATE,
    found: dict[str, Any] | None = None,
) -> Path:
    """A model folder with one task's samples and results; returns the sample file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"samples_{task}_{date}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in samples))
    head = results(task) if found is None else found
    if head:
        (folder / f"results_{date}.json").write_text(json.dumps(head))
    return path
