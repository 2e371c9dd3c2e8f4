from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import write_task
from tests.models.losses import crossed, draw, kl, loss_of, predictions
from uphold import load_task
from uphold.core.errors import UsageError
from uphold.models import distillation
from uphold.models.distillation import distillation_loss
from uphold.models.projection import Whole
from uphold.repair.judging import Rightness
from uphold.repair.mpt import Gold, MptConfig, MptRule, first_tokens, mpt_objective
from uphold.repair.protocol import Setting, begin

TRAINED = predictions(
    [8, 2, 5, 1, 7, 7, 3], sequence=[0, 0, 0, 1, 1, 2, 2], is_answer=[False, True, True, False, True, False, True]
)
STUDENT, OLD, NEW = (draw(7, 9, seed=seed) for seed in (1, 2, 3))
OLD_RIGHT, NEW_RIGHT = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0])
RIGHTS = Rightness(0, OLD_RIGHT), Rightness(1, NEW_RIGHT)


def distances(z: torch.Tensor) -> torch.Tensor:
    weights = [1 + 5 * right[TRAINED.sequence] for right in (OLD_RIGHT, NEW_RIGHT)]
    return weights[0] * kl(OLD.to(z.dtype), z, 5.0) + weights[1] * kl(NEW.to(z.dtype), z, 5.0)


def test_both_teachers_count_most_where_they_are_right() -> None:
    expected = (crossed(STUDENT, TRAINED) + distances(STUDENT)).sum()
    assert loss_of(MptRule(*RIGHTS), STUDENT, [OLD, NEW], TRAINED).total == pytest.approx(float(expected), rel=1e-5)
    unnamed = MptRule(*RIGHTS, new_tokens=(3,), margin=0.0)
    assert loss_of(unnamed, STUDENT, [OLD, NEW], TRAINED).total == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("tokens_per_chunk", [1, 3, 100])
def test_the_margin_raises_new_classes_in_the_cross_entropy_of_answers_alone(
    monkeypatch: pytest.MonkeyPatch, tokens_per_chunk: int
) -> None:
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", tokens_per_chunk * 9)
    z = STUDENT.double().requires_grad_()
    raise_by = torch.zeros(7, 9).double()
    raise_by[:, [3, 5]] = 2.0
    raise_by[~TRAINED.is_answer] = 0
    expected = (crossed(z + raise_by, TRAINED) + distances(z)).sum()
    expected.backward()
    own = STUDENT.clone().requires_grad_()
    teachers = [Whole(OLD), Whole(NEW), Gold(TRAINED)]
    total, logs = distillation_loss(Whole(own), teachers, TRAINED, MptRule(*RIGHTS, margin=2.0, new_tokens=(3, 5)))
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert own.grad is not None
    assert z.grad is not None
    assert torch.allclose(own.grad.double(), z.grad, atol=1e-5)
    assert logs["cross_entropy_rate_answer"] == (4, 4)


def test_a_student_needs_less_of_a_new_class_with_a_margin() -> None:
    """The minimum of CE(z + b) lies b lower: what the margin gives need not be learnt."""
    trained = predictions([3] * 2 + [1] * 2)
    z = torch.zeros(4, 9)
    teachers = [Whole(z), Whole(z), Gold(trained)]
    right = Rightness(0), Rightness(1)
    own = z.clone().requires_grad_()
    distillation_loss(Whole(own), teachers, trained, MptRule(*right, margin=4.0, new_tokens=(3,)))[0].backward()
    plain = z.clone().requires_grad_()
    distillation_loss(Whole(plain), teachers, trained, MptRule(*right))[0].backward()
    assert own.grad is not None
    assert plain.grad is not None
    assert own.grad[:, 3].sum() > plain.grad[:, 3].sum()
    assert own.grad[2, 1] < plain.grad[2, 1] < 0


@pytest.fixture
def setting(model_v1: Path, model_v2: Path, tmp_path: Path) -> Setting:
    task = load_task(write_task(tmp_path))
    return begin("mpt", "", model_v1, model_v2, task, out=tmp_path / "out", force=True)


def test_new_classes_are_the_first_tokens_of_new_answers(setting: Setting) -> None:
    expected = setting.new.tokenizer.convert_tokens_to_ids(["b", "d"])
    assert first_tokens(setting, ["d", "b"]) == tuple(sorted(expected))
    assert first_tokens(setting, []) == ()
    with pytest.raises(UsageError, match="no train instance has the new answer 'e'"):
        first_tokens(setting, ["e", "b"])
    objective = mpt_objective(setting, MptConfig(new_answers=["d"], margin=4.0))
    rule = objective.rule
    assert isinstance(rule, MptRule)
    assert (rule.margin, rule.new_tokens) == (4.0, tuple(first_tokens(setting, ["d"])))


def test_a_new_answer_that_begins_like_a_known_one_is_refused(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    path = write_task(tmp_path, options=["xa", "xb", "xc", "xd"], target="x{answer}")
    setting = begin("mpt", "", model_v1, model_v2, load_task(path), out=tmp_path / "out", force=True)
    with pytest.raises(UsageError, match="'xb' begins with the same token as the known answer 'xa'"):
        first_tokens(setting, ["xb"])


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match="focal_beta and margin"):
        MptConfig(margin=-1)
    with pytest.raises(UsageError, match="select 'loss'"):
        MptConfig(select="loss")
