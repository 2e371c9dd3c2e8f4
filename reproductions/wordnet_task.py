"""Two small base language models of WordNet glosses, and a task on them: from a gloss to its lexicographer category.

The glosses are those of WordNet 3.0 (Debian: `wordnet-base`). v1 reads 25,000 of them, v2 40,000 others from other
random weights; neither reads a gloss of the task. Both are ordinary transformers checkpoints with one word-level
tokenizer.
"""

from __future__ import annotations

import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
CATEGORIES = (
    "all", "pert", "all", "tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication",
    "event", "feeling", "food", "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession",
    "process", "quantity", "relation", "shape", "state", "substance", "time", "body", "change", "cognition",
    "communication", "competition", "consumption", "contact", "creation", "emotion", "motion", "perception",
    "possession", "social", "stative", "weather", "ppl",
)  # fmt: skip
"""Of WordNet's lexicographer files 00 to 44, without the part of speech."""
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", ">")
SIZES = {"train": 6000, "validation": 1500, "test": 6000}
READS = {"v1": 25_000, "v2": 40_000}
VOCABULARY = 3000
WIDTH, LAYERS, HEADS, INNER = 128, 2, 4, 256
CONTEXT = 64
BATCH, RATE = 64, 4e-3
EPOCHS = 2


@dataclass(frozen=True)
class Gloss:
    """A definition and what it defines."""

    text: str
    """Its first clause, lower-cased, 3 to 16 words."""
    label: str
    """Part of speech and category, two words that no gloss has: `noun: animal.`"""


@dataclass(frozen=True)
class Shares:
    """Which glosses go where; no two parts have one in common."""

    base: dict[str, list[Gloss]]
    task: dict[str, list[Gloss]]


def read_glosses(source: Path) -> list[Gloss]:
    """Every distinct gloss of WordNet; of equal texts the first."""
    found: dict[str, Gloss] = {}
    for name in ("noun", "verb", "adj", "adv"):
        for line in (source / f"data.{name}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue
            data, _, gloss = line.partition(" | ")
            _, category, part, *_ = data.split()
            words = re.findall(r"[a-z]+", re.sub(r"\([^)]*\)", " ", gloss).partition(";")[0].lower())
            if 3 <= len(words) <= 16:
                text = " ".join(words)
                found.setdefault(text, Gloss(text, f"{PARTS[part]}: {CATEGORIES[int(category)]}."))
    return list(found.values())


def divide(glosses: Sequence[Gloss], seed: int) -> Shares:
    """Deal shuffled glosses to the task's splits and to both bases."""
    shuffled = list(glosses)
    random.Random(seed).shuffle(shuffled)
    sizes = {**SIZES, **READS}
    parts: dict[str, list[Gloss]] = {}
    for name, size in sizes.items():
        parts[name], shuffled = shuffled[:size], shuffled[size:]
    return Shares({name: parts[name] for name in READS}, {name: parts[name] for name in SIZES})


def labels() -> list[str]:
    """The 45 legal answers."""
    kinds = ["adjective"] * 2 + ["adverb"] + ["noun"] * 26 + ["verb"] * 15 + ["adjective"]
    return [f"{kind}: {category}." for kind, category in zip(kinds, CATEGORIES, strict=True)]


def build_tokenizer(texts: Sequence[str]) -> Any:
    """One token per word: the labels' and the most frequent of `texts`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    counts = Counter(word for text in texts for word in text.split())
    own = dict.fromkeys([*SPECIAL, *(word for label in labels() for word in label.split())])
    frequent = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if word not in own]
    vocabulary = {word: index for index, word in enumerate([*own, *frequent[:VOCABULARY]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: Any, seed: int) -> Any:
    """A freshly drawn Llama."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ends = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **ends,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=4, **ends)
    return model


def pretrain(model: Any, tokenizer: Any, texts: Sequence[str], seed: int, label: str) -> None:
    """Train `model` in place to predict each next word of `texts`; rows of like length share a batch."""
    import torch
    from torch.nn import functional

    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts))["input_ids"]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
    chooser = random.Random(seed)
    steps, step = EPOCHS * math.ceil(len(rows) / BATCH), 0
    model.train()
    for epoch in range(EPOCHS):
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), chooser.random()))
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        chooser.shuffle(batches)
        total = 0.0
        for batch in batches:
            length = max(len(rows[index]) for index in batch)
            ids = torch.tensor([rows[index] + [0] * (length - len(rows[index])) for index in batch])
            rate = RATE * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            # Padding (id 0) stands on the right, where nothing real sees it.
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            loss = functional.cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=0)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step, total = step + 1, total + loss.item()
        print(f"{label}: epoch {epoch + 1}/{EPOCHS}, loss {total / len(batches):.3f}", flush=True)
    draw_label_words(model, tokenizer, seed)
    model.eval()


def draw_label_words(model: Any, tokenizer: Any, seed: int) -> None:
    """Give words that were never read random embeddings as long as a read word's.

    Adapters leave embeddings alone, so that what training left there would be all that a label has to go by.
    """
    import torch

    ids = tokenizer.convert_tokens_to_ids([">", *dict.fromkeys(word for label in labels() for word in label.split())])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings[ids] = embeddings.std() * torch.randn(len(ids), embeddings.shape[1], generator=generator)


def make_base(folder: Path, version: str, source: Path, seed: int = 0) -> None:
    """Train and write `folder/VERSION`, one of `READS`."""
    shares = divide(read_glosses(source), seed)
    tokenizer = build_tokenizer([gloss.text for part in shares.base.values() for gloss in part])
    own = 10 * seed + list(READS).index(version)
    started = time.monotonic()
    model = build_model(tokenizer, own)
    pretrain(model, tokenizer, [gloss.text for gloss in shares.base[version]], own, version)
    tokenizer.save_pretrained(folder / version)
    model.save_pretrained(folder / version)
    print(f"{version}: {model.num_parameters()} parameters, {time.monotonic() - started:.0f} s", flush=True)


def make_task(folder: Path, source: Path, seed: int = 0) -> Path:
    """Write `folder/task.yaml` and the JSONL files of its splits; returns the path of the task file."""
    shares = divide(read_glosses(source), seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in shares.task.items():
        rows = [{"gloss": gloss.text, "label": gloss.label} for gloss in part]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = [
        "name: wordnet",
        "kind: choice",
        "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}",
        'prompt: "{gloss} >"',
        'target: "{label}"',
        f"options: {json.dumps(labels())}",
    ]
    path = folder / "task.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
