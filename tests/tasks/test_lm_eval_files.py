from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import datasets
from lm_eval.tasks._yaml_loader import load_yaml

from tests.tasks.lm_eval_data import MEAN, write_task
from uphold.core.errors import DataError, UsageError
from uphold.tasks.lm_eval import lm_eval_task
from uphold.tasks.lm_eval_files import folder_index, shipped_index
from uphold.tasks.load import load_task

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_tasks_are_found_in_folders(tmp_path: Path) -> None:
    path = write_task(tmp_path / "mine")

    assert load_task(f"lm_eval:{tmp_path}/mine").instances("test")
    assert load_task(f"lm_eval:{tmp_path}/mine/riddles:fewshot=1").name.endswith("riddles:fewshot=1")
    assert load_task(f"lm_eval:{path}").instances("test") == lm_eval_task(f"{tmp_path}/mine/riddles").instances("test")


def test_the_index_reads_names_groups_and_tags(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: one  # first\ntag:\n  - easy\n  - short\ndoc_to_text: x\n")
    (tmp_path / "b.yaml").write_text('"task": "two"\ntag: easy\n')
    (tmp_path / "c.yaml").write_text("group: all\ntask:\n  - one\n  - two\n")

    found = folder_index(tmp_path)

    assert dict(found.tasks) == {"one": tmp_path / "a.yaml", "two": tmp_path / "b.yaml"}
    assert found.groups == {"all"}
    assert dict(found.tags) == {"easy": ["one", "two"], "short": ["one"]}


def test_the_shipped_names_are_read_off_the_files() -> None:
    found = shipped_index()

    assert len(found.tasks) > 10_000
    assert {"hellaswag", "gsm8k", "mmlu_abstract_algebra", "lambada_openai"} <= found.tasks.keys()
    assert "mmlu" in found.groups
    assert "arc_easy" in found.tags["ai2_arc"]
    for name in ("hellaswag", "mmlu_abstract_algebra"):
        assert load_yaml(found.tasks[name], resolve_func=False)["task"] == name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_type": "loglikelihood_rolling"}, "measures the perplexity of whole texts"),
        ({"group": "many"}, "is a group of tasks: load one of them"),
        ({"class": "x.Y"}, "is no task of templates"),
        ({"doc_to_image": "picture"}, "only text is read here"),
        ({"unsafe_code": True}, "runs programs that the model wrote, without a sandbox: use the task humaneval"),
        ({"repeats": 4}, "takes a vote of 4 answers"),
        ({"process_results": "x"}, "scores with a function of its own over all log-likelihoods"),
        ({"metric_list": [{"metric": "mcc", **MEAN}]}, "mcc is none of acc, acc_norm"),
        ({"num_fewshot": 0}, "is made for fewshot=0 and the harness keeps it so: leave fewshot away"),
    ],
)  # fmt: skip
def test_tasks_of_other_kinds_are_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_task(tmp_path, **changes)

    with pytest.raises(UsageError, match=message) as caught:
        lm_eval_task(str(path), fewshot=1)
    assert "\n" not in str(caught.value)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    write_task(tmp_path)

    with pytest.raises(UsageError, match=r"unknown lm_eval task .* 'riddle': did you mean 'riddles'"):
        lm_eval_task(f"{tmp_path}/riddle")
    with pytest.raises(DataError, match=r"the lm_eval task file .*none\.yaml does not exist"):
        lm_eval_task(f"{tmp_path}/none.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds 0 lm_eval tasks: expected a file with 'task: NAME'"):
        lm_eval_task(f"{tmp_path}/empty")
    write_task(tmp_path, "second")
    with pytest.raises(UsageError, match=r"holds 2 lm_eval tasks: load one, as lm_eval:.*/riddles"):
        lm_eval_task(str(tmp_path))


def test_shipped_names_are_suggested() -> None:
    with pytest.raises(UsageError, match="unknown lm_eval task 'hellasvag': did you mean 'hellaswag'"):
        lm_eval_task("hellasvag")
    with pytest.raises(UsageError, match="'mmlu' is a group of lm_eval tasks: load one of them by its own name"):
        lm_eval_task("mmlu")
    with pytest.raises(UsageError, match="'ai2_arc' is a tag of several lm_eval tasks: load one, such as arc_"):
        lm_eval_task("ai2_arc")


def test_data_that_cannot_be_had_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data of the lm_eval task 'hellaswag' cannot be had: .*; check the network"
    ) as caught:
        lm_eval_task("hellaswag")
    assert "\n" not in str(caught.value)
    path = write_task(tmp_path, dataset_kwargs={"data_files": {"validation": "none.jsonl"}})
    with pytest.raises(DataError, match=r"none\.jsonl.*; check the network, or the dataset_path and data_files"):
        lm_eval_task(str(path))


def test_templates_that_fail_are_one_line(tmp_path: Path) -> None:
    path = write_task(tmp_path, doc_to_text="{{nothing.strip()}}")

    with pytest.raises(DataError, match=r"lm-evaluation-harness fails on the task .*UndefinedError") as caught:
        lm_eval_task(str(path))
    assert "\n" not in str(caught.value)
