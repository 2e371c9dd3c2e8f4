from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.conftest import write_task
from uphold.core.errors import DataError, EmptyError, UsageError
from uphold.core.runs import RunStore
from uphold.core.stats import proportion_interval
from uphold.models.forward_order import forward_order
from uphold.models.load import load
from uphold.models.patches.apply import apply
from uphold.models.patches.file import load_patch
from uphold.models.patches.patch import Patch, pristine_hashes
from uphold.repair.signature_choice import (
    STRENGTHS,
    Effect,
    Trial,
    best,
    choose,
    choose_on_tasks,
    effects,
    task_accuracy,
)
from uphold.repair.signatures import signature

State = dict[str, torch.Tensor]


def chain(weights: tuple[float, float, float]) -> nn.Sequential:
    """Three layers of one weight each, and no bias: what comes out is their product."""
    net = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights))
    for layer, weight in zip(net, weights, strict=True):
        nn.init.constant_(layer.weight, weight)
    return net


def weight(net: nn.Module, layer: int) -> float:
    return float(net.get_parameter(f"{layer}.weight").detach())


START, STANDARD, ROBUST = (1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (1.4, 1.4, 1.0)
"""Clean training moved the head only: the signature is +0.4 in the first and in the second layer."""


def clean(net: nn.Module) -> float:
    return 1 - 0.1 * (weight(net, 0) - 1) - 0.2 * (weight(net, 1) - 1)


def robust(net: nn.Module) -> float:
    return 0.5 + 0.5 * (weight(net, 0) - 1) + 0.25 * (weight(net, 1) - 1)


def chosen(**options: Any) -> Any:
    net = chain(STANDARD)
    found = choose(
        net, chain(START), chain(STANDARD), chain(ROBUST), **{"clean": clean, "robustness": robust, **options}
    )
    assert (weight(net, 0), weight(net, 1)) == (1, 1)
    return found


def test_the_whole_grid_is_tried_and_the_most_robust_within_the_budget_taken() -> None:
    found = chosen(budget=0.045, strengths=(1.0, 0.5))

    assert [(one.layers, one.strength) for one in found.trials] == [(1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0)]
    assert [round(one.clean, 3) for one in found.trials] == [0.98, 0.96, 0.94, 0.88]
    assert [round(one.robust, 3) for one in found.trials] == [0.6, 0.7, 0.65, 0.8]
    assert (found.before.layers, found.before.clean, found.before.robust) == (0, 1, 0.5)
    assert found.chosen == found.trials[1]
    assert found.patch.names == ("0.weight",)
    assert found.patch.manifest.figures == {
        "before": {"clean": 1, "robust": 0.5},
        "after": {"clean": pytest.approx(0.96), "robust": pytest.approx(0.7)},
    }


def test_the_patch_gives_what_was_measured(tmp_path: Path) -> None:
    found = chosen(budget=0.07, strengths=(0.5,), layers=(2,))
    net = chain(STANDARD)
    with apply(net, load_patch(found.patch.save(tmp_path / "p.safetensors"))):
        assert clean(net) == pytest.approx(found.chosen.clean)
        assert robust(net) == pytest.approx(found.chosen.robust)
    assert json.loads(json.dumps(found.to_dict()))["chosen"] == {
        "layers": 2,
        "strength": 0.5,
        "clean": pytest.approx(0.94),
        "robust": pytest.approx(0.65),
    }


def test_a_larger_budget_buys_more() -> None:
    assert chosen(budget=1.0).chosen.layers == 2
    assert chosen(budget=0.011, strengths=(0.25,)).chosen.layers == 1


def test_where_nothing_helps_nothing_is_chosen() -> None:
    for options in (
        {"budget": 0.0},
        {"robustness": lambda net: 0.5},
        {"strengths": (-1.0,), "budget": 1.0, "clean": lambda net: 0.5},
    ):
        found = chosen(**options)
        assert found.chosen is None
        assert found.patch is None
        assert "do not patch" in str(found)


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from((0.5, 1.0)), st.integers(0, 9), st.integers(0, 9)), max_size=9
    )
)
def test_the_choice_is_within_the_budget_and_beats_every_other_that_is(
    points: list[tuple[int, float, int, int]],
) -> None:
    before = Trial(0, 0.0, 0.5, 0.4)
    trials = [Trial(layers, strength, one / 10, other / 10) for layers, strength, one, other in points]
    found = best(before, trials, 0.1)
    within = [one for one in trials if one.clean >= 0.4 - 1e-9 and one.robust > 0.4]
    if found is None:
        assert not within
        return
    assert found in within
    for other in within:
        assert found.robust >= other.robust
        if found.robust == other.robust:
            assert (found.layers, found.strength) <= (other.layers, other.strength)


def test_options_out_of_range_are_refused() -> None:
    for options, message in (
        ({"budget": 1.5}, "share in"),
        ({"layers": ()}, "nothing to try"),
        ({"strengths": ()}, "nothing to try"),
        ({"layers": (3,)}, "2 before its head"),
    ):
        with pytest.raises(UsageError, match=message):
            chosen(**options)
    with pytest.raises(DataError, match=r"a metric says 1.5"):
        chosen(clean=lambda net: 1.5)


def test_a_later_model_is_patched_when_forced() -> None:
    later = chain((1.1, 1.0, 2.0))
    three = chain(START), chain(STANDARD), chain(ROBUST)
    options: Any = {"clean": clean, "robustness": robust, "budget": 1.0, "strengths": (1.0,), "layers": (1,)}
    with pytest.raises(UsageError, match="force"):
        choose(later, *three, **options)
    assert choose(later, *three, force=True, **options).trials[0].robust == pytest.approx(0.75)


def test_trials_read_as_words() -> None:
    assert str(Trial(1, 0.5, 0.9, 0.25)) == "1 layer, strength 0.5: clean 90.00%, robust 25.00%"
    assert str(Trial(2, 1.0, 1.0, 0.0)) == "2 layers, strength 1: clean 100.00%, robust 0.00%"
    assert str(Trial(0, 0.0, 0.5, 0.5)) == "unpatched: clean 50.00%, robust 50.00%"


def test_a_metric_that_fails_leaves_the_model_as_it_was() -> None:
    net, calls = chain(STANDARD), []

    def fails(model: nn.Module) -> float:
        calls.append(weight(model, 0))
        if len(calls) > 1:
            raise RuntimeError("enough")
        return 0.5

    with pytest.raises(RuntimeError, match="enough"):
        choose(net, chain(START), chain(STANDARD), chain(ROBUST), clean=fails, robustness=robust)
    assert calls == [1, pytest.approx(1.1)]
    assert weight(net, 0) == 1


def test_batch_norm_statistics_are_those_of_the_patched_model() -> None:
    def made(seed: int) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()

    three = made(0), made(1), made(2)
    net, data = made(1), torch.randn(40, 2, generator=torch.Generator().manual_seed(3))
    seen: list[torch.Tensor] = []

    def damaged(model: Any) -> float:
        seen.append(model[1].running_mean.clone())
        return len(seen) / 10

    found = choose(
        net,
        *three,
        clean=lambda model: 1.0,
        robustness=damaged,
        layers=(1,),
        strengths=(1.0,),
        order=forward_order(net, data),
        batches=iter(data.split(16)),
    )

    assert found.patch is not None
    assert found.patch.manifest.facts["batch_norm"] == "estimated"
    patched = {name: value.clone() for name, value in three[1].state_dict().items()}
    with apply(patched, found.patch):
        expected = nn.functional.linear(data, patched["0.weight"], patched["0.bias"]).mean(dim=0)
    assert torch.allclose(seen[1], expected, atol=1e-6)
    assert torch.equal(found.patch.replacements["1.running_mean"], seen[1])
    assert torch.equal(net[1].running_mean, torch.zeros(3))


def test_effects_count_what_was_right_before_and_after() -> None:
    net = chain(STANDARD)
    patch = signature(chain(START), chain(STANDARD), chain(ROBUST), layers=2)
    before = pristine_hashes(net.state_dict(), list(net.state_dict()))

    def instances(model: Any) -> list[bool]:
        return [weight(model, 0) < 1.1, weight(model, 0) > 1.1, True, weight(model, 1) > 1.1]

    [same, found] = effects(net, [patch], {"clean": lambda model: [True, False], "damaged": instances})

    assert (same.before, same.after, same.broken, same.total) == (1, 1, 0, 2)
    assert (found.before, found.after, found.broken, found.total) == (2, 3, 1, 4)
    assert pristine_hashes(net.state_dict(), list(before)) == before
    assert found.interval(True) == proportion_interval(3, 4, method="wilson")
    assert found.to_dict()["before"] == {
        "accuracy": 0.5,
        "low": proportion_interval(2, 4, method="wilson").low,
        "high": proportion_interval(2, 4, method="wilson").high,
    }
    assert str(found).startswith("damaged: 50.00% [15.00%, 85.00%] -> 75.00% [30.06%, 95.44%], 1 of 4 broken")
    [half] = effects(net, [patch], {"damaged": instances}, strengths=[0.1])
    assert half.after == half.before


def test_effects_need_instances_and_the_same_ones() -> None:
    net = chain(STANDARD)
    patch = signature(chain(START), chain(STANDARD), chain(ROBUST), layers=1)
    with pytest.raises(EmptyError, match="'clean' has no instances"):
        effects(net, [patch], {"clean": lambda model: []})
    with pytest.raises(DataError, match="1 instances without the patch and 2 with it"):
        effects(net, [patch], {"clean": lambda model: [True] * (1 if weight(model, 0) == 1 else 2)})


def test_no_instance_broken_has_an_interval_that_ends_at_one() -> None:
    assert Effect("clean", 5, 5, 0, 5).interval(True).high == 1


def test_a_language_model_on_tasks(model_v1: Path, model_v2: Path, tmp_path: Path, store: RunStore) -> None:
    loaded = load(model_v1)
    task = write_task(tmp_path, 24)
    metric = task_accuracy(loaded.tokenizer, task, store=store)

    found = choose(
        loaded.model,
        model_v2,
        model_v1,
        _moved(loaded.model),
        clean=metric,
        robustness=metric,
        layers=(1, 2),
        strengths=(1.0,),
        budget=1.0,
    )

    assert [one.layers for one in found.trials] == [1, 2]
    assert 0 <= found.before.clean == found.before.robust <= 1
    assert metric(loaded.model) == found.before.clean


def test_a_choice_on_tasks_is_that_of_their_metrics(
    model_v1: Path, model_v2: Path, tmp_path: Path, store: RunStore
) -> None:
    loaded, calls = load(model_v1), []
    clean, hard = (write_task(_folder(tmp_path / name), 24, name=name) for name in ("clean", "hard"))
    robust = _moved(loaded.model)
    options: Any = {"budget": 1.0, "quantiser": "int8", "store": store}

    found = choose_on_tasks(
        model_v2, model_v1, robust, clean, hard, progress=lambda *call: calls.append(call), **options
    )

    metrics = [task_accuracy(loaded.tokenizer, one, store=store) for one in (clean, hard)]
    assert (found.before.clean, found.before.robust) == tuple(metric(loaded.model) for metric in metrics)
    assert {one.layers for one in found.trials} == {1, 2, 3}
    assert {one.strength for one in found.trials} == set(STRENGTHS)
    assert [call[1] for call in calls if call[0] == "signatures tried"] == list(range(13))
    for trial in found.trials[::5]:
        patch = signature(model_v2, model_v1, robust, layers=trial.layers, quantiser="int8")
        with apply(loaded.model, patch, trial.strength):
            assert (trial.clean, trial.robust) == tuple(metric(loaded.model) for metric in metrics)

    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert choose_on_tasks(model_v2, model_v1, robust, clean, hard, **options).trials == found.trials
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()} == stored


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _moved(model: Any) -> State:
    generator = torch.Generator().manual_seed(5)
    return {
        name: value.detach() + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in model.named_parameters()
    }


def test_signatures_are_patches() -> None:
    found = chosen(budget=1.0)
    assert isinstance(found.patch, Patch)
    assert found.patch.manifest.method == "signature"
