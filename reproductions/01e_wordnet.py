"""How much of what both models side by side keep can one model keep? Glosses to categories, several seeds.

    python reproductions/01e_wordnet.py [--seeds 0 1 2] [--wordnet /usr/share/wordnet] [--ablation [ARM ...]]

The run of the MUSCLE paper's protocol on WordNet, in the small: two bases that read different glosses, the same
adapter recipe for both, 45 categories. A seed decides fresh adapter weights and data order. `--ablation` takes the
parts of `uphold` away one by one. An interrupted run goes on where it stopped (state in
build/reproductions/01e_wordnet). Needs WordNet's data files: `apt install wordnet-base`.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from evidence import WORK, Claim, mean_and_spread, print_arms, rates_of, use_one_thread, value, write_evidence
from wordnet_task import make_base, make_task

import uphold
from uphold.core.registry import method
from uphold.core.runs import RunStore
from uphold.measure import Comparison
from uphold.repair import AdaptConfig

NAME, PAPER = "01e_wordnet", "arXiv:2407.09435"
PLAIN, CE, PARAGON = "plain update", "control: cross-entropy only", "ensemble"
SCHEDULE: dict[str, Any] = {
    "rank": 16,
    "alpha": 32.0,
    "epochs": 8,
    "learning_rate": 2e-3,
    "warmup_steps": 50,
    "batch_size": 64,
    "tokens": "answer",
}
WIDE: dict[str, Any] = {"extra_rank": 64, "batch_size": 128}
LONG: dict[str, Any] = {"batch_size": 128, "decay": "cosine", "select": "last"}
"""The schedule of `uphold` for a method without its room."""
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "MUSCLE": ("muscle", {}),
    "MUSCLE, all of the old model": ("muscle", {"mask": "old-only"}),
    "mixture": ("mixture", {}),
    PARAGON: ("ensemble", {}),
    "uphold": ("uphold", WIDE),
}
ABLATION: dict[str, tuple[str, dict[str, Any]]] = {
    "MUSCLE on the schedule of uphold": ("muscle", LONG),
    "mixture on the schedule of uphold": ("mixture", LONG),
    "uphold without embeddings": ("uphold", {**WIDE, "embeddings": False}),
    "uphold without room": ("uphold", {**WIDE, "extra_rank": 0}),
    "uphold, constant rate": ("uphold", {**WIDE, "decay": "constant"}),
    "uphold without gold": ("uphold", {**WIDE, "gold_weight": 0.0}),
    "uphold on gold answers only": ("uphold", {**WIDE, "own_answers": False}),
    "cross-entropy with all of uphold's room": ("uphold", {**WIDE, "own_answers": False, "gold_weight": 1.0}),
}
FOLDER = WORK / NAME


def prepare(version: str, source: Path) -> None:
    """Make one base, where it is not there yet."""
    if not (FOLDER / version / "config.json").is_file():
        make_base(FOLDER, version, source)


def adapted(seed: int, version: str) -> str:
    """The reference of a base with its task adapter, trained where needed."""
    config = AdaptConfig(**SCHEDULE, seed=seed)
    place = FOLDER / f"seed-{seed}" / version
    return uphold.adapt(str(FOLDER / version), FOLDER / "task.yaml", out=place, config=config).reference


def run(arm: str, seed: int) -> dict[str, Comparison]:
    """One method with one seed: its arms against the old model."""
    name, changes = (ARMS | ABLATION)[arm]
    found = method("repair", name)
    assert found.config is not None
    config = found.config()
    if name != "ensemble":
        config = replace(config, **(SCHEDULE | {"seed": seed, "controls": arm == "MUSCLE"} | changes))
    folder = FOLDER / f"seed-{seed}"
    result = found.function(
        adapted(seed, "v1"),
        adapted(seed, "v2"),
        FOLDER / "task.yaml",
        out=folder / re.sub(r"\W+", "-", arm),
        config=config,
        store=RunStore(folder / "store"),
    )
    made = {arm: result.repaired.comparison} | {one.label: one.comparison for one in result.arms if one.control}
    return made | ({PLAIN: result.before} if arm == "MUSCLE" else {})


def judge(arms: dict[str, list[Comparison]]) -> list[Claim]:
    """The claims, each over the means of all seeds."""

    def mean(arm: str, rate: str) -> float:
        return sum(value(one, rate) for one in arms[arm]) / len(arms[arm])

    def relative(arm: str, rate: str = "nfr") -> float:
        return mean(arm, rate) / mean(PLAIN, rate) - 1

    cost = {arm: mean(arm, "accuracy_new") - mean(PLAIN, "accuracy_new") for arm in arms}
    half = (mean(PLAIN, "nfr") + mean(PARAGON, "nfr")) / 2
    return [
        Claim(
            "the update is better on average, and breaks answers",
            f"gain {mean_and_spread([value(one, 'gain') for one in arms[PLAIN]])}, NFR {100 * mean(PLAIN, 'nfr'):.2f}",
            mean(PLAIN, "gain") > 0,
        ),
        Claim(
            "MUSCLE lowers NFR by at least 8%, and by more than the cross-entropy control",
            f"{relative('MUSCLE'):+.1%}, control {relative(CE):+.1%}",
            relative("MUSCLE") <= min(-0.08, relative(CE)),
        ),
        Claim(
            "MUSCLE lowers NFR^mc by at least 5%, within a point of accuracy",
            f"{relative('MUSCLE', 'nfr_mc'):+.1%}, {100 * cost['MUSCLE']:+.2f} points",
            relative("MUSCLE", "nfr_mc") <= -0.05 and cost["MUSCLE"] >= -0.01,
        ),
        Claim(
            "more training alone does not move relative NFR by 5%",
            f"control {relative(CE, 'relative_nfr'):+.1%}",
            abs(relative(CE, "relative_nfr")) < 0.05,
        ),
        Claim(
            "uphold goes at least half of the way from the plain update to both models side by side",
            f"NFR {100 * mean('uphold', 'nfr'):.2f}, half of the way is {100 * half:.2f}",
            mean("uphold", "nfr") <= half,
        ),
        Claim("uphold costs no accuracy", f"{100 * cost['uphold']:+.2f} points", cost["uphold"] >= 0),
    ]


def main() -> None:
    """Run all seeds, print the table, write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--ablation", nargs="*", choices=list(ABLATION), metavar="ARM", help="all arms, or these")
    options = parser.parse_args()
    if not (options.wordnet / "data.noun").is_file():
        parser.error(f"no data.noun in {options.wordnet}: apt install wordnet-base, or name its folder with --wordnet")
    started = time.monotonic()
    make_task(FOLDER, options.wordnet)
    names = [*ARMS, *(ABLATION if options.ablation == [] else options.ablation or ())]
    with ProcessPoolExecutor(os.cpu_count() or 1, get_context("spawn"), initializer=use_one_thread) as pool:
        list(pool.map(prepare, ("v1", "v2"), [options.wordnet] * 2))
        jobs = [(seed, version) for seed in options.seeds for version in ("v1", "v2")]
        list(pool.map(adapted, *zip(*jobs, strict=True)))
        print(f"bases and task adapters: {time.monotonic() - started:.0f} s", flush=True)
        arms: dict[str, list[Comparison]] = {}
        pending = {name: [pool.submit(run, name, seed) for seed in options.seeds] for name in names}
        for name, futures in pending.items():
            for future in futures:
                for arm, comparison in future.result().items():
                    arms.setdefault(arm, []).append(comparison)
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    figures = rates_of(arms)
    print_arms(figures, PLAIN)
    write_evidence(NAME, PAPER, options.seeds, judge(arms), figures, time.monotonic() - started)


if __name__ == "__main__":
    main()
