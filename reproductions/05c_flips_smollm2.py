"""From flips to a repair on SmolLM2-135M: weights patched at the sites that `explain flips` names, and at random ones.

    make smollm2; uphold demo --preset smollm2          (writes the two versions)
    python reproductions/05c_flips_smollm2.py [--models demo-smollm2] [--seeds 0 1 2]

The flips of the demo's 400 test sums are explained, once per seed: the seed decides which half of them chooses. The six
sites that come first, and as many random ones of the same kinds, then take nine tenths of the old model's weights, and
are measured on 352 other sums that no model has seen and nothing was chosen on.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence import WORK, Claim, mean_and_spread, value, write_evidence

import uphold
from uphold.cli.console import progress_to_stderr
from uphold.core.progress import Progress
from uphold.core.runs import RunStore
from uphold.explain.flips import FlipsConfig, flips
from uphold.measure import Comparison
from uphold.repair.site_patch import SitePatchConfig, site_patch
from uphold.tasks.base import FixedTask
from uphold.tasks.generated import GeneratedConfig, generated_task
from uphold.tasks.load import load_task

NAME, PAPER = "05c_flips_smollm2", "arXiv:2402.14811 (output CMAP), with arXiv:2301.10546 as the repair"
KINDS = ("attention", "mlp")
LAYERS, TOP, SHARE, DRAWN = 30, 6, 0.9, 1200
NUMBERS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


def fresh_task() -> FixedTask:
    """The demo's task with other test sums."""
    usual = load_task("smollm2")
    assert isinstance(usual, FixedTask)
    known = {one.prompt for split in ("train", "validation", "test") for one in usual.instances(split)}  # type: ignore[arg-type]
    drawn = generated_task(
        "chain_sum", GeneratedConfig(train=0, validation=0, test=DRAWN, seed=4, max_new_tokens=4, dataset=NUMBERS)
    )
    new = [one for one in drawn.instances("test") if one.prompt not in known]
    return replace(usual, name="smollm2-fresh", splits={**usual.splits, "test": tuple(new)})


def random_sites(chosen: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """As many others of the same kinds."""
    draw = random.Random(seed)
    found: list[str] = []
    for kind, count in sorted(Counter(site.partition(".")[0] for site in chosen).items()):
        free = [f"{kind}.{layer}" for layer in range(LAYERS) if f"{kind}.{layer}" not in chosen]
        found += draw.sample(free, count)
    return tuple(found)


def run_seed(
    seed: int, seen: Comparison, models: tuple[str, str], task: FixedTask, store: RunStore, progress: Progress
) -> tuple[dict[str, Any], Comparison]:
    """What was chosen, and both repairs on the fresh sums; and the plain update there."""
    told = flips(seen, task="smollm2", config=FlipsConfig(kinds=KINDS, top=TOP, seed=seed), progress=progress)
    chosen = tuple(one.sites[0] for one in told.sites)
    sets = {"chosen": chosen, "random": random_sites(chosen, seed)}
    found: dict[str, Any] = {name: {"sites": list(sites)} for name, sites in sets.items()}
    for name, sites in sets.items():
        made = site_patch(
            *models,
            task,
            out=WORK / NAME / f"seed-{seed}-{name}",
            config=SitePatchConfig(sites=sites, old_share=SHARE, force=True),
            store=store,
            progress=progress,
        )
        repaired = made.repaired.comparison
        found[name] |= {rate: value(repaired, rate) for rate in ("nfr", "pfr", "accuracy_new")}
        print(f"seed {seed}, {name} {', '.join(sites)}: NFR {found[name]['nfr']:.2%}", flush=True)
    return found, made.before


def judge(seeds: list[dict[str, Any]], plain: float) -> list[Claim]:
    """What the seeds say."""
    chosen, drawn = ([one[name]["nfr"] for one in seeds] for name in ("chosen", "random"))
    return [
        Claim(
            "weights patched at the chosen sites lower NFR more than at as many random sites, on every seed",
            f"{mean_and_spread(chosen)} against {mean_and_spread(drawn)}; plain {plain:.2%}",
            all(one < other for one, other in zip(chosen, drawn, strict=True)),
        ),
        Claim(
            "and below that of the plain update, on every seed",
            f"{mean_and_spread(chosen)} against {plain:.2%}",
            all(one < plain for one in chosen),
        ),
        Claim(
            "without a loss of accuracy of more than one point, on every seed",
            f"chosen {mean_and_spread([one['chosen']['accuracy_new'] for one in seeds])}, "
            f"random {mean_and_spread([one['random']['accuracy_new'] for one in seeds])}, "
            f"plain {seeds[0]['plain']['accuracy_new']:.2%}",
            all(one["chosen"]["accuracy_new"] >= one["plain"]["accuracy_new"] - 0.01 for one in seeds),
        ),
    ]


def main() -> None:
    """Run every seed, print the claims, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("demo-smollm2"), help="folder of the demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    started = time.monotonic()
    folder = options.models
    models = (f"embedded:smollm2+{folder}/old/adapter", f"{folder}/v2/model+{folder}/new/adapter")
    store, task = RunStore(WORK / NAME / "store"), fresh_task()
    seeds = []
    with progress_to_stderr() as progress:
        seen = uphold.compare(
            *models, "smollm2", noise_floor=False, store=RunStore(folder / "store"), progress=progress
        )
        for seed in options.seeds:
            found, plain = run_seed(seed, seen, models, task, store, progress)
            found["plain"] = {rate: value(plain, rate) for rate in ("nfr", "pfr", "accuracy_new", "accuracy_old")}
            seeds.append(found)
    claims = judge(seeds, seeds[0]["plain"]["nfr"])
    figures = {f"seed {seed}": found for seed, found in zip(options.seeds, seeds, strict=True)}
    write_evidence(NAME, PAPER, options.seeds, claims, figures, round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
