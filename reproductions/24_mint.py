"""MINT (arXiv:2312.05356) on a small model of Python code: strengths, where to edit, controls, side effects.

    python reproductions/24_mint.py [--seeds 0 1 2] [--failures 40] [--steps 900]

A seed decides the model's weights and data order, which held-out contexts are failures, and random neurons. Every
failure is repaired on its own, starting from the trained model; `in a row` repairs all of them in one model, once with
every repair undone that makes an earlier one wrong, once without.
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
from typing import Any

import torch
from evidence import RESULTS, use_one_thread, write_evidence
from mint_claims import ROW, SGD, SHORTER, STOPPED, UNPROTECTED, judge, summary
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
PROMPT = 40
"""Tokens of a failure's prompt; the shorter ones stand for paraphrases."""
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
    reading = read_guard(read_anatomy(model, modules="*.down", head="head"), guard)
    assert reading is not None
    wanted = [failure for _, failure in failures]
    return {
        "nll": reading.nll,
        ROW: in_a_row(model, [wanted], guard),
        UNPROTECTED: in_a_row(model, [[failure] for failure in wanted], guard),
        "cases": {name: [asdict(one) for one in found] for name, found in cases.items()},
        "cpu_s": round(time.process_time() - started),
    }


def in_a_row(model: CodeModel, calls: Sequence[Sequence[Failure]], guard: Guard) -> dict[str, float]:
    """All failures in one model; those of one call are protected from each other."""
    patched = deepcopy(model)
    anatomy = read_anatomy(patched, modules="*.down", head="head")
    before = read_guard(anatomy, guard)
    done: list[Failure] = []
    for failures in calls:
        _, report = repair_failures(patched, failures, SETTINGS["ladder"], guard=guard, keep=True, **PARTS)
        done += [one.failure for one in report.failures if one.status == "repaired"]
    after = read_guard(anatomy, guard)
    assert before is not None
    assert after is not None
    effect = drift(before, after)
    everything = [failure for failures in calls for failure in failures]
    right, still = (
        sum(forced(anatomy, one.prompt, one.target).all_right for one in some) for some in (everything, done)
    )
    return {
        "failures": len(everything),
        "repaired": len(done),
        "still_right": still,
        "right_at_the_end": right,
        "nll_rise": effect.nll_rise,
        "agreement": effect.agreement,
    }


def draw(figures: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Side effect of a repair against how many are repaired: a line per way of locating, a dot per other setting."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = NAME
    figure, axes = plt.subplots(figsize=(8.5, 4.5), layout="constrained")
    drawn = {name: one for name, one in figures.items() if one["nll_rise"] is not None}
    lines = {how: [name for name in drawn if name.endswith(how)] for how in (", attribution", ", random")}
    lines |= {name: [name] for name in drawn if not name.endswith(tuple(lines))}
    for index, (label, names) in enumerate(lines.items()):
        places = [(100 * drawn[name]["share"], 1000 * drawn[name]["nll_rise"]) for name in names]
        mark = "s" if label.startswith("SGD") else "x" if "random" in label else "o"
        axes.plot(*zip(*places, strict=True), marker=mark, color=f"C{index}", alpha=0.8, label=label.removeprefix(", "))
        for name, place in zip(names, places, strict=True):
            if name != label:
                text = name.removesuffix(label)
                axes.annotate(text, place, xytext=(5, -10), textcoords="offset points", fontsize=7)
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
    print(f"\n{'':<26}{'repaired':>10}{'per seed':>12}{'in budget':>11}{'neurons':>9}{'loss':>9}{'unchanged':>11}")
    for name, one in figures.items():
        each = "/".join(str(sum(case["repaired"] for case in found["cases"][name])) for found in seeds)
        one |= {"per_seed": each}
        neurons = shown(one["median_neurons"], lambda value: f"{value:g}")
        rise, same = shown(one["nll_rise"], lambda v: f"{v:+.4f}"), shown(one["agreement"], lambda v: f"{v:.2%}")
        done, held = f"{one['repaired']}/{one['cases']}", one["within_budget"]
        print(f"{name:<26}{done:>10}{each:>12}{held:>11}{neurons:>9}{rise:>9}{same:>11}")
    rows = {row: [found[row] for found in seeds] for row in (ROW, UNPROTECTED)}
    print(*(f"{row}: {one}" for row, found in rows.items() for one in found), sep="\n", end="\n\n")
    draw(figures, RESULTS / f"{NAME}.svg")
    evidence = {**figures, **rows, "held_out_nll": [found["nll"] for found in seeds]}
    evidence["cpu_s"] = [found["cpu_s"] for found in seeds]
    write_evidence(NAME, PAPER, options.seeds, judge(figures, together, rows), evidence, time.monotonic() - started)


if __name__ == "__main__":
    main()
