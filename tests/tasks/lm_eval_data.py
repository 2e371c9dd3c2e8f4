"""Small task files of lm-evaluation-harness for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MEAN = {"aggregation": "mean", "higher_is_better": True}
COLOURS = ["red", "green", "blue"]


def write_rows(folder: Path, **splits: list[dict[str, Any]]) -> dict[str, str]:
    files = {}
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = f"{split}.jsonl"
    return files


def riddles(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {"question": f" What is number {n}? ", "choices": [f"{c} {n % 7}" for c in COLOURS], "answer": n % 3}
        for n in range(start, start + count)
    ]


def write_task(folder: Path, name: str = "riddles", **changes: Any) -> Path:
    """A multiple-choice task with train and validation documents, or what `changes` makes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    if "dataset_kwargs" not in changes:
        changes["dataset_kwargs"] = {"data_files": write_rows(folder, train=riddles(0, 8), validation=riddles(100, 6))}
    task = {
        "task": name,
        "dataset_path": "json",
        "output_type": "multiple_choice",
        "training_split": "train",
        "validation_split": "validation",
        "doc_to_text": "Question: {{question.strip()}}\nAnswer:",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
        "metadata": {"version": 2.0},
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({key: value for key, value in task.items() if value is not None}))
    return path


def generate_task(folder: Path, **changes: Any) -> Path:
    rows = [{"question": f"{n} + 1 =", "answer": f"It is so. #### {n + 1}"} for n in range(9)]
    return write_task(
        folder,
        "sums",
        **{
            "dataset_kwargs": {"data_files": write_rows(folder, train=rows[:4], test=rows[4:])},
            "output_type": "generate_until",
            "test_split": "test",
            "validation_split": None,
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{answer}}",
            "doc_to_choice": None,
            "generation_kwargs": {"until": ["Question:", "</s>"], "do_sample": False, "temperature": 0.0},
            "metric_list": [{"metric": "exact_match", "regexes_to_ignore": [",", "(?s).*#### "], **MEAN}],
            "filter_list": [
                {
                    "name": "strict",
                    "filter": [
                        {"function": "regex", "regex_pattern": "#### (\\-?[0-9.]+)"},
                        {"function": "take_first"},
                    ],
                },
                {
                    "name": "flexible",
                    "filter": [
                        {"function": "regex", "group_select": -1, "regex_pattern": "(-?[0-9.]+)"},
                        {"function": "take_first"},
                    ],
                },
            ],
        }
        | changes,
    )
