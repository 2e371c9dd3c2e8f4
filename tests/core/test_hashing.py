from __future__ import annotations

import hashlib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.core.hashing import canonical_json, sha256_of, sha256_of_file, sha256_of_parts

quick = settings(max_examples=50, deadline=None, database=None)
parts = st.lists(st.binary(max_size=6), max_size=5)


def test_json_does_not_depend_on_key_order_or_space() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'
    assert sha256_of({"b": 1, "a": {"d": 2, "c": 3}}) == sha256_of({"a": {"c": 3, "d": 2}, "b": 1})


def test_the_hash_is_that_of_the_json_text() -> None:
    assert sha256_of([]) == hashlib.sha256(b"[]").hexdigest()
    assert sha256_of("é") == hashlib.sha256('"é"'.encode()).hexdigest()


def test_other_values_have_other_hashes() -> None:
    assert len({sha256_of(value) for value in (1, "1", [1], None, {"1": 1}, 1.5, True)}) == 7


def test_a_file_is_hashed_by_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)

    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@quick
@given(parts, parts)
def test_parts_have_equal_hashes_exactly_when_they_are_equal(first: list[bytes], second: list[bytes]) -> None:
    assert (sha256_of_parts(first) == sha256_of_parts(second)) == (first == second)


def test_where_parts_are_cut_counts() -> None:
    assert sha256_of_parts([b"ab", b"c"]) != sha256_of_parts([b"a", b"bc"])
    assert sha256_of_parts([b"abc"]) != sha256_of_parts([b"abc", b""])
    assert sha256_of_parts([memoryview(b"ab")]) == sha256_of_parts([b"ab"])
