"""One run in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from uphold.core import stats
from uphold.core.runs import Run
from uphold.measure import intervals
from uphold.measure.pass_at_k import PROBLEM, PassAtK, pass_at_k

if TYPE_CHECKING:
    import pyarrow as pa

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
    """The mean score of a run with its interval.

    The interval is that of a share (`intervals.SHARES`) where every answer is right or wrong. Otherwise it is a
    bootstrap's up to `intervals.MANY` scored instances, and Student's t beyond.
    """
    table = run.table(["score", "correct", "tags"])
    scores = table["score"].to_numpy()
    scores = scores[~np.isnan(scores)]
    interval = _mean_interval(scores, draws, seed)
    return Summary(
        model=run.name,
        task=run.task,
        count=run.count,
        unscored=run.count - scores.size,
        score=float(scores.mean()) if scores.size else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        truncated=_tagged(table["tags"], "truncated"),
        passes=_passes(run, table["tags"]) if table["correct"].null_count < run.count else (),
        path=str(run.path),
    )


def _mean_interval(scores: stats.Floats, draws: int, seed: int, level: float = 0.95) -> stats.Interval | None:
    if scores.size == 0:
        return None
    if np.isin(scores, (0.0, 1.0)).all():
        return intervals.share_interval(int(scores.sum()), scores.size, level)
    if scores.size > intervals.MANY:
        return stats.mean_interval(scores, level)
    sums = np.stack([scores, np.ones(scores.size)], axis=1)
    return intervals.bootstrap_intervals(sums, lambda drawn: drawn[:, :1] / drawn[:, 1:], draws, level, seed)[0]


def _tagged(tags: pa.ChunkedArray, name: str) -> int:
    """How many records carry the tag `name`."""
    import pyarrow.compute as pc

    return sum(pc.sum(pc.equal(chunk.keys, name)).as_py() or 0 for chunk in tags.chunks)


def _passes(run: Run, tags: pa.ChunkedArray) -> tuple[PassAtK, ...]:
    if _tagged(tags, PROBLEM) < len(tags):
        return ()
    samples = Counter(dict(own)[PROBLEM] for own in tags.to_pylist())
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
