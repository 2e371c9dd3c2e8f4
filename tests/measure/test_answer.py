from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny import characters, tiny
from uphold.core.errors import ModelError
from uphold.measure.answer import answer, picked, prompts, questions, sampling_of
from uphold.models.decoding import Generated, Sampling
from uphold.models.engine import LocalEngine
from uphold.models.likelihood import OptionScore, Scored
from uphold.models.load import Loaded
from uphold.tasks.base import Decoding, FixedTask, Instance, Metric
from uphold.tasks.scorers import choice, exact

quick = settings(max_examples=100, deadline=None, database=None)


class Recorded:
    """An engine that gives what it was told to, and remembers what it was asked."""

    name = "recorded"

    def __init__(self, scored: Sequence[Scored] = (), written: Sequence[Generated] = ()) -> None:
        self.scored, self.written, self.asked = list(scored), list(written), []  # type: ignore[var-annotated]

    def score(self, asked: Any) -> list[Scored]:
        self.asked.append(asked)
        return self.scored

    def write(self, *asked: Any) -> list[Generated]:
        self.asked.append(asked)
        return self.written


def choosing(*instances: Instance, **changes: Any) -> FixedTask:
    return FixedTask("choosing", "choice", {"test": instances}, "choice.v1", choice, **changes)


def writing(*instances: Instance, **changes: Any) -> FixedTask:
    return FixedTask("writing", "generate", {"test": instances}, "exact.v1", exact, **changes)


def scores(*logprobs: float, tokens: Sequence[int] = (), greedy: Sequence[bool] = ()) -> tuple[OptionScore, ...]:
    count = len(logprobs)
    return tuple(
        OptionScore(*values) for values in zip(logprobs, tokens or [1] * count, greedy or [False] * count, strict=True)
    )


# ---- what is asked ----


def test_options_follow_the_prompt_and_the_delimiter() -> None:
    one, other = Instance("2+2=", "4", ("4", "5")), Instance("sky?", "blue", ("blue",))

    assert questions(choosing(one, other), [one, other]) == [
        [("2+2=", " 4"), ("2+2=", " 5")],
        [("sky?", " blue")],
    ]
    assert questions(choosing(one, delimiter=""), [one]) == [[("2+2=", "4"), ("2+2=", "5")]]


def test_requests_of_an_instance_are_asked_as_they_are() -> None:
    """As for Winogrande, where the option is in the context and the continuation is one for all."""
    own = (("the cat sat as the cat", " was tired"), ("the cat sat as the mat", " was tired"))
    one = Instance("the cat sat as _ was tired", "cat", ("cat", "mat"), requests=own)

    assert questions(choosing(one), [one]) == [list(own)]


def test_mutual_information_asks_each_option_without_prompt_too() -> None:
    plain = Instance("sky?", "blue", ("blue", "red"))
    own = Instance("sky", "blue", ("blue", "red"), requests=(("the sky is", " blue."), ("the sky is", " red.")))
    contexts = Instance("cat", "cat", ("cat", "mat"), requests=(("the cat", " was"), ("the mat", " was")))
    task = choosing(plain, own, contexts, metric="acc_mutual_info")

    assert questions(task, [plain, own, contexts]) == [
        [("sky?", " blue"), ("sky?", " red"), ("", " blue"), ("", " red")],
        [("the sky is", " blue."), ("the sky is", " red."), ("", " blue."), ("", " red.")],
        # One continuation for all says nothing about the options: they are asked for as such.
        [("the cat", " was"), ("the mat", " was"), ("", " cat"), ("", " mat")],
    ]


def test_white_space_before_an_answer_is_left_to_its_first_token() -> None:
    instances = [Instance("say: ", "x"), Instance("say:\n", "y"), Instance("  ", "z")]

    assert prompts(writing(*instances), instances) == ["say:", "say:", "  "]
    assert prompts(writing(*instances, delimiter=""), instances) == ["say: ", "say:\n", "  "]
    assert prompts(writing(*instances, delimiter=" A:"), instances) == ["say: ", "say:\n", "  "]


def test_decoding_is_handed_on() -> None:
    decoding = Decoding(7, ("\n", "."), 0.5, 0.9)

    assert sampling_of(decoding, 3) == Sampling(7, ("\n", "."), 0.5, 0.9, 3)


# ---- which option is picked ----


def by_lm_eval(metric: Metric, options: Sequence[str], lls: Sequence[float]) -> str:
    """The formulas of lm-eval 0.4.13 (`ConfigurableTask.process_results`)."""
    own = np.array(lls[: len(options)])
    match metric:
        case "acc_norm":
            own = own / np.array([float(len(option)) for option in options])
        case "acc_bytes":
            own = own / np.array([float(len(option.encode("utf-8"))) for option in options])
        case "acc_mutual_info":
            own = np.array([ll - other for ll, other in zip(own, lls[len(options) :], strict=True)])
        case _:
            pass
    return options[int(np.argmax(own))]


logprobs = st.floats(-50, 0, allow_nan=False)
option_texts = st.lists(st.text("abé字 ", min_size=1, max_size=9), min_size=1, max_size=6)


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes", "acc_mutual_info"])
@quick
@given(options=option_texts, data=st.data())
def test_every_metric_picks_as_lm_eval_does(metric: Metric, options: list[str], data: st.DataObject) -> None:
    count = len(options) * (2 if metric == "acc_mutual_info" else 1)
    lls = data.draw(st.lists(logprobs | st.sampled_from([-1.0, -2.0]), min_size=count, max_size=count))

    assert picked(metric, options, scores(*lls)) == by_lm_eval(metric, options, lls)


@pytest.mark.parametrize(
    ("metric", "option"),
    [
        ("acc", "d"),  # -3, -4, -4.5
        ("acc_norm", "naïve"),  # -3, -4 / 5, -4.5 / 3
        ("acc_bytes", "字字字"),  # -3, -4 / 6, -4.5 / 9
        ("acc_tokens", "字字字"),  # -3, -4 / 2, -4.5 / 4
    ],
)
def test_one_case_by_hand(metric: Metric, option: str) -> None:
    own = scores(-3.0, -4.0, -4.5, tokens=(1, 2, 4))

    assert picked(metric, ("d", "naïve", "字字字"), own) == option


def test_bytes_are_not_characters() -> None:
    own = scores(-4.0, -4.5)

    assert picked("acc_norm", ("naïve", "字字字"), own) == "naïve"  # -0.8 against -1.5
    assert picked("acc_bytes", ("naïve", "字字字"), own) == "字字字"  # -4 / 6 against -4.5 / 9


def test_mutual_information_by_hand() -> None:
    """The likelier option is likely without the prompt as well."""
    own = scores(-1.0, -2.0, -0.5, -4.0)

    assert picked("acc", ("a", "b"), own[:2]) == "a"
    assert picked("acc_mutual_info", ("a", "b"), own) == "b"  # -0.5 against 2


def test_exact_match_takes_what_greedy_decoding_would_write() -> None:
    options = ("a", "b", "c")

    assert picked("exact_match", options, scores(-1, -2, -3, greedy=(False, True, True))) == "b"
    assert picked("exact_match", options, scores(-1, -2, -3)) == ""


def test_of_equal_options_the_first_is_picked() -> None:
    metrics: tuple[Metric, ...] = ("acc", "acc_norm", "acc_bytes", "acc_tokens")
    for metric in metrics:
        assert picked(metric, ("a", "b"), scores(-2.0, -2.0)) == "a"
    assert picked("acc_mutual_info", ("a", "b"), scores(-2.0, -2.0, -1.0, -1.0)) == "a"


def test_an_empty_option_divides_by_nothing() -> None:
    assert picked("acc_norm", ("", "bb"), scores(-3.0, -4.0)) == "bb"
    assert picked("acc_bytes", ("", "bb"), scores(-1.0, -4.0)) == ""


# ---- records ----


def test_chosen_options_become_records() -> None:
    one = Instance("2+2=", "4", ("4", "5"), {"kind": "sum"})
    other = Instance("sky?", "blue", ("red", "blue"))
    engine = Recorded([Scored(scores(-1.0, -2.0), 5, False), Scored(scores(-1.0, -2.0), 7, True)])

    first, second = answer(engine, choosing(one, other), [one, other])

    assert engine.asked == [questions(choosing(one, other), [one, other])]
    assert (first.id, first.input, first.target, first.options) == (one.id, "2+2=", "4", ("4", "5"))
    assert (first.output, first.answer, first.correct, first.score) == ("4", "4", True, 1.0)
    assert (first.option_logprobs, first.tokens, first.tags) == ((-1.0, -2.0), 5, {"kind": "sum"})
    assert (second.output, second.correct, second.tags) == ("red", False, {"truncated": "yes"})


def test_unconditional_likelihoods_are_not_stored() -> None:
    one = Instance("sky?", "blue", ("blue", "red"))
    engine = Recorded([Scored(scores(-1.0, -2.0, -0.5, -4.0), 9, False)])

    [record] = answer(engine, choosing(one, metric="acc_mutual_info"), [one])

    assert record.option_logprobs == (-1.0, -2.0)
    assert record.output == "red"


def test_no_greedy_option_is_an_empty_and_wrong_answer() -> None:
    one = Instance("sky?", "blue", ("blue", "red"))

    [record] = answer(Recorded([Scored(scores(-1.0, -2.0), 9, False)]), choosing(one, metric="exact_match"), [one])

    assert (record.output, record.correct) == ("", False)


def test_written_texts_become_records() -> None:
    one, other = Instance("say: ", "x", tags={"kind": "letter"}), Instance("and:", "y")
    task = writing(one, other, decoding=Decoding(4, ("\n",), 1.0, 0.9))
    engine = Recorded(written=[Generated("x", 9), Generated("q", 8, True)])

    first, second = answer(engine, task, [one, other], 11)

    assert engine.asked == [(["say:", "and:"], Sampling(4, ("\n",), 1.0, 0.9, 11), [one.id, other.id])]
    assert (first.input, first.output, first.correct, first.tokens) == ("say: ", "x", True, 9)
    assert (first.options, first.option_logprobs, first.tags) == ((), (), {"kind": "letter"})
    assert (second.correct, second.tags) == (False, {"truncated": "yes"})


def test_no_instances_no_records_and_nothing_asked() -> None:
    engine = Recorded()

    assert answer(engine, choosing(), []) == []
    assert engine.asked == []


def test_nan_is_an_error_and_not_a_first_option() -> None:
    one = Instance("2+2=", "4", ("4", "5"))

    with pytest.raises(ModelError, match=r"'recorded' gives NaN instead of a log-likelihood on '2\+2='"):
        answer(Recorded([Scored(scores(-1.0, math.nan), 5, False)]), choosing(one), [one])


# ---- with a model ----


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes", "acc_tokens", "acc_mutual_info", "exact_match"])
def test_a_model_answers_by_every_metric(metric: Metric) -> None:
    instances = tuple(Instance(f"{number} is", "a", ("a", "bcd", "ef 1")) for number in range(12))
    task = choosing(*instances, metric=metric)
    engine = LocalEngine(Loaded(tiny("llama"), characters(), "mine", {}, None), 64)

    records = answer(engine, task, instances)

    scored = engine.score(questions(task, instances))
    assert [record.output for record in records] == [
        picked(metric, instance.options, one.options) for instance, one in zip(instances, scored, strict=True)
    ]
    assert all(len(record.option_logprobs) == 3 for record in records)
