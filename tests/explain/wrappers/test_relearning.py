import pytest
import torch
from torch import nn

from tests.explain.wrappers.counters import asked, batch, net, trained
from uphold.core.errors import ModelError, UsageError
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.relearning import Arm, Relearning, relearn, train, tuned_control
from uphold.explain.wrappers.skill import Skill, accuracy, duplicate


def test_steps_to_a_target_count_from_where_it_stays_there() -> None:
    arm = Arm("x", (0, 1, 3, 10), ((0.1, 0.9, 0.5, 0.9), (0.9, 0.9, 0.9, 0.95), (0.0, 0.0, 0.0, 0.1)))
    assert arm.reached(0.9) == (10, 0, None)
    assert arm.mean == pytest.approx((1 / 3, 0.6, 7 / 15, 0.65))


def test_bands_are_students_interval_over_seeds() -> None:
    arm = Arm("x", (0,), ((0.4,), (0.5,), (0.6,)))
    band = arm.band()[0]
    assert band is not None
    assert tuple(band) == pytest.approx((0.5 - 4.30265 * 0.1 / 3**0.5, 0.5 + 4.30265 * 0.1 / 3**0.5), abs=1e-4)
    assert Arm("x", (0,), ((0.4,),)).band() == (None,)


def test_a_lead_is_a_lower_bound_where_the_control_never_arrives() -> None:
    steps = (0, 1, 20, 100)
    own = Arm("reFT", steps, ((0.0, 0.0, 1.0, 1.0),))
    arms = (own, Arm("late", steps, ((0.0, 0.0, 0.0, 1.0),)), Arm("never", steps, ((0.0, 0.0, 0.0, 0.0),)))
    leads = Relearning(1e-4, 0.0, 0.9, 0.45, (0,), arms).leads()
    assert leads is not None
    assert [(one.control, one.times, one.open) for one in leads] == [("late", 5, False), ("never", 5, True)]
    assert Relearning(1e-4, 0.0, 0.9, 0.45, (0,), arms[::-1]).leads() is None


def test_the_model_and_the_global_seed_are_left_alone_and_runs_repeat() -> None:
    model, state = net(3), torch.get_rng_state()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    first, second = (
        relearn(
            model,
            batch,
            asked("a", 50),
            target=0.9,
            controls={"scratch": net},
            config=WrapperConfig(learning_rate=1e-2, steps=(0, 2), seeds=(0, 1)),
        )
        for _ in range(2)
    )
    assert first == second
    assert first.arms[0].accuracy[0][0] == first.arms[0].accuracy[1][0], "one model for every seed"
    assert first.arms[1].accuracy[0] != first.arms[1].accuracy[1], "an untrained one for each"
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_that_has_the_skill_needs_no_steps() -> None:
    config = WrapperConfig(steps=(0, 1, 3), seeds=(0,))
    found = relearn(trained(), batch, asked("a"), target=0.95, config=config)
    assert found.arms[0].reached(found.target) == (0,)
    assert found.half == found.target


def test_all_arms_see_the_same_batches() -> None:
    seen: list[int] = []

    def source(seed: int) -> Skill:
        seen.append(seed)
        return batch(seed)

    config = WrapperConfig(steps=(0, 3), seeds=(5,))
    relearn(net(), source, asked("a", 20), target=0.9, controls={"other": net}, config=config)
    assert len(seen) == 6
    assert seen[:3] == seen[3:]


def test_warm_up_and_cosine_change_the_rate() -> None:
    plain, warm, cosine = (
        train(net(), batch, 4, 1e-2, **options) for options in ({}, {"warmup": 1.0}, {"final": 0.01})
    )
    states = [one.state_dict()["head.weight"] for one in (plain, warm, cosine)]
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_every_arm_has_the_schedule_of_plain_training() -> None:
    config = WrapperConfig(learning_rate=1e-2, steps=(0, 6), seeds=(4,), warmup=0.5)
    test = asked("a", 200)
    arms = relearn(net(1), batch, test, target=0.9, controls={"other": net}, config=config).arms
    for arm, start in zip(arms, (net(1), net(4)), strict=True):
        expected = accuracy(train(start, batch, 6, 1e-2, warmup=0.5, seed=4), test)
        assert arm.accuracy[0] == (accuracy(net(1 if arm is arms[0] else 4), test), expected)


def test_gradients_from_before_do_not_count() -> None:
    plain, stale = net(), net()
    data = batch(0)
    data.loss(data.answers(stale), data.labels).backward()  # type: ignore[no-untyped-call]
    weights = [train(one, batch, 1, 1e-2).get_parameter("head.weight") for one in (plain, stale)]
    assert torch.equal(*weights)
    assert not any(one.grad is not None for one in stale.parameters())


def test_a_control_is_tuned_on_the_new_skill_once_for_each_seed() -> None:
    calls: list[int] = []

    def source(seed: int) -> Skill:
        calls.append(seed)
        return asked("b", 20, seed=seed % 1000)

    make = tuned_control(net, source, 3, 1e-3)
    assert make(0) is make(0)
    assert len(calls) == len(set(calls)) == 3
    make(1)
    assert len(calls) == len(set(calls)) == 6


def test_nothing_to_train_and_a_loss_that_is_not_finite_are_refused() -> None:
    frozen = duplicate(net()).requires_grad_(False)
    with pytest.raises(UsageError, match="requires_grad"):
        train(frozen, batch, 1, 1e-3)
    broken = duplicate(net())
    with torch.no_grad():
        nn.init.constant_(broken.get_parameter("head.weight"), float("nan"))
    with pytest.raises(ModelError, match="loss of nan"):
        train(broken, batch, 1, 1e-3)
