from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_task
from uphold import compare, evaluate, load_task
from uphold.core.errors import UsageError
from uphold.repair.bcr import BcrConfig, bcr

WRITTEN: dict[str, Any] = {"kind": "generate", "options": None, "scorer": "exact", "decoding": {"max_new_tokens": 3}}


@pytest.mark.parametrize("changes", [{}, WRITTEN], ids=["choice", "generate"])
def test_with_one_candidate_the_records_are_the_new_models(
    changes: dict[str, Any], model_v1: Path, model_v2: Path, tmp_path: Path
) -> None:
    task = write_task(tmp_path, 60, **changes)
    config = BcrConfig(options=1, candidates=1, force=True)
    result = bcr(model_v1, model_v2, task, out=tmp_path / "out", config=config)
    assert list(result.repaired.comparison.new.records()) == list(evaluate(model_v2, task).records())
    assert result.repaired.comparison.rates == result.before.rates


def test_the_old_model_ranks_two_of_four_options(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 80)
    result = bcr(model_v1, model_v2, task, out=tmp_path / "out", config=BcrConfig(force=True))
    old, new = ({one.id: one for one in evaluate(model, task).records()} for model in (model_v1, model_v2))
    for record in result.repaired.comparison.new.records():
        ranked = sorted(range(4), key=lambda at: -new[record.id].option_logprobs[at])[:2]
        best = max(ranked, key=lambda at: old[record.id].option_logprobs[at])
        assert record.output == record.options[best]
    assert compare(model_v1, tmp_path / "out", task).rates == result.repaired.comparison.rates
    assert not any("every answer is the old model's" in note for note in result.notes)


def test_as_many_candidates_as_options_are_said_to_be_the_old_model(
    model_v1: Path, model_v2: Path, tmp_path: Path
) -> None:
    task = write_task(tmp_path, 60)
    result = bcr(model_v1, model_v2, task, out=tmp_path / "out", config=BcrConfig(options=4, force=True))
    assert result.repaired.comparison["nfr"].value == 0
    assert any("every answer is the old model's" in note for note in result.notes)


def test_written_candidates_are_the_same_at_every_call(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 40, **WRITTEN)
    config = BcrConfig(candidates=4, force=True)
    result = bcr(model_v1, model_v2, task, out=tmp_path / "out", config=config)
    other = bcr(model_v1, model_v2, task, out=tmp_path / "seed", config=BcrConfig(candidates=4, seed=1, force=True))
    assert compare(model_v1, tmp_path / "out" / "pair", task).rates == result.repaired.comparison.rates
    texts = [[one.output for one in each.repaired.comparison.new.records()] for each in (result, other)]
    assert texts[0] != texts[1]
    assert texts[0] != [one.output for one in evaluate(model_v2, task).records()]


def test_metrics_that_do_not_rank_likelihoods_are_refused(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = replace(load_task(write_task(tmp_path, 60)), metric="acc_mutual_info")
    with pytest.raises(UsageError, match="picks them by acc_mutual_info"):
        bcr(model_v1, model_v2, task, out=tmp_path / "out", config=BcrConfig(force=True))
