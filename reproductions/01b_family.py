"""All repair methods on the embedded pair, several seeds, on one Pareto plot: accuracy against NFR.

    python reproductions/01b_family.py [--seeds 0 1 2] [--methods muscle kd ...]

A seed decides fresh adapter weights and data order; the two bases and the data stay. Every method runs with the
options of the task's recipe. An interrupted run goes on where it stopped (state in build/reproductions/01b_family).
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from evidence import (
    RESULTS,
    WORK,
    Claim,
    Figures,
    mean_and_spread,
    print_arms,
    rates_of,
    use_one_thread,
    value,
    write_evidence,
)

import uphold
from uphold.core.registry import method, methods
from uphold.core.runs import RunStore
from uphold.measure import Comparison
from uphold.repair import AdaptConfig
from uphold.repair.recipe import configure

NAME, TASK = "01b_family", "demo"
PAPER = "arXiv:2407.09435 and the methods it is compared with"
PLAIN, CE, NEW = "plain update", "control: cross-entropy only", "control: new teacher only"
WITH_CONTROLS, OURS, PARAGON = "muscle", "uphold", "ensemble"
OTHER_INPUT = ("recorded", "cross-vocabulary")
"""Methods that start from something else than two models with one tokenizer."""


def adapted(seed: int, version: str) -> str:
    """The reference of a base with its task adapter, trained where needed."""
    config = replace(configure(AdaptConfig(), "adapt", TASK), seed=seed)
    return uphold.adapt(
        f"embedded:{version}", TASK, out=WORK / NAME / f"seed-{seed}" / version, config=config
    ).reference


class Made(NamedTuple):
    """What one method made with one seed."""

    arms: dict[str, Comparison]
    """The old model against the repair, the controls and the plain update, as far as the method ran them."""
    form: str
    """What is deployed: an adapter, weights, or a pair of models."""
    seconds: float


def run(name: str, seed: int) -> Made:
    """One method with one seed."""
    folder, started = WORK / NAME / f"seed-{seed}", time.monotonic()
    found = method("repair", name)
    assert found.config is not None
    config = configure(found.config(), name, TASK)
    wanted = {"seed": seed, "controls": name == WITH_CONTROLS}
    known = {entry.name for entry in fields(config)}
    config = replace(config, **{key: value for key, value in wanted.items() if key in known})
    result = found.function(
        adapted(seed, "v1"),
        adapted(seed, "v2"),
        TASK,
        out=folder / name,
        config=config,
        store=RunStore(folder / "store"),
    )
    arms = {name: result.repaired.comparison} | {arm.label: arm.comparison for arm in result.arms if arm.control}
    plain = {PLAIN: result.before} if name == WITH_CONTROLS else {}
    return Made(arms | plain, result.form, round(time.monotonic() - started, 1))


def judge(arms: dict[str, list[Comparison]]) -> list[Claim]:
    """The claims, each over the means of all seeds."""

    def mean(arm: str, rate: str) -> float:
        return sum(value(one, rate) for one in arms[arm]) / len(arms[arm])

    def relative(arm: str) -> float:
        return mean(arm, "nfr") / mean(PLAIN, "nfr") - 1

    def cost(arm: str) -> float:
        return mean(arm, "accuracy_new") - mean(PLAIN, "accuracy_new")

    claims = [
        Claim(
            "the update breaks answers and gains on average",
            f"gain {mean_and_spread([value(one, 'gain') for one in arms[PLAIN]])}, "
            f"NFR {mean_and_spread([value(one, 'nfr') for one in arms[PLAIN]])}",
            all((one["gain"].value or 0) > 0 for one in arms[PLAIN]),
        ),
        *(
            Claim(
                f"{name} lowers NFR by more than training on does",
                f"{relative(name):+.1%} at {100 * cost(name):+.2f} points of accuracy; control {relative(CE):+.1%}",
                relative(name) < min(0.0, relative(CE)),
            )
            for name in arms
            if name not in (PLAIN, CE, NEW)
        ),
    ]
    if OURS in arms and PARAGON in arms:
        half = (mean(PLAIN, "nfr") + mean(PARAGON, "nfr")) / 2
        claims += [
            Claim(
                f"{OURS} goes at least half of the way from the plain update to both models side by side",
                f"NFR {100 * mean(OURS, 'nfr'):.2f}, half of the way is {100 * half:.2f}",
                mean(OURS, "nfr") <= half,
            ),
            Claim(f"{OURS} costs no accuracy", f"{100 * cost(OURS):+.2f} points", cost(OURS) >= 0),
        ]
    return claims


def draw(figures: Figures, forms: dict[str, str], path: Path) -> None:
    """Accuracy against NFR: a dot per seed, a labelled mark for the mean, and the front that no method beats."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = NAME
    figure, axes = plt.subplots(figsize=(8.5, 5.5), layout="constrained")
    means = {}
    for index, (arm, rates) in enumerate(figures.items()):
        accuracy, nfr = ([100 * one for one in rates[name]] for name in ("accuracy_new", "nfr"))
        means[arm] = (sum(accuracy) / len(accuracy), sum(nfr) / len(nfr))
        color = f"C{index % 10}"
        axes.scatter(accuracy, nfr, s=10, alpha=0.35, color=color)
        mark = "D" if arm not in forms else "s" if forms[arm] == "pair" else "o"
        axes.scatter(*means[arm], s=55, marker=mark, color=color, edgecolor="black", linewidth=0.6, zorder=3)
        axes.annotate(arm, means[arm], xytext=(5, 4), textcoords="offset points", fontsize=7.5)
    front = [
        point
        for point in sorted(means.values())
        if not any(x >= point[0] and y <= point[1] and (x, y) != point for x, y in means.values())
    ]
    axes.step(*zip(*front, strict=True), where="pre", color="grey", linewidth=0.8, linestyle="--", zorder=1)
    axes.set_xlabel("test accuracy, %")
    axes.set_ylabel("NFR against the old model, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run every method with every seed, print the table, write the evidence."""
    known = [entry.name for entry in methods("repair") if entry.name not in OTHER_INPUT]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=known, choices=known)
    options = parser.parse_args()
    started = time.monotonic()
    # Models this small keep one core busy each: processes side by side are faster than threads.
    with ProcessPoolExecutor(os.cpu_count() or 1, get_context("spawn"), initializer=use_one_thread) as pool:
        list(
            pool.map(
                adapted, *zip(*((seed, version) for seed in options.seeds for version in ("v1", "v2")), strict=True)
            )
        )
        pending: dict[str, list[Future[Made]]] = {
            name: [pool.submit(run, name, seed) for seed in options.seeds]
            for name in dict.fromkeys([WITH_CONTROLS, *options.methods])
        }
        arms: dict[str, list[Comparison]] = {}
        seconds: dict[str, list[float]] = {}
        forms: dict[str, str] = {}
        for name, futures in pending.items():
            for future in futures:
                made = future.result()
                seconds.setdefault(name, []).append(made.seconds)
                forms[name] = made.form
                for arm, comparison in made.arms.items():
                    arms.setdefault(arm, []).append(comparison)
            print(f"{name}: {', '.join(f'{spent:.0f} s' for spent in seconds[name])}", flush=True)
    order = [PLAIN, CE, NEW, *sorted(pending, key=lambda name: -sum(value(one, "nfr") for one in arms[name]))]
    figures = rates_of({arm: arms[arm] for arm in order})
    print_arms(figures, PLAIN)
    draw(figures, forms, RESULTS / f"{NAME}.svg")
    write_evidence(
        NAME,
        PAPER,
        options.seeds,
        judge({arm: arms[arm] for arm in order}),
        figures | {"forms": forms},
        time.monotonic() - started,
    )


if __name__ == "__main__":
    main()
