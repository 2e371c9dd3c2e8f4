"""How often whole policies are decided wrongly, for `00_false_alarms.py`: the gate, and the gate that stops early."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from evidence import Claim
from false_alarms_coverage import ALPHA, Figures, Study, span

from uphold.measure import limits
from uphold.measure.watch import Watch

SIZES = (200, 1000, 5000)
MAX_NFR, MARGIN, MAX_INCONSISTENCY = 0.02, 0.01, 0.04
SLICES = {"a": 0.2, "b": 0.8}
"""The policy: max_nfr on the task and on each of its two slices (with these shares), margin and max_inconsistency."""
CHUNK = 64
RUNS, EARLY_RUNS = 400, 100
"""Simulated updates per seed."""

# Per slice: shares of negative flips, of positive flips, and of wrong answers that became other wrong answers.
Truth = Mapping[str, tuple[float, float, float]]
AT_ALL_LIMITS = "every limit just reached"
BROKEN: Mapping[str, Truth] = {
    AT_ALL_LIMITS: {"a": (0.02, 0.01, 0.02), "b": (0.02, 0.01, 0.02)},
    "one slice at its limit": {"a": (0.02, 0.03, 0.005), "b": (0.001, 0.03, 0.005)},
    "margin at its limit": {"a": (0.012, 0.002, 0.005), "b": (0.012, 0.002, 0.005)},
    "inconsistency at its limit": {"a": (0.003, 0.02, 0.037), "b": (0.003, 0.02, 0.037)},
}
CLEAR: Mapping[str, Truth] = {
    "better": {"a": (0.002, 0.03, 0.002), "b": (0.002, 0.03, 0.002)},
    "worse": {"a": (0.08, 0.01, 0.02), "b": (0.08, 0.01, 0.02)},
}

NEGATIVE, POSITIVE, OTHER_WRONG, STAYS = range(4)


def instances(truth: Truth, count: int, generator: np.random.Generator) -> tuple[Any, Any]:
    """What happens to `count` instances, and which slice each is of."""
    slices = generator.random(count) < SLICES["a"]
    outcomes = np.empty(count, dtype=int)
    for name, chosen in (("a", slices), ("b", ~slices)):
        shares = (*truth[name], 1 - sum(truth[name]))
        outcomes[chosen] = generator.choice(4, size=int(chosen.sum()), p=shares)
    return outcomes, slices


@lru_cache(maxsize=100_000)
def accuracy(negative: int, positive: int, count: int) -> limits.Evidence:
    """The margin's evidence; equal counts come up often."""
    return limits.check_accuracy(count - negative - positive, negative, positive, 0, MARGIN, ALPHA)


def verdict(outcomes: Any, slices: Any) -> str:
    """What the gate says."""
    evidence = [
        limits.check_share(int((outcomes[part] == NEGATIVE).sum()), int(part.sum()), MAX_NFR, ALPHA)
        for part in (slices | True, slices, ~slices)
    ]
    count = len(outcomes)
    negative, positive, other = (int((outcomes == kind).sum()) for kind in (NEGATIVE, POSITIVE, OTHER_WRONG))
    evidence.append(accuracy(negative, positive, count))
    evidence.append(limits.check_share(negative + other, count, MAX_INCONSISTENCY, ALPHA))
    found = limits.settle(evidence, ALPHA)
    return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"


def naive(outcomes: Any, slices: Any) -> str:
    """A gate that takes what it sees for the truth."""
    flips = outcomes == NEGATIVE
    changed = flips.mean() - (outcomes == POSITIVE).mean()
    inconsistent = (flips | (outcomes == OTHER_WRONG)).mean()
    kept = max(flips.mean(), flips[slices].mean(), flips[~slices].mean()) <= MAX_NFR
    return "pass" if kept and changed <= MARGIN and inconsistent <= MAX_INCONSISTENCY else "fail"


def early(outcomes: Any, slices: Any) -> tuple[str, int]:
    """What the gate that stops when it is decided says, and after how many instances."""
    watches = [
        (Watch.over("max_nfr", MAX_NFR), slices | True),
        (Watch.over("max_nfr", MAX_NFR), slices),
        (Watch.over("max_nfr", MAX_NFR), ~slices),
        (Watch.over("margin", MARGIN), slices | True),
        (Watch.over("max_inconsistency", MAX_INCONSISTENCY), slices | True),
    ]
    negative = outcomes == NEGATIVE
    values = {
        "max_nfr": negative.astype(float),
        "margin": (outcomes == POSITIVE).astype(float) - negative,
        "max_inconsistency": (negative | (outcomes == OTHER_WRONG)).astype(float),
    }
    for start in range(0, len(outcomes), CHUNK):
        here = slice(start, start + CHUNK)
        for watch, part in watches:
            watch.take(values[watch.rule][here][part[here]].tolist())
        found = [watch.verdict(ALPHA, len(watches)) for watch, _ in watches]
        if "fail" in found:
            return "fail", start + CHUNK
        if "inconclusive" not in found:
            return "pass", start + CHUNK
    return "inconclusive", len(outcomes)


def gates(seed: int, runs: int = RUNS, early_runs: int = EARLY_RUNS) -> Figures:
    """Shares of verdicts by truth and number of instances."""
    generator = np.random.default_rng([seed, 6])
    found: Figures = {"pass": {}, "fail": {}, "naive pass": {}, "early": {}}
    for name, truth in {**BROKEN, **CLEAR}.items():
        for count in SIZES:
            drawn = [instances(truth, count, generator) for _ in range(runs if name in BROKEN else runs // 4)]
            said = [verdict(*one) for one in drawn]
            where = f"{name}, n={count}"
            found["pass"][where] = said.count("pass") / len(said)
            found["fail"][where] = said.count("fail") / len(said)
            found["naive pass"][where] = [naive(*one) for one in drawn].count("pass") / len(said)
        stopped = [early(*instances(truth, SIZES[-1], generator)) for _ in range(early_runs)]
        found["early"][name] = {
            "pass": sum(said == "pass" for said, _ in stopped) / early_runs,
            "fail": sum(said == "fail" for said, _ in stopped) / early_runs,
            "median instances": float(np.median([count for _, count in stopped])),
        }
    return found


def judge(found: Mapping[str, Any]) -> list[Claim]:
    """Whether policies err as often as they say."""
    broken = {where: value for where, value in found["pass"].items() if where.partition(",")[0] in BROKEN}
    # Every limit is kept there, if only just; elsewhere one limit is broken for as little as one likes.
    kept = [value for where, value in found["fail"].items() if where.partition(",")[0] in BROKEN]
    naive_pass = [value for where, value in found["naive pass"].items() if where.partition(",")[0] in BROKEN]
    passed, failed = ([found["early"][name][what] for name in BROKEN] for what in ("pass", "fail"))
    # Three seeds; three standard errors more than 5%.
    at_most, early_at_most = (ALPHA + 3 * (ALPHA * (1 - ALPHA) / (3 * n)) ** 0.5 for n in (RUNS, EARLY_RUNS))
    largest = SIZES[-1]
    return [
        Claim(
            "gate: an update at one of its limits or at all passes at most 5%",
            span(broken.values()),
            max(broken.values()) <= at_most,
        ),
        Claim("gate: an update that just keeps every limit fails at most 5%", span(kept), max(kept) <= at_most),
        Claim("a gate without intervals passes such updates at most 5%", span(naive_pass), max(naive_pass) <= at_most),
        Claim(
            f"gate: with {largest} instances, clear cases are decided in 95%",
            f"better passes {found['pass'][f'better, n={largest}']:.1%}, worse fails "
            f"{found['fail'][f'worse, n={largest}']:.1%}",
            min(found["pass"][f"better, n={largest}"], found["fail"][f"worse, n={largest}"]) >= 0.95,
        ),
        Claim("--until-decided: passes updates at their limits at most 5%", span(passed), max(passed) <= early_at_most),
        Claim(
            "--until-decided: fails such updates at most 5%",
            span(failed),
            max(failed) <= early_at_most,
        ),
        Claim(
            f"--until-decided: clear cases stop before {largest} instances, at the median",
            ", ".join(f"{name} {found['early'][name]['median instances']:.0f}" for name in CLEAR),
            max(found["early"][name]["median instances"] for name in CLEAR) < largest,
        ),
    ]


STUDIES = {"gate": Study(gates, judge)}
