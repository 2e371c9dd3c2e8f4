from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import write_task
from uphold.core.runs import RunStore
from uphold.measure.estimate import estimate
from uphold.measure.evaluate import evaluate
from uphold.measure.jobs import Job
from uphold.models.load import load
from uphold.tasks.base import Decoding, FixedTask, Instance
from uphold.tasks.load import load_task
from uphold.tasks.scorers import choice, exact


def test_requests_and_tokens_counted_by_hand(model_v1: Path) -> None:
    instances = (Instance("ab:", "c", ("c", "d")), Instance("abcd:", "xy", ("xy", "xz")))
    task = FixedTask("t", "choice", {"test": instances}, "choice.v1", choice, delimiter="")

    found = estimate(Job(model_v1, task))

    assert (found.instances, found.stored, found.requests, found.written, found.cost) == (2, 0, 4, 0, None)
    # One token per character. "ab:" once; "abcd:" and the shared "x" once.
    assert found.tokens == 3 + 6
    assert found.tokens_apart == 3 + 3 + 6 + 6


def test_a_shared_header_counts_once(model_v1: Path) -> None:
    header = "an example that all questions begin with. "
    instances = tuple(Instance(f"{header}{n}:", "a", ("a", "b")) for n in range(9))
    task = FixedTask("t", "choice", {"test": instances}, "choice.v1", choice, delimiter="")

    found = estimate(Job(model_v1, task))

    assert found.tokens == len(header) + 9 * 2
    assert found.tokens_apart == 9 * 2 * (len(header) + 2)


def test_the_model_is_not_loaded(model_v1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uphold.models.load.load_base", lambda *_: pytest.fail("the weights were loaded"))
    task = FixedTask("t", "choice", {"test": (Instance("a", "b", ("b", "c")),)}, "choice.v1", choice)

    assert estimate(Job(model_v1, task)).requests == 2


def test_what_is_stored_is_taken_off(model_v1: Path, tmp_path: Path, store: RunStore) -> None:
    task = load_task(write_task(tmp_path))
    before = estimate(Job(model_v1, task), store=store)
    evaluate(model_v1, task, store=store)
    after = estimate(Job(model_v1, task), store=store)

    assert (before.stored, before.requests) == (0, 120)
    assert (after.stored, after.requests, after.tokens) == (30, 0, 0)


def test_generated_answers_have_an_upper_bound(model_v1: Path) -> None:
    instances = tuple(Instance("ab" * n, "x") for n in range(1, 4))
    task = FixedTask("t", "generate", {"test": instances}, "exact.v1", exact, decoding=Decoding(max_new_tokens=7))

    found = estimate(Job(load(model_v1), task))

    assert (found.requests, found.tokens, found.written) == (3, 2 + 4 + 6, 21)
    assert "at most 21 to write" in str(found)


def test_an_endpoint_is_estimated_by_characters_and_has_a_cost() -> None:
    task = FixedTask("t", "generate", {"test": (Instance("x" * 400, "y"),)}, "exact.v1", exact)

    found = estimate(Job("http://localhost:1/v1?input_price=1000&output_price=2000#m", task))

    assert (found.tokens, found.written) == (100, 64)
    assert found.cost == pytest.approx((100 * 1000 + 64 * 2000) / 1e6)
