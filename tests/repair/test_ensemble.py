from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import save_tiny_model, write_task
from uphold import compare, evaluate, load_repair
from uphold.cli.main import app
from uphold.core.errors import TokenizerMismatchError, UsageError
from uphold.repair.ensemble import EnsembleConfig, ensemble


def test_an_ensemble_is_measured_saved_and_found_again(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 80)
    config = EnsembleConfig(share=0.3, force=True)
    result = ensemble(model_v1, model_v2, task, out=tmp_path / "out", config=config)
    assert (result.form, result.artifact) == ("pair", tmp_path / "out" / "pair")
    assert [arm.name for arm in result.arms] == ["repaired"]
    assert result.config == {"share": 0.3, "force": True}
    assert any("twice the memory" in note for note in result.notes)
    assert str(load_repair(tmp_path / "out")) == str(result)
    again = compare(model_v1, tmp_path / "out" / "pair", task)
    assert again.rates == result.repaired.comparison.rates
    assert again.new.sha256 == result.repaired.comparison.new.sha256


def test_the_command_line_asks_the_pair(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 80)
    run = CliRunner()
    options = ["--task", str(task), "--out", str(tmp_path / "out"), "--share", "0.4", "--force", "--quiet"]
    made = run.invoke(app, ["repair", "ensemble", str(model_v1), str(model_v2), *options])
    assert made.exit_code == 0, made.output
    assert f"pair: {tmp_path / 'out' / 'pair'}" in made.output
    pair = str(tmp_path / "out" / "pair")
    compared = run.invoke(app, ["compare", str(model_v1), pair, "--task", str(task), "--json", "--quiet"])
    assert compared.exit_code == 0, compared.output
    [nfr] = [rate["value"] for rate in json.loads(compared.stdout)["rates"] if rate["name"] == "nfr"]
    assert nfr == load_repair(tmp_path / "out").repaired.comparison["nfr"].value
    planned = run.invoke(app, ["evaluate", pair, "--task", str(task), "--split", "train", "--dry-run", "--quiet"])
    assert planned.exit_code == 0, planned.output
    alone = run.invoke(
        app, ["evaluate", str(model_v2), "--task", str(task), "--split", "train", "--dry-run", "--quiet"]
    )
    tokens = [
        int(re.search(r"([\d,]+) tokens to read", text)[1].replace(",", "")) for text in (planned.output, alone.output)
    ]  # type: ignore[index]
    assert tokens[0] == 2 * tokens[1] > 0
    shown = run.invoke(app, ["evaluate", pair, "--task", str(task), "--json", "--quiet"])
    assert shown.exit_code == 0, shown.output


def test_the_share_moves_answers_from_new_to_old(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 80)
    for share, model in ((0.0, model_v2), (1.0, model_v1)):
        config = EnsembleConfig(share=share, force=True)
        result = ensemble(model_v1, model_v2, task, out=tmp_path / str(share), config=config)
        ours, theirs = result.repaired.comparison.new.records(), evaluate(model, task).records()
        assert [one.option_logprobs for one in ours] == [one.option_logprobs for one in theirs]


def test_other_tokenizers_and_impossible_shares_are_refused(model_v1: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5, letters="abcdefgh0123456789:")
    with pytest.raises(TokenizerMismatchError, match="different tokenizers"):
        ensemble(model_v1, other, write_task(tmp_path), out=tmp_path / "out", config=EnsembleConfig(force=True))
    with pytest.raises(UsageError, match=r"share must be in \[0, 1\]"):
        EnsembleConfig(share=-0.1)
