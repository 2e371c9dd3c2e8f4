from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import datasets

from tests.tasks.lm_eval_data import MEAN, generate_task, write_task
from uphold.core.errors import UsageError
from uphold.tasks.lm_eval import lm_eval_task
from uphold.tasks.load import load_task

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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


def test_metrics_that_cannot_be_had_name_one_that_can(tmp_path: Path) -> None:
    metrics = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}, {"metric": "acc", **MEAN}]
    path = str(write_task(tmp_path, metric_list=metrics))

    assert lm_eval_task(path).metric == "acc"
    with pytest.raises(UsageError, match=r"f1 is none of .*: use metric=acc"):
        lm_eval_task(path, metric="f1")
