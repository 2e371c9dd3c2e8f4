"""MINT: wrong next tokens repaired by editing single feed-forward neurons.

Gu et al., "Neuron Patching: Semantic-based Neuron-level Language Model Repair for Code Generation", arXiv:2312.05356.

Each failure is a transaction: its wrong tokens are repaired one after the other, the guard set is read, and either all
of its edits stay or none. A repair that makes another of the failures wrong that was right is undone as well. Repairs
accumulate in the model; what comes out is one patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from uphold.core.errors import EmptyError, ModelError, UsageError
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.models.load import Loaded
from uphold.models.neurons.attribution import candidates
from uphold.models.neurons.basis import (
    NormGain,
    SemanticBasis,
    basis_direction,
    delta_direction,
    orthogonal_to,
    unit_range,
)
from uphold.models.neurons.config import Failure, Guard, NeuronConfig
from uphold.models.neurons.context import Context
from uphold.models.neurons.edits import Ledger
from uphold.models.neurons.guard import Drift, Forced, Reading, drift, forced, read_guard
from uphold.models.neurons.journal import Journal, journal_key
from uphold.models.neurons.neurons import Anatomy, read_anatomy
from uphold.models.neurons.patch import neuron_patch
from uphold.models.neurons.report import FailureReport, NeuronReport, Paraphrases, TokenRepair, Tried
from uphold.models.neurons.search import Problem, repair_token
from uphold.models.patches.patch import Patch

_PASSES = 3
"""How often each token of a failure is repaired at most, on average: repairs can undo each other."""


def repair_failures(
    model: Any,
    failures: Sequence[Failure],
    config: NeuronConfig | None = None,
    *,
    guard: Guard | None = None,
    vocabulary: int | None = None,
    head: str | None = None,
    norm: str | None = None,
    keep: bool = False,
    journal: str | Path | None = None,
    progress: Progress = silent,
) -> tuple[Patch | None, NeuronReport]:
    """Repair failures in turn by editing neurons; the weights are as before afterwards, bit for bit, unless `keep`.

    Args:
        model: a `Loaded`, a transformers causal language model, or any torch one; without an adapter.
        failures: what is continued wrongly.
        config: the options.
        guard: what must not change; nothing is measured elsewhere where None.
        vocabulary: how many token ids mean something; of the tokenizer of a `Loaded`, else all, where None.
        head: path of the output projection, where the model does not say.
        norm: path of the last norm, where it is not found; used with `divide_by_gain` only.
        keep: leave the repairs in the model.
        journal: a file that holds what was done so far, written after every failure; the same call goes on from it.
            Remove it when the patch is saved.
        progress: called after every failure.

    Returns:
        The patch, None where nothing was repaired, and what happened.

    Raises:
        EmptyError: there are no failures.
        UsageError: a token id is outside the vocabulary, or a guard's check fails before any repair.
        ModelError: a part of the model is not found or cannot be edited.
    """
    chosen = config or NeuronConfig()
    loaded = model if isinstance(model, Loaded) else None
    module = model.model if isinstance(model, Loaded) else model
    if loaded is not None and vocabulary is None:
        vocabulary = max(loaded.tokenizer.get_vocab().values()) + 1
    anatomy = read_anatomy(module, vocabulary=vocabulary, modules=chosen.modules, head=head, norm=norm)
    _check(failures, guard, anatomy)
    with _evaluating(module), Ledger() as ledger:
        work = _Work(anatomy, chosen, guard, ledger, SemanticBasis(anatomy.head, anatomy.vocabulary))
        kept = None if journal is None else Journal(Path(journal), journal_key(anatomy, failures, chosen, guard))
        report = work.run(failures, progress, kept)
        patch = neuron_patch(ledger.edits, failures, report, chosen, loaded)
        if not keep:
            ledger.rollback()
    return patch, report


class _Work:
    """The repairs of one call."""

    def __init__(
        self, anatomy: Anatomy, config: NeuronConfig, guard: Guard | None, ledger: Ledger, basis: SemanticBasis
    ) -> None:
        self.anatomy, self.config, self.guard, self.ledger, self.basis = anatomy, config, guard, ledger, basis
        self.downs = anatomy.selected(config.layers)
        self.gain = NormGain(anatomy) if config.divide_by_gain else None

    def run(self, failures: Sequence[Failure], progress: Progress, journal: Journal | None = None) -> NeuronReport:
        """All failures in turn, but for those that a journal has done."""
        if self.guard is not None and self.guard.check is not None and not self.guard.check(self.anatomy.model):
            raise UsageError("the guard's check does not pass before any repair: it cannot tell what a repair breaks")
        before = [self._forced(one) for one in failures]
        others = [[forced(self.anatomy, prompt, one.target) for prompt in one.paraphrases] for one in failures]
        pristine = now = self._read()
        tried, edits = journal.load(self.anatomy) if journal is not None else ([], [])
        if edits:
            for edit in edits:
                self.ledger.write(edit)
            now = self._read()
        for number, failure in enumerate(failures[len(tried) :], start=len(tried)):
            stop = tried[-1].stop if tried else ""
            if stop:
                one = Tried("stopped", reason=stop, stop=stop)
            else:
                mark = self.ledger.mark()
                one = self._repair(number, failure)
                if one.status == "repaired":
                    right = [other for other, its in zip(failures, tried, strict=False) if its.holds]
                    one, now = self._guarded(one, mark, right, pristine, now)
            tried.append(one)
            if journal is not None:
                journal.save(tried, self.ledger.edits)
            progress("repairing", number + 1, len(failures), f"{failure.name or number + 1}: {one.status}")
        made = tuple(
            FailureReport(
                failure,
                one.status,
                one.tokens,
                first,
                self._forced(failure),
                self._paraphrases(failure, other),
                one.drift,
                one.reason,
            )
            for failure, one, first, other in zip(failures, tried, before, others, strict=True)
        )
        total = drift(pristine, now) if pristine is not None and now is not None else None
        return NeuronReport(made, total, self.basis.leverage)

    def _repair(self, number: int, failure: Failure) -> Tried:
        """One failure: all of its tokens, or none."""
        mark, tokens = self.ledger.mark(), list[TokenRepair]()
        history: dict[str, list[torch.Tensor]] = {}
        while not (state := self._forced(failure)).all_right:
            position = next(
                place
                for place, (said, right) in enumerate(zip(state.predicted, failure.target, strict=True))
                if said != right
            )
            reason = "repairing one token undoes another"
            if len(tokens) < _PASSES * len(failure.target):
                tokens.append(self._token(number, failure, position, state.predicted[position], history))
                if tokens[-1].repaired:
                    continue
                reason = f"token {position + 1}: {tokens[-1].reason}"
            self.ledger.rollback(mark)
            return Tried("failed", tuple(tokens), reason=reason)
        return Tried("repaired" if tokens else "right", tuple(tokens))

    def _token(
        self, number: int, failure: Failure, position: int, wrong: int, history: dict[str, list[torch.Tensor]]
    ) -> TokenRepair:
        config, target = self.config, failure.target[position]
        context = Context(self.anatomy, (*failure.prompt, *failure.target[:position]), self.downs)
        generator = torch.Generator().manual_seed(int(sha256_of([config.seed, number, position])[:15], 16))
        pool = candidates(context, target, config.pool, config.locate, generator)
        directions = self._directions(failure, target, wrong, history)
        mark = self.ledger.mark()
        problem = Problem(context, target, wrong, number, position)
        outcome = repair_token(problem, pool, directions, config, self.ledger)
        made = self.ledger.edits[mark:]
        for name in {edit.down.name for edit in made}:
            history.setdefault(name, []).append(directions[name] / directions[name].norm())
        neurons = tuple((edit.down.layer, edit.index) for edit in made)
        return TokenRepair(
            position,
            wrong,
            target,
            outcome.repaired,
            outcome.strength,
            neurons,
            outcome.gap_before,
            outcome.gap_after,
            outcome.reason,
        )

    def _directions(
        self, failure: Failure, target: int, wrong: int, history: dict[str, list[torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """P of each layer looked at, by the down-projection's name; none where all its entries are equal."""
        delta = delta_direction(self.basis, target, wrong)
        found = {}
        for down in self.downs:
            vector = delta
            if self.config.direction == "basis":
                if self.anatomy.embedding is None:
                    raise ModelError("the model's input embedding is not found: use the direction 'delta'")
                start = self.anatomy.embedding[failure.prompt[-1]]
                vector = basis_direction(self.basis, target, start, down.layer, len(self.anatomy.downs))
            scaled = unit_range(vector if self.gain is None else self.gain.before(vector))
            if scaled is not None:
                found[down.name] = orthogonal_to(scaled, history.get(down.name, ()))
        return found

    def _guarded(
        self, one: Tried, mark: int, right: Sequence[Failure], pristine: Reading | None, now: Reading | None
    ) -> tuple[Tried, Reading | None]:
        """Keep a repair or undo it, by what it did elsewhere; with the reading that counts from now on.

        Args:
            one: the repair.
            mark: where its edits begin.
            right: failures before it that are right without it.
            pristine: of the guard set by the model as it was.
            now: the same by the model before this repair.
        """
        config = self.config
        broken = next((other for other in right if not self._forced(other).all_right), None)
        if broken is not None:
            self.ledger.rollback(mark)
            return replace(one, status="vetoed", reason=f"it makes {broken.name or 'an earlier failure'} wrong"), now
        after = self._read()
        own: Drift | None = None
        reason = over = ""
        if pristine is not None and now is not None and after is not None:
            own = drift(now, after)
            reason = own.exceeds(config.max_nll_rise, config.min_agreement)
            over = drift(pristine, after).exceeds(config.total_nll_rise, config.total_agreement)
        if not (reason or over) and self.guard is not None and self.guard.check is not None:
            reason = "" if self.guard.check(self.anatomy.model) else "the guard's check does not pass"
        stop = f"with all repairs {over}" if over and not reason else ""
        if reason or stop:
            self.ledger.rollback(mark)
            return replace(one, status="vetoed", drift=own, reason=reason or stop, stop=stop), now
        return replace(one, drift=own), after

    def _read(self) -> Reading | None:
        return None if self.guard is None else read_guard(self.anatomy, self.guard)

    def _forced(self, failure: Failure) -> Forced:
        return forced(self.anatomy, failure.prompt, failure.target)

    def _paraphrases(self, failure: Failure, before: Sequence[Forced]) -> Paraphrases | None:
        if not before:
            return None
        after = [forced(self.anatomy, prompt, failure.target) for prompt in failure.paraphrases]
        return Paraphrases(
            len(after),
            sum(one.all_right for one in before),
            sum(one.all_right for one in after),
            sum(one.rank for one in before) / len(before),
            sum(one.rank for one in after) / len(after),
            sum(one.gap for one in before) / len(before),
            sum(one.gap for one in after) / len(after),
        )


def _check(failures: Sequence[Failure], guard: Guard | None, anatomy: Anatomy) -> None:
    if not failures:
        raise EmptyError("there are no failures to repair: give at least one prompt with its right continuation")
    rows = [ids for one in failures for ids in (one.prompt, one.target, *one.paraphrases)]
    rows += [tuple(ids) for row in (guard.rows if guard else ()) for ids in (row.prompt, row.answer)]
    unknown = [one for row in rows for one in row if not 0 <= one < anatomy.vocabulary]
    if unknown:
        raise UsageError(
            f"token ids must be from 0 to {anatomy.vocabulary - 1}, found {unknown[0]}: they are of another tokenizer"
        )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Eval mode, and every module's own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
