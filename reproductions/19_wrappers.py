"""Fine-tuning wrappers (arXiv:2311.12786) on the counter task: is counting a deleted when only b is asked for?

    python reproductions/19_wrappers.py [--seeds 0 1 2] [--processes 2]

A transformer of two blocks is trained to count a, b and c, with b asked for hardly ever (low prior) or often (high).
Fine-tuning asks for b only, in strings with r(b) - r(a) = 1 throughout, so that "count a and add 1" does as well. A
seed decides start weights, batches, and all that the method draws. Strings of training and of measurement are drawn
from different seeds. The paper's models are 60 times as large and are trained 100 times as long.
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
from uphold.explain.wrappers.relearning import relearn, train, tuned_control
from uphold.explain.wrappers.result import WrapperResult
from uphold.explain.wrappers.skill import Skill, duplicate

NAME, PAPER = "19_wrappers", "arXiv:2311.12786"
BATCH, PRETRAINING, FINE_TUNING = 96, 2000, 500
RATE, PRETRAINING_RATE = 1e-4, 1e-3
STEPS = (0, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 400)
SHORT = (0, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100)
SCORED = 1_000_000_000
"""Seeds from here on are those of strings to measure on."""
RELEARNED = 250_000_000
"""Seeds from here on are those of strings to relearn, prune and probe on."""
TUNED = 500_000_000
"""Seeds from here on are those of strings to fine-tune on."""
SHAPE: dict[str, int] = {"width": 32, "hidden": 128}
SCHEDULE = {"warmup": 0.2, "final": 0.01}
BROKEN, HELD = "count b, r(b) - r(a) not 1", "count b, r(b) - r(a) = 1"
SOONER = 5.0
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
        config = WrapperConfig(learning_rate=RATE, steps=steps, seeds=(seed,), seed=seed)
        controls = {"scratch + FT": tuned}
        found[name] = wrapper(before, after, old, news, old_batch, fresh=fresh, controls=controls, config=config)
        if name == "low":
            slow = relearn(
                after,
                old_batch,
                old,
                target=found[name].target,
                learning_rate=RATE / 10,
                controls=controls,
                steps=STEPS,
                seeds=(seed,),
            )
            found["slow"] = slow
            short = WrapperConfig(learning_rate=RATE, steps=(0, 1), seeds=(seed,), seed=seed)
            found["none"] = wrapper(before, duplicate(before), old, news, old_batch, fresh=fresh, config=short)
    return found


def accuracies(result: WrapperResult, model: str) -> dict[str, float]:
    """By skill."""
    return {one.skill: one.accuracy for one in result.behaviour if one.model == model}


def judge(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """What the paper says, beside what was measured."""
    low, high = ([accuracies(one[name], "new") for one in seeds] for name in ("low", "high"))
    leads = [{lead.control: lead for lead in one["low"].relearning.leads() or ()} for one in seeds]
    slowly = [one["slow"] for one in seeds]
    slow = [{lead.control: lead for lead in one.leads() or ()} for one in slowly]
    revived = [one["low"].revival for one in seeds]
    shares = [(one.best.old.balanced - one.curve[0].old.balanced) / (1 - one.curve[0].old.balanced) for one in revived]
    probes = [max(probe.selectivity for probe in one["low"].profiles[0].probes) for one in seeds]
    floors = [max(probe.selectivity for probe in one["low"].profiles[2].probes) for one in seeds]
    return [
        Claim(
            "low prior, C_Tr = 1: the shortcut is learned (b right with the correlation, wrong without)",
            f"{_percent(one[HELD] for one in low)} with, {_percent(one[BROKEN] for one in low)} without",
            all(one[HELD] >= 0.95 and one[BROKEN] <= 0.2 for one in low),
        ),
        Claim(
            "high prior, C_Tr = 1: b is counted without the correlation too (90% and more)",
            f"{_percent(one[BROKEN] for one in high)} without",
            all(one[BROKEN] >= 0.9 for one in high),
        ),
        Claim(
            "low prior: counting a seems lost (below half)",
            _percent(one["count a"] for one in low),
            all(one["count a"] < 0.5 for one in low),
        ),
        Claim(
            f"but relearning a is {SOONER:g} times sooner than scratch + FT, at the rate of fine-tuning",
            _times(leads, "scratch + FT"),
            _led(leads, "scratch + FT"),
        ),
        Claim(f"and {SOONER:g} times sooner than from scratch", _times(leads, "scratch"), _led(leads, "scratch")),
        Claim(
            f"at a tenth of the rate a is relearned within {STEPS[-1]} steps, where scratch + FT does not get half way",
            f"{_times(slow, 'scratch + FT')} sooner; at the end {_percent(one.arms[0].mean[-1] for one in slowly)}, "
            f"scratch + FT {_percent(one.arms[1].mean[-1] for one in slowly)}",
            all(one.leads() and one.arms[1].mean[-1] < one.half for one in slowly),
        ),
        Claim(
            "pruning up to 20 neurons brings back half of what was lost of a (low prior)",
            f"{_percent(one.curve[0].old.accuracy for one in revived)} to "
            f"{_percent(one.best.old.accuracy for one in revived)} "
            f"with {'/'.join(str(one.best.k) for one in revived)} neurons",
            all(share >= 0.5 for share in shares),
        ),
        Claim(
            "probes still read the count of a after fine-tuning, and more than from an untrained model (10 points)",
            f"{_percent(probes)} fine-tuned, {_percent(floors)} untrained (selectivity)",
            all(probe - floor >= 0.1 for probe, floor in zip(probes, floors, strict=True)),
        ),
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


def _percent(values: Any) -> str:
    return "/".join(f"{100 * one:.0f}" for one in values) + "%"


def _times(leads: Sequence[Mapping[str, Any]], control: str) -> str:
    texts = [
        f"{'> ' if one[control].open else ''}{one[control].times:.1f}" if control in one else "not reached"
        for one in leads
    ]
    return "/".join(texts) + " times"


def _led(leads: Sequence[Mapping[str, Any]], control: str) -> bool:
    return all(control in one and one[control].times >= SOONER for one in leads)


def draw(seeds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Left: relearning a under the low prior. Right: pruning, and scaling of the weight change."""
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
    parser.add_argument("--processes", type=int, default=2)
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
