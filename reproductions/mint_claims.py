"""What reproduction 24 claims, judged on its figures of all seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from evidence import Claim

from uphold.models.neurons.config import NeuronConfig

SGD, STOPPED = "SGD, 10 steps", "SGD until right"
ROW, UNPROTECTED = "in a row", "in a row, earlier ones not protected"
MIX, ADDED = "f 1, attribution", "additive, line search"
SHORTER = (30, 20)
"""Tokens of the shorter prompts."""
BUDGET = NeuronConfig()
"""Of side effects: the default."""

Cases = Sequence[Mapping[str, Any]]
"""Failures of one setting, over all seeds."""
Figures = Mapping[str, Mapping[str, Any]]
"""What `summary` says of each setting."""
Rows = Mapping[str, Sequence[Mapping[str, float]]]
"""Repairs in a row, with and without protection; one entry per seed."""


def affordable(case: Mapping[str, Any]) -> bool:
    """Whether a repair stays within the default budget."""
    return bool(case["nll_rise"] <= BUDGET.max_nll_rise and case["agreement"] >= BUDGET.min_agreement)


def summary(cases: Cases) -> dict[str, float | None]:
    """One setting over all seeds; means are over the failures that were repaired."""
    done = [one for one in cases if one["repaired"]]
    shallow, deep = ([one for one in cases if (one["rank"] <= 2) == near] for near in (True, False))

    def share(some: Cases) -> float:
        return sum(one["repaired"] for one in some) / max(1, len(some))

    def mean(what: str) -> float | None:
        return fmean(one[what] for one in done) if done else None

    return {
        "cases": len(cases),
        "repaired": len(done),
        "share": share(cases),
        "within_budget": sum(map(affordable, done)),
        "share_ranked_2_3": share(shallow),
        "share_deeper": share(deep),
        "median_neurons": median(one["neurons"] for one in done) if any(one["neurons"] for one in done) else None,
        "nll_rise": mean("nll_rise"),
        "agreement": mean("agreement"),
        "shorter_before": sum(one["shorter_before"] for one in done) / max(1, len(SHORTER) * len(done)),
        "shorter_after": sum(one["shorter_after"] for one in done) / max(1, len(SHORTER) * len(done)),
    }


def judge(figures: Figures, together: Mapping[str, Cases], rows: Rows) -> list[Claim]:
    """The claims, each over all seeds."""
    return [
        *_strengths(figures, together),
        *_variants(figures),
        *_against_descent(figures),
        *_elsewhere(figures, rows),
        Claim("every repair comes off bit for bit, and failed ones leave nothing", "checked after every call", True),
    ]


def _counts(figures: Figures, *names: str, what: str = "repaired") -> str:
    return ", ".join(f"{name}: {figures[name][what]}/{figures[name]['cases']}" for name in names)


def _strengths(figures: Figures, together: Mapping[str, Cases]) -> list[Claim]:
    """What f decides."""
    weak, one = "f 0.01, attribution", figures[MIX]
    both = [
        (less["neurons"], more["neurons"])
        for less, more in zip(together["f 0.1, attribution"], together[MIX], strict=True)
        if less["repaired"] and more["repaired"]
    ]
    fewer = [fmean(side) for side in zip(*both, strict=True)]
    mixes = [name for name in figures if name not in (SGD, STOPPED, ADDED)]
    costs = {name: figures[name]["nll_rise"] for name in mixes if figures[name]["nll_rise"] is not None}
    worst = max(costs, key=lambda name: costs[name])
    return [
        Claim(
            "f decides: the released 0.01 repairs at most 5%, f = 1 at least 30%",
            _counts(figures, weak, MIX),
            figures[weak]["share"] <= 0.05 and one["share"] >= 0.3,
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
            f"at most {costs[worst]:+.4f} ({worst})",
            costs[worst] < 0.01,
        ),
        Claim(
            "right tokens ranked 2nd or 3rd are repaired more often than deeper ones (f = 1)",
            f"{one['share_ranked_2_3']:.0%} against {one['share_deeper']:.0%}",
            one["share_ranked_2_3"] > one["share_deeper"],
        ),
    ]


def _variants(figures: Figures) -> list[Claim]:
    """What finds neurons, and what is done to them."""

    def times(strength: str) -> float:
        return figures[f"{strength}, attribution"]["repaired"] / max(1, figures[f"{strength}, random"]["repaired"])

    gain, added = figures["ladder, divided by gain"], figures[ADDED]
    return [
        Claim(
            "located neurons repair at least 3 times as many as random ones, at f 0.3 and 1",
            f"{times('f 0.3'):.1f} and {times('f 1'):.1f} times ({_counts(figures, 'f 0.3, random', 'f 1, random')})",
            min(times("f 0.3"), times("f 1")) >= 3,
        ),
        Claim(
            "and more than those that are most active",
            _counts(figures, MIX, "f 1, activation"),
            figures[MIX]["repaired"] > figures["f 1, activation"]["repaired"],
        ),
        Claim(
            "the additive mode repairs more than the mix",
            f"{_counts(figures, ADDED, 'ladder')}, at {added['nll_rise']:+.4f} nats",
            added["repaired"] > figures["ladder"]["repaired"],
        ),
        Claim(
            "dividing by the final norm's gain repairs more",
            _counts(figures, "ladder, divided by gain", "ladder"),
            gain["repaired"] > figures["ladder"]["repaired"],
        ),
    ]


def _against_descent(figures: Figures) -> list[Claim]:
    """What gradient descent on all down-projections does."""
    one, sgd, stopped = figures[MIX], figures[SGD], figures[STOPPED]
    ratio = sgd["nll_rise"] / one["nll_rise"]
    held = max(figures[name]["within_budget"] for name in ("ladder", ADDED))
    return [
        Claim(
            "SGD on all down-projections repairs more, at 5 times the drift or worse",
            f"{_counts(figures, SGD)}, {sgd['nll_rise']:+.4f} nats, {ratio:.0f} times that of f = 1",
            sgd["repaired"] > one["repaired"] and ratio >= 5,
        ),
        Claim(
            "neurons (f = 1) drift less per repair than SGD that stops at the first right token",
            f"{one['nll_rise']:+.4f} nats ({one['share']:.0%} repaired) against {stopped['nll_rise']:+.4f} "
            f"({stopped['share']:.0%})",
            one["nll_rise"] < stopped["nll_rise"],
        ),
        Claim(
            "at equal drift (0.01 nats, 2% of predictions) neurons repair more than that SGD",
            _counts(figures, "ladder", ADDED, STOPPED, what="within_budget"),
            held > stopped["within_budget"],
        ),
    ]


def _elsewhere(figures: Figures, rows: Rows) -> list[Claim]:
    """What repairs do to prompts alike, and to each other."""

    def total(row: str, what: str) -> float:
        return sum(one[what] for one in rows[row])

    one = figures[MIX]
    done, held = total(UNPROTECTED, "repaired"), total(UNPROTECTED, "still_right")
    kept, lost = (total(row, "right_at_the_end") for row in (ROW, UNPROTECTED))
    rises = {row: total(row, "nll_rise") / len(rows[row]) for row in rows}
    return [
        Claim(
            "a repair carries over to shorter prompts with the same end (f = 1)",
            f"right {one['shorter_before']:.0%} before, {one['shorter_after']:.0%} after",
            one["shorter_after"] > one["shorter_before"] + 0.2,
        ),
        Claim(
            "repairs in a row hold: at least 80% are still right at the end",
            f"{held} of {done}, drift of a whole row {rises[UNPROTECTED]:+.4f} nats",
            held >= 0.8 * done,
        ),
        Claim(
            "with earlier repairs protected, more failures are right at the end of a row",
            f"{kept} against {lost}, drift {rises[ROW]:+.4f} nats",
            kept > lost,
        ),
    ]
