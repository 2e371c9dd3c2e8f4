from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from uphold.core.errors import DataError, EmptyError, UsageError
from uphold.tasks.base import Instance, split_sizes
from uphold.tasks.lm_eval import lm_eval_task
from uphold.tasks.lm_eval_files import folder_index, shipped_index
from uphold.tasks.load import load_task

pytestmark = pytest.mark.filterwarnings("ignore")
MEAN = {"aggregation": "mean", "higher_is_better": True}
COLOURS = ["red", "green", "blue"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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


def made_up(*key: str) -> float:
    """A number in [0, 1) that the key decides."""
    return int(hashlib.sha256("\0".join(key).encode()).hexdigest()[:8], 16) / 2**32


class MadeUpModel(LM):  # type: ignore[misc]
    """Answers that the requests decide; it remembers nothing."""

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        return [(-20 * made_up(*request.args), made_up("greedy", *request.args) < 0.5) for request in requests]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        return [written(request.args[0]) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        raise NotImplementedError


def written(prompt: str) -> str:
    number = int(prompt.rsplit("+", 1)[0].rsplit(" ", 2)[-2])
    return [f" I say 7 #### {number + 1}", f" {number + 1}", " #### 99", " nothing"][number % 4]


def harness_samples(path: Path, fewshot: int | None, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the harness itself asks and scores, document by document, for its first filter."""
    monkeypatch.chdir(path.parent)
    results = simple_evaluate(
        model=MadeUpModel(),
        tasks=[str(path)],
        task_manager=TaskManager(include_defaults=False),
        num_fewshot=fewshot,
        bootstrap_iters=0,
    )
    (samples,) = results["samples"].values()
    return sorted(samples, key=lambda sample: sample["doc_id"])


def picked(instance: Instance, metric: str) -> str:
    """The option that the metric picks of what `MadeUpModel` makes of the requests."""
    logprobs = [-20 * made_up(*request) for request in instance.requests]
    greedy = [made_up("greedy", *request) < 0.5 for request in instance.requests]
    if metric == "exact_match":
        return next((option for option, best in zip(instance.options, greedy, strict=True) if best), "")
    if metric == "acc_norm":
        logprobs = [value / len(option) for value, option in zip(logprobs, instance.options, strict=True)]
    if metric == "acc_bytes":
        logprobs = [value / len(option.encode()) for value, option in zip(logprobs, instance.options, strict=True)]
    if metric == "acc_mutual_info":
        alone = [-20 * made_up("", continuation) for _, continuation in instance.requests]
        logprobs = [value - other for value, other in zip(logprobs, alone, strict=True)]
    return instance.options[int(np.argmax(logprobs))]


# ---- the same requests and scores as the harness ----

WINOGRANDE = {
    "doc_to_text": "{{ {'1': 0, '2': 1}[answer] }}",
    "doc_to_target": "{{sentence.split('_')[1].strip()}}",
    "doc_to_choice": "{{[sentence.split('_')[0] + option1, sentence.split('_')[0] + option2]}}",
}
SENTENCES = [
    {
        "sentence": f"Ann met Eva {n} times because _ liked tea.",
        "option1": "Ann",
        "option2": "Eva",
        "answer": "12"[n % 2],
    }
    for n in range(12)
]


@pytest.mark.parametrize(
    ("metric", "fewshot"),
    [("acc", None), ("acc", 2), ("acc_norm", None), ("acc_bytes", 1), ("acc_mutual_info", 2), ("exact_match", None)],
)
def test_multiple_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, fewshot: int | None) -> None:
    path = write_task(tmp_path, metric_list=[{"metric": metric, **MEAN}])

    task = lm_eval_task(str(path), fewshot=fewshot)

    samples = harness_samples(path, fewshot, monkeypatch)
    instances = task.instances("test")
    assert (task.kind, task.metric, task.scorer) == ("choice", metric, f"lm_eval.2.0.{metric}")
    assert len(instances) == len(samples) == 6
    for instance, sample in zip(instances, samples, strict=True):
        assert list(instance.requests) == [tuple(pair) for pair in sample["arguments"]][:3]
        assert instance.prompt == sample["arguments"][0][0]
        assert instance.target == instance.options[sample["target"]]
        assert task.delimiter + instance.options[1] == sample["arguments"][1][1]
        (score,) = task.score_all([instance], [picked(instance, metric)])
        if metric != "exact_match":  # there the harness looks at the gold option only
            assert score.score == sample[metric]
    assert instances[0].prompt.count("Question:") == 1 + (fewshot or 0)


@pytest.mark.parametrize("fewshot", [None, 2])
def test_the_question_that_holds_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewshot: int | None
) -> None:
    files = write_rows(tmp_path, train=SENTENCES[:6], validation=SENTENCES[6:])
    path = write_task(tmp_path, dataset_kwargs={"data_files": files}, **WINOGRANDE)

    task = lm_eval_task(str(path), fewshot=fewshot)

    samples = harness_samples(path, fewshot, monkeypatch)
    for instance, sample in zip(task.instances("test"), samples, strict=True):
        assert list(instance.requests) == [tuple(pair) for pair in sample["arguments"]]
        assert {continuation for _, continuation in instance.requests} == {" liked tea."}
        assert instance.prompt.endswith("because ")
        assert all(context.startswith(instance.prompt) for context, _ in instance.requests)
        assert instance.target.endswith({"1": "Ann", "2": "Eva"}[sample["doc"]["answer"]])
        assert task.score_all([instance], [picked(instance, "acc")])[0].score == sample["acc"]


def test_several_right_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"{n}?", "choices": COLOURS, "answer": [n % 3, (n + 1) % 3]} for n in range(6)]
    files = write_rows(tmp_path, validation=rows)
    path = write_task(tmp_path, dataset_kwargs={"data_files": files}, training_split=None)

    task = lm_eval_task(str(path))

    for instance, sample in zip(task.instances("test"), harness_samples(path, None, monkeypatch), strict=True):
        assert list(instance.requests) == [tuple(pair) for pair in sample["arguments"]]
        assert len(instance.extra["targets"]) == 2
        assert task.score_all([instance], [picked(instance, "acc")])[0].score == sample["acc"]
    assert task.scorer.startswith("lm_eval.2.0.acc-")


def test_a_continuation_that_greedy_decoding_would_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_rows(tmp_path, validation=[{"text": f"the {n} small dogs like to bark"} for n in range(8)])
    path = write_task(
        tmp_path,
        dataset_kwargs={"data_files": files},
        training_split=None,
        output_type="loglikelihood",
        doc_to_text="{{text.split(' ')[:-1]|join(' ')}}",
        doc_to_target="{{' ' + text.split(' ')[-1]}}",
        doc_to_choice=None,
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                     {"metric": "acc", **MEAN}],
    )  # fmt: skip

    task = lm_eval_task(str(path))

    assert (task.kind, task.metric, task.scorer, task.delimiter) == ("choice", "exact_match", "lm_eval.2.0.acc", "")
    for instance, sample in zip(task.instances("test"), harness_samples(path, None, monkeypatch), strict=True):
        assert list(instance.requests) == [tuple(pair) for pair in sample["arguments"]]
        assert instance.options == (" bark",)
        assert task.score_all([instance], [picked(instance, "exact_match")])[0].correct == bool(sample["acc"])


@pytest.mark.parametrize("fewshot", [None, 2])
def test_generated_answers_go_through_filter_and_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewshot: int | None
) -> None:
    path = generate_task(tmp_path)

    task = lm_eval_task(str(path), fewshot=fewshot)

    samples = [sample for sample in harness_samples(path, fewshot, monkeypatch) if sample["filter"] == "strict"]
    instances = task.instances("test")
    outputs = [written(instance.prompt) for instance in instances]
    scores = task.score_all(instances, outputs)
    assert task.kind == "generate"
    assert [instance.prompt for instance in instances] == [sample["arguments"][0][0] for sample in samples]
    assert [instance.target for instance in instances] == [sample["target"] for sample in samples]
    assert [score.score for score in scores] == [sample["exact_match"] for sample in samples]
    assert [score.answer for score in scores] == [sample["filtered_resps"][0] for sample in samples]
    assert {score.correct for score in scores} == {True, False}


# ---- what a task is made of ----


def test_decoding_is_the_tasks_own(tmp_path: Path) -> None:
    decoding = lm_eval_task(str(generate_task(tmp_path))).decoding
    assert (decoding.max_new_tokens, decoding.stop, decoding.temperature) == (256, ("Question:", "</s>"), 0.0)

    sampled = {"until": "\n", "max_gen_toks": 9, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "num_beams": 1}
    decoding = lm_eval_task(str(generate_task(tmp_path, generation_kwargs=sampled))).decoding
    assert (decoding.max_new_tokens, decoding.stop, decoding.temperature, decoding.top_p) == (9, ("\n",), 0.7, 0.9)

    greedy = {"until": ["\n"], "do_sample": False, "temperature": 0.7, "top_p": 0.9, "top_k": 5}
    assert lm_eval_task(str(generate_task(tmp_path, generation_kwargs=greedy))).decoding.temperature == 0.0


def test_a_filter_is_chosen_by_name_and_named_in_the_scorer(tmp_path: Path) -> None:
    path = generate_task(tmp_path)
    strict, flexible = lm_eval_task(str(path)), load_task(f"lm_eval:{path}:filter=flexible")
    instance = flexible.instances("test")[0]

    assert strict.score_all([instance], ["5"])[0] == ("[invalid]", False, 0.0)
    assert flexible.score_all([instance], ["5"])[0] == ("5", True, 1.0)
    assert strict.scorer.startswith("lm_eval.2.0.exact_match.strict-")
    assert flexible.scorer.startswith("lm_eval.2.0.exact_match.flexible-")


def test_the_scorers_name_changes_with_what_changes_scores(tmp_path: Path) -> None:
    plain = {"filter_list": None}
    names = [
        lm_eval_task(str(generate_task(tmp_path, **changes))).scorer
        for changes in (plain, plain, plain | {"metric_list": [{"metric": "exact_match", **MEAN}]})
    ]

    assert names[0] == names[1] != names[2]


def test_splits_are_the_harnesss_documents(tmp_path: Path) -> None:
    path = str(write_task(tmp_path))

    assert split_sizes(lm_eval_task(path)) == {"train": 8, "validation": 0, "test": 6}
    assert split_sizes(lm_eval_task(path, limit=3)) == {"train": 3, "validation": 0, "test": 3}
    assert split_sizes(lm_eval_task(path, limit=3, train=5)) == {"train": 5, "validation": 0, "test": 3}
    assert split_sizes(lm_eval_task(path, split="train")) == {"train": 0, "validation": 6, "test": 8}
    assert split_sizes(lm_eval_task(str(generate_task(tmp_path)))) == {"train": 4, "validation": 0, "test": 5}


def test_documents_of_two_splits_count_once(tmp_path: Path) -> None:
    files = write_rows(tmp_path, train=riddles(3, 5), validation=riddles(0, 4) + riddles(0, 2))

    task = lm_eval_task(str(write_task(tmp_path, dataset_kwargs={"data_files": files})))

    assert split_sizes(task) == {"train": 4, "validation": 0, "test": 4}
    assert task.notes == (
        "test: 2 documents were left out: duplicates",
        "train: 1 documents were left out: another split has them",
    )


def test_documents_without_gold_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [row | {"answer": -1 if place < 2 else row["answer"]} for place, row in enumerate(riddles(0, 5))]
    path = write_task(
        tmp_path, dataset_kwargs={"data_files": write_rows(tmp_path, validation=rows)}, training_split=None
    )

    task = lm_eval_task(str(path))

    assert len(task.instances("test")) == 3
    assert task.notes == ("test: 2 documents were left out: no gold answer",)
    write_rows(tmp_path, validation=[row | {"answer": -1} for row in rows])
    with pytest.raises(EmptyError, match=r"no test document with a gold answer: choose another with split="):
        lm_eval_task(str(path))


def test_a_training_question_is_not_among_its_own_exemplars(tmp_path: Path) -> None:
    task = lm_eval_task(str(write_task(tmp_path)), fewshot=6)

    for instance in task.instances("train"):
        questions = instance.prompt.split("\n\n")
        assert len(questions) == 7
        assert not any(questions[-1].split("\n")[0] in exemplar for exemplar in questions[:-1])


def test_the_fewshot_seed_is_an_option(tmp_path: Path) -> None:
    path = str(write_task(tmp_path))
    default, same, other = (lm_eval_task(path, fewshot=2, seed=seed).instances("test") for seed in (1234, 1234, 5))

    assert default == same != other


def test_the_harness_is_left_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    import datasets
    import lm_eval.api.task
    import lm_eval.utils

    before = lm_eval.api.task.tqdm, logging.getLogger("lm_eval").level, datasets.are_progress_bars_disabled()
    lm_eval_task(str(write_task(tmp_path)), fewshot=1)

    assert (lm_eval.api.task.tqdm, logging.getLogger("lm_eval").level, datasets.are_progress_bars_disabled()) == before
    assert "from_string" not in vars(lm_eval.utils.env)
    assert capfd.readouterr() == ("", "")


def test_progress_is_reported_for_each_split(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    lm_eval_task(
        str(write_task(tmp_path)),
        label="x",
        progress=lambda what, done, total, note="": seen.append((what, done, total)),
    )

    assert seen == [("building x", 1, 2), ("building x", 2, 2)]


# ---- finding tasks ----


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


# ---- what cannot be had ----


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric_list": [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}]},
         "bleu is computed over a whole corpus, not answer by answer: choose another task"),
        ({"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}]},
         "exact_match is better when lower"),
        ({"metric_list": [{"metric": "bleu", **MEAN}], "filter_list": None},
         r"the metric bleu gives .* for a gold answer, and scores lie in \[0, 1\]: choose another with metric="),
        ({"generation_kwargs": {"until": ["x"], "num_beams": 4}}, "decodes with num_beams=4, which is not done here"),
    ],
)  # fmt: skip
def test_generated_answers_that_cannot_be_scored_here(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        lm_eval_task(str(generate_task(tmp_path, **changes)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("metric=acc_nrom", "unknown metric 'acc_nrom': did you mean 'acc_norm'"),
        ("filter=x", ""),
        ("split=tset", "unknown split 'tset': known: train, validation"),
        ("split=test", "unknown split 'test': known: train, validation"),
        ("fewshots=3", "unknown option 'fewshots': did you mean 'fewshot'"),
        ("fewshot=many", "fewshot: input should be a valid integer"),
        ("fewshot=-1", "fewshot is -1; it must be at least 0"),
        ("limit=0", "limit is 0; it must be at least 1"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path: Path, options: str, message: str) -> None:
    path = write_task(tmp_path)
    if not message:
        path, message = generate_task(tmp_path), "unknown filter 'x': known: flexible, strict"

    with pytest.raises(UsageError, match=message) as caught:
        load_task(f"lm_eval:{path}:{options}")
    assert "\n" not in str(caught.value)


def test_metrics_that_cannot_be_had_name_one_that_can(tmp_path: Path) -> None:
    metrics = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}, {"metric": "acc", **MEAN}]
    path = str(write_task(tmp_path, metric_list=metrics))

    assert lm_eval_task(path).metric == "acc"
    with pytest.raises(UsageError, match=r"f1 is none of .*: use metric=acc"):
        lm_eval_task(path, metric="f1")


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


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))

    with pytest.raises(UsageError, match=r"needs lm-evaluation-harness: pip install 'uphold\[lm-eval\]'"):
        lm_eval_task("hellaswag")
