from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from uphold.core.errors import UsageError
from uphold.models.adapter import fresh_adapter
from uphold.models.encode import Batch, Encoded, collate
from uphold.models.load import load
from uphold.models.option_loss import OPTION_MASKS, OptionDistillation, OptionMask, OptionTargets, option_probabilities

TARGET = OptionTargets((1.0, 1.0), gold=0, new=(0.5, 0.5), new_right=True, old=(0.8, 0.2), old_right=True)
WRONG = replace(TARGET, gold=1)


def says(logprobs: list[list[float]]) -> Any:
    """A model of two tokens that answers row r, position 0 with these log-probabilities, gradients kept."""
    logits = torch.tensor(logprobs).unsqueeze(1).expand(-1, 3, -1).clone().requires_grad_()

    def forward(**_: Any) -> Any:
        return type("Output", (), {"logits": logits})

    forward.logits = logits  # type: ignore[attr-defined]
    return forward


def pair() -> Batch:
    """One instance with two options of one token, 0 and 1."""
    return collate([Encoded([1, 1], [0], 0), Encoded([1, 1], [1], 0)])


def test_the_hand_case() -> None:
    """Likelihoods .3 and .1 make q = (.75, .25); the student is right, so p is new's (.5, .5) unless the mask says."""
    log = [[math.log(0.3), math.log(0.7)], [math.log(0.9), math.log(0.1)]]
    new = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    old = 0.8 * math.log(0.8 / 0.75) + 0.2 * math.log(0.2 / 0.25)
    expected = {"flips": new, "student-wrong": new, "new-wrong": new, "old-correct": old, "old-only": old}
    assert expected.keys() == set(OPTION_MASKS)
    for mask in OPTION_MASKS:
        assert OptionDistillation([TARGET], mask, 1.0)(says(log), pair()).total.item() == pytest.approx(
            expected[mask], abs=1e-6
        )


@pytest.mark.parametrize(
    ("mask", "target", "follows"),
    [
        ("flips", WRONG, True),
        ("flips", replace(WRONG, old_right=False), False),
        ("student-wrong", replace(WRONG, old_right=False), True),
        ("new-wrong", replace(TARGET, new_right=False), True),
        ("new-wrong", TARGET, False),
        ("old-correct", replace(TARGET, old_right=False), False),
        ("old-only", replace(TARGET, old_right=False), True),
        ("old-only", replace(TARGET, old=None), False),
    ],
)
def test_which_instances_follow_the_old_model(mask: OptionMask, target: OptionTargets, follows: bool) -> None:
    model = says([[math.log(0.3), math.log(0.7)], [math.log(0.9), math.log(0.1)]])
    logs = OptionDistillation([target], mask, 1.0)(model, pair()).logs
    assert logs["kl_old_rate"] == (float(follows), 1.0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_its_gradient_is_numerically_right(temperature: float) -> None:
    model = says([[0.2, -0.4], [1.0, 0.3]])
    objective = OptionDistillation([TARGET], "old-only", temperature)
    objective(model, pair()).total.backward()
    gradient, step = model.logits.grad, 1e-3
    for row in range(2):
        for token in range(2):
            values = []
            for sign in (1, -1):
                moved = says([[0.2, -0.4], [1.0, 0.3]])
                with torch.no_grad():
                    moved.logits[row, 1, token] += sign * step
                values.append(objective(moved, pair()).total.item())
            assert gradient[row, 1, token].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=2e-4)


def test_scaled_likelihoods_are_compared() -> None:
    """With twice the scale on option 0, its likelihood of .3 counts as .09: q = (.09, .1) / .19."""
    target = replace(TARGET, scales=(2.0, 1.0))
    model = says([[math.log(0.3), math.log(0.7)], [math.log(0.9), math.log(0.1)]])
    q = (0.09 / 0.19, 0.1 / 0.19)
    expected = sum(p * math.log(p / own) for p, own in zip((0.8, 0.2), q, strict=True))
    assert OptionDistillation([target], "old-only", 1.0)(model, pair()).total.item() == pytest.approx(expected)


def test_a_student_that_agrees_has_no_loss_and_no_gradient(model_v1: Path) -> None:
    model = load(model_v1)
    student = fresh_adapter(model, 4, 8, 0.0, seed=0)
    rows = [Encoded([5, 6], [8, 9], 0), Encoded([5, 6], [7], 0), Encoded([9], [4], 1), Encoded([9], [5, 6], 1)]
    batch = collate(rows)
    blank = OptionTargets((1.0, 1.0), 0, (0.5, 0.5), True, None)
    measured = OptionDistillation([blank, blank], "old-only", 2.0)
    assert measured.count(batch) == 2
    scores = []
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.answer]])
        logprobs = model.model(input_ids=ids).logits[0].log_softmax(-1)
        scores.append(sum(logprobs[len(row.prompt) + k - 1, token].item() for k, token in enumerate(row.answer)))
    own = [replace(blank, new=option_probabilities(scores[start : start + 2], (1.0, 1.0), 2.0)) for start in (0, 2)]
    loss = OptionDistillation(own, "old-only", 2.0)(student, batch).total
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-5 for p in student.parameters())


def test_probabilities_of_options() -> None:
    assert option_probabilities((math.log(0.2), math.log(0.6)), (1, 1), 1.0) == pytest.approx((0.25, 0.75))
    assert option_probabilities((-math.inf, -3.0), (1, 1), 1.0) == (0.0, 1.0)
    for broken in ((-math.inf, -math.inf), (math.nan, 0.0)):
        with pytest.raises(UsageError, match="not numbers"):
            option_probabilities(broken, (1, 1), 1.0)


def test_an_option_without_mass_adds_nothing() -> None:
    model = says([[math.log(0.3), math.log(0.7)], [math.log(0.9), math.log(0.1)]])
    certain = replace(TARGET, old=(1.0, 0.0))
    loss = OptionDistillation([certain], "old-only", 1.0)(model, pair()).total
    assert loss.item() == pytest.approx(-math.log(0.75))
