from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tasks.bigbench_data import CHOICES, choice_examples, everything, only, text_examples, write_task
from uphold.core.errors import UpholdError, UsageError
from uphold.tasks.base import split_sizes, task_fingerprint
from uphold.tasks.bigbench import bigbench_task
from uphold.tasks.load import load_task


def test_a_choice_is_asked_as_the_schema_says(tmp_path: Path) -> None:
    task, instance = only(tmp_path, choice_examples(1)[0], "multiple_choice_grade")

    # The reference implementation: RandomState(42).permutation of the sorted choices, anew for every example.
    order = np.random.RandomState(seed=42).permutation(sorted(CHOICES))
    assert (
        instance.prompt == "\nQ: What colour is leaf 0?" + "".join(f"\n  choice: {choice}" for choice in order) + "\nA:"
    )
    assert task.delimiter == " "
    assert instance.options == ("red", "green", "blue")
    assert instance.target == "green"
    assert (task.kind, task.metric, task.scorer) == ("choice", "acc", "bigbench.multiple_choice_grade.v1")


@pytest.mark.parametrize(
    ("changes", "prompt", "delimiter"),
    [
        ({}, "\nQ: 0 + 1 =\nA:", " "),
        ({"example_input_prefix": "", "example_output_prefix": " "}, "0 + 1 =", " "),
        ({"example_input_prefix": "Sum: ", "example_output_prefix": ""}, "Sum: 0 + 1 =", ""),
        ({"example_output_prefix": "\n"}, "\nQ: 0 + 1 =\n", ""),
        ({"example_output_prefix": "\n "}, "\nQ: 0 + 1 =\n ", ""),
        ({"task_prefix": "Add. "}, "Add. \nQ: 0 + 1 =\nA:", " "),
        ({"task_prefix": None}, "\nQ: 0 + 1 =\nA:", " "),
    ],
)
def test_prefixes_surround_the_input(tmp_path: Path, changes: dict[str, Any], prompt: str, delimiter: str) -> None:
    task, instance = only(tmp_path, text_examples(1)[0], **changes)

    assert (instance.prompt, task.delimiter) == (prompt, delimiter)


def test_choices_are_left_away_where_the_task_says_so(tmp_path: Path) -> None:
    example = choice_examples(1)[0]

    assert only(tmp_path, example, "multiple_choice_grade", append_choices_to_input=False)[1].prompt == (
        "\nQ: What colour is leaf 0?\nA:"
    )
    assert "choice" not in only(tmp_path, example, "multiple_choice_grade", append_choices_to_input="false")[1].prompt
    changed = only(tmp_path, example, "multiple_choice_grade", choice_prefix=" | ")[1].prompt
    assert changed.count(" | ") == 3


def test_choices_are_also_shown_where_an_answer_is_written(tmp_path: Path) -> None:
    task, instance = only(tmp_path, choice_examples(1)[0] | {"target": "green"})

    assert task.kind == "generate"
    assert instance.prompt.count("\n  choice: ") == 3
    assert instance.options == ()


def test_all_questions_share_one_header_of_exemplars(tmp_path: Path) -> None:
    path = str(
        write_task(tmp_path, text_examples(), "exact_str_match", task_prefix="Add.", few_shot_example_separator="\n\n")
    )
    task = bigbench_task(path, shots=3)
    instances = everything(task)
    headers = {instance.prompt.rsplit("\nQ:", 1)[0] for instance in instances}

    (header,) = headers
    assert header.startswith("Add.\nQ: ")
    assert header.count("\nQ: ") == header.count("\nA: ") == 3
    assert header.endswith("\n\n")
    shown = [int(line.split()[1]) for line in header.splitlines() if line.startswith("Q: ")]
    assert [int(line.split()[1]) for line in header.splitlines() if line.startswith("A: ")] == [n + 1 for n in shown]
    assert sorted(shown + [int(instance.target) - 1 for instance in instances]) == list(range(20))
    assert everything(bigbench_task(path, shots=3)) == instances
    assert everything(bigbench_task(path, shots=3, seed=1)) != instances


def test_an_exemplar_of_a_choice_shows_its_best_option(tmp_path: Path) -> None:
    examples = [example | {"target": "Green, since leaves are."} for example in choice_examples()]
    task = bigbench_task(str(write_task(tmp_path, examples)), shots=2)

    assert task.instances("test")[0].prompt.count("\nA: green\n") == 2


def test_splits_share_nothing_and_follow_the_content(tmp_path: Path) -> None:
    task = bigbench_task(str(write_task(tmp_path / "a", text_examples(100), "exact_str_match")))
    backwards = bigbench_task(str(write_task(tmp_path / "b", text_examples(100)[::-1], "exact_str_match")))

    assert split_sizes(task) == {"train": 60, "validation": 10, "test": 30}
    assert len({instance.id for instance in everything(task)}) == 100
    assert everything(task) == everything(backwards)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"limit": 10}, (6, 1, 3)),
        ({"test": 50}, (43, 7, 50)),
        ({"train": 0, "validation": 0}, (0, 0, 100)),
        ({"train": 5, "validation": 5, "test": 5}, (5, 5, 5)),
        ({"shots": 10}, (54, 9, 27)),
        ({"limit": 1}, (0, 0, 1)),
    ],
)
def test_sizes(tmp_path: Path, options: dict[str, int], sizes: tuple[int, int, int]) -> None:
    task = bigbench_task(str(write_task(tmp_path, text_examples(100), "exact_str_match")), **options)

    assert tuple(split_sizes(task).values()) == sizes


def test_a_larger_train_split_or_more_shots_leave_the_test_split_alone(tmp_path: Path) -> None:
    path = str(write_task(tmp_path, text_examples(100), "exact_str_match"))
    plain = bigbench_task(path, test=20, train=10, validation=0).instances("test")

    assert bigbench_task(path, test=20, train=70, validation=0).instances("test") == plain
    with_header = bigbench_task(path, test=20, shots=3).instances("test")
    assert [instance.target for instance in with_header] == [instance.target for instance in plain]


def test_what_runs_are_compared_by_does_not_depend_on_other_splits(tmp_path: Path) -> None:
    examples = [{"input": str(n), "target": ["x" * n, "y"]} for n in range(1, 100)]
    path = str(write_task(tmp_path, examples, "exact_str_match"))
    few, many = (bigbench_task(path, test=20, train=train, validation=0) for train in (5, 79))

    assert task_fingerprint(few, "test") == task_fingerprint(many, "test")
    assert few.decoding.max_new_tokens == 99


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    task = bigbench_task(str(write_task(tmp_path, text_examples(9) + text_examples(2), "exact_str_match")))

    assert sum(split_sizes(task).values()) == 9
    assert task.notes == ("2 examples were left out: duplicates",)


def test_examples_that_cannot_be_asked_are_left_out_and_counted(tmp_path: Path) -> None:
    odd = [
        {"input": "one", "target_scores": {"a": 1}},
        {"input": "empty", "target_scores": {"": 1, "b": 0}},
        {"input": "same", "target_scores": {"a": 1, "b": 1}},
    ]
    task = bigbench_task(str(write_task(tmp_path, choice_examples(5) + odd)))

    assert sum(split_sizes(task).values()) == 5
    assert task.notes == (
        "1 examples were left out: fewer than two options",
        "1 examples were left out: an empty option",
        "1 examples were left out: no option is better than the others",
    )


def test_the_scorers_name_tells_what_the_ids_do_not(tmp_path: Path) -> None:
    def name(target: Any, **changes: Any) -> str:
        return only(tmp_path, {"input": "x", "target": target}, **changes)[0].scorer

    assert name("a") == name("b") == "bigbench.exact_str_match.v1"
    names = {name("a"), name(["a", "b"]), name(["a", "c"]), name("a", output_regex="x"), name("a", stop_string="x")}
    assert len(names) == 5


def test_a_metric_may_be_chosen(tmp_path: Path) -> None:
    examples = [example | {"target": "Green. They are."} for example in choice_examples()]
    path = str(write_task(tmp_path, examples, metrics=["multiple_choice_grade", "rouge"]))

    assert bigbench_task(path).kind == "choice"
    written = bigbench_task(path, metric="rougeLsum")
    assert (written.kind, written.scorer) == ("generate", "bigbench.rougeLsum.v1")
    assert written.instances("test")[0].target == "Green. They are."


@pytest.mark.parametrize(
    ("changes", "options", "stop", "tokens"),
    [
        ({}, {}, ("\n",), 16),
        ({}, {"max_new_tokens": 5}, ("\n",), 5),
        ({"stop_string": "#"}, {}, ("#",), 16),
        ({"examples": [{"input": "x", "target": "a\n" * 20}]}, {}, (), 40),
        ({"examples": [{"input": "x", "target": "a" * 999}]}, {}, ("\n",), 256),
    ],
)
def test_decoding(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, int], stop: tuple[str, ...], tokens: int
) -> None:
    path = write_task(tmp_path, **{"examples": text_examples(), "metric": "exact_str_match"} | changes)
    decoding = bigbench_task(str(path), **options).decoding

    assert (decoding.stop, decoding.max_new_tokens) == (stop, tokens)


def container(folder: Path, **second: Any) -> str:
    write_task(folder, "left out", metrics="left out", preferred_score="left out")
    write_task(folder / "one", text_examples(20), "exact_str_match")
    write_task(folder / "two", **{"examples": text_examples(30), "metric": "exact_str_match"} | second)
    return str(folder)


def test_a_folder_of_subtasks_is_one_task(tmp_path: Path) -> None:
    task = load_task(f"bigbench:{container(tmp_path)}:shots=2")
    instances = everything(task)  # type: ignore[arg-type]

    assert len(instances) == 26
    assert {instance.tags["subtask"] for instance in instances} == {"one", "two"}
    assert task.notes == ("20 examples were left out: other parts have them, too",)


def test_a_prefix_tells_questions_apart(tmp_path: Path) -> None:
    task = bigbench_task(container(tmp_path, task_prefix="Once more: "), shots=1)

    assert len(everything(task)) == 20 + 30 - 2
    for instance in everything(task):
        assert instance.prompt.startswith("Once more: ") == (instance.tags["subtask"] == "two")
        assert instance.prompt.count("Once more: ") <= 1
    assert task.notes == ()


def test_subtasks_have_headers_of_their_own(tmp_path: Path) -> None:
    examples = [{"input": f"{n} - 1 =", "target": str(n - 1)} for n in range(20)]
    task = bigbench_task(container(tmp_path, examples=examples), shots=2)

    for instance in everything(task):
        sign = {"one": "+", "two": "-"}[instance.tags["subtask"]]
        assert instance.prompt.count(f" {sign} 1 =") == 3
    assert {instance.tags["subtask"] for instance in task.instances("test")} == {"one", "two"}


def test_subtasks_that_prefer_different_metrics_are_not_mixed(tmp_path: Path) -> None:
    folder = container(tmp_path, examples=choice_examples(), metric="multiple_choice_grade")

    with pytest.raises(UsageError, match=r"prefer exact_str_match and .*: choose one part, as .*/one, or one metric="):
        bigbench_task(folder)
    assert bigbench_task(f"{folder}/two").kind == "choice"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("shots=-1", "shots must be at least 0"),
        (
            "shots=20",
            "has 20 examples that can be asked, and 20 of them are to be exemplars: nothing is left; lower shots",
        ),
        ("shot=3", "unknown option 'shot': did you mean 'shots'"),
        ("shots=many", "shots: input should be a valid integer"),
        ("test=21", "21 instances are asked for and there are 20: ask for fewer"),
        ("train=-1", "train must be a whole number of at least 0, not -1"),
        ("limit=0", "limit at least 1"),
        ("metric=bleurt", "metric 'bleurt' needs a model of its own; .* can be scored by multiple_choice_grade"),
        ("max_new_tokens=0,metric=exact_str_match", "decoding needs max_new_tokens >= 1"),
        ("metric=acc", "metric 'acc' is unknown; .* can be scored by multiple_choice_grade"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path: Path, options: str, message: str) -> None:
    path = write_task(tmp_path, [example | {"target": "green"} for example in choice_examples()])

    with pytest.raises(UpholdError, match=message) as caught:
        load_task(f"bigbench:{path}:{options}")
    assert "\n" not in str(caught.value)
