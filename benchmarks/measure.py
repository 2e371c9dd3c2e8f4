"""Comparing two stored runs, and starting up: ours beside a script of pandas, statsmodels and scipy on the same files.

    python benchmarks/measure.py [--records 100000] [--rounds 5]

The peer reads both Parquet files, merges them on id, runs statsmodels' exact McNemar and scipy's paired bootstrap of
NFR and of both accuracies: what a careful user writes by hand. Ours is `uphold compare`, which gives twelve rates.
Rounds alternate between the two; medians of wall time, start of the interpreter included.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from uphold import write_run
from uphold.core.records import Record
from uphold.core.storage import write_json
from uphold.models.load import library_versions

PEER = """
import sys
import numpy as np, pandas as pd
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar
old, new = (pd.read_parquet(f"{folder}/records.parquet", columns=["id", "correct"]) for folder in sys.argv[1:])
pairs = old.merge(new, on="id", validate="one_to_one", suffixes=("_old", "_new"))
a, b = pairs["correct_old"].to_numpy(), pairs["correct_new"].to_numpy()
print(mcnemar([[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]], exact=True).pvalue)
for values in (a, b, a & ~b):
    print(values.mean(), bootstrap((values.astype(float),), np.mean, n_resamples=2000, batch=50, method="percentile",
                                   rng=np.random.default_rng(0)).confidence_interval)
"""


def make_runs(folder: Path, records: int) -> tuple[Path, Path]:
    """Two stored runs with texts of a realistic length."""
    draw = random.Random(0)
    paths = []
    for name, accuracy in (("old", 0.60), ("new", 0.65)):
        answers = [draw.random() < accuracy for _ in range(records)]
        rows = (
            Record(
                id=f"{number:016x}",
                input=f"question {number}: " + "word " * 40,
                target="gold",
                output="gold" if right else "other",
                answer="gold" if right else "other",
                correct=right,
                score=float(right),
                tags={"part": str(number % 7)},
            )
            for number, right in enumerate(answers)
        )
        fingerprint = {"model": {"name": name, "weights": name}, "task": {"name": "benchmark"}}
        rest = {"batching": {}, "seed": 0, "versions": {}}
        paths.append(write_run(folder / name, rows, fingerprint | rest).path)
    return paths[0], paths[1]


def seconds(command: Sequence[str]) -> float:
    """Wall time of one command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure, print, and write `results/measure.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        pair = [str(path) for path in make_runs(Path(folder), options.records)]
        jobs = {
            f"compare two stored runs of {options.records:,} records": (
                [python, "-m", "uphold", "compare", *pair],
                "pandas + statsmodels + scipy",
                [python, "-c", PEER, *pair],
            ),
            "import": ([python, "-c", "import uphold"], "import pandas", [python, "-c", "import pandas"]),
            "--help": (
                [python, "-m", "uphold", "--help"],
                "transformers --help",
                [python, "-m", "transformers.cli.transformers", "--help"],
            ),
        }
        rows = []
        for what, (ours, peer_name, peer) in jobs.items():
            times = [(seconds(ours), seconds(peer)) for _ in range(options.rounds)]
            mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
            rows.append(
                {
                    "what": what,
                    "ours": round(mine, 3),
                    "peer_name": peer_name,
                    "peer": round(theirs, 3),
                    "unit": "s",
                    "ratio": round(theirs / mine, 2),
                }
            )
            print(f"{what}: {mine:.2f} s, {peer_name} {theirs:.2f} s, ratio {theirs / mine:.2f}")
    write_json(
        Path(__file__).parent / "results" / "measure.json",
        {
            "name": "measure",
            "rows": rows,
            "limit": {"compare": "3 s", "import": "0.5 s", "--help": "0.5 s"},
            "machine": {"cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()},
            "versions": library_versions(),
        },
    )


if __name__ == "__main__":
    main()
