"""Fine-tuning wrappers (arXiv:2311.12786) on the counter task: is counting a deleted when only b is asked for?

    python reproductions/19_wrappers.py [--seeds 0 1 2] [--processes 3]

A transformer of two blocks is trained to count a, b and c, with b asked for hardly ever (low prior) or often (high).
Fine-tuning asks for b only, in strings with r(b) - r(a) = 1 throughout, so that "count a and add 1" does as well. A
seed decides start weights, batches, and all that the method draws. Strings of training and of measurement are drawn
from different seeds. The paper's models are 110 times as large and are trained 100 times as long.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from evidence import RESULTS, Claim, use_one_thread, write_evidence
from torch import nn

from uphold.explain.wrapper import wrapper
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.counter import HIGH, LOW, CounterNet, count, pretraining
from uphold.explain.wrappers.relearning import REFT, Lead, Relearning, relearn, train, tuned_control
from uphold.explain.wrappers.result import WrapperResult
from uphold.explain.wrappers.skill import Skill, duplicate

NAME, PAPER = "19_wrappers", "arXiv:2311.12786"
BATCH, PRETRAINING, FINE_TUNING = 96, 2000, 500
RATE, PRETRAINING_RATE = 1e-4, 1e-3
STEPS = (0, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 400)
SHORT = (0, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100)
LONG = (0, 25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 750, 1000, 1250, 1500)
"""At a tenth of the rate: a control that is five times later than step 300 is still seen."""
PRUNED = (0, 1, 2, 5, 10, 15)
"""The paper needs 5 to 15 neurons."""
SCORED = 1_000_000_000
"""Seeds from here on are those of strings to measure on."""
RELEARNED = 250_000_000
"""Seeds from here on are those of strings to relearn, prune and probe on."""
TUNED = 500_000_000
"""Seeds from here on are those of strings to fine-tune on."""
SHAPE: dict[str, int] = {"width": 32, "hidden": 128}
SCHEDULE = {"warmup": 0.2, "final": 0.01}
BROKEN, HELD = "count b, r(b) - r(a) not 1", "count b, r(b) - r(a) = 1"
SOONER, BACK = 5.0, 0.95
"""How many times sooner than a control, and the accuracy at which counting a is back."""
LEFT_OUT = ("predicted", "interval", "band", "mean", "units")
"""Of the results, in the evidence."""


def fresh(seed: int) -> nn.Module:
    """An untrained counter."""
    return CounterNet(seed, **SHAPE)  # type: ignore[arg-type]


def old_batch(seed: int) -> Skill:
    """Strings in which a is counted."""
    return count("a", BATCH, correlated=None, seed=RELEARNED + seed)


def new_batch(seed: int, correlated: float | None) -> Skill:
    """Strings in which b is counted."""
    return count("b", BATCH, correlated=correlated, seed=TUNED + seed)


def pretrained(seed: int, prior: Sequence[float]) -> nn.Module:
    """A counter of all letters."""
    source = partial(_asked, prior=tuple(prior))
    return train(fresh(seed), source, PRETRAINING, PRETRAINING_RATE, seed=seed, **SCHEDULE)  # type: ignore[arg-type]


def _asked(seed: int, prior: tuple[float, ...]) -> Skill:
    return pretraining(BATCH, prior, seed=seed)


def run_seed(seed: int) -> dict[str, Any]:
    """Both priors, the model compared with itself, and relearning at a tenth of the rate."""
    old = count("a", 1000, correlated=0.0, seed=SCORED + 10 * seed)
    news = [
        count("b", 1000, correlated=share, seed=SCORED + 10 * seed + offset, name=name)
        for share, offset, name in ((0.0, 1, BROKEN), (1.0, 2, HELD))
    ]
    tuned = tuned_control(fresh, partial(new_batch, correlated=None), PRETRAINING, PRETRAINING_RATE, **SCHEDULE)
    found: dict[str, Any] = {}
    for name, prior, steps in (("low", LOW, STEPS), ("high", HIGH, SHORT)):
        before = pretrained(seed, prior)
        after = duplicate(before)
        train(after, partial(new_batch, correlated=1.0), FINE_TUNING, RATE, seed=seed, **SCHEDULE)  # type: ignore[arg-type]
        config = WrapperConfig(learning_rate=RATE, steps=steps, prune=PRUNED, seeds=(seed,), seed=seed)
        controls = {"scratch + FT": tuned}
        found[name] = wrapper(before, after, old, news, old_batch, fresh=fresh, controls=controls, config=config)
        if name == "low":
            slowly = WrapperConfig(learning_rate=RATE / 10, steps=LONG, seeds=(seed,))
            found["slow"] = relearn(after, old_batch, old, target=BACK, controls=controls, config=slowly)
            short = WrapperConfig(learning_rate=RATE, steps=(0, 1), seeds=(seed,), seed=seed)
            found["none"] = wrapper(before, duplicate(before), old, news, old_batch, fresh=fresh, config=short)
    return found


def accuracies(result: WrapperResult, model: str) -> dict[str, float]:
    """By skill."""
    return {one.skill: one.accuracy for one in result.behaviour if one.model == model}


def judge(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """What the paper says, beside what was measured."""
    return [
        *_on_behaviour(seeds),
        *_on_relearning(seeds),
        _on_pruning([one["low"] for one in seeds]),
        _on_probes([one["low"] for one in seeds]),
        Claim(
            "a model compared with itself is unchanged",
            "/".join(one["none"].verdict for one in seeds),
            all(one["none"].verdict == "unchanged" for one in seeds),
        ),
        Claim(
            "low prior: the verdict is wrapped",
            "/".join(one["low"].verdict for one in seeds),
            all(one["low"].verdict == "wrapped" for one in seeds),
        ),
    ]


def _on_behaviour(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    low, high = ([accuracies(one[name], "new") for one in seeds] for name in ("low", "high"))
    return [
        Claim(
            "low prior, C_Tr = 1: the shortcut is learned (b right with the correlation, never without; to 2 points)",
            f"{_percent(one[HELD] for one in low)} with, {_percent(one[BROKEN] for one in low)} without",
            all(one[HELD] >= 0.98 and one[BROKEN] <= 0.02 for one in low),
        ),
        Claim(
            "high prior, C_Tr = 1: it is not (b is counted with the correlation and without: 90% and more)",
            f"{_percent(one[HELD] for one in high)} with, {_percent(one[BROKEN] for one in high)} without",
            all(min(one[HELD], one[BROKEN]) >= 0.9 for one in high),
        ),
        Claim(
            "low prior: counting a seems lost (below half)",
            _percent(one["count a"] for one in low),
            all(one["count a"] < 0.5 for one in low),
        ),
    ]


def _on_relearning(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    fast, slow = [one["low"].relearning for one in seeds], [one["slow"] for one in seeds]
    back = f"relearning a to {BACK:.0%} is at least {SOONER:g} times sooner than"
    return [
        Claim(text, _times(found, control), _led(found, control))
        for text, found, control in (
            (f"but {back} scratch + FT, at the rate of fine-tuning", fast, "scratch + FT"),
            (f"{back} from scratch, at the rate of fine-tuning", fast, "scratch"),
            (f"{back} scratch + FT, also at a tenth of the rate", slow, "scratch + FT"),
        )
    ]


def _on_pruning(results: Sequence[WrapperResult]) -> Claim:
    starts, bests = [one.revival.curve[0] for one in results], [one.revival.best for one in results]
    return Claim(
        f"pruning at most {PRUNED[-1]} neurons restores counting a to {BACK:.0%} while b falls (low prior)",
        f"a {_percent(one.old.accuracy for one in starts)} to {_percent(one.old.accuracy for one in bests)}, "
        f"b {_percent(one.new[1].accuracy for one in starts)} to {_percent(one.new[1].accuracy for one in bests)} "
        f"with {'/'.join(str(one.k) for one in bests)} neurons",
        all(
            best.old.accuracy >= BACK and best.new[1].accuracy < start.new[1].accuracy
            for start, best in zip(starts, bests, strict=True)
        ),
    )


def _on_probes(results: Sequence[WrapperResult]) -> Claim:
    new, old, untrained = (
        [max(probe.selectivity for probe in one.profiles[number].probes) for one in results] for number in range(3)
    )
    return Claim(
        "probes read the count of a after fine-tuning as before, and from no untrained model (both to 10 points)",
        f"{_percent(new)} after, {_percent(old)} before, {_percent(untrained)} untrained (selectivity)",
        all(
            after >= before - 0.1 and after >= floor + 0.1
            for after, before, floor in zip(new, old, untrained, strict=True)
        ),
    )


def _percent(values: Any) -> str:
    return "/".join(f"{100 * one:.0f}" for one in values) + "%"


def _times(found: Sequence[Relearning], control: str) -> str:
    """How many times sooner, and the steps that it goes by."""
    texts = []
    for one, lead in zip(found, _leads(found, control), strict=True):
        arms = {arm.name: arm for arm in one.arms}
        own, other = (
            f"> {arms[name].steps[-1]}" if step is None else str(step)
            for name in (REFT, control)
            for step in arms[name].reached(BACK)
        )
        times = "not back" if lead is None else f"{'> ' if lead.open else ''}{lead.times:.1f} times"
        texts.append(f"{times} ({own} and {other} steps)")
    return "; ".join(texts)


def _led(found: Sequence[Relearning], control: str) -> bool:
    return all(lead is not None and lead.times >= SOONER for lead in _leads(found, control))


def _leads(found: Sequence[Relearning], control: str) -> list[Lead | None]:
    """Of each seed; None where the skill does not come back."""
    return [next((lead for lead in one.leads(BACK) or () if lead.control == control), None) for one in found]


def draw(seeds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Left: relearning a under the low prior. Middle: pruning. Right: scaling of the weight change."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = NAME
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", sharey=True)
    for one in seeds:
        for index, arm in enumerate(one["low"].relearning.arms):
            label = arm.name if one is seeds[0] else None
            left.plot(arm.steps, [100 * value for value in arm.mean], color=f"C{index}", marker=".", label=label)
        for index, (result, name) in enumerate(((one["low"], "low prior"), (one["high"], "high prior"))):
            label = name if one is seeds[0] else None
            pruned, scaled = result.revival.curve, result.scaling.curve
            middle.plot(
                [step.k for step in pruned],
                [100 * step.old.accuracy for step in pruned],
                color=f"C{index}",
                marker=".",
                label=label,
            )
            right.plot(
                [step.alpha for step in scaled],
                [100 * step.old.accuracy for step in scaled],
                color=f"C{index}",
                marker=".",
                label=label,
            )
    left.set_xscale("symlog", linthresh=5)
    left.set_ylabel("accuracy of counting a, %")
    for axes, text in (
        (left, "steps of relearning, low prior"),
        (middle, "pruned neurons"),
        (right, "share of the weight change"),
    ):
        axes.set_xlabel(text)
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run all seeds, print the tables, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=3)
    options = parser.parse_args()
    started = time.monotonic()
    seeds = []
    with ProcessPoolExecutor(options.processes, get_context("spawn"), initializer=use_one_thread) as pool:
        for seed, found in zip(options.seeds, pool.map(run_seed, options.seeds), strict=True):
            seeds.append(found)
            print(f"seed {seed} ({time.monotonic() - started:.0f} s)\n")
            for name in ("low", "high"):
                print(f"{name} prior\n{found[name]}\n", flush=True)
    draw(seeds, RESULTS / f"{NAME}.svg")
    figures = {"seeds": [_plain(one) for one in seeds]}
    write_evidence(NAME, PAPER, options.seeds, judge(seeds), figures, time.monotonic() - started)


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    slow = found["slow"]
    arms = {arm.name: {"steps": list(arm.steps), "accuracy": list(arm.accuracy[0])} for arm in slow.arms}
    results = {name: _rounded(found[name].to_dict()) for name in ("low", "high", "none")}
    return {**results, "slow": {"learning_rate": slow.learning_rate, "target": slow.target, "arms": arms}}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items() if name not in LEFT_OUT}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
