"""The one form in which reproductions and benchmarks write their evidence."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uphold.core.storage import write_json
from uphold.models.load import library_versions

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
