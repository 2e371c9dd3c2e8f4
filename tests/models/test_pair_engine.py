from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from tests.models.test_pair_model import PROMPTS, QUESTIONS, member
from uphold.core.errors import ModelError
from uphold.models.decoding import Generated, Sampling
from uphold.models.encode import Encoder
from uphold.models.engine import LocalEngine, Meter
from uphold.models.likelihood import OptionScore, Scored
from uphold.models.load import Loaded
from uphold.models.pair import pair_of
from uphold.models.pair_engine import RerankingEngine, pair_engine
from uphold.models.pair_file import Averaging, Parameters, Reranking

SAMPLED = Sampling(6, temperature=1.0, seed=4)


def engine(how: Parameters, meter: Meter | None = None) -> Any:
    made = pair_of(member("gpt2"), member("llama"), how)
    return pair_engine(made, 256, Encoder(made.tokenizer), meter)


def single(one: Loaded, meter: Meter | None = None) -> LocalEngine:
    return LocalEngine(one, 256, meter=meter)


@pytest.mark.parametrize(("share", "kind"), [(0.0, "llama"), (1.0, "gpt2")])
def test_a_share_of_0_is_the_new_model_and_of_1_the_old_one(share: float, kind: str) -> None:
    mixed, alone = engine(Averaging(share)), single(member(kind))
    assert [one.options for one in mixed.score(QUESTIONS)] == [one.options for one in alone.score(QUESTIONS)]
    for sampling in (Sampling(6), SAMPLED):
        ours, theirs = mixed.write(PROMPTS, sampling, PROMPTS), alone.write(PROMPTS, sampling, PROMPTS)
        assert [one.text for one in ours] == [one.text for one in theirs]


def test_tokens_of_both_models_are_counted() -> None:
    meter, other = Meter(), Meter()
    mixed, alone = engine(Averaging(), meter), single(member("llama"), other)
    scored, lone = mixed.score(QUESTIONS), alone.score(QUESTIONS)
    assert [one.tokens for one in scored] == [2 * one.tokens for one in lone]
    assert meter.tokens == 2 * other.tokens


# ---- ranking candidates ----


def test_with_one_candidate_it_is_the_new_model_bit_for_bit() -> None:
    ranked, new = engine(Reranking(options=1, candidates=1)), single(member("llama"))
    assert ranked.score(QUESTIONS) == new.score(QUESTIONS)
    for sampling in (Sampling(6), SAMPLED):
        assert ranked.write(PROMPTS, sampling, PROMPTS) == new.write(PROMPTS, sampling, PROMPTS)


def test_with_all_options_as_candidates_it_chooses_as_the_old_model() -> None:
    ranked, old, new = engine(Reranking(options=3)), single(member("gpt2")), single(member("llama"))
    both = zip(ranked.score(QUESTIONS), old.score(QUESTIONS), new.score(QUESTIONS), strict=True)
    for ours, theirs, proposed in both:
        assert ours.options == theirs.options
        assert ours.tokens == theirs.tokens + proposed.tokens


def test_only_the_likeliest_options_of_the_new_model_are_candidates() -> None:
    ranked, old, new = engine(Reranking(options=2)), single(member("gpt2")), single(member("llama"))
    both = zip(ranked.score(QUESTIONS), old.score(QUESTIONS), new.score(QUESTIONS), strict=True)
    for ours, theirs, proposed in both:
        worst = min(range(3), key=lambda at: proposed.options[at].logprob)
        assert ours.options[worst].logprob == -math.inf
        for at in {0, 1, 2} - {worst}:
            assert ours.options[at].logprob == pytest.approx(theirs.options[at].logprob, abs=1e-5)


def test_unconditional_requests_are_no_options() -> None:
    with pytest.raises(ModelError, match="another metric than acc_mutual_info"):
        engine(Reranking()).score([[("a:", "b"), ("a:", "c"), ("", "b"), ("", "c")]])


class Writer:
    """Writes what it was told to: the first text for its own answer, the others for samples."""

    name = "writer"

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.asked: list[tuple[Sampling, Sequence[str]]] = []

    def score(self, questions: Any) -> Any:
        raise AssertionError

    def write(self, prompts: Sequence[str], sampling: Sampling, keys: Sequence[str]) -> list[Generated]:
        self.asked.append((sampling, keys))
        if len(self.asked) == 1:
            return [Generated(self.texts[0], 10) for _ in prompts]
        return [Generated(self.texts[1:][at % (len(self.texts) - 1)], 10) for at in range(len(prompts))]


class Judge:
    """Gives each continuation the log-likelihood it was told, and minus 9 to others; counts one token per letter."""

    name = "judge"

    def __init__(self, **likes: float) -> None:
        self.likes = likes
        self.asked: list[list[str]] = []

    def score(self, questions: Sequence[Sequence[tuple[str, str]]]) -> list[Scored]:
        self.asked += [[text for _, text in question] for question in questions]
        return [
            Scored(tuple(OptionScore(self.likes.get(text, -9.0), len(text), False) for _, text in question), 5, False)
            for question in questions
        ]

    def write(self, prompts: Any, sampling: Any, keys: Any) -> Any:
        raise AssertionError


def ranked(how: Reranking, writer: Writer, judge: Judge, stop: tuple[str, ...] = (), end: str = "$") -> list[Generated]:
    return RerankingEngine("pair", judge, writer, how, end).write(["p:", "q:"], Sampling(5, stop), ["x", "y"])


def test_the_old_models_favourite_of_the_distinct_candidates_is_taken() -> None:
    judge = Judge(**{"a$": -3.0, "bb$": -2.0, "c$": -4.0})
    answers = ranked(Reranking(candidates=4), Writer("a", "bb", "a", "c"), judge)
    assert [one.text for one in answers] == ["bb", "bb"]
    assert judge.asked == [["a$", "bb$", "c$"]] * 2
    assert answers[0].tokens == 4 * 10 + 5


def test_a_longer_candidate_wins_by_the_mean_over_its_tokens() -> None:
    judge = Judge(**{"a$": -3.0, "bbbb$": -4.0})
    assert ranked(Reranking(candidates=2), Writer("a", "bbbb"), judge)[0].text == "a"
    judge = Judge(**{"a$": -3.0, "bbbb$": -4.0})
    assert ranked(Reranking(candidates=2, normalise=True), Writer("a", "bbbb"), judge)[0].text == "bbbb"


def test_an_answer_is_as_likely_as_all_its_ends_together() -> None:
    judge = Judge(**{"a$": math.log(0.30), "a\n": math.log(0.05), "b$": math.log(0.2), "b\n": math.log(0.2)})
    assert ranked(Reranking(candidates=2), Writer("a", "b"), judge, stop=("\n",))[0].text == "b"


def test_equal_candidates_are_not_ranked_and_ties_are_the_new_models() -> None:
    judge = Judge()
    assert ranked(Reranking(candidates=3), Writer("a", "a", "a"), judge)[0].text == "a"
    assert judge.asked == []
    assert ranked(Reranking(candidates=3), Writer("b", "a", "c"), judge)[0].text == "b"


def test_candidates_are_drawn_anew_for_each_instance_and_alike_for_each_run() -> None:
    writer = Writer("a", "b")
    ranked(Reranking(candidates=3, sampling_temperature=0.7, top_p=0.8, seed=5), writer, Judge())
    sampling, keys = writer.asked[1]
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.7, 0.8, 5)
    assert len(set(keys)) == 4
    ranking = engine(Reranking(candidates=4))
    together = ranking.write(PROMPTS, Sampling(6), PROMPTS)
    assert ranking.write(PROMPTS, Sampling(6, seed=9), PROMPTS) == together
    alone = [ranking.write([prompt], Sampling(6), [prompt])[0].text for prompt in PROMPTS]
    assert alone == [one.text for one in together]
    old = single(member("gpt2")).write(PROMPTS, Sampling(6), PROMPTS)
    new = single(member("llama")).write(PROMPTS, Sampling(6), PROMPTS)
    assert [one.text for one in together] not in ([one.text for one in old], [one.text for one in new])
