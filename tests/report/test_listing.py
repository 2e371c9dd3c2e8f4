from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.report.listing import Entry, Listing, UnreadableError, read_regular

RATES = [{"name": "accuracy_old", "value": 0.5}, {"name": "accuracy_new", "value": 0.6}, {"name": "nfr", "value": 0.1}]


def comparison(task: str = "colours", old: str = "v1", new: str = "v2", rates: Any = RATES) -> dict[str, Any]:
    return {
        "old": {"name": old, "fingerprint": {"task": {"name": task}}},
        "new": {"name": new, "fingerprint": {"task": {"name": task}}},
        "count": 40,
        "rates": rates,
    }


def put(path: Path, value: Any, written: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    if written is not None:
        os.utime(path, (written, written))
    return path


def entries(root: Path) -> tuple[Entry, ...]:
    return Listing(root).look().entries


def test_everything_is_found_at_any_depth_newest_first(tmp_path: Path) -> None:
    put(tmp_path / "comparison.json", comparison(), 100)
    put(tmp_path / "a/b/c/comparison.json", comparison("sums"), 300)
    put(tmp_path / "r/comparison.json", comparison(), 50)
    after = [{"name": "accuracy_new", "value": 0.62}, {"name": "nfr", "value": 0.04}]
    put(tmp_path / "r/repair.json", {"arms": [{"comparison": {"rates": after}}, {}]}, 200)
    versions = [{"label": "v1", "score": 0.5}, {"label": "v3", "score": 0.7, "first": {"nfr": 0.02}}]
    put(tmp_path / "h/history.json", {"task": "t", "count": 9, "judged": True, "versions": versions}, 250)
    put(tmp_path / ".hidden/comparison.json", comparison())
    put(tmp_path / "r/runs/old/run.json", {})
    put(tmp_path / "r/runs/old/parts/comparison.json", comparison())
    found = entries(tmp_path)
    assert [(entry.folder, entry.kind) for entry in found] == [
        ("a/b/c", "comparison"), ("h", "history"), ("r", "repair"), (".", "comparison"),
    ]  # fmt: skip
    assert [entry.problem for entry in found] == [None] * 4
    assert (found[0].task, found[0].old, found[0].new, found[0].instances) == ("sums", "v1", "v2", 40)
    assert (found[1].scores, found[1].nfr) == ((0.5, 0.7), 0.02)
    assert (found[2].scores, found[2].nfr, found[2].nfr_after) == ((0.5, 0.62), 0.1, 0.04)
    assert found[3].when == "1970-01-01 00:01"


def test_continuous_scores_and_undefined_rates(tmp_path: Path) -> None:
    rates = [{"name": "score_old", "value": 0.4}, {"name": "score_new", "value": None}, {"name": "nfr_score"}]
    put(tmp_path / "comparison.json", comparison(rates=rates))
    [entry] = entries(tmp_path)
    assert (entry.continuous, entry.scores, entry.nfr, entry.problem) == (True, None, None, None)


def test_the_gate_beside_or_above_speaks(tmp_path: Path) -> None:
    put(tmp_path / "one/comparison.json", comparison())
    put(tmp_path / "one/gate.json", {"verdict": "inconclusive", "checks": []})
    for task in ("colours", "sums", "names"):
        put(tmp_path / "many" / task / "comparison.json", comparison(task))
    checks = [{"task": "colours", "verdict": "pass"}, {"task": "sums", "verdict": "pass"}]
    checks += [{"task": "sums", "verdict": "fail"}, {"task": "other", "verdict": ["fail"]}]
    put(tmp_path / "many/gate.json", {"verdict": "fail", "checks": checks})
    assert {entry.folder: entry.verdict for entry in entries(tmp_path)} == {
        "one": "inconclusive", "many/colours": "pass", "many/sums": "fail", "many/names": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("comparison.json", "{", "comparison.json is not valid JSON"),
        ("comparison.json", "\udcff", "comparison.json is not valid JSON"),
        ("comparison.json", "[]", "comparison.json holds no JSON object"),
        ("comparison.json", "{}", "comparison.json holds no rates"),
        ("comparison.json", json.dumps(comparison(old="")), "comparison.json names no old and new run"),
        ("comparison.json", "[" * 100_000, "comparison.json is not valid JSON"),
        ("repair.json", "{}", "comparison.json cannot be read: No such file or directory"),
        ("history.json", '{"versions": [1, 2]}', "history.json holds no versions"),
        ("history.json", "{}", "history.json holds no versions"),
    ],
)
def test_a_damaged_folder_says_why(tmp_path: Path, file: str, text: str, reason: str) -> None:
    (tmp_path / file).write_bytes(text.encode(errors="surrogateescape"))
    [entry] = entries(tmp_path)
    assert entry.problem == reason


def test_a_damaged_gate_is_not_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "comparison.json", comparison())
    put(tmp_path / "gate.json", "{")
    assert entries(tmp_path)[0].problem == "gate.json is not valid JSON"


KEYS = [
    "old", "new", "name", "rates", "value", "count", "fingerprint", "task", "arms", "comparison",
    "versions", "label", "score", "first", "nfr", "verdict", "checks", "judged",
]  # fmt: skip
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(values=st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("comparison.json", "repair.json", "history.json", "gate.json"), json_values)))  # fmt: skip
def test_no_json_breaks_the_list(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    root = tmp_path_factory.mktemp("any")
    for name, value in values.items():
        put(root / name, value)
    for entry in entries(root):
        assert entry.folder == "."
        assert entry.problem is None or ".json" in entry.problem


def test_files_are_read_again_only_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = read_regular

    def counted(path: Path, most: int) -> bytes:
        reads.append(path.name)
        return read(path, most)

    monkeypatch.setattr("uphold.report.listing.read_regular", counted)
    put(tmp_path / "comparison.json", comparison(), 100)
    listing = Listing(tmp_path)
    listing.look()
    listing.look()
    assert reads == ["comparison.json"]
    put(tmp_path / "comparison.json", comparison(new="v3"), 200)
    assert listing.look().entries[0].new == "v3"
    assert len(reads) == 2


def test_folders_are_named_by_a_key_that_stays(tmp_path: Path) -> None:
    put(tmp_path / "a/comparison.json", comparison())
    key = entries(tmp_path)[0].key
    listing = Listing(tmp_path)
    assert listing.folder(key) == tmp_path.resolve() / "a"
    assert listing.folder("0" * 16) is None
    assert entries(tmp_path)[0].key == key


def test_a_name_that_is_no_text_is_listed(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(folder)
    with open(folder + b"/comparison.json", "w") as file:
        json.dump(comparison(), file)
    [entry] = entries(tmp_path)
    assert len(entry.key) == 16


@pytest.fixture
def make_link() -> Callable[[Path, Path], None]:
    def make(link: Path, target: Path) -> None:
        try:
            link.symlink_to(target)
        except OSError:
            pytest.skip("no links on this file system")

    return make


def test_links_are_not_followed(tmp_path: Path, make_link: Callable[[Path, Path], None]) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    put(outside / "comparison.json", comparison())
    (inside / "x").mkdir(parents=True)
    make_link(inside / "folder", outside)
    make_link(inside / "x/comparison.json", outside / "comparison.json")
    [entry] = entries(inside)
    assert entry.problem == "comparison.json is a link, which is not followed"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_and_large_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "comparison.json")
    assert entries(tmp_path)[0].problem == "comparison.json is no ordinary file"
    put(tmp_path / "large", "x" * 20)
    with pytest.raises(UnreadableError, match="larger than"):
        read_regular(tmp_path / "large", 10)
