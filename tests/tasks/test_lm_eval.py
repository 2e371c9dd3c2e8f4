from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")

import datasets
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from tests.tasks.lm_eval_data import COLOURS, MEAN, generate_task, riddles, write_rows, write_task
from uphold.core.errors import EmptyError, UsageError
from uphold.tasks.base import Instance, split_sizes
from uphold.tasks.lm_eval import lm_eval_task
from uphold.tasks.load import load_task

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))

    with pytest.raises(UsageError, match=r"needs lm-evaluation-harness: pip install 'uphold\[lm-eval\]'"):
        lm_eval_task("hellaswag")
