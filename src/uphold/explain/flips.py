"""Explaining flips: which parts of the old model, put into the new one, bring its right answers back.

Output CMAP (Prakash et al., "Fine-Tuning Enhances Existing Mechanisms", arXiv:2402.14811) on the negative flips of a
comparison, screened by attribution patching. A site is patched at all positions, on the input that the new model reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from uphold.core.errors import DataError, UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.registry import explain

if TYPE_CHECKING:
    from uphold.core.runs import Run
    from uphold.explain.restoring.explanation import Explanation
    from uphold.explain.restoring.forks import Forks
    from uphold.measure.comparison import Comparison
    from uphold.models.load import Loaded, ModelLike
    from uphold.tasks.base import Task

LEAST = 10
"""Negative flips below which nothing is chosen and measured."""


@dataclass(frozen=True)
class FlipsConfig:
    """Options of `explain flips`."""

    kinds: tuple[str, ...] = ("head", "mlp")
    """Kinds of sites: head, mlp, attention, residual, query, key, value, hidden."""
    rank: Literal["distance", "net"] = "distance"
    """By what sites are chosen: how far they move the new model's preferences back to the old one's, or the share of
    flips restored less the share of gains lost."""
    top: int = 8
    """How many sites to report."""
    exact: int = 48
    """How many of the sites that are likeliest by their first-order estimate are patched."""
    drawn: int = 6
    """Among how many of the first sites to look for paths."""
    most: int = 200
    """Flips, and gains, that are looked at, at most; drawn by the seed."""
    batch_tokens: int = 2048
    """Padded tokens in one forward pass."""
    seed: int = 0
    """Of the halves to choose and to measure on, and of the random sites."""

    def __post_init__(self) -> None:
        if min(self.top, self.exact, self.drawn, self.most, self.batch_tokens) < 1:
            raise UsageError("top, exact, drawn, most and batch_tokens must be at least 1")
        if self.rank not in ("distance", "net"):
            raise unknown_name("rank", self.rank, ("distance", "net"))


@explain("flips", paper="arXiv:2402.14811")
def flips(
    comparison: str | Path | Comparison,
    *,
    old: ModelLike | None = None,
    new: ModelLike | None = None,
    task: str | Path | Task | None = None,
    config: FlipsConfig | None = None,
    progress: Progress = silent,
) -> Explanation:
    """Say which sites of the old model bring negative flips back in the new one, and what they cost of the gains.

    Args:
        comparison: a saved comparison or its folder.
        old: the old model, where the comparison's name for it does not lead to it from here.
        new: the new model, likewise.
        task: the task, likewise.
        config: the options.
        progress: called while it runs.

    Raises:
        DataError: the comparison has too few flips, or a model or task is not the one that was compared.
        ModelError: the models are not of one architecture.
        TokenizerMismatchError: the models do not share a token-id map.
    """
    from uphold.explain.restoring.effects import Hybrid
    from uphold.explain.restoring.explanation import Explanation
    from uphold.explain.restoring.find import find
    from uphold.measure.comparison import load_comparison
    from uphold.models.load import check_same_tokenizer, check_single
    from uphold.models.shared import load_pair
    from uphold.models.sites.layout import read_layout
    from uphold.models.sites.site import parse_kinds
    from uphold.tasks.load import load_task

    options = config or FlipsConfig()
    kinds = parse_kinds(options.kinds)
    pair = load_comparison(Path(comparison)) if isinstance(comparison, str | Path) else comparison
    asked = load_task(task if isinstance(task, str | Path) else pair.old.task) if not _is_task(task) else task
    models = load_pair(pair.old.name if old is None else old, pair.new.name if new is None else new)
    for loaded, run, role in zip(models, (pair.old, pair.new), ("old", "new"), strict=True):
        check_single(loaded)
        _check_same(loaded, run, role)
    check_same_tokenizer(*models)
    negative, positive = _forks(pair, asked, models[1], options)  # type: ignore[arg-type]
    hybrid = Hybrid(read_layout(models[0].model), read_layout(models[1].model), options.batch_tokens)
    found = find(
        hybrid,
        negative,
        positive,
        kinds=kinds,
        rank=options.rank,
        top=options.top,
        exact=options.exact,
        drawn=options.drawn,
        seed=options.seed,
        progress=progress,
    )
    return Explanation(
        pair.old.name,
        pair.new.name,
        pair.old.task,
        len(negative.rows),
        len(positive.rows),
        negative.left_out + positive.left_out,
        found.held_out,
        found.ceiling,
        {str(site): value for site, value in found.estimates.items()},
        found.sites,
        found.together,
        found.random,
        found.edges,
        hybrid.new.layers,
        hybrid.new.heads,
        options.seed,
    )


def _is_task(task: object) -> bool:
    return task is not None and not isinstance(task, str | Path)


def _check_same(loaded: Loaded, run: Run, role: str) -> None:
    from uphold.models.fingerprint import nameless

    # A run also says on what the model ran, which does not matter here.
    ours, theirs = nameless(loaded.fingerprint), run.fingerprint["model"]
    if any(theirs.get(part) != value for part, value in ours.items()):
        raise DataError(
            f"'{loaded.name}' is not the {role} model of the comparison, '{run.name}': its weights or its files have "
            f"changed; compare again, or name the model (--{role})"
        )


def _forks(pair: Comparison, task: Task, loaded: Loaded, options: FlipsConfig) -> tuple[Forks, Forks]:
    import random

    from uphold.explain.restoring.forks import forks
    from uphold.models.encode import Encoder
    from uphold.tasks.base import SPLITS

    instances = {one.id: one for split in SPLITS for one in task.instances(split)}
    new = {record.id: record for record in pair.new.records()}
    sides: dict[bool, list[str]] = {True: [], False: []}
    old = {}
    for record in pair.old.records():
        other = new.get(record.id)
        if other is not None and None not in (record.correct, other.correct) and record.correct != other.correct:
            sides[bool(record.correct)].append(record.id)
            old[record.id] = record
    if len(sides[True]) < LEAST:
        raise DataError(
            f"the comparison has {len(sides[True])} negative flips: at least {LEAST} are needed to choose sites and to "
            "measure them on others"
        )
    missing = next((one for one in old if one not in instances), None)
    if missing is not None:
        raise DataError(
            f"the task '{task.name}' has no instance {missing} of the comparison: name the task that was compared "
            "(--task)"
        )
    draw = random.Random(options.seed)
    found: list[Forks] = []
    encoder = Encoder(loaded.tokenizer)
    for negative in (True, False):
        ids = sorted(sides[negative])
        some = sorted(draw.sample(ids, options.most)) if len(ids) > options.most else ids
        found.append(
            forks(task, [(instances[one], old[one], new[one]) for one in some], encoder, loaded.tokenizer.eos_token_id)
        )
    if len(found[0].rows) < LEAST:
        raise DataError(
            f"only {len(found[0].rows)} of the negative flips have answers that part at a token: at least {LEAST} are "
            "needed"
        )
    return found[0], found[1]
