from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uphold.core.errors import CorruptError, ModelError, UsageError
from uphold.models.pair_file import (
    FILE,
    GATE,
    Averaging,
    Gating,
    Member,
    PairFile,
    Reranking,
    content_of,
    gate_hash,
    kind_of,
    pair_folder,
    parameters_of,
    read_pair,
)
from uphold.models.reference import find_model
from uphold.repair.bcr import BcrConfig


def content(name: str) -> dict[str, Any]:
    return {"weights": f"w {name}", "config": f"c {name}", "tokenizer": "t", "adapter": None}


OLD, NEW = Member("./v1", content("old")), Member("./v2", content("new"))


@pytest.mark.parametrize("how", [Averaging(0.2), Reranking(3, 4, normalise=True), Gating(2.0, 8)])
def test_what_is_saved_is_read_again(how: Any, tmp_path: Path) -> None:
    gate = b"gate" if isinstance(how, Gating) else None
    written = PairFile(how, OLD, NEW, gate_hash(gate))
    written.save(tmp_path / "pair", gate)
    assert read_pair(tmp_path / "pair") == written
    assert (tmp_path / "pair" / GATE).exists() == (gate is not None)
    assert json.loads((tmp_path / "pair" / FILE).read_text())["kind"] == kind_of(how)


def test_a_pair_is_found_in_its_own_folder_and_in_that_of_its_repair(tmp_path: Path) -> None:
    PairFile(Averaging(), OLD, NEW).save(tmp_path / "repair" / "pair")
    assert pair_folder(str(tmp_path / "repair")) == pair_folder(str(tmp_path / "repair" / "pair"))
    assert pair_folder(str(tmp_path)) is None
    assert pair_folder("org/name") is None


def test_the_fingerprint_hangs_on_both_models_and_how_they_are_asked() -> None:
    base = PairFile(Averaging(), OLD, NEW)
    others = [
        replace(base, parameters=Averaging(0.4)),
        replace(base, old=Member("./v1", content("another"))),
        replace(base, old=NEW, new=OLD),
        replace(base, gate="g"),
    ]
    assert len({one.fingerprint("x")["weights"] for one in [base, *others]}) == 5
    moved = replace(base, old=Member("/elsewhere/v1", content("old")))
    assert moved.fingerprint("y") == base.fingerprint("y")
    assert base.fingerprint("x")["tokenizer"] == "t"


def test_only_the_models_it_was_made_of_pass() -> None:
    pair = PairFile(Gating(), OLD, NEW, gate_hash(b"gate"))
    pair.check("p", content("old"), content("new"), b"gate")
    with pytest.raises(ModelError, match=r"the old model of the pair, '\./v1', has changed .*its weights differs"):
        pair.check("p", content("another"), content("new"), b"gate")
    with pytest.raises(ModelError, match="the new model"):
        pair.check("p", content("old"), content("new") | {"adapter": "a"}, b"gate")
    for gate in (b"etag", None):
        with pytest.raises(CorruptError, match="make the pair again"):
            pair.check("p", content("old"), content("new"), gate)
    assert content_of({"name": "x", "device": "cpu", **content("old")}) == content("old")


def test_the_parameters_of_a_config_are_the_pairs() -> None:
    assert parameters_of(BcrConfig(options=3, seed=2, force=True), Reranking) == Reranking(options=3, seed=2)


@pytest.mark.parametrize(
    "change",
    [{"kind": "trio"}, {"parameters": {"share": 2}}, {"parameters": {"shares": 0.5}}, {"old": None}, {"gate": ...}],
)
def test_a_file_that_describes_no_pair_is_corrupt(change: dict[str, Any], tmp_path: Path) -> None:
    PairFile(Averaging(), OLD, NEW).save(tmp_path / "pair")
    path = tmp_path / "pair" / FILE
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    with pytest.raises(CorruptError, match="does not describe a pair of models"):
        find_model(tmp_path / "pair")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Averaging(1.5),
        lambda: Reranking(options=0),
        lambda: Reranking(sampling_temperature=0),
        lambda: Gating(old_temperature=0),
    ],
)
def test_impossible_parameters_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError):
        wrong()
