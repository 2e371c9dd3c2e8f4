from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from tests.conftest import save_tiny_model
from uphold.cli.patch_neurons import neurons
from uphold.core.errors import CorruptError, DataError, EmptyError, StorageError, UpholdError, UsageError
from uphold.models.load import load
from uphold.models.patches.apply import apply
from uphold.models.patches.file import load_patch

ALONE = typer.Typer()
ALONE.command()(neurons)
PROMPTS = ["abc1", "x=2+", "def z"]


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(ALONE, [*map(str, arguments), "--quiet"])


def refuse(*_: Any) -> None:
    raise StorageError("the disk is full")


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def second_best(model: Path, prompt: str) -> str:
    """The character that the model finds second likeliest."""
    loaded = load(model)
    ids = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        order = loaded.model(ids).logits[0, -1].argsort(descending=True).tolist()
    return str(next(loaded.tokenizer.decode([one]) for one in order[1:] if one > 3 and one != order[0]))


@pytest.fixture
def failures(model_v1: Path, tmp_path: Path) -> Path:
    rows = [{"prompt": prompt, "target": second_best(model_v1, prompt)} for prompt in PROMPTS]
    rows[0]["paraphrases"] = ["zabc1", "a1"]  # type: ignore[assignment]
    rows[1]["name"] = "sum"
    return lines(tmp_path / "f.jsonl", *rows)


def test_failures_are_repaired_and_the_side_effects_told(model_v1: Path, failures: Path, tmp_path: Path) -> None:
    guard = tmp_path / "guard.py"
    guard.write_text("abc = 1\ndef f(x): return x + 2\n" * 20)
    out = tmp_path / "p.safetensors"
    free = ["--max-nll-rise", 9, "--total-nll-rise", 9, "--min-agreement", 0, "--total-agreement", 0]
    done = run(model_v1, "--failures", failures, "--guard", guard, "--out", out, "--mode", "add", *free)
    assert done.exit_code == 0, done.output
    text = done.stdout
    assert "paraphrases right: " in text
    assert "sum: repaired" in text
    assert "token 1: " in text
    assert "neurons 1/" in text
    assert "% of predictions unchanged, loss " in text
    assert "nats per token" in text
    assert f"{out}: " in text.splitlines()[-1]
    patch = load_patch(out)
    assert patch.manifest.source == str(model_v1)
    loaded = load(model_v1)
    row = json.loads(failures.read_text().splitlines()[1])
    ids = loaded.tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
    with apply(loaded.model, patch), torch.no_grad():
        assert loaded.tokenizer.decode([int(loaded.model(ids).logits[0, -1].argmax())]) == row["target"]


def test_json_and_no_guard(model_v1: Path, failures: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    done = run(model_v1, "--failures", failures, "--out", out, "--mode", "add", "--json")
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values["drift"] is None
    assert values["patch"] == str(out)
    assert values["failures"][1]["failure"]["name"] == "sum"
    assert values["failures"][0]["paraphrases"]["count"] == 2


def test_nothing_repaired_is_exit_code_3(model_v1: Path, failures: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    done = run(model_v1, "--failures", failures, "--out", out, "--strength", "1e-6", "--max-edits", 3)
    assert done.exit_code == 3
    assert "nothing was repaired" in done.stdout
    assert "side effects: not measured; --guard FILE" in done.stdout
    assert list(tmp_path.glob("p.*")) == []


def test_what_was_done_is_kept_until_the_patch_is_saved(
    model_v1: Path, failures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, arguments = tmp_path / "p.safetensors", [model_v1, "--failures", failures, "--mode", "add", "--json"]
    with monkeypatch.context() as patched:
        patched.setattr("uphold.models.patches.patch.Patch.save", refuse)
        assert isinstance(run(*arguments, "--out", out).exception, StorageError)
    assert (tmp_path / "p.safetensors.journal").is_file()
    monkeypatch.setattr("uphold.models.neurons.repair.repair_token", lambda *_: pytest.fail("repaired again"))
    assert run(*arguments, "--out", out).exit_code == 0
    assert [path.name for path in tmp_path.glob("p.*")] == [out.name]


def test_a_guard_of_texts_prompts_and_windows(model_v1: Path, failures: Path, tmp_path: Path) -> None:
    rows = ["abcdef" * 50, {"text": "xyz"}, {"prompt": "a=", "target": "1"}]
    guard = lines(tmp_path / "g.jsonl", *rows)
    out = tmp_path / "p.safetensors"
    free = ["--max-nll-rise", 9, "--total-nll-rise", 9, "--min-agreement", 0, "--total-agreement", 0, "--json"]
    arguments = [model_v1, "--failures", failures, "--out", out, "--guard", guard, *free]
    # 300 characters are windows of 128, 128 and 44 tokens, of which the first of each is not scored.
    assert json.loads(run(*arguments).stdout)["drift"]["tokens"] == 297 + 2 + 1
    assert json.loads(run(*arguments, "--guard-tokens", 128).stdout)["drift"]["tokens"] == 127


def test_windows_are_no_longer_than_what_the_model_reads(tmp_path: Path) -> None:
    # The embedded models read 64 tokens.
    guard = tmp_path / "g.txt"
    guard.write_text("1" * 150)
    rows = lines(tmp_path / "digits.jsonl", {"prompt": "1 2", "target": "3"})
    done = run("embedded:v1", "--failures", rows, "--guard", guard, "--out", tmp_path / "p.safetensors")
    assert done.exit_code in (0, 3), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("", EmptyError, "is empty"),
        ("{", CorruptError, "f.jsonl:1 is not JSON"),
        ("[1]\n", DataError, 'expected {"prompt": "...", "target": "..."}'),
        ('{"prompt": "a", "target": 3}', DataError, "expected"),
        ('{"prompt": "a", "target": "b", "more": 1}', DataError, "unknown field 'more'"),
        ('{"prompt": "a", "target": "b", "paraphrases": "c"}', DataError, "must be a list"),
        ('{"prompt": "a", "target": ""}', UpholdError, "has no tokens of its own"),
        ('{"prompt": "a", "target": "b", "paraphrases": ["c "]}', DataError, "end both alike"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    content: str, error: type[Exception], words: str, model_v1: Path, tmp_path: Path
) -> None:
    (tmp_path / "f.jsonl").write_text(content)
    found = run(model_v1, "--failures", tmp_path / "f.jsonl", "--out", tmp_path / "p.safetensors").exception
    assert isinstance(found, error)
    assert words in str(found)
    assert "\n" not in str(found)


def test_other_things_that_are_wrong(model_v1: Path, failures: Path, tmp_path: Path) -> None:
    def failing(*changes: Any) -> BaseException | None:
        arguments = {"--failures": failures, "--out": tmp_path / "p.safetensors"} | dict(changes)
        return run(model_v1, *[part for pair in arguments.items() for part in pair]).exception

    assert isinstance(failing(("--out", tmp_path / "p.bin")), UsageError)
    weights = (model_v1 / "model.safetensors").read_bytes()
    assert "is no patch" in str(failing(("--out", model_v1 / "model.safetensors")))
    assert (model_v1 / "model.safetensors").read_bytes() == weights
    assert isinstance(failing(("--strength", -1)), UsageError)
    assert isinstance(failing(("--failures", tmp_path / "none.jsonl")), DataError)
    (tmp_path / "empty.txt").write_text("")
    assert isinstance(failing(("--guard", tmp_path / "empty.txt")), EmptyError)
    (tmp_path / "one.txt").write_text("a")
    assert "two tokens" in str(failing(("--guard", tmp_path / "one.txt")))
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    assert isinstance(failing(("--guard", tmp_path / "latin.txt")), CorruptError)
    assert "expected a text" in str(failing(("--guard", lines(tmp_path / "g.jsonl", 3))))


def test_an_adapter_is_merged(model_v1: Path, failures: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = save_tiny_model(tmp_path / "base", seed=1)
    adapted = get_peft_model(load(base).model, LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    out = tmp_path / "p.safetensors"
    done = run(f"{base}+{tmp_path / 'adapter'}", "--failures", failures, "--out", out, "--mode", "add")
    assert "the adapter is merged" in done.stderr
    assert done.exit_code in (0, 3)
