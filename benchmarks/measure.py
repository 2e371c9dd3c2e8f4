"""Comparing recorded runs, and starting up: time and peak memory beside what users have now, on the same files.

    python benchmarks/measure.py [--records 100000 1000000 10000000] [--rounds 5] [--samples 14000]

- Two stored runs: `uphold compare` beside a script of pandas, statsmodels and scipy, what a careful user writes by
  hand. It reads id and correctness from both Parquet files, merges them on id, and gives McNemar's exact test and
  intervals of NFR and both accuracies: scipy's bootstrap (2,000 draws) up to 100,000 records, where it takes seconds,
  and statsmodels' Wilson intervals beyond, where the bootstrap would take hours. `uphold compare` gives twelve rates,
  slices and discovered rules; the rows "same work" leave slices and rules out.
- lm-evaluation-harness: `uphold compare` on two output folders of `--log_samples` (one multiple-choice task, written
  here in that format) beside a script that reads the same files, aggregates them with the harness's own functions
  (`mean` and its standard error, which is closed: the harness draws its `bootstrap_iters` for other metrics only) and
  does the unpaired z test of its model comparator.

Rounds alternate between the two; medians of wall time and of peak resident memory of the process, start of the
interpreter included. From a million records on there are fewer rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PEER = """
import sys
import numpy as np, pandas as pd
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint
old, new = (pd.read_parquet(f"{folder}/records.parquet", columns=["id", "correct"]) for folder in sys.argv[1:])
pairs = old.merge(new, on="id", validate="one_to_one", suffixes=("_old", "_new"))
a, b = pairs["correct_old"].to_numpy(), pairs["correct_new"].to_numpy()
print(mcnemar([[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]], exact=True).pvalue)
for values in (a, b, a & ~b):
    if len(values) > 100_000:
        print(values.mean(), proportion_confint(values.sum(), len(values), method="wilson"))
    else:
        print(values.mean(), bootstrap((values.astype(float),), np.mean, n_resamples=2000, batch=50,
                                       method="percentile", rng=np.random.default_rng(0)).confidence_interval)
"""

SAME_WORK = """
import sys
from pathlib import Path
from uphold.core.runs import load_run
from uphold.measure.flips import flips
from uphold.measure.paired_test import paired_test
from uphold.measure.pairs import check_comparable, join
old, new = (load_run(Path(folder)) for folder in sys.argv[1:])
check_comparable(old, new)
pairs = join(old, new)
print(*flips(pairs), paired_test(pairs), sep="\\n")
"""

HARNESS = """
import json, math, sys
from pathlib import Path
from lm_eval.api.metrics import mean, stderr_for_metric
from scipy.stats import norm
found = []
for folder in sys.argv[1:]:
    [path] = Path(folder).rglob("samples_*.jsonl")
    with path.open(encoding="utf-8") as lines:
        values = [json.loads(line)["acc"] for line in lines]
    found.append((mean(values), stderr_for_metric(mean, bootstrap_iters=100_000)(values)))
(old, old_error), (new, new_error) = found
z = (new - old) / math.hypot(old_error, new_error)
print(found, z, 2 * norm.sf(abs(z)))
"""


class Cost(NamedTuple):
    """What one process took."""

    seconds: float
    mib: float
    """Peak resident memory."""


@dataclass(frozen=True)
class Job:
    """One thing to do, by us and by the peer."""

    what: str
    ours: Sequence[str]
    peer_name: str
    peer: Sequence[str]
    rounds: int
    before: Callable[[], None] = lambda: None
    """Called before each of our rounds."""


def cost(command: Sequence[str]) -> Cost:
    """Wall time and peak memory of one command that must succeed.

    A child's peak starts at what its parent holds while it is started, so this process stays small.
    """
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} ended with {process.returncode}:\n{said.decode()[-2000:]}")
    return Cost(time.perf_counter() - started, usage.ru_maxrss / 1024)


def elsewhere(function: Callable[..., None], *arguments: Any) -> None:
    """Call `function` in a process of its own, whose memory is gone afterwards."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} ended with {process.exitcode}")


def make_runs(folder: Path, records: int) -> None:
    """Two stored runs, `old` and `new`, with prompts of a realistic length; straight to Parquet, in any number."""
    import duckdb

    from uphold.core.hashing import sha256_of_file
    from uphold.core.storage import write_json

    for seed, (name, accuracy) in enumerate((("old", 0.60), ("new", 0.65))):
        path = folder / name / "records.parquet"
        path.parent.mkdir(parents=True)
        with duckdb.connect() as connection:
            connection.execute(_RECORDS.format(records=records, seed=seed, per_mille=int(1000 * accuracy), path=path))
        fingerprint = {
            "model": {"name": name, "weights": name},
            "task": {"name": "benchmark"},
            "batching": {},
            "seed": 0,
            "versions": {},
        }
        header = {"format": 1, "fingerprint": fingerprint, "count": records, "sha256": sha256_of_file(path)}
        write_json(folder / name / "run.json", header)


_RECORDS = """
COPY (
    SELECT printf('%016x', number) AS id, 'question ' || number || ': ' || repeat('word ', 40) AS input,
           'gold' AS target, if(good, 'gold', 'other') AS output, if(good, 'gold', 'other') AS answer,
           good AS correct, good::DOUBLE AS score, []::VARCHAR[] AS options, []::DOUBLE[] AS option_logprobs,
           60::BIGINT AS tokens, MAP {{'part': (number % 7)::VARCHAR}} AS tags
    FROM (SELECT range AS number, hash(range, {seed}) % 1000 < {per_mille} AS good FROM range({records}))
) TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 1048576)
"""


def make_logs(folder: Path, samples: int) -> None:
    """Two output folders of lm-evaluation-harness, `old` and `new`, on one multiple-choice task."""
    from uphold.core.hashing import sha256_of

    draw = random.Random(0)
    date = "2026-01-01T00-00-00.000000"
    for name in ("old", "new"):
        model = folder / name / f"org__{name}"
        model.mkdir(parents=True)
        right = 0
        with (model / f"samples_arc_{date}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(samples):
                sample = _sample(number, [draw.gauss(-20, 3) for _ in range(4)], sha256_of)
                right += sample["acc"] == 1.0
                file.write(json.dumps(sample) + "\n")
        results = {
            "results": {"arc": {"alias": "arc", "acc,none": right / samples}},
            "configs": {"arc": {"task": "arc", "num_fewshot": 0}},
            "versions": {"arc": 1.0},
            "n-shot": {"arc": 0},
            "higher_is_better": {"arc": {"acc": True}},
            "n-samples": {"arc": {"original": samples, "effective": samples}},
            "config": {"model": "hf", "model_args": f"pretrained=org/{name}", "limit": None, "gen_kwargs": None},
            "model_name": f"org/{name}",
            "model_name_sanitized": f"org__{name}",
            "lm_eval_version": "0.4.13",
        }
        (model / f"results_{date}.json").write_text(json.dumps(results))


def _sample(number: int, logprobs: Sequence[float], digest: Callable[[Any], str]) -> dict[str, Any]:
    """One line of a samples file."""
    prompt = f"Question {number}: " + "what is it that " * 20 + "\nAnswer:"
    options = [f" option {letter} of {number}" for letter in "ABCD"]
    target = number % 4
    responses = [[str(value), "False"] for value in logprobs]
    return {
        "doc_id": number,
        "doc": {"id": number, "question": prompt, "choices": options, "answer": target},
        "target": str(target),
        "arguments": {f"gen_args_{place}": {"arg_0": prompt, "arg_1": option} for place, option in enumerate(options)},
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": digest([number, prompt]),
        "prompt_hash": digest(prompt),
        "target_hash": digest(target),
        "acc": float(max(range(4), key=logprobs.__getitem__) == target),
    }


def jobs(folder: Path, records: Sequence[int], samples: int, rounds: int) -> list[Job]:
    """Everything that is measured; files are made on the way."""
    python = sys.executable
    found = []
    for count in records:
        where = folder / str(count)
        elsewhere(make_runs, where, count)
        pair = [str(where / "old"), str(where / "new")]
        peer = ("pandas + statsmodels + scipy", [python, "-c", PEER, *pair])
        times = min(rounds, max(1, 3_000_000 // count))
        compare = [python, "-m", "uphold", "compare", *pair]
        found.append(Job(f"compare two stored runs of {count:,} records", compare, *peer, times))
        same = [python, "-c", SAME_WORK, *pair]
        found.append(Job(f"same work on {count:,} records: join, rates, test", same, *peer, times))
    elsewhere(make_logs, folder / "logs", samples)
    logs = [str(folder / "logs" / "old"), str(folder / "logs" / "new")]
    harness = ("lm-eval's own aggregation and z test", [python, "-c", HARNESS, *logs])
    compare = [python, "-m", "uphold", "compare", *logs]
    what = f"compare two logs of lm-eval with {samples:,} samples"
    found += [
        Job(f"{what}, first time", compare, *harness, rounds, lambda: _new_store(folder)),
        Job(f"{what}, read before", compare, *harness, rounds),
        Job("import", [python, "-c", "import uphold"], "import pandas", [python, "-c", "import pandas"], rounds),
        Job(
            "--help",
            [python, "-m", "uphold", "--help"],
            "transformers --help",
            [python, "-m", "transformers.cli.transformers", "--help"],
            rounds,
        ),
    ]
    return found


def _new_store(folder: Path) -> None:
    os.environ["UPHOLD_STORE"] = tempfile.mkdtemp(dir=folder)


def rows_of(job: Job) -> list[dict[str, Any]]:
    """Measure one job: a row of time and a row of memory."""
    measured = []
    for _ in range(job.rounds):
        job.before()
        measured.append((cost(job.ours), cost(job.peer)))
    rows = []
    for unit, column, digits in (("s", 0, 3), ("MiB", 1, 0)):
        ours, peer = (statistics.median(pair[side][column] for pair in measured) for side in (0, 1))
        rows.append(
            {
                "what": job.what if unit == "s" else f"{job.what}: peak memory",
                "ours": round(ours, digits),
                "peer_name": job.peer_name,
                "peer": round(peer, digits),
                "unit": unit,
                "ratio": round(peer / ours, 2),
            }
        )
        said = f"{ours:.{digits}f} {unit}, {job.peer_name} {peer:.{digits}f} {unit}, ratio {peer / ours:.2f}"
        print(f"{job.what}: {said}", flush=True)
    return rows


def main() -> None:
    """Measure, print, and write `results/measure.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=14_000, help="about the questions of MMLU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "measure.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        _new_store(Path(folder))
        for job in jobs(Path(folder), options.records, options.samples, options.rounds):
            rows += rows_of(job)

    from uphold.core.storage import write_json
    from uphold.models.load import library_versions

    write_json(
        options.out,
        {
            "name": "measure",
            "rows": rows,
            "limit": {
                "compare 100,000 records": "1 s",
                "compare 10,000,000 records, peak memory": "2048 MiB",
                "import": "0.5 s",
                "--help": "0.5 s",
            },
            "machine": {"cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()},
            "versions": library_versions(),
        },
    )


if __name__ == "__main__":
    main()
