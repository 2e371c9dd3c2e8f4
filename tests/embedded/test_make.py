from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from uphold.embedded import make as making
from uphold.models.fingerprint import weights_hash
from uphold.models.load import load
from uphold.models.reference import find_model
from uphold.tasks.base import SPLITS
from uphold.tasks.generated import draw_instances
from uphold.tasks.load import load_task

FORMS = {
    "rotten": r"R[012]{16}>",
    "island": r"I[01]{16}>",
    "alternation": r"A[01]{8,18}>",
    "gcd": r"G\d+(,\d+)+>",
    "primes": r"P\d+,\d+>",
    "sum": r"\d+[+-]\d+>",
}


@pytest.mark.parametrize("name", FORMS)
def test_every_source_has_its_compact_form(name: str) -> None:
    dataset, config = making.SOURCES[name]
    for instance in draw_instances(dataset, config, size=20, seed=0):
        assert re.fullmatch(FORMS[name], instance.prompt)
        assert re.fullmatch(r"-?\d+", instance.target)


def test_a_small_pair_is_made_twice_alike_and_v2_continues_v1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {
        label: replace(reading, steps=2, draws=200, mix={"rotten": 0.5, "gcd": 0.5})
        for label, reading in making.READINGS.items()
    }
    monkeypatch.setattr(making, "READINGS", small)
    for folder in ("one", "two"):
        making.make(tmp_path / folder)
    for label in ("v1", "v2"):
        assert weights_hash(tmp_path / "one" / label) == weights_hash(tmp_path / "two" / label)
    assert weights_hash(tmp_path / "one" / "v1") != weights_hash(tmp_path / "one" / "v2")
    assert json.loads((tmp_path / "one" / "v2" / "making.json").read_text())["steps"] == 2
    dropped = [int(n) for n in re.findall(r"rotten, (\d+) of 200", capsys.readouterr().out)]
    assert dropped
    assert all(0 < kept < 200 for kept in dropped)


def test_what_ships_is_small_and_loads_like_any_model() -> None:
    folders = [find_model(f"embedded:{label}").base for label in ("v1", "v2")]
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    assert size < 12_000_000
    for folder, label in zip(folders, ("v1", "v2"), strict=True):
        loaded = load(f"embedded:{label}")
        assert loaded.model.config.model_type == "llama"
        assert loaded.tokenizer.decode(loaded.tokenizer("R0123>")["input_ids"]) == "<s>R0123>"
        assert json.loads((folder / "making.json").read_text())["seconds"] > 0


def test_the_demo_tasks_instances_are_kept_out_of_what_the_models_read() -> None:
    demo = {instance.prompt for split in SPLITS for instance in load_task("demo").instances(split)}
    dataset, config = making.SOURCES["rotten"]
    drawn = {instance.prompt for instance in draw_instances(dataset, config, size=500, seed=1000)}
    assert demo & drawn, "nothing to keep out: the check of `read` would be idle"
    tokenizer = making.build_tokenizer()
    kept = making.readable(making.SOURCES["rotten"], size=500, seed=1000)
    assert not demo & {instance.prompt for instance in kept}
    assert len(tokenizer) == 78
