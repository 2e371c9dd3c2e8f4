"""Tiny real models and tasks, made once per session. Nothing here touches the network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

from uphold.core.records import Record
from uphold.core.runs import Run, RunStore, write_run

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 +-=?:."


def save_tiny_model(folder: Path, seed: int, letters: str = LETTERS, hidden: int = 32) -> Path:
    """A random two-layer Llama with a character tokenizer, saved as any user's model folder is."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_v1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "v1", seed=1)


@pytest.fixture(scope="session")
def model_v2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "v2", seed=2)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """Every test has a run store of its own."""
    monkeypatch.setenv("UPHOLD_STORE", str(tmp_path / "store"))
    return RunStore(tmp_path / "store")


def write_task(folder: Path, count: int = 60, **changes: Any) -> Path:
    """A small choice task: which of four letters comes first in the prompt."""
    rows = []
    for index in range(count):
        first = "abcd"[index % 4]
        rows.append({"text": f"{first}{index}", "answer": first, "half": "low" if index < count // 2 else "high"})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "name": "first-letter",
        "kind": "choice",
        "data": "data.jsonl",
        "split": {"validation": 0.25, "test": 0.5},
        "prompt": "{text}:",
        "target": "{answer}",
        "options": ["a", "b", "c", "d"],
        "delimiter": "",
        "tags": ["half"],
        **changes,
    }
    path = folder / "task.yaml"
    path.write_text(json.dumps({key: value for key, value in spec.items() if value is not None}))
    return path


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    return write_task(tmp_path)


def make_record(number: int, correct: bool | None, answer: str, score: float | None = None, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "id": f"{number:016x}",
        "input": f"question {number}",
        "target": "right",
        "output": answer,
        "answer": answer,
        "correct": correct,
        "score": float(correct) if score is None and correct is not None else score,
        **changes,
    }
    return Record(**values)


def make_run(folder: Path, records: list[Record], name: str = "model", /, **task: Any) -> Run:
    fingerprint = {
        "model": {"name": name, "weights": f"weights of {name}", "adapter": None},
        "task": {"name": "task", "kind": "choice", "split": "test", "instances": "same", "scorer": "choice.v1", **task},
        "batching": {"size": 32},
        "seed": 0,
        "versions": {},
    }
    return write_run(folder, records, fingerprint)
