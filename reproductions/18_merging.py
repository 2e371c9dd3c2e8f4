"""Merging of fine-tuned models (arXiv:2409.03444, methods of its section on merging) on handwritten digits.

    python reproductions/18_merging.py [--seeds 0 1 2 3 4]

Two parents, fine-tuned from one start on digits of low contrast and on blurred ones, are merged by every method.
Numbers are accuracies on 500 test images; a method's synergy is its accuracy minus the mean of its parents'. A seed
decides the start weights, the order of images, the noise and the random masks; data stay.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import digits
import torch
from evidence import RESULTS, Claim, use_one_thread, write_evidence
from torch import nn

from uphold.merge.engine.tensors import merge_tensors

NAME, PAPER = "18_merging", "arXiv:2409.03444"
DOMAINS: tuple[digits.Corruption, ...] = ("contrast", "blur")
CLEAN, DOMAIN, TEST_NOISE = "clean", "both domains", 2024
POINTS = 0.02
"""By how much the merges that the claims name should beat the better parent on the mean of both domains."""
Scores = dict[str, float]
# Methods with their settings; `slerp` has the first parent as its base, all others the start.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear, t = 0.25": ("linear", {"weight": [0.75, 0.25]}),
    "linear, t = 0.5": ("linear", {"weight": [0.5, 0.5]}),
    "linear, t = 0.75": ("linear", {"weight": [0.25, 0.75]}),
    "slerp, t = 0.5": ("slerp", {"t": 0.5}),
    "nuslerp": ("nuslerp", {"weight": 1.0}),
    "multislerp": ("multislerp", {"weight": 1.0}),
    "karcher": ("karcher", {}),
    "task arithmetic, lambda 0.5": ("task_arithmetic", {"weight": 1.0, "lambda_": 0.5}),
    "task arithmetic, lambda 1": ("task_arithmetic", {"weight": 1.0, "lambda_": 1.0}),
    "ties, density 0.2": ("ties", {"weight": 1.0, "density": 0.2}),
    "ties, density 0.5": ("ties", {"weight": 1.0, "density": 0.5}),
    "ties, density 1": ("ties", {"weight": 1.0, "density": 1.0}),
    "ties of the paper, density 0.2": ("ties_paper", {"density": 0.2}),
    "ties of the paper, density 0.5": ("ties_paper", {"density": 0.5}),
    "dare_linear, density 0.5": ("dare_linear", {"weight": 0.5, "density": 0.5}),
    "dare_ties, density 0.5": ("dare_ties", {"weight": 0.5, "density": 0.5}),
    "breadcrumbs, density 0.8": ("breadcrumbs", {"weight": 0.5, "density": 0.8}),
    "della, density 0.5": ("della", {"weight": 0.5, "density": 0.5}),
    "model stock": ("model_stock", {}),
    "sce": ("sce", {}),
    "ram": ("ram", {}),
    "ram+": ("ramplus_tl", {}),
}
NO_BASE = ("linear", "nuslerp", "multislerp", "karcher")
THREE_LINEAR, THREE_STOCK = "linear, 3 parents", "model stock, 3 parents"
BETTER = ("linear, t = 0.5", "slerp, t = 0.5", "ties, density 0.5", "ties, density 1")


def scores(net: nn.Module, tests: Mapping[str, torch.Tensor], y: torch.Tensor) -> Scores:
    """Accuracies of a network on clean and damaged images, and the mean of both domains."""
    found = {name: digits.accuracy(net, x, y) for name, x in tests.items()}
    return found | {DOMAIN: sum(found[domain] for domain in DOMAINS) / len(DOMAINS)}


def run_seed(seed: int) -> dict[str, Scores]:
    """Accuracies of the parents and of every merge."""
    data = digits.load()
    tests = {CLEAN: data.test_x} | {kind: digits.corrupt(data.test_x, kind, TEST_NOISE) for kind in digits.CORRUPTIONS}
    start = digits.pretrained(seed)

    def tuned(kind: digits.Corruption) -> nn.Module:
        return digits.train(copy.deepcopy(start), data.train_x, data.train_y, seed=seed, corruption=kind)

    parents = {kind: tuned(kind) for kind in digits.CORRUPTIONS}
    found = {f"parent {kind}": scores(net, tests, data.test_y) for kind, net in parents.items()}
    pair = [parents[kind].state_dict() for kind in DOMAINS]
    three = [*pair, parents["noise"].state_dict()]
    base = start.state_dict()

    def measure(arm: str, method: str, models: list[dict[str, Any]], settings: Mapping[str, Any]) -> None:
        origin, used = (None if method in NO_BASE else base), models
        if method == "slerp":
            origin, used = models[0], models[1:]
        merged = copy.deepcopy(start)
        merged.load_state_dict(merge_tensors(method, used, base=origin, seed=seed, **settings))
        found[arm] = scores(merged, tests, data.test_y)

    for arm, (method, settings) in ARMS.items():
        measure(arm, method, pair, settings)
    measure(THREE_LINEAR, "linear", three, {"weight": 1.0})
    measure(THREE_STOCK, "model_stock", three, {})
    return found


def synergy(seed: Mapping[str, Scores], arm: str, test: str) -> float:
    """Accuracy of a merge of the two parents minus the mean of theirs."""
    return seed[arm][test] - sum(seed[f"parent {kind}"][test] for kind in DOMAINS) / len(DOMAINS)


def judge(seeds: Sequence[Mapping[str, Scores]]) -> list[Claim]:
    """The claims, each over the means of all seeds."""

    def values(arm: str, test: str = DOMAIN) -> list[float]:
        return [seed[arm][test] for seed in seeds]

    def mean(arm: str, test: str = DOMAIN) -> float:
        return sum(values(arm, test)) / len(seeds)

    best = [max(seed[f"parent {kind}"][DOMAIN] for kind in DOMAINS) for seed in seeds]
    lead = {arm: [one - other for one, other in zip(values(arm), best, strict=True)] for arm in BETTER}
    claims = [
        Claim(
            f"{arm}: at least {100 * POINTS:.0f} points above the better parent on both domains",
            f"{_points(lead[arm])}; in {sum(one >= POINTS for one in lead[arm])} of {len(seeds)} seeds",
            sum(lead[arm]) / len(seeds) >= POINTS,
        )
        for arm in BETTER
    ]
    for test in (CLEAN, *DOMAINS):
        gained = [synergy(seed, "slerp, t = 0.5", test) for seed in seeds]
        claims.append(Claim(f"SLERP beats the mean of its parents on {test} images", _points(gained), sum(gained) > 0))
    over = [
        one - other
        for one, other in zip(values("task arithmetic, lambda 1"), values("task arithmetic, lambda 0.5"), strict=True)
    ]
    near = [one - other for one, other in zip(values("slerp, t = 0.5"), values("linear, t = 0.5"), strict=True)]
    trim = [one - other for one, other in zip(values("ties, density 0.2"), values("ties, density 0.5"), strict=True)]
    stock = mean(THREE_STOCK) - mean(THREE_LINEAR)
    return [
        *claims,
        Claim("adding both changes whole (lambda 1) overshoots lambda 0.5", _points(over), sum(over) < 0),
        Claim(
            "SLERP and the linear mean are within a point: fine-tunes of one start lie close together",
            _points(near),
            max(map(abs, near)) <= 0.01,
        ),
        Claim("TIES with density 0.2 is below density 0.5", _points(trim), sum(trim) < 0),
        Claim("Model Stock of three parents is below their linear mean", f"{100 * stock:+.1f} points", stock < 0),
    ]


def _points(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{100 * mean:+.1f} points ({100 * min(values):+.1f} to {100 * max(values):+.1f})"


def draw(figures: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Accuracy on one domain against the other, a dot for the mean of each arm."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = NAME
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, (arm, rates) in enumerate(figures.items()):
        x, y = (100 * sum(rates[domain]) / len(rates[domain]) for domain in DOMAINS)
        mark = "s" if arm.startswith("parent") else "oD^v"[index // 10 % 4]
        axes.scatter(x, y, marker=mark, color=f"C{index % 10}", edgecolor="black", linewidth=0.5, s=55, label=arm)
    axes.set_xlabel("accuracy on images of low contrast, %")
    axes.set_ylabel("accuracy on blurred images, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run all seeds, print the tables, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    use_one_thread()
    started = time.monotonic()
    seeds = []
    for seed in options.seeds:
        seeds.append(run_seed(seed))
        print(f"seed {seed} ({time.monotonic() - started:.0f} s)", flush=True)
    tests = (CLEAN, *DOMAINS, DOMAIN)
    figures = {arm: {test: [round(seed[arm][test], 4) for seed in seeds] for test in tests} for arm in seeds[0]}
    print(f"\n{'mean over seeds, %':<34}" + "".join(f"{test:>14}" for test in tests) + f"{'synergy':>10}")
    for arm, rates in figures.items():
        row = "".join(f"{100 * sum(rates[test]) / len(seeds):>14.1f}" for test in tests)
        gained = sum(synergy(seed, arm, DOMAIN) for seed in seeds) / len(seeds) if arm in ARMS else None
        print(f"{arm:<34}{row}" + (f"{100 * gained:>+10.1f}" if gained is not None else ""))
    print()
    draw(figures, RESULTS / f"{NAME}.svg")
    write_evidence(NAME, PAPER, options.seeds, judge(seeds), figures, time.monotonic() - started)


if __name__ == "__main__":
    main()
