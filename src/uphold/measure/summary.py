"""One run in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from uphold.core import stats
from uphold.core.runs import Run
from uphold.measure.pass_at_k import PROBLEM, PassAtK, pass_at_k

KS = (1, 10, 100)
"""The k of pass@k that are reported, as far as there are samples."""


@dataclass(frozen=True)
class Summary:
    """How good one model was on one task."""

    model: str
    task: str
    count: int
    """Instances."""
    unscored: int
    """Instances without a score; they count nowhere else."""
    score: float | None
    """Mean score in [0, 1]: the accuracy where answers are right or wrong; None when nothing is scored."""
    low: float | None
    """Lower end of the 95% confidence interval."""
    high: float | None
    """Upper end of the 95% confidence interval."""
    truncated: int
    """Instances whose prompt was cut from the left to fit the model."""
    passes: tuple[PassAtK, ...]
    """pass@k, where answers are programs (`humaneval`)."""
    path: str
    """The run's folder."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def summarise(run: Run, draws: int = 2000, seed: int = 0) -> Summary:
    """The mean score of a run with its interval: exact (Clopper-Pearson) for right or wrong, else a bootstrap's."""
    table = run.table(["score", "correct", "tags"])
    scores = np.array([value for value in table["score"].to_pylist() if value is not None], dtype=np.float64)
    tags = [dict(own or ()) for own in table["tags"].to_pylist()]
    low = high = None
    if scores.size and np.isin(scores, (0.0, 1.0)).all():
        low, high = stats.proportion_interval(int(scores.sum()), scores.size)
    elif scores.size:
        drawn = stats.bootstrap_rows(scores[:, None], lambda rows: rows.mean(axis=1), draws, seed)[:, 0]
        interval = stats.percentile_interval(drawn)
        low, high = interval if interval is not None else (None, None)
    judged = any(value is not None for value in table["correct"].to_pylist())
    return Summary(
        model=run.name,
        task=str(run.fingerprint.get("task", {}).get("name", "")),
        count=run.count,
        unscored=run.count - scores.size,
        score=float(scores.mean()) if scores.size else None,
        low=low,
        high=high,
        truncated=sum("truncated" in own for own in tags),
        passes=_passes(run, tags) if judged else (),
        path=str(run.path),
    )


def _passes(run: Run, tags: Sequence[dict[str, str]]) -> tuple[PassAtK, ...]:
    if not all(PROBLEM in own for own in tags):
        return ()
    samples: dict[str, int] = {}
    for own in tags:
        samples[own[PROBLEM]] = samples.get(own[PROBLEM], 0) + 1
    return tuple(pass_at_k(run, k) for k in KS if k <= min(samples.values()))


def summary_table(summaries: Sequence[Summary]) -> str:
    """Lines for people."""
    rows = [("model", "task", "instances", "score", "95% interval", "remarks")]
    for one in summaries:
        share = "unscored" if one.score is None else f"{100 * one.score:.2f}%"
        interval = "" if one.low is None or one.high is None else f"[{100 * one.low:.2f}%, {100 * one.high:.2f}%]"
        remarks = [str(passed).split(" (")[0] for passed in one.passes]
        remarks += [f"{one.unscored} unscored"] if one.unscored else []
        remarks += [f"{one.truncated} truncated"] if one.truncated else []
        rows.append((one.model, one.task, f"{one.count:,}", share, interval, "; ".join(remarks)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if column in (2, 3) else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
