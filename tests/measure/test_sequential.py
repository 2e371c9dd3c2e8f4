from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import make_record, make_run, write_task
from uphold.core.errors import DataError, NotComparableError, UsageError
from uphold.core.policy import Limit, Policy
from uphold.core.runs import RunStore
from uphold.measure.compare import compare
from uphold.measure.evaluate import Tally, evaluate
from uphold.measure.sequential import compare_until_decided
from uphold.tasks.load import load_task

LOOSE = Policy(limits=(Limit(max_nfr=0.9),))


def test_it_stops_when_the_gate_is_decided(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task, tally, told = write_task(tmp_path, count=400), Tally(), []

    comparison, result = compare_until_decided(
        model_v1, model_v2, task, LOOSE, chunk=10, tally=tally, progress=lambda *args: told.append(args)
    )

    assert result.verdict == "pass"
    assert 10 <= comparison.count < 200
    assert tally.instances == 2 * comparison.count
    assert comparison.notes[0].startswith(f"stopped after {comparison.count} of 200 instances")
    assert told[-1][1:3] == (comparison.count, comparison.count)
    assert "max_nfr: " in told[-1][3]
    whole = compare(model_v1, model_v2, task, noise_floor=False)
    answers = {record.id: record.answer for record in whole.new.records()}
    assert all(answers[record.id] == record.answer for record in comparison.new.records())


def test_the_order_depends_on_the_seed_only(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, count=400)

    def asked(seed: int, store: str) -> set[str]:
        kept = RunStore(tmp_path / store)
        comparison, _ = compare_until_decided(model_v1, model_v2, task, LOOSE, chunk=10, seed=seed, store=kept)
        return {record.id for record in comparison.old.records()}

    assert asked(0, "a") == asked(0, "b")
    assert asked(0, "a") != asked(1, "a")


def test_nothing_is_asked_twice(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, count=400)
    evaluate(model_v1, load_task(task))
    tally = Tally()

    first, _ = compare_until_decided(model_v1, model_v2, task, LOOSE, chunk=10, tally=tally)
    assert (tally.instances, tally.stored) == (first.count, first.count)

    again, result = compare_until_decided(model_v1, model_v2, task, LOOSE, chunk=10, tally=tally)
    assert tally.instances == first.count
    assert (str(again), result.verdict) == (str(first), "pass")


def test_all_instances_may_not_be_enough(model_v1: Path, model_v2: Path, task_file: Path) -> None:
    comparison, result = compare_until_decided(model_v1, model_v2, task_file, Policy(limits=(Limit(margin=0.3),)))

    assert (comparison.count, result.verdict, result.exit_code) == (30, "inconclusive", 3)
    assert comparison.notes[0] == "the gate was still undecided after all 30 instances"


def test_a_broken_must_keep_ends_it_at_once(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, count=400)
    whole = compare(model_v1, model_v2, task, noise_floor=False, store=RunStore(tmp_path / "elsewhere"))
    new = {record.id: record for record in whole.new.records()}
    flips = [record.id for record in whole.old.records() if record.correct and not new[record.id].correct]
    stays = [record.id for record in whole.old.records() if not record.correct]
    assert flips
    policy = Policy(limits=(Limit(max_nfr=0.9),), must_keep=(flips[0], stays[0]))

    comparison, result = compare_until_decided(model_v1, model_v2, task, policy)

    assert comparison.count == 2
    assert result.verdict == "fail"
    assert [(check.rule, check.verdict) for check in result.checks] == [
        ("max_nfr", "inconclusive"),
        ("must_keep", "fail"),
    ]
    assert result.checks[1].flips == (flips[0],)
    kept, result = compare_until_decided(model_v1, model_v2, task, Policy(must_keep=(stays[0],)))
    assert (kept.count, result.verdict) == (1, "pass")


def test_a_stored_run_may_be_one_side(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, count=400)
    run = evaluate(model_v1, load_task(task))

    comparison, result = compare_until_decided(run, model_v2, task, LOOSE)

    assert result.verdict == "pass"
    assert comparison.old.name == run.name


def test_what_cannot_be_decided_on_the_way(model_v1: Path, model_v2: Path, task_file: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_record(1, True, "a")])

    with pytest.raises(UsageError, match="stored runs: there is nothing left to evaluate"):
        compare_until_decided(run, run, task_file, LOOSE)
    with pytest.raises(UsageError, match="clusters cannot be decided on the way"):
        compare_until_decided(model_v1, model_v2, task_file, Policy(cluster="half", limits=LOOSE.limits))
    with pytest.raises(DataError, match="does not have: nowhere"):
        compare_until_decided(model_v1, model_v2, task_file, Policy(must_keep=("nowhere",)))
    with pytest.raises(NotComparableError, match="has no answer to 30 of 30 instances"):
        compare_until_decided(run, model_v2, task_file, LOOSE)
    with pytest.raises(NotComparableError, match="one and the same model"):
        compare_until_decided(model_v1, str(model_v1), task_file, LOOSE)
