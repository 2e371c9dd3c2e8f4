from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from uphold.core.errors import UsageError
from uphold.measure.answer import answer
from uphold.measure.executors import Answered, LocalExecutor, Unit, executor
from uphold.measure.jobs import Batching, Job
from uphold.models import endpoint as http
from uphold.models import pool
from uphold.models.endpoint import Completion, Usage
from uphold.models.engine import LocalEngine
from uphold.models.load import load
from uphold.models.pool import ModelPool
from uphold.tasks.base import Decoding, FixedTask, Instance
from uphold.tasks.scorers import choice, exact


class Pool(ModelPool):
    """A pool that remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.lent: list[tuple[str, int]] = []

    def engine(self, model: Any, batch_tokens: int, meter: Any = None) -> Any:
        self.lent.append((Path(str(model)).name, batch_tokens))
        return super().engine(model, batch_tokens, meter)


def nothing_heard(job: int, tokens: int) -> None: ...


def choosing(count: int = 300) -> FixedTask:
    instances = tuple(Instance(f"{number} is", "a", ("a", "bc")) for number in range(count))
    return FixedTask("choosing", "choice", {"test": instances}, "choice.v1", choice)


def writing(count: int = 5, temperature: float = 0.0) -> FixedTask:
    instances = tuple(Instance(f"{number} is", "a") for number in range(count))
    decoding = Decoding(4, temperature=temperature)
    return FixedTask("writing", "generate", {"test": instances}, "exact.v1", exact, decoding=decoding)


def all_units(jobs: Sequence[Job]) -> list[Unit]:
    return [Unit(index, part) for index, job in enumerate(jobs) for part in range(len(job.parts))]


def test_units_are_answered_in_their_order_by_models_loaded_when_needed(model_v1: Path, model_v2: Path) -> None:
    jobs = [Job(model_v1, choosing(), batching=Batching(64)), Job(model_v2, choosing(3), batching=Batching(32))]
    lender = Pool()
    work = LocalExecutor(lender).answers(jobs, all_units(jobs), nothing_heard)

    assert lender.lent == []
    first = next(work)
    assert lender.lent == [("v1", 64)]
    rest = list(work)

    assert [answered.unit for answered in [first, *rest]] == [Unit(0, 0), Unit(0, 1), Unit(1, 0)]
    assert lender.lent == [("v1", 64), ("v2", 32)]
    for answered in [first, *rest]:
        job = jobs[answered.unit.job]
        engine = LocalEngine(load(job.model), job.batching.tokens)
        assert answered.records == answer(engine, job.task, job.parts[answered.unit.part])


def test_only_the_units_that_are_asked_for_are_answered(model_v1: Path) -> None:
    jobs = [Job(model_v1, choosing(600))]

    answered = list(LocalExecutor().answers(jobs, [Unit(0, 2), Unit(0, 0)], nothing_heard))

    assert [one.unit for one in answered] == [Unit(0, 2), Unit(0, 0)]
    assert [len(one.records) for one in answered] == [600 - 512, 256]


def test_the_seed_of_a_job_reaches_its_draws(model_v1: Path) -> None:
    jobs = [Job(model_v1, writing(temperature=1.5), seed=seed) for seed in (1, 2, 1)]

    outputs = [
        [record.output for record in answered.records]
        for answered in LocalExecutor().answers(jobs, all_units(jobs), nothing_heard)
    ]

    assert outputs[0] == outputs[2] != outputs[1]


def test_tokens_are_heard_while_a_unit_is_in_work_and_add_up(model_v1: Path, model_v2: Path) -> None:
    jobs = [Job(model_v1, choosing(), batching=Batching(512)), Job(model_v2, choosing(3))]
    heard: list[tuple[int, int]] = []
    seen: list[tuple[Answered, list[tuple[int, int]]]] = []
    for answered in LocalExecutor().answers(jobs, all_units(jobs), lambda *what: heard.append(what)):
        seen.append((answered, list(heard)))
        heard.clear()

    for answered, own in seen:
        tokens = [count for _, count in own]
        assert {job for job, _ in own} == {answered.unit.job}
        assert tokens == sorted(tokens)
        assert tokens[-1] == answered.tokens > 0
    assert len(seen[0][1]) > 3
    assert all((answered.requests, answered.cost) == (0, None) for answered, _ in seen)


def test_requests_and_cost_of_endpoints_are_counted_per_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    def complete(endpoint: Any, asked: Sequence[str], *, usage: Usage, progress: Any, **_: Any) -> list[Completion]:
        for done in range(len(asked)):
            usage.add(10, 2)
            progress("asking", done + 1, len(asked))
        return [Completion("x", 10, 2, "stop")] * len(asked)

    monkeypatch.setattr(http, "complete", complete)
    address = "http://localhost:9/v1?input_price=1000&output_price=5000#"
    jobs = [Job(address + name, writing(count)) for name, count in (("old", 40), ("new", 3))]

    answered = list(LocalExecutor().answers(jobs, all_units(jobs), nothing_heard))

    assert [(one.tokens, one.requests) for one in answered] == [(32 * 12, 32), (8 * 12, 8), (3 * 12, 3)]
    assert [one.cost for one in answered] == [pytest.approx(0.02 * count) for count in (32, 8, 3)]


def test_a_model_is_given_up_before_the_next_one_is_loaded(
    model_v1: Path, model_v2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent: list[weakref.ref[Any]] = []
    in_memory: list[int] = []
    load_base = pool.load_base

    def counted(*arguments: Any) -> Any:
        in_memory.append(sum(one() is not None for one in lent))
        model, tokenizer = load_base(*arguments)
        lent.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(pool, "load_base", counted)
    jobs = [Job(model, choosing(3)) for model in (model_v1, model_v2, model_v1)]

    assert len(list(LocalExecutor().answers(jobs, all_units(jobs), nothing_heard))) == 3
    assert in_memory == [0, 0, 0]


def test_this_process_works_on_one_job_at_a_time_with_its_own_numerics() -> None:
    assert not LocalExecutor().side_by_side
    assert LocalExecutor().numerics() is None  # type: ignore[func-returns-value]


def test_executors_have_names() -> None:
    local: Any = executor("local", "auto")

    assert isinstance(local, LocalExecutor)
    assert local.pool.device_map == "auto"
    with pytest.raises(UsageError, match=r"unknown executor 'loacl': did you mean 'local'\?"):
        executor("loacl")
