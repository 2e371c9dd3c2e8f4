from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

import datasets

from uphold.core.errors import DataError, UpholdError, UsageError
from uphold.tasks.base import split_sizes
from uphold.tasks.hub import hub_task
from uphold.tasks.load import load_task
from uphold.tasks.text_files import load_task_file

ROWS = [
    {"q": f"question {n}", "a": "AB"[n % 2], "choices": {"text": [f"yes {n}", f"no {n}"], "label": ["A", "B"]}}
    for n in range(20)
]
CHOICE = {"prompt": "Q: {q}\nA:", "target": "{a}", "options": "choices.text"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset as it lies on the hub: a folder with a file for each split."""
    path = tmp_path / "questions"
    path.mkdir()
    for split, rows in {"train": ROWS[:12], "validation": ROWS[12:15], "test": ROWS[15:]}.items():
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task_file(folder: Path, **changes: Any) -> Path:
    path = folder / "task.yaml"
    spec = {"kind": "choice", **CHOICE, **changes}
    path.write_text(json.dumps({key: value for key, value in spec.items() if value is not None}))
    return path


def test_a_folder_with_splits_keeps_them(folder: Path) -> None:
    task = hub_task(str(folder), **CHOICE)

    assert split_sizes(task) == {"train": 12, "validation": 3, "test": 5}
    assert (task.kind, task.scorer) == ("choice", "choice.v1")
    instance = task.instances("test")[0]
    assert (instance.prompt, instance.options, instance.target) == ("Q: question 15\nA:", ("yes 15", "no 15"), "no 15")


def test_options_are_typed_behind_the_name(folder: Path) -> None:
    task = load_task(
        f'hf:{folder}:split=train,prompt="{{q}},\\n",target="{{choices.text.1}}",stop=[".", ","],max_new_tokens=5'
    )

    assert task.kind == "generate"
    assert split_sizes(task) == {"train": 9, "validation": 1, "test": 2}
    assert (task.decoding.stop, task.decoding.max_new_tokens) == ((".", ","), 5)
    instance = task.instances("test")[0]
    assert instance.prompt.endswith(",\n")
    assert instance.target.startswith("no ")


def test_options_may_be_a_fixed_list(folder: Path) -> None:
    task = load_task(f'hf:{folder}:prompt="{{q}}",target="{{a}}",options=[A, B, C],limit=2')

    assert split_sizes(task) == {"train": 2, "validation": 2, "test": 2}
    assert {instance.options for instance in task.instances("test")} == {("A", "B", "C")}


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet"])
def test_a_single_file_is_divided(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    rows = datasets.Dataset.from_list([{"q": row["q"], "a": row["a"]} for row in ROWS])
    if ending in ("json", "jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        getattr(rows, f"to_{ending}")(path)

    task = hub_task(str(path), prompt="{q}", target="{a}")

    assert split_sizes(task) == {"train": 14, "validation": 2, "test": 4}


def test_a_dataset_that_was_saved_to_disk(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows.select(range(15)), "test": rows.select(range(15, 20))}).save_to_disk(
        str(tmp_path / "two")
    )

    assert split_sizes(hub_task(str(tmp_path / "one"), **CHOICE)) == {"train": 14, "validation": 2, "test": 4}
    assert split_sizes(hub_task(str(tmp_path / "two"), **CHOICE)) == {"train": 15, "validation": 0, "test": 5}


def test_a_task_file_names_a_dataset_beside_it(folder: Path) -> None:
    data = {"hf": "questions", "splits": {"test": "validation", "train": "train"}, "limit": 4}
    task = load_task_file(task_file(folder.parent, data=data))

    assert split_sizes(task) == {"train": 4, "validation": 0, "test": 3}
    assert [instance.prompt for instance in task.instances("test")] == [f"Q: question {n}\nA:" for n in (12, 13, 14)]


def test_one_split_is_divided_as_the_task_file_says(folder: Path) -> None:
    data = {"hf": "questions", "splits": "train"}
    task = load_task_file(task_file(folder.parent, data=data, split={"test": 0.5, "validation": 0}))

    assert split_sizes(task) == {"train": 6, "validation": 0, "test": 6}


def test_labels_that_are_numbers_point_at_options(tmp_path: Path) -> None:
    features = datasets.Features({"q": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_list([{"q": str(n), "label": n % 2} for n in range(10)], features=features)
    rows.save_to_disk(str(tmp_path / "labels"))

    task = hub_task(str(tmp_path / "labels"), prompt="{q}", target="{label}", options=["no", "yes"])

    assert all(one.target == ("yes" if int(one.prompt) % 2 else "no") for one in task.instances("train"))


def test_nothing_is_printed_and_progress_is_reported(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, int, int]] = []
    hub_task(str(folder), **CHOICE, progress=lambda what, done, total, note="": seen.append((what, done, total)))

    assert seen == [(f"reading {folder}", 0, 1), (f"reading {folder}", 1, 1)]
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


# ---- what cannot be used ----


def test_a_dataset_without_test_split_asks_which_to_use(folder: Path) -> None:
    (folder / "test.jsonl").unlink()

    with pytest.raises(
        UsageError,
        match=r"has the splits train, validation and none called test: name one with split=validation, or in a task "
        r"file as splits: \{test: validation\}",
    ):
        hub_task(str(folder), **CHOICE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "unknown split 'tset': did you mean 'test'"),
        ({"prompt": "{question}"}, r"questions train row 0: no field 'question'; it has a, choices, q"),
        ({"prompt": "{choices.txt}"}, r"no field 'choices\.txt'"),
        ({"target": "{choices.text.2}"}, r"no field 'choices\.text\.2'"),
        ({"target": "C"}, "the target 'C' is neither an option"),
        ({"options": "a"}, "a choice needs at least two different options"),
        ({"limit": 0}, r"data\.hub\.limit: input should be greater than or equal to 1"),
        ({"temperature": -1.0}, r"decoding\.temperature: input should be greater than or equal to 0"),
        ({"scorer": "rouge", "options": None}, "unknown scorer"),
    ],
)
def test_options_that_do_not_fit(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UpholdError, match=message) as caught:
        hub_task(str(folder), **CHOICE | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("x", r"needs prompt and target: add prompt=\.\.\.,target=\.\.\."),
        ("x:prompt={q},target=a", r"prompt: input should be a valid string \(quote text\)"),
        ("x:prompt=q,target=a,optoins=b", "unknown option 'optoins': did you mean 'options'"),
        (":prompt=q,target=a", "the task 'hf::prompt=q,target=a' names nothing: type hf:ID"),
    ],
)
def test_what_is_typed_wrongly(typed: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_task(f"hf:{typed}")
    assert "\n" not in str(caught.value)


def test_data_that_cannot_be_had_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"cannot load the dataset 'nobody/nothing': .*; check its name, config and revision and the network",
    ) as caught:
        hub_task("nobody/nothing", prompt="q", target="a")
    assert "\n" not in str(caught.value)
    (tmp_path / "rows.xml").write_text("<a/>")
    with pytest.raises(DataError, match=r"rows\.xml: data files end in \.json, .*; rename or convert it"):
        hub_task(str(tmp_path / "rows.xml"), prompt="q", target="a")
    (tmp_path / "rows.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"cannot load the dataset .*rows\.jsonl") as caught:
        hub_task(str(tmp_path / "rows.jsonl"), prompt="q", target="a")
    assert "\n" not in str(caught.value)


def test_datasets_with_code_are_not_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("raise SystemExit('was run')")

    with pytest.raises(DataError, match="cannot load the dataset"):
        hub_task(str(folder), prompt="q", target="a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"hf": "x", "confg": "y"}, r"data\.hub\.confg: extra inputs are not permitted"),
        ({"hf": ""}, r"data\.hub\.hf: string should have at least 1 character"),
        ({"hf": "x", "splits": {"tset": "y"}}, r"data\.hub\.splits"),
        ({"tset": "x"}, r"data\.files\.tset"),
        (5, r"data\.file: input should be a valid string"),
    ],
)
def test_task_files_that_do_not_fit(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_task_file(task_file(tmp_path, data=data))
    assert "\n" not in str(caught.value)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "datasets" else find(name, *rest)
    )

    with pytest.raises(UsageError, match=r"need the package datasets: pip install 'uphold\[datasets\]'"):
        hub_task("x", prompt="q", target="a")
