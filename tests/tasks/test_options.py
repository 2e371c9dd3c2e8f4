from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.tasks.base import FixedTask
from uphold.tasks.options import (
    call_with_options,
    one_line,
    option_names,
    read_options,
    split_at_commas,
    split_name,
    unknown_among_many,
)
from uphold.tasks.scorers import exact

quick = settings(max_examples=100, deadline=None, database=None)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("chain_sum", "chain_sum", ""),
        ("chain_sum:size=3", "chain_sum", "size=3"),
        ("chain_sum:size", "chain_sum", "size"),
        ("a/b.yaml:fewshot=5,limit=3", "a/b.yaml", "fewshot=5,limit=3"),
        ("odd:folder/x:limit=3", "odd:folder/x", "limit=3"),
        ('x:prompt="a:b=c"', "x", 'prompt="a:b=c"'),
        ("", "", ""),
    ],
)
def test_a_name_ends_where_options_begin(text: str, name: str, options: str) -> None:
    assert split_name(text) == (name, options)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a=1,b=2", ["a=1", "b=2"]),
        ('a="x,y",b=2', ['a="x,y"', "b=2"]),
        ("a='x,y',b=2", ["a='x,y'", "b=2"]),
        ("a='it''s, so',b=2", ["a='it''s, so'", "b=2"]),
        ("a=[1,2],b=2", ["a=[1,2]", "b=2"]),
        ('a=["x,]",[3,4]],b={c: 1, d: 2}', ['a=["x,]",[3,4]]', "b={c: 1, d: 2}"]),
        ('a="x\\",y",b=2', ['a="x\\",y"', "b=2"]),
        ("a= [1,2] ,b=2", ["a= [1,2] ", "b=2"]),
        ("a=don't,b=2", ["a=don't", "b=2"]),
        ("a=x[1,b=2", ["a=x[1", "b=2"]),
        ("a=[,b=2", ["a=[,b=2"]),
        ('a="x,b=2', ['a="x,b=2']),
        ("a=1,,b=2,", ["a=1", "b=2"]),
        ("", []),
    ],
)
def test_commas_in_quotes_and_brackets_do_not_split(text: str, parts: list[str]) -> None:
    assert split_at_commas(text) == parts


def test_values_are_yaml() -> None:
    options = read_options("x", r'a=1,b=0.5,c=word,d="two\nlines",e=[1, "x,y"],f={g: [1, 2]},h=,i=true')

    assert options == {
        "a": 1, "b": 0.5, "c": "word", "d": "two\nlines", "e": [1, "x,y"], "f": {"g": [1, 2]}, "h": None, "i": True
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size", "task 'x': expected option=value, found 'size'"),
        ("size=[", r"task 'x': the value of 'size=\[' cannot be read; quote it"),
        ("size={question}: y", "cannot be read; quote it"),
        ("size=1,size=2", "task 'x': the option 'size' is given twice; give it once"),
    ],
)
def test_options_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_options("x", text)
    assert "\n" not in str(caught.value)


@quick
@given(st.text(alphabet="ab=,:[]{}'\" \\1", max_size=30))
def test_any_text_is_cut_at_commas_only(text: str) -> None:
    parts = split_at_commas(text)

    assert all(part in text for part in parts)
    assert len(parts) <= text.count(",") + 1
    assert "".join(parts).replace(",", "").replace(" ", "") == text.replace(",", "").replace(" ", "")


@quick
@given(st.dictionaries(st.sampled_from("abcdef"), st.text(alphabet='xy,=:[]{}"\\', max_size=8), max_size=4))
def test_quoted_values_come_back(options: dict[str, str]) -> None:
    import json

    text = ",".join(f"{key}={json.dumps(value)}" for key, value in options.items())

    assert read_options("x", text) == options


# ---- calling a source's function ----


def loads(
    name: str,
    *,
    size: int = 3,
    stop: tuple[str, ...] = (),
    prompt: str = "",
    limit: int | None = None,
    label: str = "",
    progress: Progress = silent,
) -> FixedTask:
    extra: dict[str, Any] = {"size": size, "stop": stop, "prompt": prompt, "limit": limit, "progress": progress}
    return FixedTask(f"{label}|{name}|{extra}", "generate", {}, "exact.v1", exact)


def without_name(samples: int = 1) -> FixedTask:
    return FixedTask(str(samples), "generate", {}, "exact.v1", exact)


def with_needed(name: str, *, prompt: str, target: str, size: int = 1) -> FixedTask:
    return FixedTask(prompt + target, "generate", {}, "exact.v1", exact)


def open_ended(name: str, *, label: str = "", **options: Any) -> FixedTask:
    return FixedTask(f"{label}{options}", "generate", {}, "exact.v1", exact)


def test_options_become_arguments() -> None:
    task = call_with_options(loads, "s:n:size=4", "n", {"size": 4, "stop": "END", "limit": None}, silent)

    assert task.name.startswith("s:n:size=4|n|{'size': 4, 'stop': ('END',), 'prompt': '', 'limit': None")
    assert call_with_options(without_name, "s:samples=2", None, {"samples": 2}, silent).name == "2"
    assert call_with_options(open_ended, "s", "n", {"what": [1]}, silent).name == "s{'what': [1]}"


def test_the_options_of_a_function() -> None:
    assert option_names(loads, named=True) == ["size", "stop", "prompt", "limit"]
    assert option_names(without_name, named=False) == ["samples"]
    assert option_names(open_ended, named=True) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": 3}, "unknown option 'sise': did you mean 'size'. It stands in 's:n'"),
        ({"label": "x"}, "unknown option 'label'"),
        ({"progress": "x"}, "unknown option 'progress'"),
        ({"size": "many"}, "task 's:n': size: input should be a valid integer"),
        ({"prompt": {"question": None}}, r"prompt: input should be a valid string \(quote text\)"),
    ],
)
def test_options_that_do_not_fit_the_function(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        call_with_options(loads, "s:n", "n", options, silent)
    assert "\n" not in str(caught.value)


def test_options_that_are_needed_are_asked_for() -> None:
    with pytest.raises(UsageError, match=r"task 's:n' needs prompt and target: add prompt=\.\.\.,target=\.\.\."):
        call_with_options(with_needed, "s:n", "n", {}, silent)
    with pytest.raises(UsageError, match=r"task 's:n' needs target: add target=\.\.\."):
        call_with_options(with_needed, "s:n", "n", {"prompt": "x"}, silent)


def test_a_long_list_is_not_printed() -> None:
    names = [f"task {number}" for number in range(1000)]

    assert str(unknown_among_many("task", "tsk 77", names, ())) == "unknown task 'tsk 77': did you mean 'task 77'?"
    assert str(unknown_among_many("task", "?", names, ("task 5", "none"))) == (
        "unknown task '?': there are 1000, for example task 5"
    )
    assert "for example task 0, task 1, task 10" in str(unknown_among_many("task", "?", names, ()))


def test_foreign_messages_are_one_short_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(one_line(ValueError("x" * 999))) == 200
