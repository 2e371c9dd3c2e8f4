from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.importers.lm_eval_logs import sample
from uphold.core.errors import DataError
from uphold.importers.lm_eval_samples import Sample, answer_of, is_by_number, is_judged, record_of, sample_of, score_of


def made(**changes: Any) -> Sample:
    return sample_of(sample(0, **changes), "here")


def asked(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {f"gen_args_{n}": {"arg_0": context, "arg_1": text} for n, (context, text) in enumerate(pairs)}


def said(*values: float | tuple[float, bool]) -> list[Any]:
    both = [value if isinstance(value, tuple) else (value, False) for value in values]
    return [[[str(value), str(greedy)]] for value, greedy in both]


@pytest.mark.parametrize(
    ("metric", "answer"),
    [
        ("acc", "cd"),  # the likeliest
        ("acc_norm", "efghi"),  # -1.6 a letter against -2 and -1.75
        ("acc_bytes", "ä"),  # -2 a letter, but -1 a byte
        ("exact_match", "efghi"),  # the greedy one
        ("f1", "cd"),
    ],
)
def test_options_are_chosen_as_the_metric_does(metric: str, answer: str) -> None:
    one = made(
        arguments=asked(("Q:", " ä"), ("Q:", " cd"), ("Q:", " efghi")),
        resps=said(-4.0 if metric != "acc_bytes" else -2.0, -1.75 * 2, (-1.6 * 5, True)),
        **{metric: 1.0},
    )
    found = answer_of(one, metric, " ", "here")
    assert found.answer == found.output == answer
    assert found.options == ("ä", "cd", "efghi")
    assert found.prompt == "Q:"


def test_mutual_information_takes_the_unconditional_half_off() -> None:
    pairs = [("Q:", " a"), ("Q:", " b"), ("", " a"), ("", " b")]
    one = made(arguments=asked(*pairs), resps=said(-1, -2, -1, -9), metrics=["acc_mutual_info"], acc_mutual_info=1.0)
    found = answer_of(one, "acc_mutual_info", " ", "here")
    assert (found.answer, found.options, found.logprobs) == ("b", ("a", "b"), (-1.0, -2.0))


def test_options_that_stand_before_a_common_ending() -> None:
    pairs = [("Ann met Eva. Ann", " liked tea."), ("Ann met Eva. Eva", " liked tea.")]
    found = answer_of(made(arguments=asked(*pairs), resps=said(-2, -1), target="1"), "acc", " ", "here")
    assert found.prompt == "Ann met Eva. "
    assert found.options == ("Ann liked tea.", "Eva liked tea.")
    assert found.answer == found.target == "Eva liked tea."


def test_one_continuation_is_said_or_not() -> None:
    for greedy in (True, False):
        one = made(arguments=asked(("The", " end")), resps=said((-0.5, greedy)), target=" end")
        found = answer_of(one, "acc", None, "here")
        assert (found.answer, found.target, found.options) == ("end" if greedy else "", "end", ("end",))


@pytest.mark.parametrize(
    ("target", "logprobs", "right", "by_number"),
    [
        ("2", (-3, -2, -1), True, True),  # said 3, the option number 2
        ("2", (-3, -1, -2), True, False),  # said 2
        ("2", (-3, -1, -2), False, True),
        ("2", (-3, -2, -1), False, False),
        ("2", (-1, -2, -3), False, None),  # said 1, which is neither
        ("0", (-1, -2, -3), True, True),  # no option is called 0
        ("3", (-1, -2, -3), False, False),  # no option has the number 3
    ],
)
def test_what_a_target_of_digits_means(
    target: str, logprobs: tuple[float, ...], right: bool, by_number: bool | None
) -> None:
    pairs = asked(("Q:", " 1"), ("Q:", " 2"), ("Q:", " 3"))
    one = made(arguments=pairs, resps=said(*logprobs), target=target, acc=float(right))
    assert is_by_number(one, answer_of(one, "acc", " ", "here"), "acc") is by_number
    for reading in (True, False):
        gold = answer_of(one, "acc", " ", "here", reading).target
        assert gold == ("123"[int(target)] if reading and target != "3" else target)


def test_texts() -> None:
    settings = {"gen_args_0": {"arg_0": "Q:", "arg_1": {"until": ["."]}}}
    one = made(arguments=settings, resps=[[" so it is 5"]], filtered_resps=[" 5 "], target="5")
    found = answer_of(one, "exact_match", None, "here")
    assert (found.output, found.answer, found.target, found.options) == (" so it is 5", "5", "5", ())
    many = made(arguments=settings, resps=[["a", "b"]], filtered_resps=[["a", "b"]], target=["a", "b"])
    assert answer_of(many, "exact_match", None, "here").answer == '["a", "b"]'
    pair = made(arguments=settings, resps=[["1.5", "True"]], filtered_resps=["1.5"], target="x")
    assert answer_of(pair, "exact_match", None, "here").output == "1.5"  # two texts, no likelihood


@pytest.mark.parametrize(
    ("metric", "judged"),
    [
        ("acc", True),
        ("acc_norm", True),
        ("exact_match", True),
        ("pass@1", True),
        ("prompt_level_strict_acc", True),
        ("em", True),
        ("rouge1", False),
        ("f1", False),
        ("bleu_acc", True),
        ("perplexity", False),
    ],
)
def test_metrics_that_tell_right_from_wrong(metric: str, judged: bool) -> None:
    assert is_judged(metric) is judged


@given(st.floats(0, 1))
def test_scores(value: float) -> None:
    assert score_of(made(acc=value), "acc", "here") == ({0.0: False, 1.0: True}.get(value), value)
    assert score_of(made(f1=value), "f1", "here") == (None, value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.1, r"the metric 'f1' is -0.1: scores lie in \[0, 1\]; choose another"),
        (100, r"the metric 'f1' is 100"),
        ([1, 2], "the metric 'f1' is list, a part of a score over the whole task"),
        ("x", "the metric 'f1' is str"),
        (None, "no metric 'f1'; there are acc"),
    ],
)
def test_values_that_are_no_score(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_of(made(f1=value), "f1", "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_id": 1.5}, "here: doc_id: expected a number or text, found float"),
        ({"arguments": "x"}, "here: arguments: expected an object or a list, found str"),
        ({"resps": {}}, "here: resps: expected a list, found dict"),
        ({"filter": 3}, "here: filter: expected text, found int"),
        ({"metrics": "acc"}, "here: metrics: expected a list of names, found str"),
        ({"metrics": [["acc"]]}, "here: metrics: expected a list of names"),
        ({"doc_hash": 5}, "here: doc_hash: expected text, found int"),
        ({"target": None, "doc_id": None}, "here: doc_id, target: field required"),
    ],
)
def test_lines_of_another_shape(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        made(**changes)


def test_numbers_beyond_every_range() -> None:
    huge = int("9" * 400)
    with pytest.raises(DataError, match="scores lie in"):
        score_of(made(acc=huge), "acc", "here")
    assert answer_of(made(resps=[[[huge, "False"]]] * 3), "acc", " ", "here").options == ()
    digits = "9" * 5000
    assert answer_of(made(target=digits), "acc", " ", "here").target == digits


@pytest.mark.parametrize("arguments", [{}, [], {"gen_args_0": {}}])
def test_requests_without_arguments(arguments: Any) -> None:
    with pytest.raises(DataError, match="no arguments"):
        answer_of(made(arguments=arguments), "acc", None, "here")


def test_ids_depend_on_document_task_and_occurrence_only() -> None:
    def key(task: str = "t", before: int = 0, **changes: Any) -> str:
        one = made(**changes)
        return record_of(one, task, before, "acc", answer_of(one, "acc", None, "here"), {}, "here").id

    assert key() == key(acc=0.0, target="0", doc_id=7)
    assert len({key(), key(task="u"), key(before=1), key(doc_hash="other")}) == 4
