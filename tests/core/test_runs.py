from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_run
from uphold.core.errors import CorruptError, DataError, EmptyError, StorageError
from uphold.core.records import Record
from uphold.core.runs import RunStore, RunWriter, default_store, is_run, load_run, run_key, write_run

FINGERPRINT: dict[str, Any] = {
    "model": {"name": "mine", "weights": "w1", "adapter": None},
    "task": {"name": "task.yaml", "instances": "i1", "scorer": "exact.v1"},
    "batching": {"size": 32},
    "seed": 0,
    "versions": {"torch": "2.13.0"},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    fingerprint = json.loads(json.dumps(FINGERPRINT))
    *parents, last = path.split(".")
    place = fingerprint
    for parent in parents:
        place = place[parent]
    place[last] = value
    return dict(fingerprint)


def part(number: int, size: int = 10) -> list[Record]:
    """Records whose ids are scattered over the parts, so that finishing has to sort them."""
    numbers = [577 * (number * size + index) % 1009 for index in range(size)]
    return [
        Record(
            f"{one:016x}", f"{one}?", "0", str(one), str(one), one == 0, float(one == 0), tags={"third": str(one % 3)}
        )
        for one in numbers
    ]


def write_parts(writer: RunWriter, numbers: range | list[int]) -> None:
    for number in numbers:
        writer.write(number, part(number))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- content addressing ----


@pytest.mark.parametrize("path", ["model.name", "task.name"])
def test_names_do_not_count(path: str) -> None:
    assert run_key(changed(path, "another name")) == run_key(FINGERPRINT)


@pytest.mark.parametrize(
    "path",
    ["model.weights", "model.adapter", "task.instances", "task.scorer", "batching.size", "seed", "versions.torch"],
)
def test_everything_else_does(path: str) -> None:
    assert run_key(changed(path, "another value")) != run_key(FINGERPRINT)


def test_a_run_is_found_by_its_content_under_any_name(store: RunStore) -> None:
    writer = store.writer(FINGERPRINT)
    write_parts(writer, range(2))
    run = writer.finish(2)

    found = store.find(changed("model.name", "other folder, same weights"))

    assert found is not None
    assert found.path == run.path == store.root / run_key(FINGERPRINT)
    assert store.find(changed("model.weights", "w2")) is None


def test_a_run_in_the_making_is_not_found(store: RunStore) -> None:
    write_parts(store.writer(FINGERPRINT), range(2))

    assert store.find(FINGERPRINT) is None


# ---- writing and reading ----


def test_a_run_is_read_back_as_written(tmp_path: Path) -> None:
    records = part(0) + part(1)
    run = write_run(tmp_path / "run", reversed(records), FINGERPRINT)
    loaded = load_run(tmp_path / "run")

    assert loaded == run
    assert loaded.name == "mine"
    assert loaded.count == 20
    assert list(loaded.records()) == sorted(records, key=lambda record: record.id)
    assert loaded.table(["id"]).column_names == ["id"]


def test_records_in_any_order_are_the_same_run(tmp_path: Path) -> None:
    there = write_run(tmp_path / "a", part(0), FINGERPRINT)
    back = write_run(tmp_path / "b", reversed(part(0)), FINGERPRINT)

    assert content(there.path) == content(back.path)


def test_no_records_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmptyError, match="has no records"):
        write_run(tmp_path / "run", [], FINGERPRINT)
    with pytest.raises(EmptyError, match="has no records"):
        RunWriter(tmp_path / "other", FINGERPRINT).finish(0)
    assert not is_run(tmp_path / "run")


def test_one_id_in_two_records_or_parts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two records have the id"):
        write_run(tmp_path / "run", part(0) + part(0), FINGERPRINT)

    writer = RunWriter(tmp_path / "other", FINGERPRINT)
    writer.write(0, part(0))
    writer.write(1, part(0))
    with pytest.raises(DataError, match="share an id"):
        writer.finish(2)
    assert not is_run(tmp_path / "other")


@pytest.mark.parametrize("fingerprint", [{}, {"model": {"name": "m"}}, {"model": "m", "task": "t"}])
def test_a_run_says_which_model_and_which_task(tmp_path: Path, fingerprint: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="'model' and 'task'"):
        write_run(tmp_path / "run", part(0), fingerprint)


def test_a_copy_is_a_run_of_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", part(0), "mine")
    copy = run.copy_to(tmp_path / "copy")

    assert copy.path == tmp_path / "copy"
    assert list(copy.records()) == list(run.records())
    assert content(copy.path) == content(run.path)
    before = (copy.path / "records.parquet").stat().st_ino
    run.copy_to(tmp_path / "copy")
    assert (copy.path / "records.parquet").stat().st_ino == before  # nothing was written twice


def test_a_copy_replaces_a_run_of_another_model_with_equal_answers(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", part(0), "first")
    second = make_run(tmp_path / "b", part(0), "second")
    assert first.sha256 == second.sha256

    first.copy_to(tmp_path / "copy")

    assert second.copy_to(tmp_path / "copy").name == "second"
    assert load_run(tmp_path / "copy").fingerprint == second.fingerprint


def test_the_store_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPHOLD_STORE", str(tmp_path / "named"))
    assert default_store().root == tmp_path / "named"
    monkeypatch.delenv("UPHOLD_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_store().root == tmp_path / "cache" / "uphold" / "runs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_store().root == tmp_path / "home" / ".cache" / "uphold" / "runs"


# ---- killed and taken up again ----


def test_parts_may_come_in_any_order(tmp_path: Path) -> None:
    straight, mixed = RunWriter(tmp_path / "a", FINGERPRINT), RunWriter(tmp_path / "b", FINGERPRINT)
    write_parts(straight, range(5))
    write_parts(mixed, [3, 0, 4, 2, 1])

    run = straight.finish(5)

    assert content(run.path) == content(mixed.finish(5).path)
    ids = run.table(["id"])["id"].to_pylist()
    assert ids == sorted(ids)
    assert len(ids) == 50


def test_a_resumed_run_is_byte_equal_to_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = RunWriter(tmp_path / "whole", FINGERPRINT)
    write_parts(whole, range(6))
    run = whole.finish(6)

    write_parts(RunWriter(tmp_path / "killed", FINGERPRINT), range(3))
    later = RunWriter(tmp_path / "killed", FINGERPRINT)
    assert [later.has(number) for number in range(6)] == [True] * 3 + [False] * 3
    write_parts(later, range(3, 6))
    resumed = later.finish(6)

    assert content(resumed.path) == content(run.path)
    assert [path.name for path in resumed.path.iterdir() if path.is_dir()] == []


def test_a_kill_between_records_and_header_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter(tmp_path / "run", FINGERPRINT)
    write_parts(writer, range(2))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("uphold.core.runs.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.finish(2)
    assert not is_run(tmp_path / "run")

    assert RunWriter(tmp_path / "run", FINGERPRINT).finish(2).count == 20


WRITES_FOREVER = f"""
import sys
from pathlib import Path
from uphold.core.runs import Record, RunWriter
{inspect.getsource(part)}
writer = RunWriter(Path(sys.argv[1]), {FINGERPRINT})
for number in range(10_000):
    writer.write(number, part(number % 100))
"""


def test_kill_9_leaves_whole_parts_only(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", WRITES_FOREVER, str(folder)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while len(list(folder.glob("parts/0*.parquet"))) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()

    writer = RunWriter(folder, FINGERPRINT)
    there = [number for number in range(100) if writer.has(number)]
    assert there == list(range(len(there)))
    assert len(there) >= 5
    write_parts(writer, [number for number in range(100) if not writer.has(number)])
    whole = RunWriter(tmp_path / "whole", FINGERPRINT)
    write_parts(whole, range(100))

    assert content(writer.finish(100).path)["records.parquet"] == content(whole.finish(100).path)["records.parquet"]


# ---- claimed by one process at a time ----


def test_a_claimed_run_is_waited_for(store: RunStore) -> None:
    told: list[str] = []
    order: list[str] = []

    def second() -> None:
        with store.claim(FINGERPRINT, lambda: told.append("waiting")):
            order.append("second")

    with store.claim(FINGERPRINT, lambda: told.append("never")):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            time.sleep(0.005)
        order.append("first")
    thread.join(10)

    assert told == ["waiting"]
    assert order == ["first", "second"]


def test_other_runs_are_not_waited_for_and_names_do_not_count(store: RunStore) -> None:
    told: list[str] = []
    with (
        store.claim(FINGERPRINT, lambda: told.append("one")),
        store.claim(changed("seed", 1), lambda: told.append("other")),
    ):
        assert told == []
    with store.claim(changed("model.name", "the same weights"), lambda: told.append("again")):
        assert told == []
    claims = list((store.root / ".claims").iterdir())
    assert {path.name for path in claims} == {f"{run_key(one)}.lock" for one in (FINGERPRINT, changed("seed", 1))}


def test_an_error_gives_a_claim_up(store: RunStore) -> None:
    with pytest.raises(KeyboardInterrupt), store.claim(FINGERPRINT, lambda: None):
        raise KeyboardInterrupt
    with store.claim(FINGERPRINT, lambda: pytest.fail("still claimed")):
        pass


CLAIMS = f"""
import sys, time
from pathlib import Path
from uphold.core.runs import RunStore
with RunStore(Path(sys.argv[1])).claim({FINGERPRINT}, lambda: None):
    print("claimed", flush=True)
    time.sleep(600)
"""


def test_a_process_that_is_killed_gives_its_claim_up(store: RunStore) -> None:
    process = subprocess.Popen([sys.executable, "-c", CLAIMS, str(store.root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    told: list[float] = []

    def waiting() -> None:
        told.append(time.monotonic())
        process.send_signal(signal.SIGKILL)

    with store.claim(FINGERPRINT, waiting):
        assert len(told) == 1
        assert time.monotonic() - told[0] < 5
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_claims_are_no_runs(store: RunStore) -> None:
    with store.claim(FINGERPRINT, lambda: None):
        assert store.find(FINGERPRINT) is None
        write_parts(store.writer(FINGERPRINT), range(2))
        store.writer(FINGERPRINT).finish(2)
    assert store.find(FINGERPRINT) is not None


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")

    with (
        pytest.raises(StorageError, match="cannot write"),
        RunStore(tmp_path / "store").claim(FINGERPRINT, lambda: None),
    ):
        pass


# ---- damaged and refused ----


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other(path: Path) -> None:
    path.write_bytes(b"PAR1 this is something else PAR1")


@pytest.mark.parametrize("damage", [_cut, _empty, _other])
def test_a_damaged_part_is_named_and_costs_only_itself(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    writer = RunWriter(tmp_path / "run", FINGERPRINT)
    write_parts(writer, range(3))
    path = tmp_path / "run" / "parts" / "000001.parquet"
    damage(path)

    with pytest.raises(CorruptError, match=r"parts/000001\.parquet cannot be read; remove that one file") as caught:
        writer.finish(3)
    assert "\n" not in str(caught.value)

    path.unlink()
    assert [writer.has(number) for number in range(3)] == [True, False, True]
    write_parts(writer, [1])
    assert writer.finish(3).count == 30


@pytest.mark.parametrize("damage", [_cut, _empty, _other, Path.unlink])
def test_damaged_records_are_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    run = write_run(tmp_path / "run", part(0), FINGERPRINT)
    damage(run.records_path)

    with pytest.raises(CorruptError, match=r"run/records\.parquet") as caught:
        load_run(run.path)
    assert "\n" not in str(caught.value)


def test_records_that_are_still_readable_but_changed_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", part(0), FINGERPRINT)
    other = write_run(tmp_path / "other", part(1), FINGERPRINT)
    run.records_path.write_bytes(other.records_path.read_bytes())

    with pytest.raises(CorruptError, match="is not the file that was written"):
        load_run(run.path)


def test_records_damaged_after_loading_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", part(0), FINGERPRINT)
    _other(run.records_path)

    with pytest.raises(CorruptError, match=r"records\.parquet cannot be read as Parquet"):
        run.table()


@pytest.mark.parametrize(
    "header", ["", "[]", "{}", '{"format": 99}', '{"format": 1}', '{"format": 1, "fingerprint": {}, "count": 1}']
)
def test_a_damaged_header_is_named(tmp_path: Path, header: str) -> None:
    run = write_run(tmp_path / "run", part(0), FINGERPRINT)
    (run.path / "run.json").write_text(header)

    with pytest.raises(CorruptError, match=r"run\.json"):
        load_run(run.path)


def test_a_folder_without_run_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no finished run in .*: expected run\.json and records\.parquet"):
        load_run(tmp_path)


def test_a_full_disk_keeps_the_parts_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter(tmp_path / "run", FINGERPRINT)
    write_parts(writer, range(2))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StorageError, match=r"no space left on the disk while writing .*000002\.parquet"):
            writer.write(2, part(2))
    assert sorted(path.name for path in (tmp_path / "run" / "parts").iterdir()) == ["000000.parquet", "000001.parquet"]

    write_parts(writer, [2])
    assert writer.finish(3).count == 30
