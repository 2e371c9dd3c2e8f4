"""Asking two models as one: mixed token by token, or the new one's candidates ranked by the old one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uphold.core.errors import ModelError
from uphold.models.decoding import Generated, Sampling
from uphold.models.encode import Encoder
from uphold.models.engine import Engine, LocalEngine, Meter
from uphold.models.likelihood import OptionScore, Scored
from uphold.models.pair_file import Reranking

if TYPE_CHECKING:
    from uphold.models.load import Loaded


def pair_engine(loaded: Loaded, batch_tokens: int, encoder: Encoder, meter: Meter | None = None) -> Engine:
    """The engine of a pair.

    Args:
        loaded: of which the model is a `ModelPair`.
        batch_tokens: padded tokens per forward pass of each model; 0 for `default_batch_tokens`.
        encoder: of the tokenizer that both models share.
        meter: counts the tokens of both.
    """
    old, new = loaded.model.members
    how, count = loaded.model.how, meter or Meter()
    if isinstance(how, Reranking):
        engines = [LocalEngine(one, batch_tokens, encoder, count) for one in (old, new)]
        return RerankingEngine(loaded.name, engines[0], engines[1], how, loaded.tokenizer.eos_token or "")
    return MixedEngine(loaded.name, LocalEngine(loaded, batch_tokens, encoder, _BothMeter(count)))


class _BothMeter(Meter):
    """Counts for two models what is read by one, in the meter that was given."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def add(self, tokens: int) -> None:
        """Count the tokens of a forward pass of each model."""
        self._meter.add(2 * tokens)


class MixedEngine:
    """A pair that predicts each token together."""

    def __init__(self, name: str, engine: Engine) -> None:
        """Ask `engine`, and count the tokens of both models."""
        self.name = name
        self._engine = engine

    def score(self, questions: Sequence[Sequence[tuple[str, str]]]) -> list[Scored]:
        """See `Engine`; an option's log-likelihood is the sum of the mixed log-probabilities of its tokens."""
        return [one._replace(tokens=2 * one.tokens) for one in self._engine.score(questions)]

    def write(self, prompts: Sequence[str], sampling: Sampling, keys: Sequence[str]) -> list[Generated]:
        """See `Engine`."""
        return [one._replace(tokens=2 * one.tokens) for one in self._engine.write(prompts, sampling, keys)]


class RerankingEngine:
    """y* = argmax over candidates y of the new model of p_old(y | x) (Cai et al. 2022, backward-congruent re-ranking).

    With one candidate the old model is not asked, and the answers are the new model's to the bit.
    """

    def __init__(self, name: str, old: Engine, new: Engine, how: Reranking, end: str) -> None:
        """Prepare to ask.

        Args:
            name: of the pair.
            old: ranks.
            new: proposes.
            how: how many candidates, and where they come from.
            end: the text of the end-of-text token; empty where there is none.
        """
        self.name = name
        self._old, self._new, self._how, self._end = old, new, how, end

    def score(self, questions: Sequence[Sequence[tuple[str, str]]]) -> list[Scored]:
        """The old model's scores of the options that the new one finds likeliest, by summed log-likelihood.

        The other options are no candidates: their log-likelihood is minus infinity.

        Raises:
            ModelError: a question asks for continuations with and without a context, which are not all options.
        """
        for question in questions:
            if len({bool(context) for context, _ in question}) > 1:
                raise ModelError(
                    f"'{self.name}' ranks options, and this task also asks how likely they are without the prompt: "
                    "evaluate it with another metric than acc_mutual_info"
                )
        proposed = self._new.score(questions)
        if self._how.options == 1:
            return proposed
        kept = [_likeliest(one.options, self._how.options) for one in proposed]
        ranked = self._old.score([[question[at] for at in own] for question, own in zip(questions, kept, strict=True)])
        return [
            Scored(
                _scores(one.options, own, judged.options), one.tokens + judged.tokens, one.truncated or judged.truncated
            )
            for one, own, judged in zip(proposed, kept, ranked, strict=True)
        ]

    def write(self, prompts: Sequence[str], sampling: Sampling, keys: Sequence[str]) -> list[Generated]:
        """The candidates are the new model's own answer and sampled ones; equal ones are one. See `Engine`.

        A candidate's likelihood is that of its text followed by the end of an answer: the end-of-text token, or any of
        the stop strings. Of equal ones the first is taken.
        """
        own = self._new.write(prompts, sampling, keys)
        if self._how.candidates == 1 or not prompts:
            return own
        drawn = self._drawn(prompts, sampling, keys or prompts)
        written = [[first, *more] for first, more in zip(own, drawn, strict=True)]
        texts = [list(dict.fromkeys(one.text for one in group)) for group in written]
        favourites = self._favourites(prompts, texts, sampling.stop)
        return [
            Generated(text, sum(one.tokens for one in group) + read, any(one.truncated for one in group))
            for group, (text, read) in zip(written, favourites, strict=True)
        ]

    def _drawn(self, prompts: Sequence[str], sampling: Sampling, keys: Sequence[str]) -> list[list[Generated]]:
        """The sampled candidates of each prompt."""
        how, more = self._how, self._how.candidates - 1
        drawn = Sampling(sampling.max_new_tokens, sampling.stop, how.sampling_temperature, how.top_p, how.seed)
        # A task that samples answers has a seed of its own; one that does not gets the same candidates whatever seed.
        tail = f" {sampling.seed}" if sampling.temperature else ""
        names = [f"{key} candidate {number}{tail}" for key in keys for number in range(more)]
        found = self._new.write([prompt for prompt in prompts for _ in range(more)], drawn, names)
        return [found[start : start + more] for start in range(0, len(found), more)]

    def _favourites(
        self, prompts: Sequence[str], texts: Sequence[Sequence[str]], stop: Sequence[str]
    ) -> list[tuple[str, int]]:
        """Which of its texts the old model likes best after each prompt, and the tokens that it read to say so."""
        ends = [end for end in dict.fromkeys((self._end, *stop)) if end] or [""]
        asked = [at for at, own in enumerate(texts) if len(own) > 1]
        found = [(own[0], 0) for own in texts]
        judged = self._old.score([[(prompts[at], text + end) for text in texts[at] for end in ends] for at in asked])
        for at, one in zip(asked, judged, strict=True):
            starts = range(0, len(one.options), len(ends))
            values = [self._value(one.options[start : start + len(ends)]) for start in starts]
            found[at] = (texts[at][max(range(len(values)), key=values.__getitem__)], one.tokens)
        return found

    def _value(self, scores: Sequence[OptionScore]) -> float:
        """The log-likelihood of one candidate, over all ways in which an answer ends."""
        if self._how.normalise:
            return max(score.logprob / score.tokens for score in scores)
        top = max(score.logprob for score in scores)
        return top + math.log(sum(math.exp(score.logprob - top) for score in scores))


def _likeliest(options: Sequence[OptionScore], count: int) -> list[int]:
    """Which options have the highest log-likelihoods, in the task's order; of equal ones the first."""
    order = sorted(range(len(options)), key=lambda at: (-options[at].logprob, at))
    return sorted(order[:count])


def _scores(
    options: Sequence[OptionScore], kept: Sequence[int], judged: Sequence[OptionScore]
) -> tuple[OptionScore, ...]:
    found = dict(zip(kept, judged, strict=True))
    return tuple(found.get(at, OptionScore(-math.inf, one.tokens, False)) for at, one in enumerate(options))
