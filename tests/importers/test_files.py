from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from uphold.core.errors import CorruptError, DataError, EmptyError
from uphold.importers.files import (
    HEAD,
    as_text,
    files_below,
    first_row,
    head,
    is_model_or_run,
    keys_of_head,
    parse,
    parse_json,
    read_json_file,
    rows,
    sha256_of_log,
    tags_of,
    value_at,
)
from uphold.importers.formats import Reading

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def test_lines_carry_their_place_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": "\xc3\xa9"}\r\n')
    log = Reading()
    assert list(rows(path, log)) == [(f"{path} line 1", {"a": 1}), (f"{path} line 3", {"a": "é"})]
    assert log.done == log.total == path.stat().st_size


def test_an_array_is_read_like_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n [{"a": 1}, {"a": 2}]')
    log = Reading()
    assert [row for _, row in rows(path, log)] == [{"a": 1}, {"a": 2}]
    assert (log.done, log.total) == (2, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}\n{"a": ', "line 2: not valid JSON"),
        (b"[1]", "entry 1: expected a JSON object, found int"),
        (b"5\n", "line 1: expected a JSON object, found int"),
        (b'{"a": "\xff"}', "line 1: not UTF-8 text"),
        (b'{"a": ' + b"[" * 100_000, "line 1: (JSON that cannot be read|not valid JSON)"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 1: JSON that cannot be read"),
    ],
)
def test_damaged_lines_name_their_place(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=message):
        list(rows(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_json_file(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot read"):
        sha256_of_log(tmp_path)
    (tmp_path / "empty.json").write_text(" \n")
    with pytest.raises(EmptyError, match="is empty"):
        read_json_file(tmp_path / "empty.json")
    assert head(tmp_path / "none") == b""
    assert keys_of_head(tmp_path) == set()


def test_half_surrogates_become_the_replacement_sign() -> None:
    assert parse_json(r'{"\ud83da": ["\ud83d", "\uD83D\uDE00", "\\ud83d"]}', "here") == {"�a": ["�", "😀", r"\ud83d"]}


@given(st.recursive(JSON | st.integers() | st.floats(), lambda inner: st.lists(inner, max_size=3)), st.booleans())
def test_json_is_read_as_the_standard_library_reads_it(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    for written in (text, text.encode()):
        read, wanted = parse_json(written, "here"), json.loads(written)
        assert repr(read) == repr(wanted)  # tells 1 from 1.0, and NaN is NaN


def test_json_that_is_nested_deeply_is_read() -> None:
    assert json.dumps(parse_json("[" * 300 + "]" * 300, "here")) == "[" * 300 + "]" * 300


@given(JSON, st.booleans())
def test_keys_of_a_whole_head_are_those_of_the_object(tmp_path_factory: Any, value: Any, indented: bool) -> None:
    path = tmp_path_factory.mktemp("head") / "a.json"
    path.write_text(json.dumps(value, indent=2 if indented else None))
    wanted = set()
    if isinstance(value, dict):
        inner = ((key, entry) for key, entry in value.items() if isinstance(entry, dict))
        wanted = value.keys() | {f"{key}.{name}" for key, entry in inner for name in entry}
    assert keys_of_head(path) == wanted


def test_keys_of_a_head_that_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": {"b": 1}, "long": "x" * HEAD, "c": 1}))
    assert keys_of_head(path) == {"a", "a.b", "long"}


def test_the_first_row_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"a": "x" * 3 * HEAD}
    path.write_text(f"{json.dumps(row)}\n{{broken")
    assert first_row(path) == row
    path.write_text(f"[{json.dumps(row)},")
    assert first_row(path) == row
    for text in ("", "text", "[5]", '{"a": ', '"a"'):
        path.write_text(text)
        assert first_row(path) == {}


def test_models_and_runs_are_known_by_their_files(tmp_path: Path) -> None:
    assert not is_model_or_run(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": 1}')
    assert not is_model_or_run(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert is_model_or_run(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert is_model_or_run(tmp_path / "run")


def test_files_are_looked_for_three_folders_deep(tmp_path: Path) -> None:
    deep = tmp_path / "1" / "2" / "3" / "4"
    deep.mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for folder in (tmp_path, deep, deep.parent, tmp_path / ".hidden"):
        (folder / "a.json").touch()
    assert files_below(tmp_path, [".json"]) == [deep.parent / "a.json", tmp_path / "a.json"]


def test_values_by_path() -> None:
    row = {"a.b": 1, "a": {"b": 2, "c": [{"d": 3}]}}
    assert [value_at(row, path) for path in ("a.b", "a.c.0.d", "a.c.1.d", "a.x", "y.z", "a.c.d")] == [
        1,
        3,
        None,
        None,
        None,
        None,
    ]
    assert tags_of(row, {"x": "a.b", "y": "none"}) == {"x": "1"}
    assert [as_text(value) for value in ("é", None, 1, True, {"b": 1, "a": "é"})] == [
        "é",
        "",
        "1",
        "true",
        '{"a": "é", "b": 1}',
    ]


class Shape(BaseModel):
    inner: dict[str, int]


def test_a_wrong_shape_names_the_field() -> None:
    assert parse(Shape, {"inner": {"a": 1}}, "here").inner == {"a": 1}
    with pytest.raises(DataError, match=r"^here: inner.a: input should be a valid integer"):
        parse(Shape, {"inner": {"a": "x"}}, "here")
    with pytest.raises(DataError, match=r"^here: the value: input should be"):
        parse(Shape, None, "here")
