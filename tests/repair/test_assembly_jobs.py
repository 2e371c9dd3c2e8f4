from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import nn

from tests.models.stages.nets import (
    QUICK,
    Shell,
    batch_norm_mlp,
    blueprint,
    drawn,
    dropout_mlp,
    examples,
    meta,
    mlp,
    noise,
)
from tests.models.tiny import tiny
from uphold.core.errors import CorruptError, UsageError
from uphold.models.fingerprint import tensors_hash
from uphold.models.stages.build import Blueprint, decoder_blueprint
from uphold.models.stages.data import Classification, Examples, NextToken
from uphold.models.stages.stages import Stages, compose
from uphold.models.stages.training import Training, seeded, stage_seed
from uphold.repair.assembly_jobs import Job, incubate, read_job, train_whole

DATA = examples()
IDS = torch.randint(4, 40, (12, 9), generator=torch.Generator().manual_seed(0))


def module(stage: int, folder: Path, source: Stages | None = None, **changes: Any) -> str:
    """The hash of what an incubation makes."""
    build = changes.pop("build", mlp)
    data = changes.pop("data", DATA)
    job = incubate(
        source or meta(build=build),
        stage,
        blueprint(build=build).stage,
        data,
        out=folder,
        config=dataclasses.replace(QUICK, **changes),
    )
    return str(job.result["module"])


def watch(monkeypatch: pytest.MonkeyPatch, look: Callable[[Any], None]) -> None:
    """Call `look` with the trainer before each of its optimiser steps."""
    original = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any) -> Any:
        look(self)
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


# ---- the method ----


def test_with_one_stage_incubation_is_plain_training_of_the_target(tmp_path: Path) -> None:
    plan = Blueprint(mlp, (3,))
    job = incubate(seeded(plan.meta, 1), 0, plan.stage, DATA, out=tmp_path / "job", config=QUICK)
    other = incubate(seeded(plan.meta, 2), 0, plan.stage, DATA, out=tmp_path / "other", config=QUICK)
    plain = train_whole(
        seeded(plan.whole, stage_seed(0, 0)), DATA, kind="end-to-end", out=tmp_path / "plain", config=QUICK
    )

    assert job.result["module"] == other.result["module"] == plain.hash(0)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_hybrid_with_the_meta_models_own_stage_is_the_meta_model(stage: int) -> None:
    source = meta()
    hybrid = compose([source] * 3, own=stage)

    with torch.no_grad():
        assert torch.equal(hybrid.model(DATA.inputs), source.model(DATA.inputs))


def test_only_the_stage_moves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = meta()
    before = source.digest
    hybrids: list[Stages] = []
    original = compose

    def kept(*arguments: Any, **named: Any) -> Stages:
        hybrids.append(original(*arguments, **named))
        return hybrids[-1]

    monkeypatch.setattr("uphold.models.stages.stages.compose", kept)
    seen: list[set[int]] = []

    def look(optimizer: Any) -> None:
        hybrid = next(one for one in hybrids if one.starts == (0, 2, 4))
        own = {value.data_ptr() for value in hybrid.parameters(1).values()}
        seen.append({value.data_ptr() for group in optimizer.param_groups for value in group["params"]})
        assert seen[-1] == own
        assert {value.data_ptr() for value in optimizer.state} <= own
        assert source.digest == before
        for number in (0, 2):
            assert all(value.grad is None for value in hybrid.parameters(number).values())
        assert all(value.grad is None for value in source.model.parameters())

    watch(monkeypatch, look)
    first = module(1, tmp_path, source, cache_bytes=0)

    assert len(seen) == 10
    assert source.digest == before
    assert first != hybrids[0].digest
    assert all(value.requires_grad for value in source.model.parameters())


def test_a_stage_starts_from_random_weights_and_not_from_the_meta_models(tmp_path: Path) -> None:
    source, still = meta(), {"learning_rate": 0.0, "final_rate": 0.0}

    starts = {module(1, tmp_path / str(seed), source, seed=seed, **still) for seed in range(3)}

    assert len(starts) == 3
    assert source.hash(1) not in starts
    job = read_job(tmp_path / "1")
    own = seeded(lambda: blueprint().stage(1), stage_seed(1, 1))
    assert job.manifest["start"] == job.result["module"] == own.hash(1)


def test_the_loss_is_that_of_the_whole_hybrid(tmp_path: Path) -> None:
    source, plan = meta(), blueprint()
    config = dataclasses.replace(QUICK, epochs=1, batch_size=40, learning_rate=0.0, final_rate=0.0)

    job = incubate(source, 1, plan.stage, DATA, out=tmp_path, config=config)

    hybrid = compose([source, seeded(lambda: plan.stage(1), stage_seed(0, 1)), source])
    expected = float(Classification(0.1).loss(hybrid.model(DATA.inputs), DATA.targets))
    assert job.result["losses"] == pytest.approx([expected])


@pytest.mark.parametrize("frozen", ["eval", "train"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_frozen_batch_norms_keep_their_statistics_and_the_stages_own_learn(
    stage: int, frozen: str, tmp_path: Path
) -> None:
    source = meta(build=batch_norm_mlp)
    train_whole(source, DATA, kind="meta", out=tmp_path / "meta", config=QUICK)
    before = source.digest

    module(stage, tmp_path / "job", source, build=batch_norm_mlp, frozen=frozen)

    assert source.digest == before
    made = read_job(tmp_path / "job").tensors()
    counted = [int(value) for name, value in made.items() if name.endswith("num_batches_tracked")]
    assert counted == [10, 10]


# ---- what a stage reads is kept where it never changes ----


def test_keeping_what_a_stage_reads_spares_the_stages_in_front(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = meta()
    passed: list[int] = []
    for position in (1, 2, 3):
        source.model[position].up.register_forward_hook(lambda _, __, ___, at=position: passed.append(at))

    counts = {}
    for cache in (0, 1 << 20):
        passed.clear()
        module(2, tmp_path / str(cache), source, cache_bytes=cache)
        counts[cache] = passed.count(1)

    jobs = [read_job(tmp_path / str(cache)) for cache in (0, 1 << 20)]
    assert [job.result["cached"] for job in jobs] == [False, True]
    # Ten steps against one pass over all examples.
    assert counts[0] - counts[1 << 20] == 10 - 1
    for one, other in zip(*(job.tensors().values() for job in jobs), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "cached"),
    [
        ({"stage": 1}, True),
        ({"stage": 0}, False),
        ({"stage": 1, "frozen": "train"}, False),
        ({"stage": 1, "data": examples(augment=noise)}, False),
        ({"stage": 1, "cache_bytes": 40 * 8 * 4 - 1}, False),
        ({"stage": 1, "cache_bytes": 40 * 8 * 4}, True),
    ],
)
def test_what_a_stage_reads_is_kept_only_where_it_never_changes(
    changes: dict[str, Any], cached: bool, tmp_path: Path
) -> None:
    module(changes.pop("stage"), tmp_path, **changes)
    assert read_job(tmp_path).result["cached"] is cached


def test_dropout_of_frozen_stages_is_active_only_when_asked_for(tmp_path: Path) -> None:
    source = meta(build=dropout_mlp)
    made = {module(2, tmp_path / frozen, source, build=dropout_mlp, frozen=frozen) for frozen in ("eval", "train")}
    assert len(made) == 2


# ---- decoders ----


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stage", [0, 1])
def test_stages_of_a_decoder(stage: int, tied: bool, tmp_path: Path) -> None:
    config = tiny("llama", num_hidden_layers=3, tie_word_embeddings=tied).config
    plan = decoder_blueprint(config, (1, 2))
    source = seeded(plan.meta, 5)
    before = source.hashes

    job = incubate(source, stage, plan.stage, Examples(IDS, IDS), out=tmp_path, objective=NextToken(), config=QUICK)

    assert source.hashes == before
    made = job.tensors()
    name = "shell.model.embed_tokens.weight"
    if stage == 0:
        # A tied embedding is the meta model's; one of the stage's own is not.
        assert torch.equal(made[name], source.tensors(0)[name]) is tied
    assert ("shell.lm_head.weight" in made) is (stage == 1 and not tied)
    assert job.manifest["depth"] == stage + 1
    assert job.result["losses"][-1] < job.result["losses"][0]


def test_ties_must_be_alike(tmp_path: Path) -> None:
    plans = [decoder_blueprint(tiny("llama", tie_word_embeddings=tied).config, (1, 1)) for tied in (True, False)]
    with pytest.raises(UsageError, match=r"ties other weights than the meta model: tie both alike, or neither"):
        incubate(plans[0].meta(), 1, plans[1].stage, DATA, out=tmp_path)


# ---- jobs ----


def test_jobs_are_independent_of_each_other_and_of_their_order(tmp_path: Path) -> None:
    source = meta()
    forward = [module(stage, tmp_path / f"a{stage}", source) for stage in (0, 1, 2)]
    torch.rand(7)
    backward = [module(stage, tmp_path / f"b{stage}", source) for stage in (2, 1, 0)]
    alone = module(1, tmp_path / "c")

    assert forward == backward[::-1]
    assert alone == forward[1]
    assert module(1, tmp_path / "d", source, seed=1) != alone
    assert module(1, tmp_path / "e", meta(seed=8)) != alone


class Stop(Exception):
    pass


@pytest.mark.parametrize("cache", [0, 1 << 20])
def test_an_interrupted_job_goes_on_and_a_finished_one_is_not_repeated(cache: int, tmp_path: Path) -> None:
    whole = module(1, tmp_path / "whole", build=batch_norm_mlp, cache_bytes=cache)

    def stopping(what: str, done: int, total: int, note: str = "") -> None:
        assert (what, total) == ("stage 2 of 3", 10)
        if done in (3, 6):
            raise Stop

    config = dataclasses.replace(QUICK, save_every_s=0.0, cache_bytes=cache)
    arguments: Any = (meta(build=batch_norm_mlp), 1, blueprint(build=batch_norm_mlp).stage, DATA)
    for _ in range(2):
        with pytest.raises(Stop):
            incubate(*arguments, out=tmp_path / "cut", config=config, progress=stopping)
        with pytest.raises(UsageError, match=r"the job in .* is not finished: make the same call again"):
            read_job(tmp_path / "cut")
    job = incubate(*arguments, out=tmp_path / "cut", config=config)
    assert job.result["module"] == whole

    def never(what: str, done: int, total: int, note: str = "") -> None:
        raise AssertionError

    again = incubate(*arguments, out=tmp_path / "cut", config=config, progress=never)
    assert (again.result, again.stage) == (job.result, 1)
    assert not (tmp_path / "cut" / "state").exists()


def test_a_folder_holds_one_job(tmp_path: Path) -> None:
    module(1, tmp_path)

    for changes, name in (
        ({"seed": 1}, "start"),
        ({"learning_rate": 0.5}, r"training\.learning_rate"),
        ({"data": examples(41)}, "data"),
        ({"data": examples(augment=noise)}, "augment"),
        ({"source": meta(seed=9)}, "meta"),
    ):
        with pytest.raises(UsageError, match=rf"holds another job \(its {name} differs\): choose another folder"):
            module(1, tmp_path, **changes)
    with pytest.raises(UsageError, match=r"holds another job \(its depth|start differs"):
        module(2, tmp_path)
    # How often it is saved is nobody's business.
    module(1, tmp_path, save_every_s=0.0)


def test_a_folder_that_somebody_works_in_is_refused(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(UsageError, match=r"another process is at work in .*: wait"):
        module(1, tmp_path)
    module(1, tmp_path)


def test_a_manifest_says_what_decided_the_outcome(tmp_path: Path) -> None:
    source = meta()
    module(1, tmp_path, source)

    job = read_job(tmp_path)
    assert job.manifest["meta"] == source.digest
    assert (job.manifest["stages"], job.stage, job.manifest["depth"]) == (3, 1, 2)
    assert job.manifest["data"] == DATA.hash
    assert job.manifest["objective"] == "Classification(label_smoothing=0.1)"
    assert job.manifest["training"]["seed"] == 0
    assert tensors_hash(job.tensors()) == job.result["module"]
    assert {"torch", "uphold"} <= job.result["versions"].keys()


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_a_damaged_module_is_noticed(damage: str, tmp_path: Path) -> None:
    module(1, tmp_path)
    path = tmp_path / "stage.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(bytes(content) if damage == "other" else bytes(content[:-5]))

    with pytest.raises(CorruptError, match=r"stage\.safetensors (cannot be read|is not the module that was trained)"):
        read_job(tmp_path).tensors()
    with pytest.raises(CorruptError):
        module(1, tmp_path)


def test_folders_without_a_job_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no job: expected manifest\.json"):
        read_job(tmp_path)
    train_whole(meta(), DATA, kind="meta", out=tmp_path / "meta", config=QUICK)
    with pytest.raises(UsageError, match=r"holds a whole model, not a stage"):
        read_job(tmp_path / "meta")
    module(1, tmp_path / "job")
    (tmp_path / "job" / "manifest.json").write_text(json.dumps({"kind": "stage"}))
    with pytest.raises(CorruptError, match=r"lacks 'stage'"):
        read_job(tmp_path / "job")


def test_what_cannot_work_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    source, plan = meta(), blueprint()
    out = tmp_path / "job"

    with pytest.raises(UsageError, match=r"there is no stage 3: expected 0 to 2"):
        incubate(source, 3, plan.stage, DATA, out=out)
    with pytest.raises(UsageError, match=r"a model of 2 stages cannot give one of 3"):
        incubate(source, 1, lambda stage: drawn((1, 1)), DATA, out=out)
    with pytest.raises(
        UsageError, match=r"stage 0 gives \(2, 8\) float32 and stage 1 of the other model takes \(2, 6\)"
    ):
        incubate(source, 1, lambda stage: drawn((1, 1, 1), build=lambda depths: mlp(depths, width=6)), DATA, out=out)
    assert not out.exists()


# ---- the whole ----


def test_training_the_whole_resumes_and_leaves_its_start_alone(tmp_path: Path) -> None:
    start = meta(build=batch_norm_mlp)
    before = start.digest
    made = train_whole(start, DATA, kind="meta", out=tmp_path / "a", config=QUICK)

    assert start.digest == before != made.digest
    assert not made.model.training

    def stopping(what: str, done: int, total: int, note: str = "") -> None:
        if done == 7:
            raise Stop

    often = dataclasses.replace(QUICK, save_every_s=0.0)
    with pytest.raises(Stop):
        train_whole(start, DATA, kind="meta", out=tmp_path / "b", config=often, progress=stopping)
    again = [train_whole(start, DATA, kind="meta", out=tmp_path / "b", config=often).digest for _ in range(2)]
    assert again == [made.digest] * 2
    with pytest.raises(UsageError, match=r"holds another job \(its kind differs\)"):
        train_whole(start, DATA, kind="fine-tune", out=tmp_path / "b", config=often)


def test_tied_embeddings_are_trained_as_one_in_the_whole(tmp_path: Path) -> None:
    start = Stages.by_counts(tiny("llama", tie_word_embeddings=True), [1, 1])
    made = train_whole(
        start, Examples(IDS, IDS), kind="meta", out=tmp_path, objective=NextToken(), config=Training(epochs=1)
    )
    assert made.model.lm_head.weight is made.model.model.embed_tokens.weight
    assert made.hash(0) != start.hash(0)


def test_a_shell_with_a_parameter_of_its_own_is_incubated(tmp_path: Path) -> None:
    def build(depths: tuple[int, ...]) -> nn.Module:
        return Shell(sum(depths))

    plan = Blueprint(build, (2, 1), sample=DATA.sample)
    source = seeded(plan.meta, 3)

    job: Job = incubate(source, 0, plan.stage, DATA, out=tmp_path, config=QUICK)

    assert not torch.equal(job.tensors()["shell.place"], source.tensors(0)["shell.place"])


def test_stages_of_a_convolutional_network_cut_by_names(tmp_path: Path) -> None:
    def build() -> Stages:
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        )
        return Stages.at(net, ["3", "6"])

    images = Examples(torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3)
    source = seeded(build, 1)
    before = source.hashes

    job = incubate(source, 1, lambda stage: build(), images, out=tmp_path, config=QUICK)

    assert source.hashes == before
    assert job.result["cached"]
    assert job.tensors()["blocks.0.weight"].shape == (6, 4, 3, 3)
    with pytest.raises(UsageError, match=r"or cut by names \(Stages\.at\)"):
        Stages.by_counts(source.model, [2, 2])
