from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import make_record, make_run
from tests.importers import inspect_logs, lm_eval_logs, test_openai_evals, test_promptfoo
from uphold.core.errors import DataError, EmptyError, NotComparableError, StorageError, UpholdError, UsageError
from uphold.core.runs import RunStore, load_run
from uphold.importers import import_log, is_log, load
from uphold.measure.comparison import compare_runs


def table(path: Path, count: int = 5, wrong: tuple[int, ...] = ()) -> Path:
    rows = [{"id": n, "input": f"ask {n}", "output": "x", "correct": n not in wrong} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def runs_in(store: RunStore) -> list[str]:
    return sorted(folder.name for folder in store.root.iterdir() if not folder.name.startswith("."))


def test_what_was_imported_is_not_read_again(tmp_path: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    [first] = import_log(table(tmp_path / "old.jsonl"))
    assert first.path.parent == store.root
    assert load_run(first.path).count == 5
    assert not list((store.root / ".imports").glob("tmp*"))

    def fail(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(load, "_read", fail)
    (tmp_path / "old.jsonl").rename(tmp_path / "renamed.jsonl")
    [again] = import_log(tmp_path / "renamed.jsonl", store=store)
    assert (again.path, again.sha256, again.name) == (first.path, first.sha256, "renamed")
    table(tmp_path / "renamed.jsonl", wrong=(1,))
    with pytest.raises(AssertionError, match="read again"):
        import_log(tmp_path / "renamed.jsonl")


def test_a_run_that_was_removed_is_made_again(tmp_path: Path, store: RunStore) -> None:
    path = table(tmp_path / "old.jsonl")
    [first] = import_log(path)
    (first.path / "run.json").unlink()
    assert import_log(path)[0].sha256 == first.sha256
    (first.path / "records.parquet").write_bytes(b"damaged")
    assert import_log(path)[0].sha256 == first.sha256
    for index in (store.root / ".imports").glob("*.json"):
        index.write_text("[")
    assert import_log(path)[0].sha256 == first.sha256


def test_equal_contents_are_one_run(tmp_path: Path) -> None:
    runs = [import_log(table(tmp_path / name))[0] for name in ("old.jsonl", "new.jsonl")]
    assert runs[0].path == runs[1].path
    with pytest.raises(NotComparableError, match="'old' and 'new' are one and the same run"):
        compare_runs(*runs)


def test_flips_are_counted_end_to_end(tmp_path: Path) -> None:
    [old] = import_log(table(tmp_path / "old.jsonl", 50, wrong=(1, 2)))
    [new] = import_log(table(tmp_path / "new.jsonl", 50, wrong=(2, 3, 4)))
    matrix = compare_runs(old, new).matrix
    assert matrix is not None
    assert (matrix.both_right, matrix.negative_flips, matrix.positive_flips, matrix.both_wrong) == (46, 2, 1, 1)


def test_parts_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "old.jsonl", 25)
    whole = import_log(path, store=RunStore(tmp_path / "a"))[0]
    monkeypatch.setattr(load, "PART", 10)
    seen: list[tuple[Any, ...]] = []
    parts = import_log(path, store=RunStore(tmp_path / "b"), progress=lambda *call: seen.append(call))[0]
    assert (whole.sha256, whole.fingerprint) == (parts.sha256, parts.fingerprint)
    assert [call[0] for call in seen] == ["read log of old"] * 3
    assert seen[0][1] < seen[1][1] < seen[2][1] == seen[2][2] == path.stat().st_size
    assert seen[2][3] == "25 instances"


def test_the_order_of_the_log_does_not_show(tmp_path: Path) -> None:
    path = table(tmp_path / "old.jsonl")
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(path.read_text().splitlines()[::-1]))
    first, second = import_log(path)[0], import_log(other)[0]
    assert first.sha256 == second.sha256
    assert first.fingerprint["task"] == second.fingerprint["task"]


def test_a_failed_import_leaves_nothing(tmp_path: Path, store: RunStore) -> None:
    path = table(tmp_path / "old.jsonl")
    path.write_text(path.read_text() + "{")
    with pytest.raises(DataError, match="line 6"):
        import_log(path)
    assert runs_in(store) == []
    assert list((store.root / ".imports").iterdir()) == []


def test_two_imports_at_once_make_one_run(tmp_path: Path, store: RunStore) -> None:
    """The second finds, when it has read the log, that the first has stored it."""
    path = table(tmp_path / "old.jsonl")
    inner: list[Any] = []

    class Slow(RunStore):
        def claim(self, *args: Any) -> Any:
            if not inner:
                inner.extend(import_log(path, store=store))
            return super().claim(*args)

    [run] = import_log(path, store=Slow(store.root))
    assert runs_in(store) == [run.path.name]
    assert inner[0] == run


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError):
        import_log(table(tmp_path / "old.jsonl"), store=RunStore(tmp_path / "store"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter": "none"}, "a log of the format table has no choice of filter: leave filter out"),
        ({"metric": "acc"}, "no choice of metric"),
        ({"log_format": "tables"}, "unknown log format 'tables': did you mean 'table'"),
    ],
)
def test_options_that_mean_nothing(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        import_log(table(tmp_path / "old.jsonl"), **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no choice of model: leave #gpt out"):
        import_log(f"{tmp_path / 'old.jsonl'}#gpt")


def test_a_number_sign_may_be_part_of_a_name(tmp_path: Path) -> None:
    path = table(tmp_path / "run#1.jsonl")
    assert is_log(path)
    assert load.split_model(f"{path}#a/b#c") == (path, "a/b#c")
    assert load.split_model(f"{path}#") == (path, None)
    assert load.split_model("none#a") == (Path("none#a"), None)
    assert not is_log("none#a")


def test_what_is_no_log(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_record(1, True, "a")])
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    table(model / "data.jsonl")
    lm_eval_logs.write_log(model / "results", [lm_eval_logs.sample(0)])
    text = tmp_path / "notes.md"
    text.write_text("# notes, with a comma\n")
    one = tmp_path / "one.json"
    one.write_text('{"id": 1, "correct": true}')
    for path in (
        run.path,
        run.records_path.parent,
        model,
        text,
        one,
        tmp_path / "none",
        "org/name@rev",
        "",
        "\0",
        "x" * 5000,
    ):
        assert not is_log(path)
    assert is_log(model / "results")
    with pytest.raises(DataError, match=r"is no log that can be read; looked for inspect \(.*\); lm-eval .*; table "):
        import_log(text)
    with pytest.raises(DataError, match="there is no file or folder"):
        import_log(tmp_path / "none")
    with pytest.raises(DataError, match="no file can be called"):
        import_log("x" * 5000)
    (tmp_path / "empty").touch()
    with pytest.raises(EmptyError, match="is empty"):
        import_log(tmp_path / "empty")


def whole_logs(folder: Path) -> dict[str, Path]:
    """A small log of every kind."""
    (folder / "lm").mkdir(parents=True)
    return {
        "lm-eval": lm_eval_logs.write_log(folder / "lm", [lm_eval_logs.sample(n, n % 2 == 0) for n in range(3)]),
        "eval": inspect_logs.write_eval(
            folder / "log.eval", inspect_logs.members([inspect_logs.sample("a"), inspect_logs.sample("b", "I")])
        ),
        "stored": inspect_logs.write_eval(
            folder / "stored.eval", inspect_logs.members([inspect_logs.sample("a")]), zipfile.ZIP_STORED
        ),
        "inspect": inspect_logs.write_json_log(folder / "inspect.json", [inspect_logs.sample("a")]),
        "promptfoo": test_promptfoo.write(folder / "p.json", [test_promptfoo.result(0), test_promptfoo.failed(1)]),
        "openai-evals": test_openai_evals.write(folder / "o.jsonl", [*test_openai_evals.events(0)]),
        "table": table(folder / "t.jsonl"),
        "csv": Path(folder / "t.csv"),
    }


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("logs")
    found = whole_logs(folder)
    found["csv"].write_text('id,input,correct,score\n1,"a, b",yes,0.5\n2,c,no,\n')
    return found


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def bits(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def values(data: bytes, draw: random.Random) -> bytes:
    """Other JSON in the place of a value, so that the text stays well-formed and its types do not."""
    text = data.decode("utf-8", "replace")
    places = [index for index, sign in enumerate(text) if sign == ":"]
    if not places:
        return bits(data, draw)
    place = draw.choice(places) + 1
    _, end = json.JSONDecoder().raw_decode(text, place + (text[place] == " ")) if text[place] != "/" else (None, place)
    other = draw.choice(["null", "5", "-1e999", "NaN", '"\\ud800"', "[]", "{}", "[[1]]", '{"a": []}', "true", "1e400"])
    return (text[:place] + other + text[end:]).encode()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["lm-eval", "eval", "stored", "inspect", "promptfoo", "openai-evals", "table", "csv"]), st.sampled_from([cut, bits, values]), st.integers(0, 2**32))  # fmt: skip  # noqa: E501
def test_damaged_logs_are_read_or_refused_in_words(
    logs: dict[str, Path],
    tmp_path: Path,
    kind: str,
    damage: Callable[[bytes, random.Random], bytes],
    seed: int,
) -> None:
    path = tmp_path / logs[kind].name
    draw = random.Random(seed)
    if damage is values and kind in ("eval", "stored", "csv"):
        damage = bits
    try:
        path.write_bytes(damage(logs[kind].read_bytes(), draw))
    except ValueError:  # a colon inside a text is no place for a value
        return
    found, message = is_log(path), refusal(path, tmp_path)
    assert message is not None or found
    assert "\n" not in (message or "")


def refusal(path: Path, tmp_path: Path) -> str | None:
    """What a user reads; None where the log was read. Any other exception is a failure."""
    try:
        import_log(path, store=RunStore(tmp_path / "store"))
    except UpholdError as error:
        return str(error)
    return None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["sample", "header"]), st.integers(0, 2**32))
def test_damaged_members_of_eval_files(tmp_path: Path, which: str, seed: int) -> None:
    parts = inspect_logs.members([inspect_logs.sample("a")])
    name = "header.json" if which == "header" else "samples/a_epoch_1.json"
    try:
        parts[name] = values(parts[name], random.Random(seed))
    except ValueError:
        return
    path = inspect_logs.write_eval(tmp_path / "log.eval", parts)
    assert is_log(path)
    assert "\n" not in (refusal(path, tmp_path) or "")
