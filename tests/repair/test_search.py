from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.repair.search_fakes import NEW_RIGHT, OLD_RIGHT, Fake, Look, always, fixes, labels, shuffled, task
from uphold.core.errors import StorageError, UsageError
from uphold.models.processes import Processes
from uphold.repair.result import load_repair
from uphold.repair.search import search
from uphold.repair.search_result import load_search

BOTH = OLD_RIGHT | NEW_RIGHT


def test_the_lowest_validation_nfr_wins_and_is_left_as_a_repair(look: Look, tmp_path: Path) -> None:
    result = look(Fake("weak", always(fixes(1))), Fake("strong", lambda strength: fixes(strength + 1)))
    assert result.winner is not None
    assert result.winner.label == "strong (strength 3)"
    assert result.winner.validation is not None
    assert result.winner.validation.nfr == pytest.approx(1 / 40)
    assert (tmp_path / "out" / "adapter" / "content.txt").read_text() == "strong 3"
    repair = load_repair(tmp_path / "out")
    assert repair.method == "strong"
    assert repair.artifact == tmp_path / "out" / "adapter"
    assert "chosen by validation among 4 trials" in repair.notes[-1]
    assert load_search(tmp_path / "out") == result


def test_fewer_flips_at_a_lower_accuracy_are_not_chosen(look: Look) -> None:
    result = look(Fake("cautious", always(fixes(2))), Fake("copy-of-old", always(fixes(5, loses=6))))
    assert result.winner is not None
    assert result.winner.label == "cautious"


def test_the_test_split_changes_nothing_in_the_choice(look: Look) -> None:
    """Whatever the repairs do on the test split, the same ones are tried in the same order and the same is chosen."""
    seen = set()
    for seed in range(2):
        fakes = [
            Fake(
                name,
                lambda strength, most=most: fixes(min(5, strength + most)),  # type: ignore[misc]
                test_right=lambda strength, seed=seed: shuffled(fixes(5 - seed), seed),  # type: ignore[misc]
            )
            for name, most in (("a", 0), ("b", 1))
        ]
        result = look(*fakes, out=f"out {seed}")
        seen.add((tuple(labels(result)), result.chosen))
    assert len(seen) == 1


def test_a_repair_with_both_models_is_a_paragon(look: Look, tmp_path: Path) -> None:
    fakes = Fake("single", always(fixes(2))), Fake("ensemble", always(fixes(5)), form="pair")
    result = look(*fakes)
    assert result.winner is not None
    assert result.winner.label == "single"
    assert "not for choosing, because they keep both models at inference: ensemble" in str(result)
    again = look(*fakes, pairs=True)
    assert again.winner is not None
    assert again.winner.label == "ensemble"
    assert (tmp_path / "out" / "pair").is_dir()
    assert not (tmp_path / "out" / "adapter").exists()


def test_an_interrupted_search_goes_on_without_repeating_a_trial(look: Look, tmp_path: Path) -> None:
    class Interrupt(BaseException):
        pass

    fakes = [Fake(name, always(fixes(count))) for name, count in (("a", 1), ("b", 2), ("c", 3))]

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what == "c":
            raise Interrupt

    with pytest.raises(Interrupt):
        look(*fakes, progress=stop)
    saved = json.loads(next((tmp_path / "out" / "trials").glob("c-*/trial.json")).read_text())
    assert saved["status"] == "unfinished"
    calls = [fake.calls for fake in fakes]
    result = look(*fakes)
    assert calls == [1, 1, 1]
    assert [fake.calls for fake in fakes] == [1, 1 + 2, 2 + 2]
    assert result.winner is not None
    assert result.winner.method == "c"
    again = look(*fakes)
    assert [fake.calls for fake in fakes] == [1, 3, 4]
    assert (again.chosen, again.trials) == (result.chosen, result.trials)


def test_a_failing_method_is_told_and_counted(look: Look) -> None:
    fakes = [
        Fake("broken", lambda strength: ValueError("no such <layer>")),
        Fake("fine", always(fixes(2))),
    ]
    result = look(*fakes, trials=2)
    assert [trial.status for trial in result.trials] == ["failed", "finished"]
    assert "failed: broken: ValueError: no such <layer>" in str(result)
    look(*fakes, trials=2)
    assert fakes[0].calls == 1
    with pytest.raises(UsageError, match=r"2 failed \(broken, worse: ValueError: no such <layer>\)"):
        look(fakes[0], Fake("worse", fakes[0].right), out="all")
    with pytest.raises(StorageError):
        look(Fake("full", lambda strength: StorageError("no space")), out="disk")


def test_another_task_or_other_models_are_refused(look: Look, tmp_path: Path) -> None:
    look(Fake("a", always(fixes(1))))
    for path in (tmp_path / "out" / "trials").glob("*/trial.json"):
        path.write_text(path.read_text().replace('"key": "', '"key": "0'))
    with pytest.raises(UsageError, match="holds a search of other models or another task"):
        look(Fake("a", always(fixes(1))))


def test_everything_that_can_be_fixed_is_the_best(look: Look) -> None:
    result = look(Fake("all", always(BOTH)))
    assert result.winner is not None
    assert result.winner.validation is not None
    assert result.winner.validation.nfr == 0


def test_several_processes_would_not_agree_on_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uphold.models.processes.current", lambda: Processes(0, 2))
    with pytest.raises(UsageError, match="a search runs in one process"):
        search("a", "b", task(), out=tmp_path)
