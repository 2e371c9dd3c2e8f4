"""Robust weight signatures (arXiv:2302.12480) on handwritten digits: patch, dial, transfer, compose, quantise, undo.

    python reproductions/06_signatures.py [--seeds 0 1 2]

A seed decides the start weights, the order of images and the noise of training; data and test noise stay. Numbers are
accuracies on 500 test images: clean (TA) and damaged (RA).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import digits
import torch
from evidence import RESULTS, use_one_thread, write_evidence
from signature_claims import BUDGET, CLEAN, QUANTISERS, STRONG, judge
from torch import nn

from uphold.models.forward_order import Unit, forward_order
from uphold.models.patches.apply import apply
from uphold.models.patches.make import make
from uphold.models.patches.patch import Patch, pristine_hashes
from uphold.repair.signature_choice import Effect, choose, effects
from uphold.repair.signatures import coefficients, layer_sizes, restricted, signature, transfer

NAME, PAPER = "06_signatures", "arXiv:2302.12480"
TEST_NOISE, FEW, ALL, RAW = 2024, 3, 6, 6
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25)
WHOLE = slice(None)
Tests = Mapping[str, Callable[[nn.Module], list[bool]]]


def tests_on(data: digits.Digits, part: slice) -> dict[str, Callable[[nn.Module], list[bool]]]:
    """Which test images a network tells right: clean, and under every kind of damage."""
    y = data.test_y[part]
    images = {CLEAN: data.test_x[part]}
    images |= {kind: digits.corrupt(data.test_x, kind, TEST_NOISE)[part] for kind in digits.CORRUPTIONS}

    def right(x: torch.Tensor) -> Callable[[nn.Module], list[bool]]:
        def answers(net: nn.Module) -> list[bool]:
            with torch.inference_mode():
                return (net(x).argmax(dim=1) == y).tolist()

        return answers

    return {name: right(x) for name, x in images.items()}


def shares(net: nn.Module, tests: Tests) -> dict[str, float]:
    """Accuracies of a network."""
    answers = {name: test(net) for name, test in tests.items()}
    return {name: sum(one) / len(one) for name, one in answers.items()}


class Trained:
    """Start, clean and robust networks on some digits, and their signatures."""

    def __init__(self, start: nn.Module, data: digits.Digits, seed: int) -> None:
        """Train them."""
        self.start = start

        def tuned(corruption: digits.Corruption | None) -> nn.Module:
            net = copy.deepcopy(start)
            return digits.train(net, data.train_x, data.train_y, seed=seed, corruption=corruption)

        self.standard = tuned(None)
        self.robust = {kind: tuned(kind) for kind in digits.CORRUPTIONS}
        self.order: Sequence[Unit] = forward_order(self.standard, data.test_x[:1])
        self.signatures = {
            kind: signature(start, self.standard, net, layers=ALL, order=self.order)
            for kind, net in self.robust.items()
        }


def after(
    net: nn.Module,
    patches: Sequence[Patch],
    tests: Tests,
    strengths: Sequence[float] | None = None,
    force: bool = False,
) -> dict[str, float]:
    """Accuracies of a patched network."""
    with apply(net, patches, strengths=strengths, force=force):
        return shares(net, tests)


def run_seed(seed: int) -> dict[str, Any]:
    """Everything of one seed, as plain numbers."""
    data = digits.load()
    tests, start = tests_on(data, WHOLE), digits.pretrained(seed)
    whole = Trained(start, data, seed)
    found: dict[str, Any] = {"start": shares(start, tests), "standard": shares(whole.standard, tests)}
    hashes = pristine_hashes(whole.standard.state_dict(), list(whole.standard.state_dict()))
    for kind, patch in whole.signatures.items():
        few = restricted(patch, FEW)
        found[kind] = {
            "robust model": shares(whole.robust[kind], tests),
            "3 layers": after(whole.standard, [few], tests),
            "6 layers": after(whole.standard, [patch], tests),
            "effects": [one.to_dict() for one in _effects(whole, few, kind, tests)],
            "sizes": list(layer_sizes(patch).values()),
            "strengths": {str(a): after(whole.standard, [patch], tests, [a]) for a in STRENGTHS},
            "quantised": {how: _quantised(whole, kind, how, tests) for how in QUANTISERS},
            "bytes": few.nbytes,
        }
    pair = [whole.signatures[kind] for kind in STRONG]
    found["composed"] = after(whole.standard, pair, tests, coefficients(pair))
    found["authors"] = after(whole.standard, pair, tests, coefficients(pair, compat="authors"))
    found["updated"] = _updated(whole, data, seed, tests)
    found["transfer"] = _transfer(start, data, seed)
    found["projection"] = {
        "start of 12 epochs": _projection(whole, tests),
        f"start of {RAW} epochs": _projection(Trained(digits.pretrained(seed, epochs=RAW), data, seed), tests),
    }
    found["chosen"] = {kind: _chosen(whole, data, kind) for kind in digits.CORRUPTIONS}
    found["restored"] = hashes == pristine_hashes(whole.standard.state_dict(), list(hashes))
    found["bytes"] = sum(one.nbytes for one in whole.standard.state_dict().values())
    return found


def _projection(whole: Trained, tests: Tests) -> dict[str, Any]:
    """The ablation: signatures of all convolutions beside the plain difference of robust and standard weights."""
    names = [name for unit in whole.order[:ALL] for name in unit.tensors]
    found: dict[str, Any] = {"standard": shares(whole.standard, tests)}
    for kind, patch in whole.signatures.items():
        plain = make(whole.standard, whole.robust[kind], names=names)
        found[kind] = {
            "signature": after(whole.standard, [patch], tests),
            "difference": after(whole.standard, [plain], tests),
        }
    return found


def _effects(whole: Trained, patch: Patch, kind: str, tests: Tests) -> tuple[Effect, ...]:
    return effects(whole.standard, [patch], {name: tests[name] for name in (CLEAN, kind)})


def _quantised(whole: Trained, kind: digits.Corruption, how: str, tests: Tests) -> dict[str, float]:
    few = signature(whole.start, whole.standard, whole.robust[kind], layers=FEW, order=whole.order, quantiser=how)
    return {**after(whole.standard, [few], tests), "bytes": few.nbytes}


def _updated(whole: Trained, data: digits.Digits, seed: int, tests: Tests) -> dict[str, Any]:
    """A later backbone, six more clean epochs, with the old signatures."""
    later = digits.train(copy.deepcopy(whole.standard), data.train_x, data.train_y, epochs=6, seed=seed + 1000)
    patched = {
        kind: after(later, [restricted(patch, FEW)], tests, force=True) for kind, patch in whole.signatures.items()
    }
    return {"before": shares(later, tests), **patched}


def _transfer(start: nn.Module, data: digits.Digits, seed: int) -> dict[str, Any]:
    """Signatures of the digits 0 to 4 on a network for the digits 5 to 9."""
    low, high = Trained(start, data.only(range(5)), seed), Trained(start, data.only(range(5, 10)), seed)
    tests = tests_on(data.only(range(5, 10)), WHOLE)
    found: dict[str, Any] = {"before": shares(high.standard, tests)}
    for kind, patch in low.signatures.items():
        found[kind] = {
            "other": after(high.standard, [restricted(patch, FEW)], tests, force=True),
            "other, 2 layers": after(high.standard, [restricted(patch, 2)], tests, force=True),
            "own": after(high.standard, [restricted(high.signatures[kind], FEW)], tests),
            "cosines": {one.name: one.cosine for one in transfer(patch, high.signatures)},
        }
    return found


def _chosen(whole: Trained, data: digits.Digits, kind: digits.Corruption) -> dict[str, Any]:
    """Layers and strength chosen on one half of the test images, measured on the other."""
    half = len(data.test_y) // 2
    validation, tests = tests_on(data, slice(half)), tests_on(data, slice(half, None))
    choice = choose(
        whole.standard,
        whole.start,
        whole.standard,
        whole.robust[kind],
        clean=lambda net: shares(net, validation)[CLEAN],
        robustness=lambda net: shares(net, validation)[kind],
        budget=BUDGET,
        order=whole.order,
        layers=range(1, ALL + 1),
    )
    found: dict[str, Any] = {"before": shares(whole.standard, tests), "chosen": None}
    if choice.patch is not None and choice.chosen is not None:
        found["chosen"] = {"layers": choice.chosen.layers, "strength": choice.chosen.strength}
        found["after"] = after(whole.standard, [choice.patch], tests)
    return found


def draw(seeds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Left: TA against RA, standard to patched to robust. Right: where signatures lie."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = NAME
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for index, kind in enumerate(digits.CORRUPTIONS):
        color = f"C{index}"
        stages = [
            (one["standard"], one[kind]["3 layers"], one[kind]["6 layers"], one[kind]["robust model"]) for one in seeds
        ]
        means = [
            [100 * sum(stage[place][name] for stage in stages) / len(stages) for place in range(4)]
            for name in (kind, CLEAN)
        ]
        left.plot(*means, color=color, linewidth=1, zorder=1)
        for place, mark in enumerate("os^D"):
            left.scatter(
                means[0][place],
                means[1][place],
                color=color,
                marker=mark,
                s=45,
                edgecolor="black",
                linewidth=0.5,
                label=("standard", "3 layers", "6 layers", "robust model")[place] if index == 0 else None,
            )
        for one in seeds:
            right.plot(range(1, ALL + 1), one[kind]["sizes"], color=color, alpha=0.35, linewidth=1)
        mean = [sum(one[kind]["sizes"][layer] for one in seeds) / len(seeds) for layer in range(ALL)]
        right.plot(range(1, ALL + 1), mean, color=color, marker="o", markersize=4, label=kind)
    left.set_xlabel("accuracy on damaged digits (RA), %")
    left.set_ylabel("accuracy on clean digits (TA), %")
    left.legend(fontsize=8, frameon=False)
    right.set_xlabel("convolution, in forward order")
    right.set_ylabel("|R| / |w|")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run all seeds, print the tables, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    use_one_thread()
    started = time.monotonic()
    seeds = []
    for seed in options.seeds:
        found = run_seed(seed)
        seeds.append(found)
        print(f"seed {seed} ({time.monotonic() - started:.0f} s), TA / RA in %")
        for kind in digits.CORRUPTIONS:
            arms = {
                "standard": found["standard"],
                **{arm: found[kind][arm] for arm in ("robust model", "3 layers", "6 layers")},
            }
            cells = "  ".join(f"{arm} {100 * one[CLEAN]:.0f}/{100 * one[kind]:.0f}" for arm, one in arms.items())
            print(f"  {kind:<10}{cells}", flush=True)
    print()
    draw(seeds, RESULTS / f"{NAME}.svg")
    figures = {"seeds": [_rounded(one) for one in seeds]}
    write_evidence(NAME, PAPER, options.seeds, judge(seeds), figures, time.monotonic() - started)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
