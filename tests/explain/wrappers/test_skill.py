import pytest
import torch
from torch import nn

from uphold.core.errors import EmptyError, ModelError, UsageError
from uphold.explain.wrappers.skill import Skill, behaviour, drawn, gathered


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def skill(predicted: list[int], labels: list[int]) -> Skill:
    return Skill("s", torch.eye(3)[predicted] * 5, torch.tensor(labels))


def test_accuracy_balanced_accuracy_and_histogram() -> None:
    found = behaviour(Fixed(), skill([0, 0, 0, 0, 2], [0, 0, 0, 1, 2]), rows=2)
    assert found.accuracy == pytest.approx(0.8)
    assert found.balanced == pytest.approx((1 + 0 + 1) / 3)
    assert found.predicted == ((0, 4), (2, 1))
    assert found.collapse == pytest.approx(0.8)
    assert found.interval.low < 0.8 < found.interval.high


def test_a_collapse_to_the_frequent_class_shows_in_balanced_accuracy() -> None:
    found = behaviour(Fixed(), skill([0] * 10, [0] * 9 + [1]))
    assert (found.accuracy, found.balanced, found.collapse) == (0.9, 0.5, 1.0)


def test_own_loss_and_prediction() -> None:
    data = Skill(
        "sign",
        torch.tensor([[-1.0], [2.0]]),
        torch.tensor([0, 1]),
        loss=lambda logits, labels: (logits[:, 0] - labels).square().mean(),
        predict=lambda logits: (logits[:, 0] > 0).long(),
    )
    found = behaviour(Fixed(), data)
    assert (found.accuracy, found.loss) == (1.0, 1.0)


def test_the_mode_of_the_model_is_as_before() -> None:
    model = nn.Sequential(Fixed(), nn.Dropout(0.5)).train()
    behaviour(model, skill([0], [0]))
    assert model.training
    assert model[1].training


def test_batches_of_a_fixed_set_and_of_a_function() -> None:
    fixed = skill([0, 1, 2], [0, 1, 2])
    assert torch.equal(drawn(fixed, 8, 1).labels, drawn(fixed, 8, 1).labels)
    assert len(drawn(fixed, 8, 1)) == 8
    assert len(set(gathered(fixed, 2, 0).labels.tolist())) == 2
    assert len(gathered(fixed, 9, 0)) == 3
    assert gathered(lambda seed: skill([seed], [seed]), 3, 0).labels.tolist() == [0, 1, 2]


def test_batches_by_name_are_joined() -> None:
    def make(seed: int) -> Skill:
        ids = torch.full((2, 3), seed)
        return Skill("s", {"input_ids": ids, "use_cache": False}, torch.tensor([0, 1]), torch.tensor([2, 2]))

    joined = gathered(make, 5, 0)
    assert not isinstance(joined.inputs, torch.Tensor)
    assert joined.inputs["input_ids"].shape == (5, 3)
    assert joined.at is not None
    assert len(joined.at) == 5


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(EmptyError, match="no instances"):
        Skill("s", torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(UsageError, match="whole-number"):
        Skill("s", torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(UsageError, match="equally many"):
        Skill("s", torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ModelError, match="give `at`"):
        behaviour(Fixed(), Skill("s", torch.zeros(2, 4, 3), torch.zeros(2, dtype=torch.long)))
    with pytest.raises(UsageError, match="do not go together"):
        gathered(lambda seed: Skill("s", torch.zeros(1, 3 + seed), torch.zeros(1, dtype=torch.long)), 2, 0)
