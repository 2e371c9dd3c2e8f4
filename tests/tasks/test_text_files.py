from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import write_task
from uphold.core.errors import CorruptError, DataError, EmptyError, UpholdError
from uphold.tasks.base import SPLITS, Instance, Task, split_sizes
from uphold.tasks.text_files import load_task_file, read_rows

quick = settings(max_examples=30, deadline=None, database=None)
ROWS = [{"q": f"question {n}", "a": str(n)} for n in range(10)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plain_task(folder: Path, rows: list[Any] | None = None, **spec: Any) -> Task:
    """A generate task over `q` and `a`, or what `spec` makes of it."""
    write_jsonl(folder / "rows.jsonl", ROWS if rows is None else rows)
    usual = {
        "kind": "generate",
        "data": "rows.jsonl",
        "prompt": "{q}",
        "target": "{a}",
        "split": {"test": 1, "validation": 0},
    }
    path = folder / "plain.yaml"
    path.write_text(json.dumps({key: value for key, value in (usual | spec).items() if value is not None}))
    return load_task_file(path)


def choice_task(folder: Path, rows: list[Any], options: Any = "choices") -> tuple[Instance, ...]:
    task = plain_task(folder, rows, kind="choice", options=options)
    return tuple(sorted(task.instances("test"), key=lambda instance: instance.prompt))


# ---- reading a task ----


def test_a_choice_task_is_read(tmp_path: Path) -> None:
    task = load_task_file(write_task(tmp_path))

    assert (task.name, task.kind, task.scorer, task.delimiter) == ("first-letter", "choice", "choice.v1", "")
    assert split_sizes(task) == {"train": 15, "validation": 15, "test": 30}
    for split in SPLITS:
        for instance in task.instances(split):
            assert instance.target == instance.prompt[0]
            assert instance.options == ("a", "b", "c", "d")
            assert instance.tags["half"] == ("low" if int(instance.prompt[1:-1]) < 30 else "high")


def test_a_generate_task_is_read(tmp_path: Path) -> None:
    task = plain_task(
        tmp_path,
        scorer="rouge1",
        prompt="Q: {q}\nA:",
        decoding={"max_new_tokens": 7, "stop": ["."], "temperature": 0.5},
    )

    assert task.name == "plain"
    assert task.scorer == "rouge1.v1"
    assert (task.decoding.max_new_tokens, task.decoding.stop, task.decoding.temperature) == (7, (".",), 0.5)
    assert Instance("Q: question 3\nA:", "3") in task.instances("test")


def test_the_three_formats_say_the_same(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "rows.csv").write_text("q,a\n" + "".join(f'"{row["q"]}",{row["a"]}\n' for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")

    read = [[row for _, row in read_rows(tmp_path / f"rows.{ending}")] for ending in ("jsonl", "csv", "parquet")]

    assert read[0] == read[1] == read[2] == ROWS


def test_empty_lines_do_not_count_as_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}\n\n')

    assert [where.rsplit(" ", 1)[1] for where, _ in read_rows(tmp_path / "rows.jsonl")] == ["2", "4"]


def test_files_for_each_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS[:6])
    write_jsonl(tmp_path / "b.jsonl", ROWS[6:])

    task = plain_task(tmp_path, data={"train": "a.jsonl", "test": "b.jsonl"}, split=None)

    assert split_sizes(task) == {"train": 6, "validation": 0, "test": 4}


def test_files_that_share_an_instance_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS[:6])
    write_jsonl(tmp_path / "b.jsonl", ROWS[5:])

    with pytest.raises(UpholdError, match="'question 5' is in train and in test: splits may not share instances"):
        plain_task(tmp_path, data={"train": "a.jsonl", "test": "b.jsonl"}, split=None)


@quick
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 99))
def test_splits_share_nothing_and_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], test: float, validation: float, seed: int
) -> None:
    rows = [{"q": f"question {number}", "a": "x"} for number in numbers]
    split = {"test": test, "validation": validation, "seed": seed}
    folder = tmp_path_factory.mktemp("task")
    task = plain_task(folder, rows, split=split)
    prompts = [instance.prompt for part in SPLITS for instance in task.instances(part)]

    assert len(prompts) == len(set(prompts)) == len(set(numbers))
    repeated = len(numbers) - len(set(numbers))
    assert task.notes == ((f"{repeated} duplicate instances were left out",) if repeated else ())
    assert plain_task(folder, rows, split=split).instances("test") == task.instances("test")


def test_another_seed_divides_otherwise(tmp_path: Path) -> None:
    first, second = (plain_task(tmp_path, split={"test": 0.5, "seed": seed}).instances("test") for seed in (0, 1))

    assert {instance.id for instance in first} != {instance.id for instance in second}


def test_templates_reach_into_nested_fields(tmp_path: Path) -> None:
    rows = [{"q": {"text": f"question {n}"}, "answers": [{"text": str(n)}], "a.b": "plain"} for n in range(3)]
    task = plain_task(tmp_path, rows, prompt="{q.text} {a.b}", target="{answers.0.text}")

    assert {(one.prompt, one.target) for one in task.instances("test")} == {
        (f"question {n} plain", str(n)) for n in range(3)
    }


@pytest.mark.parametrize("name", ["q.txt", "answers.1", "answers.x", "answers.0.text.x", "q.text."])
def test_nested_fields_that_are_not_there_name_the_line(tmp_path: Path, name: str) -> None:
    rows = [{"q": {"text": "question"}, "answers": [{"text": "1"}]}]

    with pytest.raises(DataError, match=r"rows\.jsonl line 1: no field '") as caught:
        plain_task(tmp_path, rows, prompt="x", target="{answers.0.text}", tags=[name])
    assert "\n" not in str(caught.value)


# ---- generated tasks ----


def test_a_file_may_name_a_generated_dataset(tmp_path: Path) -> None:
    (tmp_path / "sums.yaml").write_text("dataset_name: chain_sum\nsize: 10\nmax_terms: 2\nmin_terms: 2\nstop: [x]\n")
    task = load_task_file(tmp_path / "sums.yaml")

    assert task.name == "sums"
    assert sum(split_sizes(task).values()) == 10
    assert task.decoding.stop == ("x",)
    assert {one.extra["metadata"]["num_terms"] for one in task.instances("test")} == {2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset_name: chain_sun", "unknown reasoning-gym dataset 'chain_sun': did you mean 'chain_sum'"),
        ("dataset_name: chain_sum\nmax_term: 3", "unknown option 'max_term': did you mean 'max_terms'"),
        ("dataset_name: chain_sum\nlabel: x", "unknown option 'label'"),
        ("dataset_name: chain_sum\nsize: -1", "task 'mine': size must be a whole number of at least 0"),
        ("name: other\ndataset_name: chain_sum\nkind: chioce", "unknown kind in task 'other' 'chioce': did you mean"),
    ],
)
def test_a_generated_dataset_that_cannot_be_had_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)

    with pytest.raises(UpholdError, match=message) as caught:
        load_task_file(tmp_path / "mine.yaml")
    assert "\n" not in str(caught.value)


# ---- targets of choices ----


@pytest.mark.parametrize(
    ("target", "meant"),
    [("green", "green"), (1, "green"), ("0", "red"), ("B", "green"), ("c", "blue")],
)
def test_a_target_is_an_option_its_index_or_its_letter(tmp_path: Path, target: Any, meant: str) -> None:
    (instance,) = choice_task(tmp_path, [{"q": "x", "choices": ["red", "green", "blue"], "a": target}])

    assert instance.target == meant


def test_an_option_that_looks_like_an_index_is_an_option(tmp_path: Path) -> None:
    (instance,) = choice_task(tmp_path, [{"q": "x", "choices": [2, 1, 0], "a": 2}])

    assert instance.target == "2"
    assert instance.options == ("2", "1", "0")


def test_options_may_be_a_text_with_bars(tmp_path: Path) -> None:
    (instance,) = choice_task(tmp_path, [{"q": "x", "choices": "red | green", "a": "B"}])

    assert instance.options == ("red", "green")
    assert instance.target == "green"


@pytest.mark.parametrize("target", ["yellow", "3", "D", "-1", "", "²", "ß", "é", "10"])
def test_a_target_that_is_no_option_names_the_line(tmp_path: Path, target: str) -> None:
    good = {"q": "y", "choices": ["red", "green", "blue"], "a": "red"}

    with pytest.raises(DataError, match=r"rows\.jsonl line 2: the target .* is neither an option") as caught:
        choice_task(tmp_path, [good, good | {"a": target}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [["red"], ["red", "red"], [], "red"])
def test_too_few_options_name_the_line(tmp_path: Path, options: Any) -> None:
    with pytest.raises(DataError, match=r"line 1: a choice needs at least two different options"):
        choice_task(tmp_path, [{"q": "x", "choices": options, "a": "red"}])


@pytest.mark.parametrize("options", [5, True, {"text": ["red", "green"]}])
def test_options_that_are_no_list_name_the_line(tmp_path: Path, options: Any) -> None:
    with pytest.raises(DataError, match=r"line 1: the options must be a list"):
        choice_task(tmp_path, [{"q": "x", "choices": options, "a": "red"}])


# ---- task files that do not fit ----


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"promt": "{q}"}, "promt: extra inputs are not permitted"),
        ({"prompt": None}, "prompt: field required"),
        ({"kind": "chioce"}, "kind: input should be 'choice' or 'generate'"),
        ({"kind": "choice"}, "a choice task needs 'options'"),
        ({"split": {"test": 1.5}}, "split.test: input should be less than or equal to 1"),
        ({"split": {"test": 0.9, "validation": 0.2}}, "validation 0.2 and test 0.9 are more than the whole"),
        ({"split": {"tset": 0.5}}, "split.tset: extra inputs are not permitted"),
        ({"decoding": {"max_new_tokens": 0}}, "decoding.max_new_tokens: input should be greater than or equal to 1"),
        ({"decoding": {"top_p": 0}}, "decoding.top_p: input should be greater than 0"),
        ({"scorer": "rogue1"}, r"unknown scorer 'rogue1\.v1': did you mean 'rouge1\.v1'"),
        ({"data": "none.jsonl"}, r"the data file .*none\.jsonl does not exist; paths are relative to the task file"),
        ({"data": "rows.txt"}, r"rows\.txt: data files end in \.jsonl, \.csv, \.parquet"),
        ({"data": "rows"}, r"rows: data files end in"),
        ({"prompt": "{question}"}, r"rows\.jsonl line 1: no field 'question'; it has a, q"),
        ({"tags": ["level"]}, r"rows\.jsonl line 1: no field 'level'"),
    ],
)
def test_a_task_file_that_does_not_fit_is_one_line(tmp_path: Path, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UpholdError, match=message) as caught:
        plain_task(tmp_path, **spec)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "just text", "a: [", "a: b: c", "\t", "name: 2024-13-45", "? [a]\n: b", "!!python/object:os.system x"],
)
def test_a_file_that_is_no_task_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "task.yaml").write_text(text)

    with pytest.raises(DataError, match=r"task\.yaml") as caught:
        load_task_file(tmp_path / "task.yaml")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_bytes(b"name: \xff\xfe")

    with pytest.raises(DataError, match=r"task\.yaml is not valid YAML"):
        load_task_file(tmp_path / "task.yaml")


# ---- data that do not fit ----


def test_data_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmptyError, match=r"rows\.jsonl has no rows"):
        plain_task(tmp_path, [])


def test_a_missing_or_empty_field_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl line 3: no field 'a'; it has q"):
        plain_task(tmp_path, [*ROWS[:2], {"q": "x"}])
    with pytest.raises(DataError, match=r"rows\.jsonl line 1: no field 'a'"):
        plain_task(tmp_path, [{"q": "x", "a": None}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"q": "a", "a": "b"}\n{"q": ', r"x\.jsonl line 2: not valid JSON"),
        ("x.jsonl", b'{"q": "a", "a": "b"}\n[1, 2]\n', r"x\.jsonl line 2: expected a JSON object, found list"),
        ("x.jsonl", b'{"q": "\xff"}\n', r"x\.jsonl is not UTF-8 text"),
        ("x.jsonl", b'{"q": "a", "a": "\\ud800"}\n', r"x\.jsonl line 1: half of a surrogate pair"),
        ("x.csv", b"q,a\n1,2\n3\n", r"x\.csv line 3: expected 2 columns like the header"),
        ("x.csv", b"q,a\n1,2,3\n", r"x\.csv line 2: expected 2 columns like the header"),
        ("x.csv", b'q,a\n"1,2\n', r"x\.csv cannot be read as CSV"),
        ("x.csv", b"q,a\n\xff,2\n", r"x\.csv cannot be read as CSV"),
        ("x.parquet", b"PAR1 but nothing else", r"x\.parquet cannot be read as Parquet"),
        ("x.parquet", b"", r"x\.parquet cannot be read as Parquet"),
    ],
)
def test_malformed_data_name_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(CorruptError, match=message) as caught:
        plain_task(tmp_path, data=name)
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_is_corrupt(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    data = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(data[:-10])

    with pytest.raises(CorruptError, match=r"rows\.parquet cannot be read as Parquet"):
        list(read_rows(tmp_path / "rows.parquet"))
