from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.stages.nets import Block, blueprint, drawn, examples, meta
from uphold.core.errors import UsageError
from uphold.models.stages.stages import compose
from uphold.models.stages.training import Training
from uphold.repair.assembly_jobs import incubate
from uphold.repair.assembly_report import Paired, compatibility, cost, linear_cka


def test_the_sheets_example_of_32_blocks_in_4_stages() -> None:
    plain, kept = cost([8] * 4), cost([8] * 4, cached=True)

    assert plain.jobs == (11, 11, 11, 11)
    assert (sum(plain.jobs), plain.end_to_end, plain.ratio) == (44, 32, 1.375)
    # 44 forward, 64 backward in the targets, 6 through later meta blocks, whose weights get no gradient.
    assert (sum(plain.units), plain.end_to_end_units) == (44 + 64 + 6, 96)
    assert plain.units_ratio == pytest.approx(1.1875)
    assert kept.jobs == (11, 10, 9, 8)
    assert sum(kept.units) == 108


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_all_jobs_together_cost_the_depth_and_the_other_stages_of_each_meta_model(depths: list[int]) -> None:
    count = len(depths)
    found = cost(depths)

    assert sum(found.jobs) == sum(depths) + count * (count - 1)
    assert sum(found.units) == sum(found.jobs) + 2 * sum(depths) + count * (count - 1) // 2
    if count == 1:
        assert (found.ratio, found.units_ratio) == (1, 1)
    assert cost(depths, [1] * count) == found


@pytest.mark.parametrize("wrong", [([], None), ([1, 0], None), ([1, 2], [1]), ([1], [0])])
def test_a_cost_needs_depths(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"expected one number of at least 1 per stage"):
        cost(*wrong)


@pytest.mark.parametrize("cached", [False, True])
def test_what_is_counted_is_what_is_run(cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = backward = 0
    plain = Block.forward

    def counted(self: Block, x: torch.Tensor) -> torch.Tensor:
        nonlocal forward
        made = plain(self, x)
        if torch.is_grad_enabled():
            forward += 1
            if made.requires_grad:
                made.register_hook(passed(2 if next(self.parameters()).requires_grad else 1))
        return made

    def passed(units: int) -> Any:
        def add(_: torch.Tensor) -> None:
            nonlocal backward
            backward += units

        return add

    monkeypatch.setattr(Block, "forward", counted)
    depths = (2, 3, 1)
    plan, source, data = blueprint(depths), meta(), examples(8)
    expected = cost(depths, cached=cached)
    once = Training(epochs=1, batch_size=8, cache_bytes=(1 << 20) * cached)
    for stage in range(3):
        counts = []
        for steps in (1, 2):
            forward = backward = 0
            config = Training(**{**vars(once), "epochs": steps})
            incubate(source, stage, plan.stage, data, out=tmp_path / f"{stage}-{steps}", config=config)
            counts.append((forward, forward + backward))
        # The difference of one step and two is one step, without what is checked before.
        assert tuple(two - one for one, two in zip(*counts, strict=True)) == (
            expected.jobs[stage],
            expected.units[stage],
        )


def test_linear_cka_of_known_cases() -> None:
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))

    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, 3 * x @ turn + 7) == pytest.approx(1)
    assert linear_cka(torch.tensor([[1.0], [-1], [1], [-1]]), torch.tensor([[1.0], [1], [-1], [-1]])) == 0
    assert linear_cka(torch.full((6, 3), 0.1), x[:6]) is None
    assert linear_cka(x.view(20, 5, 1), x) == pytest.approx(1)
    with pytest.raises(UsageError, match=r"activations of 20 and of 19 instances"):
        linear_cka(x, x[:19])
    # By its definition over features.
    y = torch.randn(20, 3, generator=torch.Generator().manual_seed(2)).double()
    a, b = x.double() - x.double().mean(0), y - y.mean(0)
    expected = float((b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()))
    assert linear_cka(x, y) == pytest.approx(expected)


@settings(max_examples=20)
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 99))
def test_linear_cka_lies_between_0_and_1_and_is_symmetric(rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(rows, width, generator=generator), torch.randn(rows, 3, generator=generator)
    found = linear_cka(one, other)
    assert found is not None
    assert -1e-9 <= found <= 1 + 1e-9
    assert found == pytest.approx(linear_cka(other, one))


def test_a_report_on_a_model_against_itself_and_on_one_that_does_not_fit() -> None:
    source, data = meta(), examples(50)
    same = compatibility(source, compose([source] * 3), data)

    assert same.hybrids == (same.meta,) * 3
    assert same.assembled == same.meta
    assert same.interval.low < same.assembled < same.interval.high
    assert same.cka == (pytest.approx(1),) * 2
    assert same.to_json()["count"] == 50
    assert "with one stage replaced" in str(same)

    other = compatibility(source, drawn((2, 2, 2), seed=9), data)
    assert all(one is not None and one < 0.999 for one in other.cka)
    right = source.model(data.inputs).argmax(-1) == data.targets
    assert same.meta == pytest.approx(float(right.float().mean()))
    assert compatibility(drawn((2,)), drawn((3,)), data).cka == ()


def test_paired_accuracy() -> None:
    old = torch.tensor([True] * 6 + [False] * 4)
    new = torch.tensor([True] * 5 + [False] + [True] * 3 + [False])

    found = Paired.of(old, new)

    assert (found.count, found.old, found.new) == (10, 0.6, 0.8)
    assert (found.negative_flips, found.positive_flips) == (1, 3)
    assert found.p_value == pytest.approx(2 * 5 / 16)
    assert found.interval.low < 0.2 < found.interval.high
    assert str(found).startswith("accuracy 60.0% -> 80.0% (difference -")
    assert str(found).endswith("1 lost, 3 won of 10")
    same = Paired.of(old, old)
    assert (same.p_value, same.negative_flips, math.isclose(same.interval.low, -same.interval.high)) == (1, 0, True)
