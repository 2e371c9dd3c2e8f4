"""From flips to a repair: are the sites that `explain flips` names those at which a repair helps most?

    python reproductions/05b_flips.py [--seeds 0 1 2]

On the embedded pair, per seed: adapters for both bases; the old against the new model on the validation split; the
explanation of those flips by attention and feed-forward parts; MUSCLE with the adapter trained at one site alone, for
every site, measured on the test split. The explanation sees no test instance and no repair.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

from evidence import WORK, Claim, mean_and_spread, use_one_thread, value, write_evidence

import uphold
from uphold.core.runs import RunStore
from uphold.explain.flips import FlipsConfig, flips
from uphold.measure import Comparison
from uphold.repair import AdaptConfig, MuscleConfig, muscle
from uphold.repair.recipe import configure

NAME, TASK = "05b_flips", "demo"
PAPER = "arXiv:2402.14811 (output CMAP), with arXiv:2407.09435 as the repair"
KINDS = ("attention", "mlp")
PLAIN, EVERYWHERE = "plain update", "MUSCLE everywhere"


def seeded(seed: int) -> tuple[dict[str, float], dict[str, Comparison]]:
    """By site, how much of the distance it recovers; and the comparisons of all repairs on the test split."""
    folder = WORK / NAME / f"seed-{seed}"
    store = RunStore(folder / "store")
    config = replace(configure(AdaptConfig(), "adapt", TASK), seed=seed)
    old, new = (
        uphold.adapt(f"embedded:{version}", TASK, out=folder / version, config=config).reference
        for version in ("v1", "v2")
    )
    seen = uphold.compare(old, new, TASK, split="validation", noise_floor=False, store=store)
    told = flips(seen, task=TASK, config=FlipsConfig(kinds=KINDS, top=8, seed=seed))
    arms = {PLAIN: uphold.compare(old, new, TASK, noise_floor=False, store=store)}
    options = replace(configure(MuscleConfig(), "muscle", TASK), seed=seed, controls=False)
    for name, sites in {EVERYWHERE: (), **{one.sites[0]: one.sites for one in told.sites}}.items():
        made = muscle(
            old, new, TASK, out=folder / name.replace(" ", "-"), config=replace(options, sites=sites), store=store
        )
        arms[name] = made.repaired.comparison
        print(f"seed {seed}, {name}: NFR {value(arms[name], 'nfr'):.2%}", flush=True)
    return {one.sites[0]: one.recovered for one in told.sites}, arms


def judge(found: list[tuple[dict[str, float], dict[str, Comparison]]]) -> list[Claim]:
    """What the seeds say."""
    first, others, worst, together = [], [], [], []
    for recovered, arms in found:
        order = list(recovered)  # as the explanation ranks them, on flips that these numbers are not of
        nfr = {site: value(arms[site], "nfr") for site in order}
        first.append(nfr[order[0]])
        others.append(sum(nfr[site] for site in order[1:]) / len(order[1:]))
        worst.append(nfr[order[-1]])
        together.append(_rank_correlation([recovered[one] for one in order], [-nfr[one] for one in order]))
    plain = [value(arms[PLAIN], "nfr") for _, arms in found]
    whole = [value(arms[EVERYWHERE], "nfr") for _, arms in found]
    gap = sum(plain) - sum(whole)
    return [
        Claim(
            "repaired at the first site alone, NFR is below that of the other sites alone, on every seed",
            f"{mean_and_spread(first)} against {mean_and_spread(others)}; plain {mean_and_spread(plain)}",
            all(one < other for one, other in zip(first, others, strict=True)),
        ),
        Claim(
            "and below that of the last site",
            f"{mean_and_spread(first)} against {mean_and_spread(worst)}",
            all(one < other for one, other in zip(first, worst, strict=True)),
        ),
        Claim(
            "what a site recovers foretells how much its repair helps (mean rank correlation at least 0.5)",
            " ".join(f"{one:+.2f}" for one in together),
            sum(together) / len(together) >= 0.5,
        ),
        Claim(
            "the first site alone has at least half of what the repair everywhere has",
            f"{(sum(plain) - sum(first)) / gap:.0%} of it; everywhere {mean_and_spread(whole)}" if gap else "nothing",
            gap > 0 and sum(plain) - sum(first) >= gap / 2,
        ),
    ]


def _rank_correlation(one: list[float], other: list[float]) -> float:
    def ranks(values: list[float]) -> list[float]:
        return [sum(x < y for x in values) + (sum(x == y for x in values) - 1) / 2 for y in values]

    a, b = ranks(one), ranks(other)
    middle = (len(a) - 1) / 2
    spread = (sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b)) ** 0.5
    return sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True)) / spread if spread else 0.0


def main() -> None:
    """Run every seed, print the claims, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    started = time.monotonic()
    use_one_thread()
    found = [seeded(seed) for seed in seeds]
    claims = judge(found)
    figures: dict[str, Any] = {
        f"seed {seed}": {
            "recovered": recovered,
            "nfr": {name: value(arm, "nfr") for name, arm in arms.items()},
            "accuracy": {name: value(arm, "accuracy_new") for name, arm in arms.items()},
        }
        for seed, (recovered, arms) in zip(seeds, found, strict=True)
    }
    write_evidence(NAME, PAPER, seeds, claims, figures, round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
