from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uphold.core.errors import CorruptError, DataError, EmptyError, NotComparableError, UsageError
from uphold.core.records import Record
from uphold.importers import import_log, is_log
from uphold.importers.table import _judgement
from uphold.measure.comparison import compare_runs

ROWS = [
    {"id": f"q{n}", "prompt": f"ask {n}", "response": f" say {n} ", "gold": f"say {n}", "correct": n % 2 == 0}
    for n in range(4)
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def array(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".json")
    path.write_text(json.dumps(rows, indent=1))
    return path


def comma(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".csv")
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def tabs(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".tsv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def records(path: Path, **options: Any) -> dict[str, Record]:
    [run] = import_log(path, **options)
    return {record.id: record for record in run.records()}


@pytest.mark.parametrize("write", [jsonl, array, comma, tabs, parquet])
def test_every_kind_of_file_gives_the_same_records(
    tmp_path: Path, write: Callable[[Path, list[dict[str, Any]]], Path]
) -> None:
    path = write(tmp_path / "old", ROWS)
    assert is_log(path)
    assert records(path) == {
        f"q{n}": Record(f"q{n}", f"ask {n}", f"say {n}", f" say {n} ", f"say {n}", n % 2 == 0, float(n % 2 == 0))
        for n in range(4)
    }
    [run] = import_log(path)
    assert (run.name, run.fingerprint["task"]["name"]) == ("old", "log")
    assert run.fingerprint["log"]["notes"] == [
        "columns read: correct=correct, id=id, input=prompt, output=response, target=gold"
    ]


def test_columns_are_named(tmp_path: Path) -> None:
    rows = [{"key": 7, "q": {"text": "ask"}, "a": "say", "ok": "yes", "topic": "x", "id": "other"}]
    columns = {"id": "key", "input": "q.text", "output": "a", "correct": "ok", "subject": "topic"}
    [found] = records(jsonl(tmp_path / "old", rows), columns=columns).values()
    assert found == Record("7", "ask", "", "say", "say", True, 1.0, tags={"subject": "x"})
    with pytest.raises(UsageError, match="no column 'okay' for correct: its columns are key, q, a, ok, topic, id"):
        import_log(tmp_path / "old.jsonl", columns={"correct": "okay"})


def test_answers_are_matched_where_nothing_else_judges(tmp_path: Path) -> None:
    rows = [{"question": "1", "prediction": " a ", "answer": "a"}, {"question": "2", "prediction": "b", "answer": "a"}]
    [run] = import_log(jsonl(tmp_path / "old", rows))
    assert run.fingerprint["task"]["scorer"] == "exact"
    assert {record.input: record.correct for record in run.records()} == {"1": True, "2": False}


def test_an_answer_beside_a_target_is_the_models(tmp_path: Path) -> None:
    [found] = records(jsonl(tmp_path / "old", [{"id": 1, "target": "x", "answer": "y"}])).values()
    assert (found.target, found.output, found.correct) == ("x", "y", False)


def test_rows_without_ids_are_paired_by_content(tmp_path: Path) -> None:
    def rows(right: str) -> list[dict[str, Any]]:
        return [{"input": name, "target": "t", "score": int(name in right)} for name in "abcc"]

    old = import_log(jsonl(tmp_path / "old", rows("abc")))[0]
    new = import_log(jsonl(tmp_path / "new", rows("b")[::-1]))[0]
    matrix = compare_runs(old, new).matrix
    assert matrix is not None
    assert (matrix.both_right, matrix.negative_flips) == (1, 3)
    assert old.fingerprint["log"]["notes"][0] == (
        "rows that ask what a row before them asks, told apart by their order: 1"
    )


def test_other_questions_under_the_same_ids_are_not_comparable(tmp_path: Path) -> None:
    old = import_log(jsonl(tmp_path / "old", ROWS))[0]
    new = import_log(jsonl(tmp_path / "new", [{**row, "prompt": "other"} for row in ROWS]))[0]
    with pytest.raises(NotComparableError, match="prompts"):
        compare_runs(old, new)


WORDS = {
    True: [True, 1, 1.0, "true", "TRUE", " yes ", "pass", "Correct", "1"],
    False: [False, 0, "false", "no", "FAILED", "incorrect", "0.0"],
    None: [None, "", " ", "NaN", "null", float("nan"), "n/a"],
}


@pytest.mark.parametrize("wanted", list(WORDS))
def test_words_for_right_and_wrong(wanted: bool | None) -> None:
    for word in WORDS[wanted]:
        correct, score = _judgement({"correct": word}, {"correct": "c"}, "here")
        assert correct is wanted
        assert score == (None if wanted is None else float(wanted))


@given(st.floats(0, 1))
def test_scores_are_kept_and_judge_only_at_their_ends(value: float) -> None:
    for form in (value, str(value)):
        correct, score = _judgement({"score": form}, {"score": "s"}, "here")
        assert score == value
        assert correct is ({0.0: False, 1.0: True}.get(value))


@pytest.mark.parametrize("value", [1.01, -1, "many", "inf", [1], 10**400])
def test_scores_that_are_none(value: Any) -> None:
    with pytest.raises(DataError, match=r"here: the column 's' is"):
        _judgement({"score": value}, {"score": "s"}, "here")


def test_words_that_are_no_judgement(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: the column 'correct' is 'maybe': expected true or false"):
        import_log(jsonl(tmp_path / "old", [{"id": 1, "correct": "maybe"}]))


def test_unscored_rows_are_counted(tmp_path: Path) -> None:
    [run] = import_log(jsonl(tmp_path / "old", [{"id": 1, "correct": None}, {"id": 2, "correct": 1}]))
    assert run.fingerprint["log"]["notes"][0] == "rows that say neither right nor wrong nor a score, left out: 1"


def test_what_a_table_must_say(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column says which instance a row is; type --columns id=COLUMN"):
        import_log(jsonl(tmp_path / "a", [{"x": 1, "correct": 1}]))
    with pytest.raises(DataError, match=r"no column says what was right; type --columns correct=COLUMN"):
        import_log(jsonl(tmp_path / "b", [{"id": 1, "output": "x"}]))
    with pytest.raises(DataError, match=r"line 2: the id '1' was there before, in line 1"):
        import_log(jsonl(tmp_path / "c", [{"id": 1, "correct": 1}, {"id": "1", "correct": 1}]))
    with pytest.raises(DataError, match=r"line 1: the column 'id' is empty"):
        import_log(jsonl(tmp_path / "d", [{"id": None, "correct": 1}]))


def test_a_table_without_answers_says_so(tmp_path: Path) -> None:
    [run] = import_log(jsonl(tmp_path / "old", [{"id": 1, "correct": 1}]))
    assert run.fingerprint["log"]["notes"][-1] == (
        "no column holds answers (output=COLUMN), so that a changed answer shows only as a flip"
    )


def test_large_fields_and_line_breaks(tmp_path: Path) -> None:
    long = "x, \n" * 100_000
    limit = csv.field_size_limit()
    [found] = records(comma(tmp_path / "old", [{"id": "1", "output": long, "correct": "1"}])).values()
    assert found.output == long
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,correct\n1,1\n2\n", "line 3: 1 columns where the header has 2"),
        ('id,correct\n1,"1\n', "line 2: not valid CSV"),
        ("id,id,correct\n1,1,1\n", "two columns are called 'id'"),
        ("id,correct\n", "has no rows"),
    ],
)
def test_malformed_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "old.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        import_log(path)


def test_other_encodings_and_damage(tmp_path: Path) -> None:
    latin = tmp_path / "latin.csv"
    latin.write_bytes("id,correct,output\n1,1,é\n".encode("latin-1"))
    with pytest.raises(CorruptError, match="not UTF-8 text"):
        import_log(latin)
    path = parquet(tmp_path / "old", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptError, match="cannot be read as Parquet"):
        import_log(path)
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + jsonl(tmp_path / "plain", ROWS).read_bytes())
    assert records(marked) == records(tmp_path / "plain.jsonl")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(EmptyError, match="is empty"):
        import_log(tmp_path / "empty.csv")
