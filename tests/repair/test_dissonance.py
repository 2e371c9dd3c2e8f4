from __future__ import annotations

import pytest
import torch

from tests.models.losses import crossed, draw, kl, loss_of, predictions
from uphold.core.errors import UsageError
from uphold.repair.dissonance import DissonanceConfig, DissonanceRule
from uphold.repair.judging import Rightness

TRAINED = predictions([8, 2, 5, 1, 7], sequence=[0, 0, 1, 1, 2])
STUDENT, OLD = draw(5, 9, seed=1), draw(5, 9, seed=2)
RIGHT = torch.tensor([1.0, 0.0, 1.0])
PER_TOKEN = RIGHT[TRAINED.sequence]


def test_new_errors_count_more_where_the_old_model_was_right_and_need_no_teacher() -> None:
    expected = ((1 + 3 * PER_TOKEN) * crossed(STUDENT, TRAINED)).sum()
    found = loss_of(DissonanceRule(Rightness(0, RIGHT), weight=3.0), STUDENT, [], TRAINED)
    assert found.total == pytest.approx(float(expected), rel=1e-6)


def test_strict_imitation_is_kl_to_the_old_models_probabilities_there() -> None:
    rule = DissonanceRule(Rightness(0, RIGHT), "strict-imitation", 3.0)
    expected = (crossed(STUDENT, TRAINED) + 3 * PER_TOKEN * kl(OLD, STUDENT)).sum()
    assert loss_of(rule, STUDENT, [OLD], TRAINED).total == pytest.approx(float(expected), rel=1e-5)
    same = loss_of(rule, STUDENT, [STUDENT], TRAINED)
    assert same.total == pytest.approx(float(crossed(STUDENT, TRAINED).sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["new-error", "strict-imitation"])
def test_an_old_model_that_was_never_right_leaves_cross_entropy(kind: str) -> None:
    rule = DissonanceRule(Rightness(0, torch.zeros(3)), kind, 3.0)  # type: ignore[arg-type]
    found = loss_of(rule, STUDENT, [OLD], TRAINED)
    assert found.total == pytest.approx(float(crossed(STUDENT, TRAINED).sum()), rel=1e-6)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'new-error'"):
        DissonanceConfig(kind="new-errors")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="weight of at least 0"):
        DissonanceConfig(weight=-1)
    with pytest.raises(UsageError, match="select 'loss'"):
        DissonanceConfig(select="loss")
