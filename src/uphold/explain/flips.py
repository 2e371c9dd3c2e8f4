"""Explaining flips: which parts of the old model, put into the new one, bring its right answers back.

Output CMAP (Prakash et al., "Fine-Tuning Enhances Existing Mechanisms", arXiv:2402.14811) on the negative flips of a
comparison, screened by attribution patching. A site is patched at all positions, on the input that the new model reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uphold.core.errors import DataError, UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.registry import explain

if TYPE_CHECKING:
    from uphold.core.records import Record
    from uphold.core.runs import Run
    from uphold.explain.restoring.effects import Hybrid
    from uphold.explain.restoring.explanation import Explanation
    from uphold.explain.restoring.forks import Forks
    from uphold.measure.comparison import Comparison
    from uphold.models.load import Loaded, ModelLike
    from uphold.tasks.base import Instance, Task

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
        if not self.kinds:
            raise UsageError("name at least one kind of site: head, mlp, attention, ...")
        if min(self.top, self.drawn, self.batch_tokens) < 1 or self.seed < 0:
            raise UsageError("top, drawn and batch_tokens must be at least 1, and seed at least 0")
        if self.exact < self.top:
            raise UsageError(f"exact is {self.exact}: at least the {self.top} sites to report (top) must be patched")
        if self.most < LEAST:
            raise UsageError(f"most is {self.most}: at least {LEAST} flips are needed to choose sites and measure them")
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
    from uphold.models.sites.layout import read_layout
    from uphold.models.sites.site import parse_kinds

    options = config or FlipsConfig()
    parse_kinds(options.kinds)
    pair = load_comparison(Path(comparison)) if isinstance(comparison, str | Path) else comparison
    asked = _task(pair, task)
    flipped = _flipped(pair)
    changed = _changed(pair, flipped, asked, options)
    models = _models(pair, old, new)
    hybrid = Hybrid(read_layout(models[0].model), read_layout(models[1].model), options.batch_tokens)
    negative, positive = _decided(hybrid, asked, changed, models[1].tokenizer)
    found = find(hybrid, negative, positive, options, progress)
    return Explanation(
        old=pair.old.name,
        new=pair.new.name,
        task=pair.old.task,
        split=str(pair.old.fingerprint["task"].get("split", "")),
        runs=(pair.old.sha256, pair.new.sha256),
        options={**asdict(options), "kinds": list(options.kinds)},
        all_flips=len(flipped[0]),
        flips=len(negative.rows),
        gains=len(positive.rows),
        left_out=negative.left_out + positive.left_out,
        held_out=found.held_out,
        every=found.every,
        estimates={str(site): value for site, value in found.estimates.items()},
        sites=found.sites,
        together=found.together,
        random=found.random,
        edges=found.edges,
        layers=hybrid.new.layers,
        heads=hybrid.new.heads,
    )


def _models(pair: Comparison, old: ModelLike | None, new: ModelLike | None) -> tuple[Loaded, Loaded]:
    """The models that were compared, by their names in the comparison where they are not given."""
    from uphold.models.load import check_same_tokenizer, check_single
    from uphold.models.shared import load_pair

    names = [run.name if given is None else given for run, given in ((pair.old, old), (pair.new, new))]
    for run, role in ((pair.old, "old"), (pair.new, "new")):
        if "weights" not in run.fingerprint["model"]:
            raise DataError(
                f"'{run.name}' was read from a log: compare the models themselves (uphold compare OLD NEW) to "
                f"look into the {role} one"
            )
    models = load_pair(names[0], names[1])
    for loaded, run, role in zip(models, (pair.old, pair.new), ("old", "new"), strict=True):
        check_single(loaded)
        _check_same(loaded, run, role)
    check_same_tokenizer(*models)
    return models


def _decided(
    hybrid: Hybrid, task: Task, changed: Sequence[Sequence[tuple[Instance, Record, Record]]], tokenizer: Any
) -> tuple[Forks, Forks]:
    """Flips and gains that are decided at the first token in which the answers differ."""
    from uphold.explain.restoring.forks import forks
    from uphold.models.encode import Encoder

    encoder = Encoder(tokenizer)
    negative, positive = (hybrid.decided(forks(task, some, encoder, tokenizer.eos_token_id)) for some in changed)
    if len(negative.rows) < LEAST:
        raise DataError(
            f"only {len(negative.rows)} of {len(changed[0])} negative flips are decided at the first token in which "
            f"the answers differ: at least {LEAST} are needed to choose sites and to measure them on others"
        )
    return negative, positive


def _task(pair: Comparison, task: str | Path | Task | None) -> Task:
    """The task that was compared."""
    from uphold.tasks.load import load_task

    if task is not None:
        return load_task(task) if isinstance(task, str | Path) else task
    try:
        return load_task(pair.old.task)
    except UsageError as error:
        raise UsageError(
            f"the comparison's task '{pair.old.task}' is none that is known by its name: name its file (--task FILE)"
        ) from error


def _check_same(loaded: Loaded, run: Run, role: str) -> None:
    from uphold.models.fingerprint import nameless

    # A run also says on what the model ran, which does not matter here.
    ours, theirs = nameless(loaded.fingerprint), run.fingerprint["model"]
    if any(theirs.get(part) != value for part, value in ours.items()):
        raise DataError(
            f"'{loaded.name}' is not the {role} model of the comparison, '{run.name}': its weights or its files have "
            f"changed; compare again, or name the model (--{role})"
        )


def _flipped(pair: Comparison) -> tuple[list[tuple[Record, Record]], list[tuple[Record, Record]]]:
    """Both models' records of negative flips and of gains, by id."""
    new = {record.id: record for record in pair.new.records()}
    sides: dict[bool, list[tuple[Record, Record]]] = {True: [], False: []}
    for record in sorted(pair.old.records(), key=lambda one: one.id):
        other = new.get(record.id)
        if other is not None and None not in (record.correct, other.correct) and record.correct != other.correct:
            sides[bool(record.correct)].append((record, other))
    return sides[True], sides[False]


def _changed(
    pair: Comparison, flipped: tuple[Sequence[tuple[Record, Record]], ...], task: Task, options: FlipsConfig
) -> tuple[list[tuple[Instance, Record, Record]], list[tuple[Instance, Record, Record]]]:
    """Negative flips and gains with their instances, at most `options.most` of each."""
    import json
    import random

    from uphold.tasks.base import SPLITS, task_fingerprint

    if len(flipped[0]) < LEAST:
        raise DataError(
            f"the comparison has {len(flipped[0])} negative flips: at least {LEAST} are needed to choose sites and to "
            "measure them on others"
        )
    instances = {one.id: one for split in SPLITS for one in task.instances(split)}
    missing = next((old.id for side in flipped for old, _ in side if old.id not in instances), None)
    if missing is not None:
        raise DataError(
            f"the task '{task.name}' has no instance {missing} of the comparison: name the task that was compared "
            "(--task)"
        )
    theirs = json.loads(json.dumps(pair.old.fingerprint["task"]))
    # As it is after it was stored, where tuples are lists.
    ours = json.loads(json.dumps(task_fingerprint(task, theirs.get("split", "test"))))
    for name in ("kind", "delimiter", "metric", "decoding"):
        if ours.get(name) != theirs.get(name):
            raise DataError(
                f"the task '{task.name}' has the {name} {ours.get(name)!r}, the comparison {theirs.get(name)!r}: name "
                "the task that was compared (--task)"
            )
    draw = random.Random(options.seed)
    some = [sorted(draw.sample(side, options.most)) if len(side) > options.most else side for side in flipped]
    first, second = ([(instances[old.id], old, new) for old, new in side] for side in some)
    return first, second
