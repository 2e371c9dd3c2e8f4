"""Causal graphs of classes (arXiv:2305.08950) on handwritten digits: faithful, firm, of use to repair an update?

    python reproductions/22_causal_graphs.py [--seeds 0 1 2]

A seed decides the start weights, the order of images and random graphs. Graphs come from 100 training images of a
class; everything else is measured on the 500 test images, rows to revert are chosen on training images.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import digits
import torch
from evidence import RESULTS, Claim, use_one_thread, write_evidence
from torch import nn

from uphold.core.storage import write_text
from uphold.explain.graphs.build import class_graph
from uphold.explain.graphs.config import PAPER, GraphConfig
from uphold.explain.graphs.diff import GraphDiff, Row, changed_rows, diff, revert
from uphold.explain.graphs.draw import svg
from uphold.explain.graphs.faithful import faithfulness
from uphold.explain.graphs.graph import jaccard
from uphold.explain.graphs.stability import stable_graph
from uphold.models.patches.apply import apply

NAME = "22_causal_graphs"
LABELS, LOST = (0, 3, 9), range(5, 10)
TESTS = {"authors": GraphConfig(compat="authors", edges=False), "paired": GraphConfig(edges=False)}
BETAS, SIZES = (0.01, 0.05, 0.2, 0.5), (20, 50)
ROWS = (10, 20, 40, 80)


def lenet(seed: int) -> nn.Sequential:
    """Two convolutions and three linear layers for images of 8x8 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            digits.Normalise(),
            *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(64, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, digits.CLASSES)),
        )


def of_class(data: digits.Digits, label: int) -> torch.Tensor:
    """Training images of a class."""
    return data.train_x[data.train_y == label]


def run_seed(seed: int) -> dict[str, Any]:
    """Everything of one seed, as plain numbers."""
    data = digits.load()
    net = digits.train(lenet(seed), data.train_x, data.train_y, seed=seed)
    found: dict[str, Any] = {"accuracy": digits.accuracy(net, data.test_x, data.test_y)}
    for test, config in TESTS.items():
        found[test] = {str(label): _one_class(net, data, label, config, seed) for label in LABELS}
    found["stable"] = {str(label): _stable(net, data, label, seed) for label in LABELS}
    found["update"] = _update(net, data, seed)
    return found


def _one_class(net: nn.Module, data: digits.Digits, label: int, config: GraphConfig, seed: int) -> dict[str, Any]:
    images = of_class(data, label)
    graph = class_graph(net, images, label, config=config)
    measured = faithfulness(net, graph, data.test_x, data.test_y, seed=seed)
    softened = {
        str(beta): jaccard(graph, class_graph(net, images, label, config=replace(config, replace="soft", beta=beta)))
        for beta in BETAS
    }
    fewer = {
        str(size): jaccard(graph, class_graph(net, images, label, config=replace(config, samples=size)))
        for size in SIZES
    }
    screened = class_graph(net, images, label, config=replace(config, screen=10_000))
    return {
        "graph": str(graph),
        "saturated": list(graph.saturated),
        "arms": {name: asdict(arm) for name, arm in measured.arms.items()},
        "beta": softened,
        "samples": fewer,
        "screening": {layer.name: layer.screening for layer in screened.layers if layer.tested},
    }


def _stable(net: nn.Module, data: digits.Digits, label: int, seed: int) -> dict[str, float]:
    graph = stable_graph(net, of_class(data, label), label, config=TESTS["paired"], seed=seed)
    return {layer.name: sum(layer.stability) / len(layer.stability) for layer in graph.layers if layer.tested}


def _update(old: nn.Module, data: digits.Digits, seed: int) -> dict[str, Any]:
    """Fine-tune on the digits 0 to 4 only, then give changed rows their old weights back."""
    low = data.only(range(5))
    new = digits.train(copy.deepcopy(old), low.train_x, low.train_y, epochs=4, lr=0.01, seed=seed + 1000)
    diffs = [diff(old, new, of_class(data, label), label) for label in LOST]
    rows = changed_rows(diffs)
    if seed == 0:
        write_text(RESULTS / f"{NAME}.svg", svg(diffs[0], edges=25))
    found: dict[str, Any] = {
        "old": _shares(old, data),
        "new": _shares(new, data),
        "diffs": [str(one) for one in diffs],
        "kinds": [one.counts() for one in diffs],
        "rows": {"changed": len(rows), "all": sum(_outputs(diffs[0]).values())},
    }
    for count in ROWS:
        found[f"{count} rows"] = _reverted(old, new, rows[:count], data)
        drawn = [_reverted(old, new, _random_rows(rows[:count], diffs[0], seed + k), data) for k in range(3)]
        found[f"{count} random rows"] = {name: sum(one[name] for one in drawn) / len(drawn) for name in drawn[0]}
    head = [Row(diffs[0].old.layers[0].name, label, 0.0) for label in LOST]
    found["classifier rows 5-9"] = _reverted(old, new, head, data)
    return found


def _outputs(one: GraphDiff) -> dict[str, int]:
    return {layer.name: layer.outputs for layer in one.old.layers}


def _random_rows(rows: Sequence[Row], one: GraphDiff, seed: int) -> list[Row]:
    """As many rows of each layer, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for name, outputs in _outputs(one).items():
        drawn = torch.randperm(outputs, generator=generator)[: sum(row.layer == name for row in rows)]
        found += [Row(name, unit, 0.0) for unit in drawn.tolist()]
    return found


def _reverted(old: nn.Module, new: nn.Module, rows: Sequence[Row], data: digits.Digits) -> dict[str, float]:
    with apply(new, revert(old, new, rows)):
        return _shares(new, data)


def _shares(net: nn.Module, data: digits.Digits) -> dict[str, float]:
    low, high = data.only(range(5)), data.only(LOST)
    return {"0-4": digits.accuracy(net, low.test_x, low.test_y), "5-9": digits.accuracy(net, high.test_x, high.test_y)}


def judge(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """The claims, each over all seeds and classes."""
    claims = []
    for test in TESTS:
        every = [one[test][str(label)] for one in seeds for label in LABELS]
        kept, random = ([one["arms"][name] for one in every] for name in ("kept", "random kept"))
        claims.append(
            Claim(
                f"{test}: the kept graph has its class at least 5 times as often as a random one",
                f"{_span(kept, 'accuracy')} against {_span(random, 'accuracy')}",
                all(a["accuracy"] >= 5 * b["accuracy"] for a, b in zip(kept, random, strict=True)),
            )
        )
        claims.append(
            Claim(
                f"{test}: and it does not see its class elsewhere (false positives below 0.1)",
                f"{_span(kept, 'false_positive')}; separation {_span(kept, 'separation')}, random "
                f"{_span(random, 'separation')}",
                all(one["false_positive"] < 0.1 for one in kept),
            )
        )
        cut, control = ([one["arms"][name] for one in every] for name in ("classifier cut", "random classifier cut"))
        claims.append(
            Claim(
                f"{test}: cutting the classifier's causes leaves below 0.4, random cuts above 0.8",
                f"{_span(cut, 'accuracy')} against {_span(control, 'accuracy')}",
                all(a["accuracy"] < 0.4 and b["accuracy"] > 0.8 for a, b in zip(cut, control, strict=True)),
            )
        )
        overlaps = [_overlap([one["beta"][str(beta)] for one in every]) for beta in BETAS]
        claims.append(
            Claim(
                f"{test}: overlap with the hard graph falls as beta grows",
                ", ".join(f"{beta}: {value:.2f}" for beta, value in zip(BETAS, overlaps, strict=True)),
                all(a > b for a, b in itertools.pairwise(overlaps)),
            )
        )
    sizes = {test: _overlap([one[test][str(c)]["samples"]["20"] for one in seeds for c in LABELS]) for test in TESTS}
    claims.append(
        Claim(
            "the paired graph depends less on the number of images (20 for 100)",
            ", ".join(f"{test} {value:.2f}" for test, value in sizes.items()),
            sizes["paired"] > sizes["authors"],
        )
    )
    claims += _update_claims(seeds)
    return claims


def _update_claims(seeds: Sequence[Mapping[str, Any]]) -> list[Claim]:
    updates = [one["update"] for one in seeds]

    def mean(arm: str, part: str = "5-9") -> float:
        return sum(float(one[arm][part]) for one in updates) / len(updates)

    head = "classifier rows 5-9"
    return [
        Claim(
            "reverting the changed rows brings back at least half of what 5-9 lost",
            f"{mean('old'):.3f} to {mean('new'):.3f} to {mean(f'{ROWS[-1]} rows'):.3f}",
            all(
                2 * (one[f"{ROWS[-1]} rows"]["5-9"] - one["new"]["5-9"]) >= one["old"]["5-9"] - one["new"]["5-9"]
                for one in updates
            ),
        ),
        Claim(
            "reverting the changed rows (80 at most) restores more of 5-9 than the five rows of the classifier",
            f"5-9: {mean(f'{ROWS[-1]} rows'):.3f} against {mean(head):.3f}; 0-4: {mean(f'{ROWS[-1]} rows', '0-4'):.3f} "
            f"against {mean(head, '0-4'):.3f}",
            all(one[f"{ROWS[-1]} rows"]["5-9"] > one[head]["5-9"] for one in updates),
        ),
        *_row_claims(updates),
    ]


def _row_claims(updates: Sequence[Mapping[str, Any]]) -> list[Claim]:
    def mean(arm: str, part: str = "5-9") -> float:
        return sum(float(one[arm][part]) for one in updates) / len(updates)

    return [
        Claim(
            f"reverting the {count} most changed rows restores more of 5-9 than as many random ones per layer",
            f"5-9: old {mean('old'):.3f}, new {mean('new'):.3f}, reverted {mean(f'{count} rows'):.3f}, random "
            f"{mean(f'{count} random rows'):.3f}; 0-4: {mean('new', '0-4'):.3f} to {mean(f'{count} rows', '0-4'):.3f}",
            all(one[f"{count} rows"]["5-9"] > one[f"{count} random rows"]["5-9"] for one in updates),
        )
        for count in ROWS
    ]


def _span(arms: Sequence[Mapping[str, float]], name: str) -> str:
    values = [one[name] for one in arms]
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _overlap(found: Sequence[Mapping[str, float]]) -> float:
    return sum(sum(one.values()) / len(one) for one in found) / len(found)


def main() -> None:
    """Run all seeds, print the tables, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    use_one_thread()
    started = time.monotonic()
    seeds = []
    for seed in options.seeds:
        seeds.append(run_seed(seed))
        print(f"seed {seed} ({time.monotonic() - started:.0f} s): accuracy {seeds[-1]['accuracy']:.3f}")
        for test in TESTS:
            print(*(f"  {test}: {one['graph']}" for one in seeds[-1][test].values()), sep="\n")
        print(*(f"  {line}" for line in seeds[-1]["update"]["diffs"]), sep="\n", flush=True)
    write_evidence(NAME, PAPER, options.seeds, judge(seeds), {"seeds": seeds}, time.monotonic() - started)


if __name__ == "__main__":
    main()
