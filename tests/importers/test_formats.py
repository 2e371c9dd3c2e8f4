from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from uphold.core.errors import UsageError
from uphold.core.records import Record
from uphold.importers import Choice, LoggedTask, Reading, formats, import_log, is_log, log_format, log_formats


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone afterwards."""
    log_formats()
    monkeypatch.setattr(formats, "_formats", dict(formats._formats))


def plugin() -> None:
    """A third party's format: files that begin with `MINE`, with right or wrong in a word."""

    def is_mine(path: Path) -> bool:
        return path.is_file() and path.read_bytes().startswith(b"MINE")

    @log_format("mine", detect=is_mine)
    def mine(path: Path, choice: Choice) -> list[LoggedTask]:
        """Files of ours."""

        def records(log: Reading) -> Iterator[Record]:
            for number, word in enumerate(path.read_text().split()[1:]):
                log.count("words")
                yield Record(str(number), "", "", word, word, word == "right", float(word == "right"))

        return [LoggedTask("words", "m", path.read_text(), records)]


def test_the_formats_of_this_package_are_found() -> None:
    found = log_formats()
    assert [form.name for form in found] == ["inspect", "lm-eval", "openai-evals", "promptfoo", "table"]
    assert all(form.summary for form in found)
    assert [form.fallback for form in found] == [False] * 4 + [True]


@pytest.mark.usefixtures("registry")
def test_a_third_party_adds_a_format_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_text("MINE right wrong")
    assert not is_log(path)
    point = EntryPoint("mine", "tests.importers.test_formats:plugin", formats.ENTRY_POINTS)
    points = {"uphold.importers": [point]}
    monkeypatch.setattr("uphold.core.registry.entry_points", lambda group: points.get(group, []))
    plugin()
    assert is_log(path)
    [run] = import_log(path)
    assert [record.correct for record in run.records()] == [True, False]
    assert run.fingerprint["task"]["format"] == "mine"
    assert run.fingerprint["log"]["notes"] == ["words: 2"]


@pytest.mark.usefixtures("registry")
def test_the_format_in_the_documentation(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "import.md"
    if not page.is_file():
        pytest.skip("the documentation is not part of the source archive")
    [code] = [block for block in page.read_text().split("```python\n")[1:] if "@log_format" in block]
    exec(code.partition("```")[0], {"__name__": "documented"})
    path = tmp_path / "mine.log"
    path.write_text("MINE\nright wrong right")
    [run] = import_log(path)
    assert (run.name, run.count) == ("mine", 3)


def test_a_broken_plug_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("bad", "no_such_module_anywhere", formats.ENTRY_POINTS)
    monkeypatch.setattr("uphold.core.registry.entry_points", lambda group: [point])
    with pytest.raises(UsageError, match=r"plug-in 'bad' .* cannot be imported"):
        log_formats()


@pytest.mark.usefixtures("registry")
def test_a_name_is_given_once() -> None:
    def never(path: Path) -> bool:
        return False

    def read(path: Path, choice: Choice) -> list[LoggedTask]:
        return []

    with pytest.raises(UsageError, match=r"log format 'table' of .* is already registered by uphold\.importers\.table"):
        log_format("table", detect=never)(read)
    with pytest.raises(UsageError, match="unknown choice 'metrics': did you mean 'metric'"):
        log_format("other", detect=never, uses=["metrics"])


@pytest.mark.usefixtures("registry")
def test_two_formats_that_fit_are_told_apart_by_the_user(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("id,correct\n1,1\n")

    def always(path: Path) -> bool:
        return True

    for name in ("one", "two"):

        @log_format(name, detect=always)
        def read(path: Path, choice: Choice) -> list[LoggedTask]:
            """Anything."""
            return []

    with pytest.raises(UsageError, match=r"could be one or two: say which with log_format"):
        import_log(path)
    assert import_log(path, log_format="table")[0].count == 1
    with pytest.raises(UsageError, match="unknown log format 'tabel': did you mean 'table'"):
        import_log(path, log_format="tabel")


def test_models_by_the_last_part_of_their_name() -> None:
    known = ["org/a", "other/a", "org/b", "/ckpt/c/"]
    assert [formats.model_called(name, known) for name in ("org/a", "a", "b", "c", "d")] == [
        "org/a",
        None,
        "org/b",
        "/ckpt/c/",
        None,
    ]
