from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.importers.inspect_logs import ZSTD, header, members, sample, write_eval, write_json_log
from uphold.core.errors import CorruptError, DataError
from uphold.importers import inspect_files
from uphold.importers.inspect_files import is_inspect_file, read_inspect


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, ZSTD])
def test_members_of_every_packing(tmp_path: Path, method: int) -> None:
    samples = [sample("a"), sample("b/ c"), sample(3)]
    path = write_eval(tmp_path / "log.eval", members(samples), method)
    assert is_inspect_file(path)
    log = read_inspect(path)
    assert log.header == header()
    assert log.count == 3
    assert [found for _, found in log.samples()] == samples


def test_a_member_in_many_frames(tmp_path: Path) -> None:
    """Inspect starts a new zstd frame every 200 MiB; readers take them as one text."""
    import pyarrow as pa

    data = json.dumps(header()).encode()
    halves = [pa.compress(part, codec="zstd", asbytes=True) for part in (data[:50], data[50:])]
    path = write_eval(tmp_path / "log.eval", {"header.json": data}, zipfile.ZIP_STORED)
    member = zipfile.ZipInfo("header.json")
    member.file_size, member.compress_type = len(data), ZSTD
    assert inspect_files._unpacked(b"".join(halves), member, str(path)) == data


def test_json_logs_are_read_too(tmp_path: Path) -> None:
    path = write_json_log(tmp_path / "log.json", [sample("a"), sample(3)])
    assert is_inspect_file(path)
    log = read_inspect(path)
    assert (log.header, log.count) == (header(), 2)
    assert [found["id"] for _, found in log.samples()] == ["a", 3]


def test_large_samples_are_put_together_from_their_chunks(tmp_path: Path) -> None:
    shell = sample("big/one", input="attachment://2")
    del shell["metadata"]
    parts = members([])
    folder = "samples/big/one_epoch_1"
    parts[f"{folder}/sample.json"] = json.dumps(shell).encode()
    parts[f"{folder}/metadata.json"] = json.dumps({"kind": "big"}).encode()
    parts[f"{folder}/attachments/0.json"] = json.dumps(["zero", "one"]).encode()
    parts[f"{folder}/attachments/2.json"] = json.dumps(["two"]).encode()
    parts[f"{folder}/events/0.json"] = b"[]"
    log = read_inspect(write_eval(tmp_path / "log.eval", parts))
    [(_, found)] = log.samples()
    assert found["metadata"] == {"kind": "big"}
    assert found["attachments"] == {"0": "zero", "1": "one", "2": "two"}


def test_a_killed_evaluation_has_only_its_journal(tmp_path: Path) -> None:
    parts = members([sample("a")])
    del parts["header.json"]
    log = read_inspect(write_eval(tmp_path / "log.eval", parts))
    assert (log.header["status"], log.count) == ("started", 1)


def test_other_files_are_no_logs(tmp_path: Path) -> None:
    assert not is_inspect_file(write_eval(tmp_path / "other.zip", {"a.txt": b"text"}))
    (tmp_path / "other.json").write_text('{"version": 2, "status": "x"}')
    assert not is_inspect_file(tmp_path / "other.json")
    with pytest.raises(CorruptError, match="no log of inspect_ai"):
        read_inspect(tmp_path / "other.zip")


def test_absurd_sizes_are_refused_before_unpacking(tmp_path: Path) -> None:
    path = write_eval(tmp_path / "log.eval", members([sample("a")]), size=(1 << 30) + 1)
    with pytest.raises(DataError, match=r"unpacks to 1,073,741,825 bytes, more than the 1,073,741,824"):
        read_inspect(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, ZSTD])
def test_a_member_that_unpacks_to_more_than_it_says_is_not_unpacked_whole(tmp_path: Path, method: int) -> None:
    path = write_eval(tmp_path / "log.eval", {"header.json": b" " * 50_000_000}, method, size=100)
    with pytest.raises(CorruptError, match="checksum differs"):
        read_inspect(path)


def test_damaged_members_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"header.json is damaged"):
        read_inspect(write_eval(tmp_path / "crc.eval", members([]), crc=1))
    with pytest.raises(DataError, match="packed by method 12"):
        read_inspect(write_eval(tmp_path / "method.eval", members([]), 12))
    with pytest.raises(DataError, match="encrypted"):
        read_inspect(write_eval(tmp_path / "flags.eval", members([]), flags=1))
    whole = write_eval(tmp_path / "cut.eval", members([sample("a")]))
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(CorruptError, match="killed or the copy cut short"):
        read_inspect(whole)
    write_eval(tmp_path / "list.eval", {"header.json": b"[]"})
    with pytest.raises(CorruptError, match="expected a JSON object, found list"):
        read_inspect(tmp_path / "list.eval")
