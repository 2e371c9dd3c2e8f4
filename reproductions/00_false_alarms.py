"""How often the statistics are wrong, against how often they say they are.

    python reproductions/00_false_alarms.py [--seeds 0 1 2]

Coverage of every interval, error of every test under its null hypothesis, the price of looking at any time, and wrong
verdicts of whole policies.
Where all outcomes can be listed the numbers are exact; the rest is simulated, one part per seed, and averaged. A study
is a function of a seed and one that judges its numbers: another one takes a line in `STUDIES`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from evidence import RESULTS, Claim, write_evidence
from false_alarms_coverage import ALPHA, AT_MOST, LEVEL, RATES, Figures, Study, span
from false_alarms_coverage import STUDIES as COVERAGE
from false_alarms_gate import STUDIES as GATES
from scipy.special import bdtr, bdtrc, ndtri
from scipy.stats import binom

from uphold.core import stats
from uphold.measure.hypergeometric import upper_tail

NAME, PAPER = "00_false_alarms", "Clopper & Pearson 1934 to Waudby-Smith & Ramdas 2024, see docs/statistics.md"

# --- Tests of paired answers: error under the null hypothesis. -------------------------------------------------------


def paired_tests(_seed: int) -> Figures:
    """Exact error of McNemar's tests over all numbers of flips, and of the non-inferiority tests at the margin."""
    mcnemar: dict[str, list[float]] = {"exact": [], "mid-p": []}
    for discordant in range(1, 201):
        up = np.arange(discordant + 1)
        chance = binom.pmf(up, discordant, 0.5)
        for name, test in (("exact", stats.mcnemar_exact), ("mid-p", stats.mcnemar_midp)):
            rejected = [test(discordant - int(one), int(one)) <= ALPHA for one in up]
            mcnemar[name].append(float(chance[rejected].sum()))
    shares = {
        name: max(float((binom.pmf(np.arange(1, 201), n, psi) * errors).sum()) for n in (20, 50, 100) for psi in RATES)
        for name, errors in mcnemar.items()
    }
    found: Figures = {"mcnemar, worst number of flips": {name: max(errors) for name, errors in mcnemar.items()}}
    found["mcnemar, worst share of flips"] = shares
    found["non-inferiority"] = {"exact": {}, "tango": {}, "t": {}}
    for n in (25, 50, 133, 500):
        for margin in (0.01, 0.02, 0.05, 0.1):
            for name, passes in _fewest_that_pass(n, margin).items():
                found["non-inferiority"][name][f"n={n}, margin {margin:.0%}"] = _worst_false_pass(passes, n, margin)
    return found


def _fewest_that_pass(n: int, margin: float) -> dict[str, list[int]]:
    """For each number of negative flips, the fewest positive ones with which each test finds the margin kept."""
    z = float(ndtri(LEVEL))

    def t_test(negative: int, positive: int) -> bool:
        mean, square = (positive - negative) / n, (positive + negative) / n
        error = max(0.0, (square - mean**2) / (n - 1)) ** 0.5
        return stats.non_inferiority_mean(mean, error, n - 1, margin, LEVEL).holds

    tests: dict[str, Callable[[int, int], bool]] = {
        "exact": lambda c, b: stats.exact_lower_bound(c, b, n, LEVEL).p(-margin) <= ALPHA,
        "tango": lambda c, b: float(stats.tango_score(c, b, n, -margin)) >= z,
        "t": t_test,
    }
    found: dict[str, list[int]] = {}
    for name, holds in tests.items():
        positive, fewest = 0, []
        for negative in range(min(n, 140) + 1):
            # One negative flip more never takes fewer positive ones.
            while positive + negative <= n and not holds(negative, positive):
                positive += 1
            fewest.append(positive)
        found[name] = fewest
    return found


def _worst_false_pass(fewest: list[int], n: int, margin: float) -> float:
    """The largest chance of a pass when new is worse by exactly the margin, over shares of flips up to 25%."""
    discordant = np.arange(n + 1)
    # Among m flips, the most negative ones that pass leave the fewest positive ones.
    smallest = np.arange(len(fewest)) + np.array(fewest)
    positive = discordant - (np.searchsorted(smallest, discordant, side="right") - 1)
    worst = 0.0
    for psi in margin + (0.25 - margin) * np.linspace(0, 1, 100) ** 2:
        passes = binom.sf(positive - 1, discordant, (psi - margin) / 2 / psi)
        worst = max(worst, float((binom.pmf(discordant, n, psi) * passes).sum()))
    return round(worst, 5)


def judge_tests(found: Mapping[str, Any]) -> list[Claim]:
    """Whether the tests of paired answers err as rarely as they say."""
    worst, average = found["mcnemar, worst number of flips"], found["mcnemar, worst share of flips"]
    claims = [
        Claim("McNemar, exact: errs at most 5%", f"worst {worst['exact']:.2%}", worst["exact"] <= ALPHA),
        Claim(
            "McNemar, mid-p: errs at most 5%",
            f"worst {worst['mid-p']:.2%} at one number of flips, {average['mid-p']:.2%} at one share of flips",
            worst["mid-p"] <= ALPHA,
        ),
    ]
    for name in ("exact", "tango", "t"):
        errors = found["non-inferiority"][name]
        most = max(errors, key=lambda regime: errors[regime])
        claims.append(
            Claim(
                f"non-inferiority, {name}: a false pass in at most 5%",
                f"worst {errors[most]:.2%} ({most})",
                errors[most] <= ALPHA,
            )
        )
    return claims


def simulated_tests(seed: int, runs: int = 700) -> Figures:
    """Error of the permutation test and of margin tests for scores, and false discoveries among slices."""
    generator = np.random.default_rng([seed, 4])
    found: Figures = {"permutation": {}, "false discoveries": {}, "bounded mean": {}, "t": {}}
    for n in (50, 200, 1000):
        for margin in (0.02, 0.1):
            # As many scores fall by half as make the margin; the others stay.
            falls = -0.5 * (generator.random((runs, n)) < 2 * margin)
            regime = f"n={n}, margin {margin:.0%}"
            passes = [stats.non_inferiority_bounded(sample, margin, LEVEL).holds for sample in falls]
            found["bounded mean"][regime] = float(np.mean(passes))
            errors = falls.std(axis=1, ddof=1) / n**0.5
            passes = [
                stats.non_inferiority_mean(mean, error, n - 1, margin, LEVEL).holds
                for mean, error in zip(falls.mean(axis=1), errors, strict=True)
            ]
            found["t"][regime] = float(np.mean(passes))
    for n in (10, 30, 100):
        skewed = generator.exponential(1, (runs, n)) * generator.choice([-1, 1], (runs, n))
        found["permutation"][f"n={n}"] = float(
            np.mean([stats.paired_permutation_test(sample, draws=999, seed=seed) <= ALPHA for sample in skewed])
        )
    for broken, label in ((0, "no slice is worse"), (4, "4 of 20 slices are worse")):
        shares = []
        for _ in range(runs):
            rates = np.where(np.arange(20) < broken, 0.12, 0.02)
            flips, size = generator.binomial(100, rates), 100
            p = upper_tail(flips, 20 * size, int(flips.sum()), np.full(20, size))
            called = stats.benjamini_hochberg(p) <= ALPHA
            shares.append(called[broken:].sum() / max(1, called.sum()))
        found["false discoveries"][label] = float(np.mean(shares))
    return found


def judge_simulated(found: Mapping[str, Any]) -> list[Claim]:
    """Whether the permutation test and the discoveries keep their word, up to three standard errors."""
    return [
        Claim(f"{name}: at most 5%", span(found[key].values()), max(found[key].values()) <= AT_MOST)
        for key, name in (
            ("permutation", "permutation test errs"),
            ("false discoveries", "false slices, BH"),
            ("bounded mean", "rarely changing scores, non-inferiority by betting: a false pass"),
            ("t", "rarely changing scores, non-inferiority by t: a false pass"),
        )
    ]


# --- Looking after every instance. -----------------------------------------------------------------------------------

MOST = 5000


def anytime(seed: int, runs: int = 200) -> Figures:
    """False alarms of the e-process and of a test for one look, both looked at after each instance; stopping times."""
    generator = np.random.default_rng([seed, 5])
    found: Figures = {"e-process": {}, "test for one look": {}, "instances": {}}
    sizes = np.arange(1, MOST + 1)
    sides: tuple[stats.Side, ...] = ("greater", "less")
    for null in (0.01, 0.02, 0.05):
        for side in sides:
            alarms, peeked = 0, 0
            for _ in range(runs):
                flips = (generator.random(MOST) < null).astype(float)
                process = stats.EProcess(null, side=side)
                process.update(flips)
                alarms += process.p <= ALPHA
                seen = np.cumsum(flips)
                p = bdtrc(seen - 1, sizes, null) if side == "greater" else bdtr(seen, sizes, null)
                peeked += bool((p <= ALPHA).any())
            found["e-process"][f"NFR {side} than {null:.0%}"] = alarms / runs
            found["test for one look"][f"NFR {side} than {null:.0%}"] = peeked / runs
    alarms = 0
    for _ in range(runs):
        process = stats.EProcess(0.0, -1, 1, "less")
        process.update(generator.choice([-1.0, 0.0, 1.0], p=[0.03, 0.94, 0.03], size=MOST))
        alarms += process.p <= ALPHA
    found["e-process"]["gain below 0, 3% flips either way"] = alarms / runs
    for null, rate in ((0.02, 0.0), (0.02, 0.005), (0.02, 0.01), (0.02, 0.06), (0.01, 0.03), (0.05, 0.1)):
        stops = [
            _stop(generator.random(8 * MOST) < rate, null, "less" if rate < null else "greater") for _ in range(40)
        ]
        fixed = stats.instances_needed(rate, null) if rate < null else stats.instances_to_see(rate, floor=null)
        found["instances"][f"limit {null:.0%}, true {rate:.1%}"] = {
            "median stop": float(np.median(stops)),
            "80% stop by": float(np.quantile(stops, 0.8)),
            "fixed n for 80%": float(fixed),
        }
    return found


def _stop(flips: np.ndarray[Any, np.dtype[np.bool_]], null: float, side: stats.Side) -> int:
    """The first instance after which the e-process rejects, to the nearest 8; the end of the sample if none."""
    process = stats.EProcess(null, side=side)
    for start in range(0, flips.size, 8):
        process.update(flips[start : start + 8].astype(float))
        if process.p <= ALPHA:
            return process.count
    return int(flips.size)


def judge_anytime(found: Mapping[str, Any]) -> list[Claim]:
    """Whether looking at any time is safe, and what it costs."""
    once, always = found["test for one look"], found["e-process"]
    cost = [value["80% stop by"] / value["fixed n for 80%"] for value in found["instances"].values()]
    half = [value["median stop"] / value["fixed n for 80%"] for value in found["instances"].values()]
    return [
        Claim(
            f"e-process: a look after each of {MOST} instances errs at most 5%",
            span(always.values()),
            max(always.values()) <= ALPHA,
        ),
        Claim(
            "a test for one look errs more than twice as often when peeked at",
            span(once.values()),
            min(once.values()) > 2 * ALPHA,
        ),
        Claim(
            "e-process: 80% have stopped by 2.5 times the fixed sample",
            f"{min(cost):.2f} to {max(cost):.2f} times it",
            max(cost) <= 2.5,
        ),
        Claim(
            "e-process: half have stopped by the fixed sample",
            f"{min(half):.2f} to {max(half):.2f} times it",
            max(half) <= 1,
        ),
    ]


STUDIES: dict[str, Study] = {
    **COVERAGE,
    "paired tests": Study(paired_tests, judge_tests, seeded=False),
    "simulated tests": Study(simulated_tests, judge_simulated),
    "anytime": Study(anytime, judge_anytime),
    **GATES,
}


def run(name: str, seed: int) -> tuple[Figures, float]:
    """One part of the evidence and the seconds it took."""
    started = time.monotonic()
    return STUDIES[name].run(seed), time.monotonic() - started


def averaged(parts: list[Any]) -> Any:
    """The same tree with the mean of every number."""
    if isinstance(parts[0], dict):
        return {key: averaged([part[key] for part in parts]) for key in parts[0]}
    return round(float(np.mean(parts)), 5)


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Coverage by regime: a panel per kind of interval, a line per method."""
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = NAME
    panels = [
        ("share of flips", "share intervals", ("wilson", "jeffreys", "mid-p", "clopper-pearson")),
        ("gain (paired difference of shares)", "difference intervals", ("tango", "newcombe")),
        ("mean of a continuous difference", "mean intervals", ("t", "percentile", "bca")),
        ("share of flips in clusters of ten", "clusters", ("ignored", "clustered mean", "clustered share")),
    ]
    figure, axes = plt.subplots(len(panels), 1, figsize=(11, 17), layout="constrained")
    for panel, (title, study, methods) in zip(axes, panels, strict=True):
        for index, method in enumerate(methods):
            values = figures[study][method]
            mean = [100 * (value["mean"] if isinstance(value, dict) else value) for value in values.values()]
            panel.plot(range(len(mean)), mean, marker="o", markersize=4, linewidth=1, color=f"C{index}", label=method)
        panel.axhspan(93.5, 96.5, color="0.9", zorder=0)
        panel.axhline(95, color="0.5", linewidth=0.8, zorder=1)
        panel.set_xticks(range(len(values)), list(values), rotation=90, fontsize=7)
        panel.set_ylabel("coverage, %")
        panel.set_title(title, loc="left", fontsize=10)
        panel.grid(axis="y", alpha=0.3)
        panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Run every study, print the table, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    started = time.monotonic()
    jobs = [
        (name, seed)
        for name, study in STUDIES.items()
        for seed in (options.seeds if study.seeded else options.seeds[:1])
    ]
    parts: dict[str, list[Figures]] = {name: [] for name in STUDIES}
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), get_context("spawn")) as pool:
        for (name, seed), (found, spent) in zip(jobs, pool.map(run, *zip(*jobs, strict=True)), strict=True):
            print(f"{name}, seed {seed} ({spent:.0f} s)", flush=True)
            parts[name].append(found)
    figures = {name: averaged(found) for name, found in parts.items()}
    claims = [claim for name, study in STUDIES.items() for claim in study.judge(figures[name])]
    draw(figures, RESULTS / f"{NAME}.svg")
    write_evidence(NAME, PAPER, options.seeds, claims, figures, time.monotonic() - started)


if __name__ == "__main__":
    main()
