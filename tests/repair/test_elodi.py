from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import write_task
from tests.models.losses import crossed, draw, loss_of, predictions
from uphold import adapt, load_task
from uphold.core.errors import UsageError
from uphold.models.divergence import LogitDifferenceInhibition
from uphold.models.fingerprint import weights_hash
from uphold.repair import AdaptConfig
from uphold.repair.elodi import ElodiConfig, ElodiRule, elodi_objective
from uphold.repair.protocol import begin

TRAINED = predictions([8, 2, 5, 1])
STUDENT = draw(4, 9, seed=1)
TEACHERS = [draw(4, 9, seed=seed) for seed in (2, 3, 4)]


def test_the_target_is_the_mean_of_all_members_logits() -> None:
    mean = torch.stack(TEACHERS).mean(0)
    inhibited = ((STUDENT - mean).abs() - 0.1).clamp(min=0).square().mean(-1)
    expected = (0.2 * crossed(STUDENT, TRAINED) + 0.8 * inhibited).sum()
    found = loss_of(ElodiRule(LogitDifferenceInhibition(0.1)), STUDENT, TEACHERS, TRAINED)
    assert found.total == pytest.approx(float(expected), rel=1e-5)


def test_within_the_margin_of_the_mean_only_cross_entropy_is_left() -> None:
    mean = torch.stack(TEACHERS).mean(0)
    near = mean + 0.09 * draw(4, 9, seed=5).sign()
    found = loss_of(ElodiRule(LogitDifferenceInhibition(0.1), 0.5), near, TEACHERS, TRAINED)
    assert found.total == pytest.approx(0.5 * float(crossed(near, TRAINED).sum()), rel=1e-5)


def test_defaults_depend_on_the_teacher() -> None:
    assert (ElodiConfig().inhibition, ElodiConfig().share) == (LogitDifferenceInhibition(0.1), 0.8)
    old = ElodiConfig(teacher="old")
    assert (old.inhibition, old.share) == (LogitDifferenceInhibition(0.5), 0.5)
    own = ElodiConfig(margin=0.0, power=1.0, top=10, ldi_weight=1.0)
    assert (own.inhibition, own.share) == (LogitDifferenceInhibition(0.0, 1.0, 10), 1.0)


def test_members_are_new_models_of_other_seeds_and_are_trained_once(
    model_v1: Path, model_v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = AdaptConfig(epochs=1, learning_rate=5e-3, warmup_steps=1, rank=2, alpha=4)
    monkeypatch.setattr("uphold.repair.recipe.configure", lambda *_: recipe)
    task = load_task(write_task(tmp_path, 40))
    new = adapt(model_v2, task, out=tmp_path / "new", config=recipe)
    setting = begin("elodi", "", model_v1, new.reference, task, out=tmp_path / "out", force=True)
    objective = elodi_objective(setting, ElodiConfig(members=2))
    made = sorted((tmp_path / "out" / "members").iterdir())
    assert [place.name for place in made] == ["seed-1", "seed-2"]
    hashes = [weights_hash(place / "adapter") for place in made]
    assert len({weights_hash(new.adapter), *hashes}) == 3
    assert len(objective.teachers) == 2
    times = [(place / "adapter" / "adapter_model.safetensors").read_bytes() for place in made]
    monkeypatch.setattr("uphold.models.objective.Distillation.__call__", lambda *_: pytest.fail("trained again"))
    assert len(elodi_objective(setting, ElodiConfig(members=2)).teachers) == 2
    assert times == [(place / "adapter" / "adapter_model.safetensors").read_bytes() for place in made]
    assert len(elodi_objective(setting, ElodiConfig(teacher="old")).teachers) == 1


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'ensemble'"):
        ElodiConfig(teacher="ensembel")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="members and power of at least 1"):
        ElodiConfig(members=0)
    with pytest.raises(UsageError, match=r"ldi_weight in \[0, 1\]"):
        ElodiConfig(ldi_weight=1.5)
