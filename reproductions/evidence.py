"""The one form in which reproductions and benchmarks write their evidence."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from uphold.core.storage import write_json
from uphold.measure import Comparison
from uphold.models.load import library_versions
from uphold.tasks import scorers
from uphold.tasks.base import SPLITS, FixedTask, Instance

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parents[1] / "build" / "reproductions"


@dataclass(frozen=True)
class Claim:
    """A statement, what was measured about it, and whether it holds."""

    claim: str
    measured: str
    holds: bool


def machine() -> dict[str, Any]:
    """What the evidence was measured on."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}


def _lines(path: str) -> Sequence[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else ()


def mean_and_spread(values: Sequence[float]) -> str:
    """`mean ± standard deviation (smallest to largest)`, in percent."""
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)) ** 0.5
    return f"{100 * mean:.2f} ± {100 * spread:.2f} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def with_options(task: FixedTask, name: str, options: Callable[[Instance], tuple[str, ...]]) -> FixedTask:
    """The same questions as a task called `name`, whose answers are chosen among the options of each instance."""
    return replace(
        task,
        name=name,
        kind="choice",
        splits={split: tuple(replace(one, options=options(one)) for one in task.instances(split)) for split in SPLITS},
        scorer="choice.v1",
        score_function=scorers.choice,
    )


def use_one_thread() -> None:
    """One thread per worker process."""
    import torch

    torch.set_num_threads(1)


def value(comparison: Comparison, rate: str) -> float:
    """A rate that is defined here."""
    measured = comparison[rate].value
    assert measured is not None
    return measured


RATES = ("accuracy_new", "nfr", "nfr_mc", "relative_nfr")
"""What a table of arms shows."""
Figures = dict[str, dict[str, list[float]]]
"""By arm and rate, one value per seed."""


def rates_of(arms: Mapping[str, Sequence[Comparison]], rates: Sequence[str] = RATES) -> Figures:
    """The `rates` of each arm, given its comparisons with the old model, one per seed."""
    return {arm: {rate: [round(value(one, rate), 5) for one in made] for rate in rates} for arm, made in arms.items()}


def print_arms(figures: Figures, plain: str) -> None:
    """Print means over seeds, and how NFR stands to that of the arm called `plain`."""
    width = max(map(len, figures)) + 2
    header = f"{'accuracy':>15}{'NFR':>15}{'vs plain':>10}{'NFR^mc':>9}{'rel. NFR':>10}"
    print(f"\n{'mean ± sd over seeds, %':<{width}}{header}")
    for arm, rates in figures.items():
        accuracy, nfr = (mean_and_spread(rates[name]).partition(" (")[0] for name in ("accuracy_new", "nfr"))
        mixed, relative = (sum(rates[name]) / len(rates[name]) for name in ("nfr_mc", "relative_nfr"))
        now, before = sum(rates["nfr"]), sum(figures[plain]["nfr"])
        change = "" if arm == plain or not before else f"{now / before - 1:+.1%}"
        print(f"{arm:<{width}}{accuracy:>15}{nfr:>15}{change:>10}{100 * mixed:>9.2f}{relative:>10.3f}")
    print()


def write_evidence(
    name: str,
    paper: str,
    seeds: Sequence[int],
    claims: Sequence[Claim],
    figures: Mapping[str, Any],
    wall_s: float,
) -> Path:
    """Write `results/NAME.json` and print the table claim / measured / holds."""
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "name": name,
            "paper": paper,
            "seeds": list(seeds),
            "claims": [asdict(claim) for claim in claims],
            "figures": dict(figures),
            "wall_s": round(wall_s, 1),
            "machine": machine(),
            "versions": library_versions(),
        },
    )
    width = max(len(claim.claim) for claim in claims)
    for claim in claims:
        print(f"{claim.claim:<{width}}  {'holds' if claim.holds else 'DOES NOT HOLD':<13}  {claim.measured}")
    print(f"wrote {path} ({wall_s:.0f} s)")
    return path
