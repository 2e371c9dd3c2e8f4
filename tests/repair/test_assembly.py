from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.stages.nets import QUICK, blueprint, drawn, examples, meta, mlp
from tests.models.tiny import tiny
from uphold.core.errors import CorruptError, UsageError
from uphold.models.fingerprint import module_fingerprint
from uphold.models.stages.build import Blueprint, decoder_blueprint
from uphold.models.stages.data import Classification, Examples, NextToken, correct
from uphold.models.stages.stages import Stages
from uphold.models.stages.training import FineTuning, Training, seeded
from uphold.repair.assembly import assemble, fine_tune, train_meta
from uphold.repair.assembly_jobs import Job, incubate
from uphold.repair.assembly_workers import incubate_all

DATA = examples(60)
STILL = dataclasses.replace(QUICK, learning_rate=0.0, final_rate=0.0)


def jobs_of(source: Stages, folder: Path, config: Training = QUICK, builder: Any = None) -> list[Job]:
    return incubate_all(source, builder or blueprint().stage, DATA, out=folder, config=config)


def accuracy(stages: Stages, data: Examples = DATA) -> float:
    return float(correct(stages.model, data, Classification()).float().mean())


def test_stages_that_start_as_the_meta_models_and_stand_still_assemble_to_it_bit_for_bit(tmp_path: Path) -> None:
    source = meta()

    made = assemble(jobs_of(source, tmp_path, STILL, lambda stage: source), drawn((1, 1, 1)), source)

    assert made.digest == source.digest
    assert module_fingerprint(made.model, "")["weights"] == module_fingerprint(source.model, "")["weights"]


def test_the_order_of_jobs_does_not_matter_and_the_target_is_not_changed(tmp_path: Path) -> None:
    source, into = meta(), drawn((2, 2, 2), seed=4)
    before = into.digest
    jobs = jobs_of(source, tmp_path)

    made = {assemble(order, into, source).digest for order in itertools.permutations(jobs)}
    by_folder = assemble([str(job.folder) for job in jobs], into)

    assert made == {by_folder.digest}
    assert by_folder.hashes == tuple(job.result["module"] for job in jobs)
    assert into.digest == before
    assert not by_folder.model.training
    assert sum(value.numel() for value in by_folder.model.parameters()) == sum(
        value.numel() for value in mlp((2, 2, 2)).parameters()
    )


def test_stages_of_another_meta_model_are_refused(tmp_path: Path) -> None:
    one, other = meta(seed=1), meta(seed=2)
    ours, theirs = (jobs_of(source, tmp_path / str(number), STILL) for number, source in enumerate((one, other)))
    into = drawn((2, 2, 2))

    message = r"stage-1 was trained against another meta model \(\w{12}, expected \w{12}\): stages of different meta"
    with pytest.raises(UsageError, match=message):
        assemble([ours[0], theirs[1], ours[2]], into)
    with pytest.raises(UsageError, match=r"stage-0 was trained against another meta model"):
        assemble(ours, into, other)


def test_missing_double_and_foreign_stages_are_refused(tmp_path: Path) -> None:
    jobs = jobs_of(meta(), tmp_path, STILL)
    into = drawn((2, 2, 2))

    for wrong in (jobs[:2], [*jobs, jobs[1]], [jobs[0], jobs[1], jobs[1]], []):
        with pytest.raises(UsageError, match=r"the jobs bring stages \[.*\]: expected each of 0 to 2 once"):
            assemble(wrong, into)
    with pytest.raises(UsageError, match=r"stage-0 is one of 3 stages and the model has 2: cut it alike"):
        assemble(jobs, drawn((3, 3)))
    with pytest.raises(UsageError, match=r"stage 0 does not fit: blocks\.2\.\S+ is .* in the module and absent"):
        assemble(jobs, drawn((1, 2, 2)))
    path = jobs[1].folder / "stage.safetensors"
    path.write_bytes((jobs[2].folder / "stage.safetensors").read_bytes())
    with pytest.raises(CorruptError, match=r"is not the module that was trained"):
        assemble(jobs, into)


def test_a_shared_meta_model_makes_stages_fit_and_a_fine_tune_keeps_that(tmp_path: Path) -> None:
    plan = Blueprint(mlp, (3, 3, 3))
    train, test = examples(120, seed=1), examples(300, seed=2)
    config = Training(epochs=8, batch_size=16, learning_rate=1e-2)
    metas = [
        train_meta(plan.meta, train, out=tmp_path / f"meta{seed}", config=dataclasses.replace(config, seed=seed))
        for seed in range(3)
    ]
    jobs = incubate_all(metas[0], plan.stage, train, out=tmp_path / "jobs", config=config)
    into = seeded(plan.whole, 0)

    made = assemble(jobs, into, metas[0])
    # The control takes each stage from another meta model; `assemble` would refuse it.
    control = made.copied()
    for stage in (1, 2):
        job = incubate(metas[stage], stage, plan.stage, train, out=tmp_path / f"control{stage}", config=config)
        control.load(stage, job.tensors())

    before = accuracy(made, test)
    assert before > accuracy(control, test) + 0.15
    assert before > 0.6
    tuned = fine_tune(made, train, out=tmp_path / "ft", config=FineTuning(epochs=4, batch_size=16))
    assert accuracy(tuned, test) >= before - 0.02


def test_the_meta_model_is_drawn_under_the_seed_of_its_training(tmp_path: Path) -> None:
    plan = blueprint()

    def made(name: str, seed: int) -> str:
        return train_meta(plan.meta, DATA, out=tmp_path / name, config=dataclasses.replace(QUICK, seed=seed)).digest

    assert made("a", 0) == made("a", 0) == made("b", 0) != made("c", 1)


def test_a_fine_tune_warms_nothing_up_and_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clipped: list[float] = []
    original: Callable[..., Any] = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda values, most: (clipped.append(most), original(values, most))
    )
    start = drawn((1, 1))

    fine_tune(start, examples(32), out=tmp_path)

    assert set(clipped) == {1.0}


def test_a_decoder_is_assembled_and_saved_as_transformers_loads_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = tiny("llama", num_hidden_layers=4, tie_word_embeddings=True).config
    plan = decoder_blueprint(config, (2, 2))
    ids = torch.randint(4, 40, (8, 6), generator=torch.Generator().manual_seed(0))
    data = Examples(ids, ids)
    quick = Training(epochs=1, batch_size=8)
    source = train_meta(plan.meta, data, out=tmp_path / "meta", objective=NextToken(), config=quick)
    jobs = [
        incubate(source, stage, plan.stage, data, out=tmp_path / f"job{stage}", objective=NextToken(), config=quick)
        for stage in (0, 1)
    ]

    made = assemble(jobs, plan.whole(), source)
    made.model.save_pretrained(tmp_path / "model")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded(data.inputs).logits, made.model(data.inputs).logits)
    assert loaded.config.num_hidden_layers == 4
