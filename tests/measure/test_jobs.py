from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from uphold.core.errors import EmptyError
from uphold.core.runs import run_key
from uphold.measure import jobs as module
from uphold.measure.jobs import ENDPOINT_PART, PART, PART_CHARACTERS, Batching, Job, instances_in
from uphold.models.engine import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS
from uphold.models.load import load
from uphold.tasks.base import Decoding, FixedTask, Instance
from uphold.tasks.scorers import choice, exact


def instance(size: int, number: int, **changes: Any) -> Instance:
    return Instance(f"{number:05d}" + "x" * (size - 5), "a", ("a", "b"), **changes)


def choosing(*instances: Instance) -> FixedTask:
    return FixedTask("choosing", "choice", {"test": instances}, "choice.v1", choice)


def writing(*instances: Instance, tokens: int = 8, **decoding: Any) -> FixedTask:
    return FixedTask(
        "writing", "generate", {"test": instances}, "exact.v1", exact, decoding=Decoding(tokens, **decoding)
    )


def ids(job: Job) -> list[list[str]]:
    return [[one.id for one in part] for part in job.parts]


# ---- parts ----


def test_parts_hold_every_instance_once_by_length() -> None:
    draw = random.Random(0)
    task = choosing(*(instance(draw.randint(10, 90), number) for number in range(700)))

    parts = Job("model", task).parts

    assert [len(part) for part in parts] == [PART, PART, 700 - 2 * PART]
    assert instances_in(parts) == 700
    lengths = [len(one.prompt) for part in parts for one in part]
    assert lengths == sorted(lengths)
    assert {one.id for part in parts for one in part} == {one.id for one in task.instances("test")}


def test_parts_do_not_depend_on_the_order_of_the_instances() -> None:
    instances = [instance(10 + number % 7, number) for number in range(600)]
    shuffled = random.Random(1).sample(instances, len(instances))

    assert ids(Job("a", choosing(*instances))) == ids(Job("b", choosing(*shuffled)))


def test_parts_can_be_cut_from_the_other_end() -> None:
    task = choosing(*(instance(10 + number % 7, number) for number in range(600)))
    there, back = ids(Job("m", task)), ids(Job("m", task, batching=Batching(reverse=True)))

    assert [one for part in back for one in part] == [one for part in there for one in part][::-1]
    assert back[0] != there[0]
    assert set(back[0]) != set(there[0])


def test_a_part_holds_no_more_text_than_a_kill_may_cost() -> None:
    task = choosing(*(instance(PART_CHARACTERS // 10, number) for number in range(25)))

    parts = Job("model", task).parts

    for part in parts:
        asked = sum(len(one.prompt) + sum(map(len, one.options)) for one in part)
        assert asked <= PART_CHARACTERS
    assert [len(part) for part in parts] == [9, 9, 7]


def test_an_instance_that_is_longer_has_a_part_of_its_own() -> None:
    task = choosing(instance(20, 1), instance(2 * PART_CHARACTERS, 2), instance(3 * PART_CHARACTERS, 3))

    assert [len(part) for part in Job("model", task).parts] == [1, 1, 1]


def test_what_may_be_written_counts_four_characters_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_CHARACTERS", 1000)
    instances = [dataclasses.replace(instance(18, number), options=()) for number in range(12)]

    assert [len(part) for part in Job("m", writing(*instances, tokens=58)).parts] == [4, 4, 4]  # 18 + 232 = 250
    assert [len(part) for part in Job("m", writing(*instances, tokens=59)).parts] == [3, 3, 3, 3]
    assert [len(part) for part in Job("m", writing(*instances, tokens=1)).parts] == [12]


def test_requests_count_where_an_instance_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_CHARACTERS", 1000)
    own = (("c" * 200, "a"), ("d" * 298, "b"))  # 500 characters

    assert [len(part) for part in Job("m", choosing(*(instance(5, n, requests=own) for n in range(5)))).parts] == [
        2,
        2,
        1,
    ]


def test_parts_of_endpoints_are_smaller_since_answers_are_paid_for() -> None:
    job = Job("http://localhost:9/v1#some-model", choosing(*(instance(9, number) for number in range(70))))

    assert [len(part) for part in job.parts] == [ENDPOINT_PART, ENDPOINT_PART, 70 - 2 * ENDPOINT_PART]


def test_an_endpoint_is_the_same_run_whatever_computes_here() -> None:
    fingerprint = Job("http://localhost:9/v1#some-model", choosing(instance(9, 1))).fingerprint()

    assert fingerprint["versions"].keys() == {"uphold"}
    assert "device" not in fingerprint["model"]


def test_a_split_without_instances_is_an_error() -> None:
    with pytest.raises(EmptyError, match="no train instances"):
        _ = Job("model", choosing(instance(9, 1)), "train").parts


# ---- batches ----


def test_the_device_says_how_large_batches_are() -> None:
    assert Batching().on("cpu") == Batching(CPU_BATCH_TOKENS)
    assert Batching(reverse=True).on("cuda") == Batching(GPU_BATCH_TOKENS, reverse=True)
    assert Batching(7).on("cpu") == Batching(7)


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 2048])
def test_the_noise_floor_uses_other_batches(tokens: int) -> None:
    here = Batching(tokens)
    other = here.other("cpu")

    assert other != here.on("cpu")
    assert other.tokens >= 1
    assert other.reverse


def test_other_batches_are_about_half_as_large() -> None:
    assert Batching().other("cpu") == Batching(CPU_BATCH_TOKENS // 2 + 1, reverse=True)
    assert Batching(32, reverse=True).other("cuda") == Batching(17)


# ---- fingerprints ----


def test_the_fingerprint_says_what_is_run(model_v1: Path) -> None:
    fingerprint = Job(model_v1, choosing(instance(9, 1)), batching=Batching(4)).fingerprint()

    assert fingerprint["model"]["name"] == str(model_v1)
    assert {"weights", "config", "tokenizer", "adapter", "dtype", "attention", "device"} <= set(fingerprint["model"])
    assert fingerprint["task"]["count"] == 1
    assert fingerprint["task"]["metric"] == "acc"
    assert fingerprint["batching"] == {"tokens": 4, "reverse": False, "part": 256, "characters": 200_000}
    assert {"uphold", "torch", "transformers"} <= set(fingerprint["versions"])


def test_what_makes_another_run(model_v1: Path, model_v2: Path) -> None:
    task = choosing(instance(9, 1), instance(9, 2))
    same = Job(model_v1, task)
    others = [
        Job(model_v2, task),
        Job(model_v1, choosing(instance(9, 1))),
        Job(model_v1, dataclasses.replace(task, metric="acc_norm")),
        Job(model_v1, dataclasses.replace(task, delimiter="\n")),
        Job(model_v1, task, batching=Batching(8)),
        Job(model_v1, task, batching=Batching(reverse=True)),
    ]
    keys = [run_key(job.fingerprint()) for job in [same, *others]]
    keys.append(run_key(same.fingerprint({"device": "cuda", "dtype": "torch.bfloat16", "attention": "sdpa"})))

    assert len(set(keys)) == len(keys)


def test_what_does_not(model_v1: Path) -> None:
    task = choosing(instance(9, 1), instance(9, 2))
    key = run_key(Job(model_v1, task).fingerprint())

    assert run_key(Job(str(model_v1), dataclasses.replace(task, name="other"), what="old").fingerprint()) == key
    assert run_key(Job(load(model_v1), task).fingerprint()) == key
    assert run_key(Job(model_v1, task, seed=5).fingerprint()) == key
    assert run_key(Job(model_v1, task, batching=Batching(CPU_BATCH_TOKENS)).fingerprint({"device": "cpu"})) == key


def test_parts_of_another_size_are_another_run(model_v1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {run_key(Job(model_v1, choosing(instance(9, 1))).fingerprint())}
    for name in ("PART", "PART_CHARACTERS"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, 100)
            keys.add(run_key(Job(model_v1, choosing(instance(9, 1))).fingerprint()))

    assert len(keys) == 3


def test_the_device_decides_the_batches_in_the_fingerprint(model_v1: Path) -> None:
    fingerprint = Job(model_v1, choosing(instance(9, 1))).fingerprint({"device": "cuda"})

    assert fingerprint["model"]["device"] == "cuda"
    assert fingerprint["batching"]["tokens"] == GPU_BATCH_TOKENS


def test_the_seed_counts_only_where_decoding_samples(model_v1: Path) -> None:
    one = dataclasses.replace(instance(9, 1), options=())

    assert Job(model_v1, writing(one), seed=7).fingerprint()["seed"] == 0
    assert Job(model_v1, writing(one, temperature=1.0), seed=7).fingerprint()["seed"] == 7
    assert Job(model_v1, choosing(instance(9, 1)), seed=7).fingerprint()["seed"] == 0


def test_what_progress_is_reported_as(model_v1: Path) -> None:
    task = choosing(instance(9, 1))

    assert Job(model_v1, task).label() == f"evaluating {model_v1}"
    assert Job(model_v1, task, what="old model").label() == "old model"
