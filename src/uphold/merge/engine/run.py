"""Merging models on disk: from a recipe to a folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uphold.core.errors import CorruptError, ModelError, StorageError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.registry import method as registered
from uphold.core.storage import read_json, write_json
from uphold.merge.engine.check import check_configs, check_lineage, check_tokenizers
from uphold.merge.engine.diagnostics import TensorDiagnosis, diagnostics_table
from uphold.merge.engine.execute import InputHashes, Outcome, cores_for, execute, facts_of, threads_for, working_memory
from uphold.merge.engine.inputs import Input, open_input
from uphold.merge.engine.names import is_embedding, is_head
from uphold.merge.engine.output import FACTS, finished, key_of, provenance, write_companions, write_facts
from uphold.merge.engine.plan import Plan, make_plan
from uphold.merge.engine.recipe import Recipe, TokenizerChoice, load_recipe
from uphold.merge.engine.settings import check_parameters
from uphold.merge.protocol import MergeMethod
from uphold.models.checkpoint_writer import SHARD_SIZE, CheckpointWriter
from uphold.models.fingerprint import weights_hash
from uphold.models.vocabulary import BASE, UNION, Member, Vocabulary, Wish, build_vocabulary

DIAGNOSTICS = "diagnostics.json"
_REMARKS = 10
"""Of a method, that are told."""


@dataclass(frozen=True)
class Estimate:
    """What a merge is going to take."""

    method: str
    tensors: int
    merged: int
    """Tensors that the method makes; the others are copied."""
    bytes_read: int
    bytes_written: int
    memory: int
    """Anonymous memory of all threads, beside what the interpreter and its libraries take."""
    threads: int
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**self.__dict__, "warnings": list(self.warnings)}

    def __str__(self) -> str:
        """For people."""
        lines = [
            f"method   {self.method}",
            f"tensors  {self.tensors} ({self.merged} merged, {self.tensors - self.merged} copied)",
            f"reads    {size_text(self.bytes_read)}",
            f"writes   {size_text(self.bytes_written)}",
            f"memory   {size_text(self.memory)} in {self.threads} thread{'s' * (self.threads > 1)}, beside the "
            "interpreter's own",
        ]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


@dataclass(frozen=True)
class Merge:
    """A merged model on disk."""

    out: Path
    """Its folder."""
    facts: Mapping[str, Any]
    """The content of its `uphold-merge.json`: recipe, hashes of inputs and result, versions, warnings."""
    seconds: float
    reused: bool
    """Whether `out` held this very merge already."""
    diagnostics: Mapping[str, Any] | None = None
    """By tensor, where asked for."""

    @property
    def weights(self) -> str:
        """Hash of the result's weights."""
        return str(self.facts["weights"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was found odd."""
        return tuple(self.facts["warnings"])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"out": str(self.out), "reused": self.reused, "seconds": round(self.seconds, 3), **self.facts} | (
            {} if self.diagnostics is None else {"diagnostics": self.diagnostics}
        )

    def __str__(self) -> str:
        """For people."""
        facts = self.facts
        how = "found finished" if self.reused else f"in {self.seconds:.1f} s"
        text = (
            f"{_many(len(facts['inputs']), 'model')} by {facts['method']}: {_many(facts['tensors'], 'tensor')}, "
            f"{size_text(facts['bytes'])}, {how}\nweights: {self.weights}"
        )
        if self.diagnostics is not None:
            known = {name: TensorDiagnosis(**one) for name, one in self.diagnostics.items()}
            text += f"\n\n{diagnostics_table(known)}"
        return text


def merge(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    out: str | Path,
    threads: int | None = None,
    shard_size: int = SHARD_SIZE,
    diagnostics: bool = False,
    force: bool = False,
    hashes: InputHashes | None = None,
    search: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Merge:
    """Merge models as a recipe says, into a folder that transformers can load.

    Neither threads nor shards change the result. A repeated call finds what is finished. The folder takes its place
    when all is written; what is stopped before leaves nothing.

    Args:
        recipe: a YAML file with mergekit's keys, or the same as a mapping.
        out: the folder to make. One that holds another merge is replaced; any other must be empty.
        threads: cores to use; all by default. Memory may allow fewer.
        shard_size: bytes in one file of weights.
        diagnostics: compare the models tensor by tensor, and write `diagnostics.json`.
        force: merge models whose configs say that their weights do not mean the same.
        hashes: of inputs that an earlier merge has read; filled with those of this one.
        search: how the recipe's values were found, for `uphold-merge.json`.
        progress: called after every tensor.

    Raises:
        UsageError: the recipe and the models, or the method's parameters, do not fit together.
        DataError: the recipe cannot be read or says what cannot be.
        ModelError: a model cannot be read, or does not fit the others.
        StorageError: `out` is in use or cannot be written.
    """
    started = time.monotonic()
    folder = Path(out)
    loaded = load_recipe(recipe)
    hashes = hashes or InputHashes()
    extra = {} if search is None else {"search": dict(search)}
    with prepared(loaded, force) as (plan, inputs):
        check_folder(folder, inputs)
        known = _reused(folder, plan, facts_of(inputs, hashes), diagnostics) if (folder / FACTS).is_file() else None
        if known is not None:
            if {**known, **extra} != known:
                known = {**known, **extra}
                write_json(folder / FACTS, known)
            return Merge(folder, known, time.monotonic() - started, True, _read_diagnostics(folder, diagnostics))
        tensors = {one.name: (one.dtype, one.shape) for one in plan.tensors}
        tied = dict(plan.donor.checkpoint.tied)
        with CheckpointWriter(folder, tensors, shard_size=shard_size, metadata=tied) as writer:
            outcome = execute(
                plan,
                writer,
                threads=threads_for(plan, threads),
                cores=cores_for(threads),
                hashes=hashes,
                diagnostics=diagnostics,
                progress=progress,
            )
            warnings = [*plan.warnings, *_remarks(plan, outcome), *_odd(outcome)]
            facts = provenance(plan, facts_of(inputs, hashes), outcome.content_hash(), warnings, writer.shards)
            facts |= extra
            write_companions(plan, list(inputs.values()), writer.folder)
            write_facts(plan, facts, writer.folder)
            found = {name: one.to_dict() for name, one in sorted(outcome.diagnoses.items())}
            if diagnostics:
                write_json(writer.folder / DIAGNOSTICS, found)
    return Merge(folder, facts, time.monotonic() - started, False, found if diagnostics else None)


def estimate(
    recipe: str | Path | Mapping[str, Any] | Recipe, *, threads: int | None = None, force: bool = False
) -> Estimate:
    """What a merge would read, write and need; nothing is written.

    Raises:
        UpholdError: what `merge` would refuse before it starts.
    """
    with prepared(load_recipe(recipe), force) as (plan, _):
        count = threads_for(plan, threads)
        return Estimate(
            plan.recipe.merge_method,
            len(plan.tensors),
            sum(one.settings is not None for one in plan.tensors),
            sum(source.nbytes() for one in plan.tensors for source in one.sources),
            sum(one.elements * one.dtype.itemsize for one in plan.tensors),
            count * working_memory(plan),
            count,
            plan.warnings,
        )


@contextmanager
def prepared(recipe: Recipe, force: bool = False) -> Iterator[tuple[Plan, dict[str, Input]]]:
    """The plan of a merge with its models open.

    Raises:
        UpholdError: see `merge`.
    """
    method = method_of(recipe.merge_method)
    warnings = check_parameters(recipe, method)
    with ExitStack() as stack:
        inputs: dict[str, Input] = {}
        for reference in recipe.references():
            inputs[reference] = open_input(reference)
            stack.callback(inputs[reference].close)
        opened = list(inputs.values())
        warnings += check_configs(opened, force)
        warnings += check_tokenizers(opened, recipe.vocabulary() is not None)
        vocabulary = _vocabulary(recipe, inputs)
        plan = make_plan(recipe, method, inputs, vocabulary)
        if vocabulary is not None and (orphans := vocabulary.orphans()):
            warnings.append(f"no model has the token {orphans[0]!r} and {len(orphans) - 1} more: their rows are zeros")
        warnings += [*plan.warnings, *check_lineage(plan)]
        yield plan.warned(warnings), inputs


def method_of(name: str) -> MergeMethod:
    """The merge method called `name`.

    Raises:
        UsageError: there is none; the message suggests the nearest one.
    """
    made: MergeMethod = registered("merge", name).function()
    return made


def _vocabulary(recipe: Recipe, inputs: Mapping[str, Input]) -> Vocabulary | None:
    choice = recipe.vocabulary()
    if choice is None:
        return None
    members = {}
    for name, one in inputs.items():
        tables = [info for key, info in one.checkpoint.infos.items() if is_embedding(key) or is_head(key)]
        if one.files is None or not tables:
            raise UsageError(f"'{name}' has no tokenizer or no embeddings: leave the tokenizer out of the recipe")
        members[name] = Member(one.files, tables[0].shape[0])
    base = recipe.references()[0]
    wishes = {token: _wish(one.source, one.force) for token, one in choice.tokens.items()}
    source = choice.source if choice.source in (UNION, BASE) else _model(choice, inputs)
    return build_vocabulary(members, base, source, wishes, choice.pad_to_multiple_of)


def _model(choice: TokenizerChoice, inputs: Mapping[str, Input]) -> str:
    return choice.source if choice.source in inputs else choice.source.removeprefix("model:")


def _wish(source: Any, force: bool) -> Wish:
    if source is None or isinstance(source, str):
        return Wish(source, None, False, force)
    if source.kind == "zero":
        return Wish(None, None, True, force)
    return Wish(source.model, source.token if source.token is not None else source.token_id, False, force)


def check_folder(out: Path, inputs: Mapping[str, Input]) -> None:
    """Refuse to replace what is no merge, and to write over or into a model that is about to be read.

    Raises:
        StorageError: `out` is one of these, or a file.
    """
    place = out.resolve()
    for one in inputs.values():
        for used in (one.checkpoint.path, one.folder, one.adapter.path if one.adapter is not None else None):
            if used is not None and (place == used.resolve() or place in used.resolve().parents):
                raise StorageError(f"{out} holds '{one.name}', which is to be merged; give --out another folder")
            if used is not None and used.is_dir() and used.resolve() in place.parents:
                raise StorageError(f"{out} lies inside '{one.name}', which is to be merged; give --out another folder")
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file, but a folder is needed; give --out another place")
    if out.is_dir() and any(out.iterdir()) and not (out / FACTS).is_file():
        raise StorageError(f"{out} is not empty and holds no merge; give --out a new folder")


def _reused(out: Path, plan: Plan, inputs: list[dict[str, Any]], diagnostics: bool) -> dict[str, Any] | None:
    if diagnostics and not (out / DIAGNOSTICS).is_file():
        return None
    try:
        known = finished(out, key_of(plan.recipe, inputs))
        return known if known is not None and weights_hash(out) == known.get("weights") else None
    except (CorruptError, ModelError):
        return None  # what is damaged is made again


def _read_diagnostics(out: Path, wanted: bool) -> dict[str, Any] | None:
    return dict(read_json(out / DIAGNOSTICS)) if wanted else None


def _remarks(plan: Plan, outcome: Outcome) -> list[str]:
    """What the method remarked, in the order of the tensors; of many remarks the first."""
    found = [note for tensor in plan.tensors for note in outcome.notes.get(tensor.name, ())]
    rest = len(found) - _REMARKS
    more = [f"and {rest} more remarks of '{plan.recipe.merge_method}' such as these"] if rest > 0 else []
    return [*found[:_REMARKS], *more]


def _odd(outcome: Outcome) -> list[str]:
    if not outcome.odd:
        return []
    held = f"{min(outcome.odd)} holds" if len(outcome.odd) == 1 else f"{len(outcome.odd)} tensors hold"
    first = "" if len(outcome.odd) == 1 else f", the first is {min(outcome.odd)}"
    return [f"{held} NaN or infinity{first}: inputs that do, or numbers too large for the element type"]


def _many(count: int, one: str) -> str:
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def size_text(count: int) -> str:
    """Bytes as people write them."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
