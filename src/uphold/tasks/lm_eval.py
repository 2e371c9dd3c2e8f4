"""Tasks of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness), asked by our engine.

    lm_eval:hellaswag:fewshot=5,limit=1000
    lm_eval:my_tasks/riddles:metric=acc_norm
    lm_eval:my_tasks/riddles.yaml

Templates, few-shot sampling, filters and metrics are the harness's own: the requests of the test split are, text by
text, those that its `simple_evaluate` builds with its default seed. It evaluates a task's test documents, or its
validation documents where there are no others: that is our test split.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

from uphold.core.errors import EmptyError, UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.tasks.base import FixedTask, Instance, Metric, Split, without_duplicates
from uphold.tasks.lm_eval_scores import choose_metric, decoding_of, generated_score, right_if_listed, scorer_name

FEWSHOT_SEED = 1234
"""The default of the harness's `simple_evaluate`."""


@dataclass(frozen=True)
class Documents:
    """One of the harness's sets of documents."""

    name: str
    """Of the dataset's split."""
    read: Callable[[], Iterable[Any]]


def lm_eval_task(
    name: str,
    *,
    fewshot: int | None = None,
    split: str = "",
    metric: str = "",
    filter: str = "",
    limit: int | None = None,
    train: int | None = None,
    validation: int | None = None,
    seed: int = FEWSHOT_SEED,
    label: str = "",
    progress: Progress = silent,
) -> FixedTask:
    """A task of lm-evaluation-harness.

    Args:
        name: name of a task that ships with the harness, `FOLDER/NAME`, or the path of a task file.
        fewshot: exemplars in front of a question; the task's own number, or 0, when not given.
        split: which documents are our test split: test, validation or train; the harness's choice when empty.
        metric: what is scored; the first of the task's metrics that can be had here when empty.
        filter: which of the task's filters of generated answers; its first when empty.
        limit: at most this many documents of each split, from its beginning.
        train: at most this many training documents.
        validation: at most this many validation documents.
        seed: of the few-shot sampling.
        label: name of the task.
        progress: called after each split.

    Raises:
        UsageError: the extra is missing, or no such task, option or metric, or one that cannot be had here.
        DataError: the task's files or its dataset cannot be loaded.
        EmptyError: no document of the test split has a gold answer.
    """
    called = label or f"lm_eval:{name}"
    _check_at_least(called, 0, fewshot=fewshot, train=train, validation=validation)
    _check_at_least(called, 1, limit=limit)
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(f"task '{called}' needs lm-evaluation-harness: pip install 'uphold[lm-eval]'")
    from lm_eval import __version__ as version

    from uphold.tasks.hub import quiet_libraries
    from uphold.tasks.lm_eval_files import compiled_templates, harness_errors, load_harness_task, without_bars

    task = load_harness_task(name)
    chosen, picking = choose_metric(called, task, metric)
    _set_fewshot(called, task, fewshot, seed)
    limits: dict[Split, int | None] = {"test": limit, "validation": validation, "train": train}
    splits: dict[Split, list[Instance]] = {}
    notes: list[str] = []
    with harness_errors(name), quiet_libraries(), compiled_templates(), without_bars():
        documents = _documents(called, task, split)
        for done, (ours, own) in enumerate(documents.items(), start=1):
            most = limit if limits[ours] is None else limits[ours]
            found, left_out = _instances(task, own, most, exclude_asked=ours != "test")
            splits[ours] = _new(found, splits.values(), ours, left_out)
            notes += [f"{ours}: {count} documents were left out: {why}" for why, count in left_out.items()]
            progress(f"building {called}", done, len(documents))
    if not splits["test"]:
        raise EmptyError(f"task '{called}' has no test document with a gold answer: choose another with split=...")
    return _assemble(called, task, chosen, picking, filter, splits, notes, version)


def _assemble(
    called: str,
    task: Any,
    chosen: str,
    picking: Metric | None,
    filter_name: str,
    splits: Mapping[Split, Sequence[Instance]],
    notes: Sequence[str],
    version: str,
) -> FixedTask:
    ensemble = None if picking else _filter(called, task, filter_name)
    score = right_if_listed if ensemble is None else generated_score(called, task, ensemble, chosen, splits["test"][0])
    ends_in_space = any(instance.prompt[-1:].isspace() for instance in splits["test"])
    plain = task.OUTPUT_TYPE == "loglikelihood" or (picking is None and ends_in_space)
    return FixedTask(
        name=called,
        kind="choice" if picking else "generate",
        splits={split: tuple(instances) for split, instances in splits.items()},
        scorer=scorer_name(task, chosen, ensemble.name if ensemble else "", splits["test"], version),
        score_function=score,
        delimiter="" if plain else task.config.target_delimiter,
        decoding=decoding_of(called, task),
        notes=tuple(notes),
        metric=picking or "acc",
    )


def _check_at_least(called: str, least: int, **options: int | None) -> None:
    for option, value in options.items():
        if value is not None and value < least:
            raise UsageError(f"task '{called}': {option} is {value}; it must be at least {least}")


def _set_fewshot(called: str, task: Any, fewshot: int | None, seed: int) -> None:
    """As `simple_evaluate` does, except that an option without effect is an error."""
    own = task.config.num_fewshot
    if fewshot is not None and own == 0 and fewshot != 0:
        raise UsageError(f"task '{called}' is made for fewshot=0 and the harness keeps it so: leave fewshot away")
    task.set_config("num_fewshot", (own or 0) if fewshot is None else fewshot)
    task.set_fewshot_seed(seed)


def _filter(called: str, task: Any, name: str) -> Any:
    ensembles = {ensemble.name: ensemble for ensemble in task._filters}
    if name and name not in ensembles:
        raise unknown_name("filter", name, ensembles, f"It stands in '{called}'.")
    return ensembles[name] if name else next(iter(ensembles.values()))


def _documents(called: str, task: Any, split: str) -> dict[Split, Documents]:
    """Which documents are which of our splits, no set twice; test comes first."""
    config = task.config
    sets: dict[Split, Documents] = {}
    if task.has_test_docs():
        sets["test"] = Documents(config.test_split, task.test_docs)
    if task.has_validation_docs():
        sets["validation"] = Documents(config.validation_split, task.validation_docs)
    if task.has_training_docs():
        sets["train"] = Documents(config.training_split, task.training_docs)
    asked = split or ("test" if "test" in sets else "validation")
    if asked not in sets:
        raise unknown_name("split", asked, sets, f"It stands in '{called}'.")
    chosen: dict[Split, Documents] = {"test": next(own for name, own in sets.items() if name == asked)}
    for ours in ("validation", "train"):
        if ours in sets and sets[ours].name not in {own.name for own in chosen.values()}:
            chosen[ours] = sets[ours]
    return chosen


def _instances(
    task: Any, documents: Documents, most: int | None, exclude_asked: bool
) -> tuple[list[Instance], dict[str, int]]:
    """The instances of a set of documents, and how many were left out for which reason.

    `exclude_asked` keeps a document out of its own exemplars, which the harness does for test documents only.
    """
    read = list(islice(documents.read(), most))
    instances: list[Instance] = []
    left_out: dict[str, int] = {}
    for document, requests in zip(read, _requests(task, read, exclude_asked), strict=True):
        made = _instance(task, document, requests)
        if isinstance(made, Instance):
            instances.append(made)
        else:
            left_out[made] = left_out.get(made, 0) + 1
    unique, dropped = without_duplicates(instances)
    if dropped:
        left_out["duplicates"] = dropped
    return unique, left_out


def _requests(task: Any, documents: Sequence[Any], exclude_asked: bool) -> Iterator[list[Any]]:
    """What the harness asks about each document, as its `build_all_requests` builds it."""
    if not documents:
        return
    config, own = task.config, task.config.test_split
    task.doc_iterator = lambda **_: enumerate(documents)
    if exclude_asked:
        config.test_split = task.fewshot_cfg.split
    try:
        task.build_all_requests()
    finally:
        config.test_split = own
        del task.doc_iterator
    grouped: list[list[Any]] = [[] for _ in documents]
    for request in task.instances:
        grouped[request.doc_id].append(request)
    for requests in grouped:
        yield sorted(requests, key=lambda request: request.idx)


def _instance(task: Any, document: Any, requests: Sequence[Any]) -> Instance | str:
    """The instance of one document, or why it cannot be asked."""
    if task.OUTPUT_TYPE == "multiple_choice":
        return _choice(task, document, requests)
    (request,) = requests
    if task.OUTPUT_TYPE == "loglikelihood":
        context, continuation = request.args
        targets = {"targets": (continuation,)}
        return Instance(context, continuation, (continuation,), extra=targets, requests=((context, continuation),))
    return Instance(request.args[0], _gold_text(task, document), extra={"doc": document})


def _choice(task: Any, document: Any, requests: Sequence[Any]) -> Instance | str:
    options = tuple(map(str, task.doc_to_choice(document)))
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    listed = gold if isinstance(gold, list) else [gold]
    places = [options.index(one) if isinstance(one, str) and one in options else one for one in listed]
    targets = tuple(options[place] for place in places if isinstance(place, int) and 0 <= place < len(options))
    if not targets:
        return "no gold answer"
    # Behind these come requests without context, where the task has acc_mutual_info: the engine makes its own.
    pairs = tuple((str(context), str(continuation)) for context, continuation in (one.args for one in requests))
    pairs = pairs[: len(options)]
    return Instance(
        _common_start([context for context, _ in pairs]),
        targets[0],
        options,
        extra={"targets": targets},
        requests=pairs,
    )


def _common_start(texts: Sequence[str]) -> str:
    """The longest text that all of `texts` begin with."""
    same = takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False))
    return texts[0] if len(set(texts)) == 1 else "".join(characters[0] for characters in same)


def _gold_text(task: Any, document: Any) -> str:
    gold = task.doc_to_target(document)
    if task.config.doc_to_choice is not None and isinstance(gold, int):
        gold = task.doc_to_choice(document)[gold]
    if isinstance(gold, list | tuple):
        gold = gold[0] if gold else ""
    return str(gold)


def _new(
    instances: Sequence[Instance], before: Iterable[Sequence[Instance]], ours: Split, left_out: dict[str, int]
) -> list[Instance]:
    """`instances` without those of earlier splits, which are counted in `left_out`."""
    seen = {instance.id for own in before for instance in own}
    kept = [instance for instance in instances if instance.id not in seen]
    if len(kept) < len(instances):
        left_out["another split has them"] = len(instances) - len(kept)
    return kept
