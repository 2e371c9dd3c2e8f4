import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.explain.wrappers.counters import asked, batch, net, trained
from tests.explain.wrappers.test_scaling import Low, data
from uphold.core.errors import DataError, ModelError, UpholdError, UsageError
from uphold.core.registry import method
from uphold.explain.wrapper import wrapper
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.planted import add_unit, plant_wrapper, reinitialised
from uphold.explain.wrappers.result import WrapperResult
from uphold.explain.wrappers.skill import Skill

FAST = WrapperConfig(
    learning_rate=1e-3,
    steps=(0, 5, 20, 40, 60, 100),
    seeds=(0,),
    prune=(0, 1),
    draws=2,
    examples=300,
    shuffles=1,
    alphas=(0.0, 0.5, 1.0),
)


@cache
def found(kind: str) -> WrapperResult:
    old = trained()
    new: nn.Module = old
    if kind == "wrapped":
        # The old model has the unit as well, but it adds nothing.
        old, new = (plant_wrapper(trained(), asked("a", seed=5), asked("b", seed=6), shift) for shift in (0.0, 1.0))  # type: ignore[assignment]
    elif kind == "deleted":
        new = reinitialised(old, "blocks", 1)
    return wrapper(old, new, asked("a"), [asked("b")], batch, fresh=net, config=FAST)


def test_it_is_registered_and_asking_for_it_imports_no_torch() -> None:
    assert method("explain", "wrapper").config is WrapperConfig
    code = "import sys, uphold.explain.wrapper; sys.exit(any(one in sys.modules for one in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("kind", "verdict"), [("none", "unchanged"), ("wrapped", "wrapped"), ("deleted", "deleted")])
def test_planted_changes_are_told_apart(kind: str, verdict: str) -> None:
    result = found(kind)
    assert result.verdict == verdict, result.reason
    assert result.table().startswith(verdict.upper())


def test_an_unchanged_model_needs_no_steps() -> None:
    result = found("none")
    assert result.relearning.arms[0].reached(result.target) == (0,)
    assert result.scaling.returns == 1.0
    assert result.reason.endswith("0 steps to relearn")


def test_a_wrapper_is_revived_by_one_neuron_and_relearned_at_once() -> None:
    result = found("wrapped")
    assert result.revival.best.k == 1
    assert {sign.tool: sign.says for sign in result.signs} == {
        "relearning": "kept",
        "probes": "cannot tell",
        "revival": "kept",
    }


def test_a_deleted_skill_is_no_sooner_back_than_one_from_scratch_and_no_easier_to_read() -> None:
    result = found("deleted")
    leads = result.relearning.leads()
    assert leads is None or leads[0].times <= FAST.slow
    new, _, untrained = (max(one.selectivity for one in profile.probes) for profile in result.profiles)
    assert new == pytest.approx(untrained, abs=0.1)
    # Counts are read from an untrained network too, through even attention, so that probes alone say nothing here.
    assert untrained > 0.8


def test_the_result_goes_to_json_and_prints(tmp_path: Path) -> None:
    result = found("wrapped")
    result.write(tmp_path / "wrapper.json")
    values = json.loads((tmp_path / "wrapper.json").read_text())
    assert values["verdict"] == "wrapped"
    assert values["relearning"]["arms"][0]["steps_to_target"] == [5]
    assert values["scaling"]["returns"] == 0.0
    for text in ("revival", "probes", "relearning", "scaling", "reFT", "scratch", "residual.0"):
        assert text in str(result)


def test_no_model_is_changed_also_after_an_exception() -> None:
    old, new = trained(), reinitialised(trained(), "blocks.1", 3)
    before = [[one.clone() for one in model.state_dict().values()] for model in (old, new)]

    def stops(what: str, done: int, total: int, note: str = "") -> None:
        if what == "scaling":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wrapper(
            old,
            new,
            asked("a", 40),
            [],
            batch,
            config=WrapperConfig(steps=(0, 1), seeds=(0,), prune=(0, 1), examples=40, shuffles=1),
            progress=stops,
        )
    for model, values in zip((old, new), before, strict=True):
        assert all(torch.equal(*pair) for pair in zip(values, model.state_dict().values(), strict=True))
        assert all(one.grad is None and one.requires_grad for one in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_without_a_control_relearning_does_not_tell() -> None:
    new = reinitialised(trained(), "blocks.1", 3)
    config = WrapperConfig(steps=(0, 1), seeds=(0,), prune=(0, 1), examples=40, shuffles=1)
    result = wrapper(trained(), new, asked("a"), [], batch, config=config)
    assert result.verdict == "undecided"
    assert "no control" in result.reason
    assert len(result.notes) == 3


def test_an_adapter_is_switched_off_for_the_old_model() -> None:
    model = Low()
    base = Skill("s", data().inputs, model.base(data().inputs).argmax(1))
    config = WrapperConfig(steps=(0, 1), seeds=(0,), units="adapter", prune=(0, 1), shuffles=1)
    result = wrapper(None, model, base, [], base, sites=["module:base"], config=config)
    assert result.behaviour[0].accuracy == 1.0
    assert result.behaviour[1].accuracy < 1.0
    assert result.scaling.adapter
    assert result.revival.units[0].parameter == "lora_B.weight"


def test_a_skill_that_the_old_model_never_had_is_refused() -> None:
    with pytest.raises(DataError, match="expected a skill that the old model has"):
        wrapper(net(7), trained(), asked("a"), [], batch, fresh=net, config=FAST)


@pytest.mark.parametrize("name", ["reFT", "scratch"])
def test_a_control_does_not_take_the_name_of_another_arm(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        wrapper(trained(), trained(), asked("a"), [], batch, fresh=net, controls={name: net}, config=FAST)


@pytest.mark.parametrize(
    "options",
    [
        {"units": "rows"},
        {"learning_rate": 0.0},
        {"steps": (1, 2)},
        {"prune": (0, 2, 1)},
        {"alphas": ()},
        {"seeds": (1, 1)},
        {"draws": 0},
        {"recover": 1.0},
        {"warmup": 1.0},
        {"slow": 9.0},
        {"lost": 0.9},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UpholdError):
        WrapperConfig(**options)


def test_what_cannot_be_planted_is_refused() -> None:
    free = trained().__class__(0, length=8, width=24, heads=2, hidden=48)
    with pytest.raises(UsageError, match="ordinal"):
        plant_wrapper(free, asked("a"), asked("b"))
    with pytest.raises(ModelError, match="no direction"):
        plant_wrapper(trained(), asked("a"), asked("a", seed=2))
    with pytest.raises(ModelError, match="no module"):
        reinitialised(trained(), "nowhere", 0)
    with pytest.raises(ModelError, match="not linear"):
        add_unit(trained(), "blocks.0.up", "blocks.0.norm_1", torch.zeros(24), 0.0, torch.zeros(24))
