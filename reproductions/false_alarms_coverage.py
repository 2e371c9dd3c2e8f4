"""Coverage of every interval, for `00_false_alarms.py`: listed exactly where that is possible, else simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from evidence import Claim
from scipy.special import ndtri
from scipy.stats import binom

from uphold.core import stats
from uphold.core.stats import Floats

SIZES, RATES = (20, 50, 100, 500, 2000), (0.005, 0.01, 0.02, 0.05, 0.2)
AROUND = np.linspace(0.5, 2, 31)
"""True values around a regime's rate, relative to it: with counts, no rate has the coverage of its neighbour."""
LEVEL, ALPHA, TOLERANCE = 0.95, 0.05, 0.015
AT_MOST = ALPHA + 3 * (ALPHA * (1 - ALPHA) / 2100) ** 0.5
"""What 2100 simulated tests may reject when the error is 5%: three standard errors more."""
SHARES = ("wilson", "jeffreys", "mid-p", "clopper-pearson")

Figures = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A part of the evidence: numbers from one seed (None for what is exact), and what they show."""

    run: Callable[[int], Figures]
    judge: Callable[[Mapping[str, Any]], list[Claim]]
    seeded: bool = True


def two_sided(what: str, coverage: Mapping[str, float]) -> list[Claim]:
    """Whether coverage is near the level everywhere, and whether it is nowhere far below."""
    off = [regime for regime, value in coverage.items() if abs(value - LEVEL) > TOLERANCE]
    below = [regime for regime, value in coverage.items() if value < LEVEL - TOLERANCE]
    return [
        Claim(
            f"{what}: mean coverage within 1.5 points of 95% in every regime",
            f"{span(coverage.values())}; outside in {len(off)} of {len(coverage)}: {listed(off)}",
            not off,
        ),
        Claim(
            f"{what}: mean coverage nowhere more than 1.5 points below 95%",
            f"smallest {min(coverage.values()):.1%}; below: {listed(below)}",
            not below,
        ),
    ]


def listed(regimes: Iterable[str]) -> str:
    """Regimes in words."""
    names = list(regimes)
    return "; ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "none"


def span(values: Iterable[float]) -> str:
    """The smallest and the largest, in percent."""
    numbers = list(values)
    return f"{100 * min(numbers):.1f}% to {100 * max(numbers):.1f}%"


# --- Intervals of a share: every count of flips is listed. -----------------------------------------------------------


def share_intervals(_seed: int) -> Figures:
    """Mean and worst coverage of every interval of a share, and the worst of the one-sided bound."""
    found: Figures = {method: {} for method in SHARES} | {"upper bound": {}}
    fine = np.linspace(0.5, 2, 301)[:, None]
    for n in SIZES:
        counts = np.arange(n + 1)
        for rate in RATES:
            true = rate * fine
            chance = binom.pmf(counts, n, true)
            for method in SHARES:
                low, high = stats.proportion_bounds(counts, n, LEVEL, method)
                found[method][f"n={n}, {rate:.1%}"] = _mean_and_worst(
                    (chance * ((low <= true) & (true <= high))).sum(1)
                )
            _, upper = stats.proportion_bounds(counts, n, 2 * LEVEL - 1)
            found["upper bound"][f"n={n}, {rate:.1%}"] = _mean_and_worst((chance * (true <= upper)).sum(1))
    return found


def _mean_and_worst(coverage: Floats) -> dict[str, float]:
    return {"mean": round(float(coverage.mean()), 5), "worst": round(float(coverage.min()), 5)}


def judge_shares(found: Mapping[str, Any]) -> list[Claim]:
    """Which interval of a share keeps its word."""
    claims = []
    for method in SHARES:
        mean = {regime: value["mean"] for regime, value in found[method].items()}
        claims += two_sided(f"share, {method}", mean)
    for name, label in (("clopper-pearson", "interval"), ("upper bound", "one-sided bound")):
        worst = min(value["worst"] for value in found[name].values())
        claims.append(Claim(f"share, exact {label}: never below 95%", f"worst {worst:.2%}", worst >= LEVEL - 1e-9))
    return claims


# --- Intervals of a paired difference of shares. ---------------------------------------------------------------------


def difference_intervals(seed: int, draws: int = 4000) -> Figures:
    """Mean and worst coverage of the intervals of the gain, without a gain and with twice as many positive flips."""
    generator = np.random.default_rng([seed, 1])
    z = float(ndtri((1 + LEVEL) / 2))
    found: Figures = {"tango": {}, "newcombe": {}}
    for n in SIZES:
        for rate in RATES:
            for times, label in ((1, "no gain"), (2, "gain")):
                coverage: dict[str, list[float]] = {"tango": [], "newcombe": []}
                for negative in rate * AROUND:
                    positive = min(times * negative, 0.5)
                    kept = 1 - negative - positive
                    drawn = generator.multinomial(n, [0.7 * kept, negative, positive, 0.3 * kept], size=draws).T
                    true = positive - negative
                    score = stats.tango_score(drawn[1], drawn[2], n, true)
                    coverage["tango"].append(float((np.abs(score) <= z).mean()))
                    low, high = stats.newcombe_bounds(*drawn, LEVEL)
                    coverage["newcombe"].append(float(((low <= true) & (true <= high)).mean()))
                for method, values in coverage.items():
                    found[method][f"n={n}, {rate:.1%}, {label}"] = _mean_and_worst(np.array(values))
    return found


def judge_differences(found: Mapping[str, Any]) -> list[Claim]:
    """Which interval of the gain keeps its word."""
    return [
        claim
        for method in ("tango", "newcombe")
        for claim in two_sided(f"gain, {method}", {regime: value["mean"] for regime, value in found[method].items()})
    ]


# --- Intervals of the mean of a continuous difference. ---------------------------------------------------------------

MEANS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], Floats], float]] = {
    "normal": (lambda generator, shape: generator.normal(0.1, 1, shape), 0.1),
    "skewed": (lambda generator, shape: generator.exponential(1, shape), 1.0),
    "mostly zero": (lambda generator, shape: generator.exponential(1, shape) * (generator.random(shape) < 0.2), 0.2),
}


def mean_intervals(seed: int) -> Figures:
    """Coverage of Student's, the percentile and the BCa interval."""
    generator = np.random.default_rng([seed, 2])
    found: Figures = {"t": {}, "percentile": {}, "bca": {}}
    for name, (draw, true) in MEANS.items():
        for n, runs in ((20, 1500), (50, 1500), (100, 1000), (500, 700)):
            hits = dict.fromkeys(found, 0)
            for sample in draw(generator, (runs, n)):
                drawn = stats.bootstrap_rows(sample[:, None], lambda rows: rows.mean(axis=1), 999, seed)[:, 0]
                without = (sample.sum() - sample) / (n - 1)
                ends = {
                    "t": stats.mean_interval(sample, LEVEL),
                    "percentile": stats.percentile_interval(drawn, LEVEL),
                    "bca": stats.bca_interval(float(sample.mean()), drawn, without, LEVEL),
                }
                for method, interval in ends.items():
                    # An interval that does not exist covers nothing.
                    hits[method] += interval is not None and interval.low <= true <= interval.high
            for method in found:
                found[method][f"{name}, n={n}"] = hits[method] / runs
    return found


def judge_means(found: Mapping[str, Any]) -> list[Claim]:
    """Whether the mean's intervals keep their word."""
    return [claim for method in ("t", "percentile", "bca") for claim in two_sided(f"mean, {method}", found[method])]


# --- Clusters of ten instances that share a document. ----------------------------------------------------------------


def clusters(seed: int, runs: int = 700) -> Figures:
    """Coverage for clustered shares (beta-binomial), with and without minding the clusters; error of the tests."""
    generator = np.random.default_rng([seed, 3])
    methods = ("ignored", "clustered mean", "clustered share", "clustered share, wilson")
    bounds, tests = ("limit, clustered share", "limit, clustered mean"), ("mcnemar", "mcnemar clustered")
    found: Figures = {name: {} for name in (*methods, *bounds, *tests)}
    for count in (8, 20, 50, 200):
        sizes = np.full(count, 10)
        for rate in (0.02, 0.05, 0.2):
            for icc in (0.0, 0.2):
                regime, hits = f"{count} clusters, {rate:.0%}, ICC {icc}", dict.fromkeys(found, 0)
                for _ in range(runs):
                    flips = generator.binomial(10, _cluster_rates(generator, rate, icc, count))
                    estimates = {
                        "ignored": stats.proportion_interval(int(flips.sum()), 10 * count, LEVEL, "wilson"),
                        "clustered mean": stats.clustered_mean(flips, sizes, LEVEL),
                        "clustered share": stats.clustered_share(flips, sizes, LEVEL),
                        "clustered share, wilson": stats.clustered_share(flips, sizes, LEVEL, "wilson"),
                    }
                    for method, estimate in estimates.items():
                        hits[method] += estimate.low <= rate <= estimate.high
                    one_sided = 2 * LEVEL - 1
                    hits[bounds[0]] += stats.clustered_share(flips, sizes, one_sided).high < rate
                    hits[bounds[1]] += stats.clustered_mean(flips, sizes, one_sided).high < rate
                    up = generator.binomial(flips, _cluster_rates(generator, 0.5, icc, count))
                    hits["mcnemar"] += stats.mcnemar_exact(int((flips - up).sum()), int(up.sum())) <= ALPHA
                    hits["mcnemar clustered"] += stats.mcnemar_clustered(flips - up, up) <= ALPHA
                for method in found:
                    found[method][regime] = hits[method] / runs
    return found


def _cluster_rates(generator: np.random.Generator, rate: float, icc: float, count: int) -> Floats:
    if icc == 0:
        return np.full(count, rate)
    weight = (1 - icc) / icc
    return generator.beta(rate * weight, (1 - rate) * weight, count)


def judge_clusters(found: Mapping[str, Any]) -> list[Claim]:
    """Whether intervals and tests mind the clusters."""
    claims = []
    for method in ("ignored", "clustered mean", "clustered share", "clustered share, wilson"):
        claims.append(two_sided(f"clusters, {method}", found[method])[1])
    wrong = {
        "limit, clustered share": "clusters, a limit checked by clustered share: a false pass in at most 5%",
        "limit, clustered mean": "clusters, a limit checked by clustered mean: a false pass in at most 5%",
        "mcnemar": "clusters, McNemar ignoring them: errs at most 5%",
        "mcnemar clustered": "clusters, McNemar clustered: errs at most 5%",
    }
    for name, claim in wrong.items():
        claims.append(Claim(claim, span(found[name].values()), max(found[name].values()) <= AT_MOST))
    return claims


def clustered_margins(seed: int, runs: int = 400) -> Figures:
    """False passes of the non-inferiority tests when a clustered gain is worse by exactly the margin."""
    generator = np.random.default_rng([seed, 6])
    found: Figures = {"clustered": {}, "t": {}}
    for count in (20, 50, 200):
        sizes = np.full(count, 10)
        for rate in (0.02, 0.1):
            for icc in (0.0, 0.2):
                margin, passes = rate / 2, dict.fromkeys(found, 0)
                for _ in range(runs):
                    down = generator.binomial(10, _cluster_rates(generator, rate, icc, count))
                    up = generator.binomial(10 - down, _cluster_rates(generator, margin / (1 - rate), icc, count))
                    plain = stats.clustered_mean(up - down, sizes)
                    passes["clustered"] += stats.clustered_bound(down, up, sizes, LEVEL).p(-margin) <= ALPHA
                    passes["t"] += stats.non_inferiority_mean(
                        plain.value, plain.standard_error, count - 1, margin, LEVEL
                    ).holds
                for name, number in passes.items():
                    found[name][f"{count} clusters, {rate:.0%}, ICC {icc}"] = number / runs
    return found


def judge_clustered_margins(found: Mapping[str, Any]) -> list[Claim]:
    """Whether a clustered gain passes wrongly as rarely as the tests say."""
    top = ALPHA + 3 * (ALPHA * (1 - ALPHA) / 1200) ** 0.5
    return [
        Claim(
            f"clusters, non-inferiority, {name}: a false pass in at most 5%",
            span(found[name].values()),
            max(found[name].values()) <= top,
        )
        for name in ("clustered", "t")
    ]


STUDIES = {
    "share intervals": Study(share_intervals, judge_shares, seeded=False),
    "difference intervals": Study(difference_intervals, judge_differences),
    "mean intervals": Study(mean_intervals, judge_means),
    "clusters": Study(clusters, judge_clusters),
    "clustered margins": Study(clustered_margins, judge_clustered_margins),
}
