"""MINT (arXiv:2312.05356) on a small model of Python code: strengths, where to edit, controls, side effects.

    python reproductions/24_mint.py [--seeds 0 1 2] [--failures 40] [--steps 900]

A seed decides the model's weights and data order, which held-out contexts are failures, and random neurons. Every
failure is repaired on its own, starting from the trained model; `in a row` repairs all of them in one model.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from evidence import RESULTS, Claim, use_one_thread, write_evidence
from stdlib_lm import UNKNOWN, CodeModel, Corpus, held_out_rows, load, train

from uphold.models.encode import Encoded
from uphold.models.neurons.config import Failure, Guard, NeuronConfig
from uphold.models.neurons.guard import drift, forced, read_guard
from uphold.models.neurons.neurons import read_anatomy
from uphold.models.neurons.repair import repair_failures

NAME, PAPER = "24_mint", "arXiv:2312.05356"
PARTS: dict[str, Any] = {"head": "head", "norm": "norm"}
FREE: dict[str, Any] = {
    "modules": "blocks.*.down",
    "max_nll_rise": 100.0,
    "min_agreement": 0.0,
    "total_nll_rise": 100.0,
    "total_agreement": 0.0,
}
"""No side effect undoes a repair here: they are what is measured."""
PROMPT, SHORTER = 40, (30, 20)
"""Tokens of a failure's prompt, and of the shorter ones that stand for paraphrases."""
GUARD_ROWS = 48
SETTINGS: dict[str, NeuronConfig] = {
    "f 0.01, attribution": NeuronConfig(strength=0.01, **FREE),
    "f 0.1, attribution": NeuronConfig(strength=0.1, **FREE),
    "f 0.1, random": NeuronConfig(strength=0.1, locate="random", **FREE),
    "f 0.3, attribution": NeuronConfig(strength=0.3, **FREE),
    "f 0.3, random": NeuronConfig(strength=0.3, locate="random", **FREE),
    "f 1, attribution": NeuronConfig(strength=1.0, **FREE),
    "f 1, activation": NeuronConfig(strength=1.0, locate="activation", **FREE),
    "f 1, random": NeuronConfig(strength=1.0, locate="random", **FREE),
    "f 1, basis direction": NeuronConfig(strength=1.0, direction="basis", **FREE),
    "ladder": NeuronConfig(**FREE),
    "ladder, divided by gain": NeuronConfig(divide_by_gain=True, **FREE),
    "additive, line search": NeuronConfig(mode="add", **FREE),
}
SGD, STOPPED = "SGD, 10 steps", "SGD until right"
ROW = "in a row"


@dataclass(frozen=True)
class Case:
    """One failure in one setting."""

    rank: int
    """Of the right token before, from 1."""
    repaired: bool
    neurons: int
    nll_rise: float
    agreement: float
    shorter_before: int
    """How many of the shorter prompts are continued rightly."""
    shorter_after: int


def find_failures(model: CodeModel, corpus: Corpus, count: int, seed: int) -> list[tuple[int, Failure]]:
    """Held-out contexts whose true next token is ranked 2nd to 21st, with its rank (0 is the first)."""
    generator, anatomy = torch.Generator().manual_seed(1000 + seed), read_anatomy(model, modules="*.down", head="head")
    found: list[tuple[int, Failure]] = []
    while len(found) < count:
        start = int(torch.randint(0, len(corpus.held_out) - PROMPT - 1, (1,), generator=generator))
        *prompt, target = corpus.held_out[start : start + PROMPT + 1].tolist()
        rank = int(forced(anatomy, prompt, [target]).rank)
        if target != UNKNOWN and 1 <= rank <= 20:
            others = tuple(tuple(prompt[-length:]) for length in SHORTER)
            found.append((rank, Failure(tuple(prompt), (target,), others, corpus.text(prompt[-8:]))))
    return found


def single(model: CodeModel, failures: Sequence[tuple[int, Failure]], guard: Guard, config: NeuronConfig) -> list[Case]:
    """Each failure on its own."""
    cases = []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for rank, failure in failures:
        _, report = repair_failures(model, [failure], config, guard=guard, **PARTS)
        [one] = report.failures
        assert one.paraphrases is not None
        assert report.drift is not None
        same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        if not same or (one.status != "repaired" and (report.drift.nll_rise or report.drift.agreement != 1)):
            raise AssertionError("a repair that was taken off has left something")
        cases.append(
            Case(
                rank,
                one.status == "repaired",
                len(one.neurons),
                report.drift.nll_rise,
                report.drift.agreement,
                one.paraphrases.right_before,
                one.paraphrases.right_after,
            )
        )
    return cases


def gradient_descent(
    model: CodeModel, failures: Sequence[tuple[int, Failure]], guard: Guard, steps: int = 10
) -> dict[str, list[Case]]:
    """The control: SGD at 1e-2 on all down-projections, for all steps and until the token is right."""
    pristine = read_guard(read_anatomy(model, modules="*.down", head="head"), guard)
    assert pristine is not None
    cases: dict[str, list[Case]] = {SGD: [], STOPPED: []}
    for rank, failure in failures:
        trained = deepcopy(model)
        anatomy = read_anatomy(trained, modules="*.down", head="head")
        weights = [down.module.weight for down in anatomy.downs]
        optimiser = torch.optim.SGD(weights, lr=1e-2)
        ids, target = torch.tensor([failure.prompt]), torch.tensor(failure.target)
        shorter = sum(forced(anatomy, one, failure.target).all_right for one in failure.paraphrases)

        def measured(
            anatomy: Any = anatomy, rank: int = rank, failure: Failure = failure, shorter: int = shorter
        ) -> Case:
            reading = read_guard(anatomy, guard)
            assert reading is not None
            done = drift(pristine, reading)
            right = forced(anatomy, failure.prompt, failure.target).all_right
            after = sum(forced(anatomy, one, failure.target).all_right for one in failure.paraphrases)
            return Case(rank, right, 0, done.nll_rise, done.agreement, shorter, after)

        stopped: Case | None = None
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(trained(ids)[:, -1], target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if stopped is None and forced(anatomy, failure.prompt, failure.target).all_right:
                stopped = measured()
        cases[SGD].append(measured())
        cases[STOPPED].append(stopped or cases[SGD][-1])
    return cases


def run_seed(seed: int, count: int, steps: int) -> dict[str, Any]:
    """All settings on one model."""
    started = time.process_time()
    corpus = load()
    model = train(corpus, seed, steps)
    rows = held_out_rows(corpus, GUARD_ROWS, seed).tolist()
    guard = Guard(tuple(Encoded(row[:1], row[1:]) for row in rows))
    failures = find_failures(model, corpus, count, seed)
    cases = {
        name: single(model, failures, guard, NeuronConfig(**{**asdict(config), "seed": seed}))
        for name, config in SETTINGS.items()
    }
    cases |= gradient_descent(model, failures, guard)
    _, report = repair_failures(model, [one for _, one in failures], SETTINGS["ladder"], guard=guard, **PARTS)
    reading = read_guard(read_anatomy(model, modules="*.down", head="head"), guard)
    assert reading is not None
    assert report.drift is not None
    return {
        "nll": reading.nll,
        "cpu_s": round(time.process_time() - started),
        "leverage": report.leverage,
        "cases": {name: [asdict(one) for one in found] for name, found in cases.items()},
        ROW: {
            "repaired": report.count("repaired"),
            "still_right": sum(one.status == "repaired" and one.after.all_right for one in report.failures),
            "failures": len(failures),
            "nll_rise": report.drift.nll_rise,
            "agreement": report.drift.agreement,
        },
    }


def summary(cases: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """One setting over all seeds."""
    done = [one for one in cases if one["repaired"]]
    shallow, deep = ([one for one in cases if (one["rank"] <= 2) == near] for near in (True, False))

    def share(some: Sequence[Mapping[str, Any]]) -> float:
        return sum(one["repaired"] for one in some) / max(1, len(some))

    def mean(what: str) -> float | None:
        return fmean(one[what] for one in done) if done else None

    return {
        "cases": len(cases),
        "repaired": len(done),
        "share": share(cases),
        "share_ranked_2_3": share(shallow),
        "share_deeper": share(deep),
        "median_neurons": median(one["neurons"] for one in done) if done else None,
        "nll_rise": mean("nll_rise"),
        "agreement": mean("agreement"),
        "shorter_before": sum(one["shorter_before"] for one in done) / max(1, len(SHORTER) * len(done)),
        "shorter_after": sum(one["shorter_after"] for one in done) / max(1, len(SHORTER) * len(done)),
    }


def judge(
    figures: Mapping[str, Mapping[str, Any]], together: Mapping[str, list[dict[str, Any]]], rows: list[Any]
) -> list[Claim]:
    """The sheet's claims over all seeds."""

    def times(strength: str) -> float:
        return figures[f"{strength}, attribution"]["repaired"] / max(1, figures[f"{strength}, random"]["repaired"])

    def counts(*names: str) -> str:
        return ", ".join(f"{name}: {figures[name]['repaired']}/{figures[name]['cases']}" for name in names)

    mixes = [name for name in figures if name not in (SGD, STOPPED, "additive, line search")]
    rises = {name: figures[name]["nll_rise"] for name in mixes if figures[name]["nll_rise"] is not None}
    worst = max(rises, key=lambda name: rises[name])
    weak, strong = together["f 0.1, attribution"], together["f 1, attribution"]
    both = [
        (one["neurons"], other["neurons"])
        for one, other in zip(weak, strong, strict=True)
        if one["repaired"] and other["repaired"]
    ]
    fewer = [fmean(side) for side in zip(*both, strict=True)]
    one, sgd, stopped, added = (figures[name] for name in ("f 1, attribution", SGD, STOPPED, "additive, line search"))
    ratio = sgd["nll_rise"] / one["nll_rise"]
    done, right, rise = (sum(row[what] for row in rows) for what in ("repaired", "still_right", "nll_rise"))
    return [
        Claim(
            "f decides: the released 0.01 repairs at most 5%, f = 1 at least 30%",
            counts("f 0.01, attribution", "f 1, attribution"),
            figures["f 0.01, attribution"]["share"] <= 0.05 and one["share"] >= 0.3,
        ),
        Claim(
            "located neurons repair at least 3 times as many as random ones, at f 0.3 and 1",
            f"{times('f 0.3'):.1f} and {times('f 1'):.1f} times ({counts('f 0.3, random', 'f 1, random')})",
            min(times("f 0.3"), times("f 1")) >= 3,
        ),
        Claim(
            "and more than those that are most active",
            counts("f 1, attribution", "f 1, activation"),
            one["repaired"] > figures["f 1, activation"]["repaired"],
        ),
        Claim(
            "a repair takes 1 to 3 neurons at f = 1 (median)",
            f"median {one['median_neurons']:g}",
            1 <= one["median_neurons"] <= 3,
        ),
        Claim(
            "a larger f takes fewer neurons: 0.1 against 1, on what both repair",
            f"{fewer[0]:.2f} against {fewer[1]:.2f} on {len(both)} failures",
            fewer[1] < fewer[0],
        ),
        Claim(
            "the convex mix costs less than 0.01 nats per repair, in every setting",
            f"at most {rises[worst]:+.4f} ({worst})",
            rises[worst] < 0.01,
        ),
        Claim(
            "right tokens ranked 2nd or 3rd are repaired more often than deeper ones (f = 1)",
            f"{one['share_ranked_2_3']:.0%} against {one['share_deeper']:.0%}",
            one["share_ranked_2_3"] > one["share_deeper"],
        ),
        Claim(
            "SGD on all down-projections repairs more, at 5 times the drift or worse",
            f"{counts(SGD)}, {sgd['nll_rise']:+.4f} nats, {ratio:.0f} times that of f = 1",
            sgd["repaired"] > one["repaired"] and ratio >= 5,
        ),
        Claim(
            "neurons (f = 1) drift less per repair than SGD that stops at the first right token",
            f"{one['nll_rise']:+.4f} nats ({one['share']:.0%} repaired) against {stopped['nll_rise']:+.4f} "
            f"({stopped['share']:.0%})",
            one["nll_rise"] < stopped["nll_rise"],
        ),
        Claim(
            "the additive mode repairs more than the mix",
            f"{counts('additive, line search', 'ladder')}, at {added['nll_rise']:+.4f} nats",
            added["repaired"] > figures["ladder"]["repaired"],
        ),
        Claim(
            "dividing by the final norm's gain repairs more",
            counts("ladder, divided by gain", "ladder"),
            figures["ladder, divided by gain"]["repaired"] > figures["ladder"]["repaired"],
        ),
        Claim(
            "a repair carries over to shorter prompts with the same end (f = 1)",
            f"right {one['shorter_before']:.0%} before, {one['shorter_after']:.0%} after",
            one["shorter_after"] > one["shorter_before"] + 0.2,
        ),
        Claim(
            "repairs in a row hold: at least 80% are still right at the end",
            f"{right} of {done}, drift of a whole row {rise / len(rows):+.4f} nats",
            right >= 0.8 * done,
        ),
        Claim("every repair comes off bit for bit, and failed ones leave nothing", "checked after every call", True),
    ]


def draw(figures: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Side effect of a repair against how many are repaired, a dot per setting."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = NAME
    figure, axes = plt.subplots(figsize=(8.5, 4.5), layout="constrained")
    for index, (name, one) in enumerate(figures.items()):
        if one["nll_rise"] is not None:
            mark = "s" if name.startswith("SGD") else "x" if "random" in name else "o"
            axes.scatter(
                100 * one["share"], 1000 * one["nll_rise"], marker=mark, s=60, color=f"C{index % 10}", label=name
            )
    axes.set_xlabel("failures repaired, %")
    axes.set_ylabel("change of held-out loss per repair, millinats per token")
    axes.set_yscale("symlog", linthresh=1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, metadata={"Date": None})


def shown(value: float | None, form: Callable[[float], str]) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else form(value)


def main() -> None:
    """Run all seeds, print the table, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--failures", type=int, default=40)
    parser.add_argument("--steps", type=int, default=900)
    options = parser.parse_args()
    started = time.monotonic()
    workers = min(len(options.seeds), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=use_one_thread) as pool:
        counts, steps = [options.failures] * len(options.seeds), [options.steps] * len(options.seeds)
        seeds = []
        for seed, found in zip(options.seeds, pool.map(run_seed, options.seeds, counts, steps), strict=True):
            seeds.append(found)
            print(f"seed {seed} ({time.monotonic() - started:.0f} s): held-out loss {found['nll']:.3f}", flush=True)
    together = {name: [case for one in seeds for case in one["cases"][name]] for name in seeds[0]["cases"]}
    figures = {name: summary(cases) for name, cases in together.items()}
    print(f"\n{'':<26}{'repaired':>10}{'per seed':>12}{'neurons':>9}{'loss change':>13}{'unchanged':>11}")
    for name, one in figures.items():
        each = "/".join(str(sum(case["repaired"] for case in found["cases"][name])) for found in seeds)
        one |= {"per_seed": each}
        neurons = shown(one["median_neurons"] or None, lambda value: f"{value:g}")
        rise, same = shown(one["nll_rise"], lambda v: f"{v:+.4f}"), shown(one["agreement"], lambda v: f"{v:.2%}")
        print(f"{name:<26}{one['repaired']:>6}/{one['cases']}{each:>12}{neurons:>9}{rise:>13}{same:>11}")
    print()
    draw(figures, RESULTS / f"{NAME}.svg")
    rows = [found[ROW] for found in seeds]
    evidence = {**figures, ROW: rows, "held_out_nll": [found["nll"] for found in seeds]}
    evidence["cpu_s"] = [found["cpu_s"] for found in seeds]
    write_evidence(NAME, PAPER, options.seeds, judge(figures, together, rows), evidence, time.monotonic() - started)


if __name__ == "__main__":
    main()
