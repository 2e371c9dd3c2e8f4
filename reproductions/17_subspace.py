"""The subspace illusion (arXiv:2311.17030): a toy network worked out exactly, and digits 3 and 8 with two kinds of MLP.

    python reproductions/17_subspace.py [--seeds 0 1 2]

A residual network r = E x, h = gelu(I r), logits = R (r + O h) of 16 residual and 512 hidden numbers. In the first
setting I and O stay as drawn, so that the MLP knows nothing of the classes; in the second all is trained. Directions of
h are found by DAS on pairs of training images and measured on pairs of other images. A seed decides start weights,
pairs, and all that the method draws.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import digits
import torch
from evidence import RESULTS, Claim, use_one_thread, write_evidence
from torch import nn
from torch.nn import functional

from uphold.explain.subspace import subspace
from uphold.explain.subspaces.config import SubspaceConfig
from uphold.explain.subspaces.pairs import Pairs
from uphold.explain.subspaces.result import SubspaceResult

NAME, PAPER, REPLY = "17_subspace", "arXiv:2311.17030", "arXiv:2401.12631"
CLASSES = range(3, 9, 5)
RESIDUAL, HIDDEN, STEPS, LR = 16, 512, 300, 3e-3
RANDOM, TRAINED = "random MLP", "trained MLP"
SITE = "module<down"
ROWS = ("full", "patch", "row", "null", "row-read", "null-read", "row, unscaled", "placebo", "arbitrary labels")


class Residual(nn.Module):
    """A network with one MLP beside its residual stream."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Linear(64, RESIDUAL, bias=False)
            self.up = nn.Linear(RESIDUAL, HIDDEN)
            self.down = nn.Linear(HIDDEN, RESIDUAL, bias=False)
            self.read = nn.Linear(RESIDUAL, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images of shape (n, 64) to logits of shape (n, 2)."""
        stream = self.embed(x)
        logits: torch.Tensor = self.read(stream + self.down(functional.gelu(self.up(stream))))
        return logits


class Toy(nn.Module):
    """x -> h = x (1, 0, 1) -> h.(0, 2, 1); the answer is whether that is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.tensor([[1.0], [0.0], [1.0]]))
            self.down.weight.copy_(torch.tensor([[0.0, 2.0, 1.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Numbers of shape (n, 1) to logits of shape (n, 2): -y and y."""
        y = self.down(self.up(x))
        return torch.cat([-y, y], dim=1)


def trained(seed: int, frozen: bool, x: torch.Tensor, y: torch.Tensor) -> Residual:
    """A network; `frozen` leaves the MLP as it was drawn."""
    net = Residual(seed)
    for layer in (net.up, net.down):
        layer.requires_grad_(not frozen)
    solver = torch.optim.Adam([weight for weight in net.parameters() if weight.requires_grad], lr=LR)
    for _ in range(STEPS):
        loss = functional.cross_entropy(net(x), y)
        solver.zero_grad()
        loss.backward()
        solver.step()
    return net.eval()


def pairs_of(net: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int) -> Pairs:
    """Every image that the network gets right as a base, each with a drawn source of the other class, right as well."""
    with torch.inference_mode():
        right = (net(x).argmax(1) == y).nonzero()[:, 0]
    x, y = x[right], y[right]
    generator = torch.Generator().manual_seed(seed)
    source = torch.empty(len(y), dtype=torch.long)
    for label in (0, 1):
        bases, others = (y == label).nonzero()[:, 0], (y != label).nonzero()[:, 0]
        source[bases] = others[torch.randint(len(others), (len(bases),), generator=generator)]
    return Pairs(x, x[source], y, 1 - y)


def run_toy() -> dict[str, SubspaceResult]:
    """The three directions of the toy network, and the illusory one."""
    x = torch.linspace(0.5, 2, 40)[:, None]
    sign = torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0)[:, None]
    base, source = x * sign, -x.flip(0) * sign
    pairs = Pairs(base, source, (base[:, 0] > 0).long(), (source[:, 0] > 0).long())
    directions = {"e1": [1.0, 0, 0], "e2": [0, 1.0, 0], "e3": [0, 0, 1.0], "(e1 + e2) / sqrt 2": [1.0, 1.0, 0]}
    return {name: subspace(Toy(), SITE, pairs, basis=torch.tensor(direction)) for name, direction in directions.items()}


def run_seed(seed: int) -> dict[str, tuple[SubspaceResult, float]]:
    """Both settings: the result, and the accuracy on test images."""
    data = digits.load().only(CLASSES)
    x, y = data.train_x.flatten(1), (data.train_y == CLASSES[1]).long()
    test_x, test_y = data.test_x.flatten(1), (data.test_y == CLASSES[1]).long()
    found = {}
    for name in (RANDOM, TRAINED):
        net = trained(seed, name == RANDOM, x, y)
        train, test = pairs_of(net, x, y, seed), pairs_of(net, test_x, test_y, seed)
        # One batch of all pairs: 400 steps.
        config = SubspaceConfig(epochs=400, batch=len(train), seed=seed, rows=len(test))
        result = subspace(net, SITE, test, train=train, fresh=Residual(seed + 1000), config=config)
        with torch.inference_mode():
            accuracy = float((net(test_x).argmax(1) == test_y).double().mean())
        found[name] = (result, accuracy)
    return found


def fldd(result: SubspaceResult, name: str) -> float:
    """One number of a result."""
    return result.effect(name).fldd


def judge(toy: dict[str, SubspaceResult], seeds: list[dict[str, tuple[SubspaceResult, float]]]) -> list[Claim]:
    """The claims; each has to hold in every seed."""
    random, good = ([one[name][0] for one in seeds] for name in (RANDOM, TRAINED))

    def each(results: list[SubspaceResult], *names: str) -> str:
        shown = []
        for name in names:
            values = [fldd(one, name) for one in results]
            shown.append(f"{name} {min(values):.2f} to {max(values):.2f}")
        return ", ".join(shown)

    faithful, illusory = toy["e3"], toy["(e1 + e2) / sqrt 2"]
    dead = max(abs(fldd(toy[name], "patch")) for name in ("e1", "e2"))
    exact = abs(fldd(illusory, "patch") - fldd(illusory, "full")) < 1e-5 and dead < 1e-6
    unscaled = fldd(faithful, "row, unscaled") / fldd(faithful, "patch")
    null = max(abs(fldd(one, "null")) for one in (*random, *good))
    shares = [one.fits[0].held_out for one in random]
    return [
        Claim(
            "toy: (e1 + e2) / sqrt 2 does all that the feature does, e1 and e2 alone nothing",
            f"FLDD {fldd(illusory, 'patch'):.3f} (whole h {fldd(illusory, 'full'):.3f}), e1 and e2 at most {dead:.1e}",
            exact,
        ),
        Claim(
            "toy: the read/write swap tells it from the good direction e3 (less of the effect is read from the kernel)",
            f"null-read share {_null_share(illusory):.0%} and {_null_share(faithful):.0%}; "
            f"verdicts {illusory.verdict} and {faithful.verdict}",
            _null_share(faithful) < _null_share(illusory),
        ),
        Claim(
            f"toy: the unscaled row patch keeps 20% of the good direction ({REPLY})",
            f"{unscaled:.1%}",
            abs(unscaled - 0.2) < 1e-5,
        ),
        Claim(
            "random MLP: a direction flips what the whole MLP does not (v at least 4 x full)",
            each(random, "patch", "full"),
            all(fldd(one, "patch") >= 4 * fldd(one, "full") for one in random),
        ),
        Claim(
            "random MLP: it is not its row part (v at least 4 x row)",
            each(random, "patch", "row"),
            all(fldd(one, "patch") >= 4 * fldd(one, "row") for one in random),
        ),
        Claim(
            "random MLP: it reads from the kernel (null-read at least 5 x row-read)",
            each(random, "null-read", "row-read"),
            all(fldd(one, "null-read") >= 5 * fldd(one, "row-read") for one in random),
        ),
        Claim(
            "trained MLP: the row part does at least what v does",
            each(good, "row", "patch"),
            all(fldd(one, "row") >= fldd(one, "patch") for one in good),
        ),
        Claim(
            "trained MLP: it reads what the network transmits (row-read at least 5 x null-read)",
            each(good, "row-read", "null-read"),
            all(fldd(one, "row-read") >= 5 * fldd(one, "null-read") for one in good),
        ),
        Claim("the null patch does nothing, in either", f"at most {null:.1e}", null < 1e-4),
        Claim(
            "the verdict tells the settings apart in every seed",
            f"random {sorted({one.verdict for one in random})}, trained {sorted({one.verdict for one in good})}",
            all(one.verdict == "illusory" for one in random) and all(one.verdict == "faithful" for one in good),
        ),
        Claim(
            "to first order, one direction feigns more than the random MLP has (illusion gap above 1, without DAS)",
            f"random {_ratios(random)}, trained {_ratios(good)}",
            all(one.gap.ratio is None or one.gap.ratio > 1 for one in random),
        ),
        Claim(
            f"random MLP: answers change, so that nothing-found ({REPLY}) is not the reading here",
            f"IIA {min(shares):.2f} to {max(shares):.2f}",
            min(shares) > 0.1,
        ),
    ]


def _null_share(result: SubspaceResult) -> float:
    return fldd(result, "null-read") / fldd(result, "patch")


def _ratios(results: list[SubspaceResult]) -> str:
    ratios = [one.gap.ratio for one in results]
    return " ".join("no full effect" if ratio is None else f"{ratio:.1f}" for ratio in ratios)


def draw(seeds: list[dict[str, tuple[SubspaceResult, float]]], path: Path) -> None:
    """FLDD of every condition in both settings, a dot per seed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = NAME
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for index, setting in enumerate((RANDOM, TRAINED)):
        values = [[fldd(one[setting][0], name) for name in ROWS] for one in seeds]
        places = [number + 0.4 * index - 0.2 for number in range(len(ROWS))]
        means = [sum(column) / len(column) for column in zip(*values, strict=True)]
        axes.bar(places, means, width=0.38, color=f"C{index}", alpha=0.7, label=setting)
        for row in values:
            axes.scatter(places, row, s=12, color="black", zorder=3)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(ROWS)), ROWS, rotation=20, ha="right")
    axes.set_ylabel("FLDD")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run all seeds, print the tables, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    use_one_thread()
    started = time.monotonic()
    toy, seeds = run_toy(), []
    for seed in options.seeds:
        found = run_seed(seed)
        seeds.append(found)
        print(f"seed {seed} ({time.monotonic() - started:.0f} s)")
        for name, (result, accuracy) in found.items():
            print(f"\n{name}, test accuracy {accuracy:.1%}: {result}\n", flush=True)
    figures: dict[str, Any] = {
        "toy": {name: one.to_dict() for name, one in toy.items()},
        "seeds": [
            {name: {"accuracy": accuracy, **one.to_dict()} for name, (one, accuracy) in found.items()}
            for found in seeds
        ],
    }
    draw(seeds, RESULTS / f"{NAME}.svg")
    write_evidence(NAME, PAPER, options.seeds, judge(toy, seeds), figures, time.monotonic() - started)


if __name__ == "__main__":
    main()
