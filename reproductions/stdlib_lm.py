"""A small language model of Python code, trained on the standard library's own source.

Real code that every machine has: word-level tokens (identifiers, numbers, newlines, runs of spaces, punctuation), a
pre-norm transformer of 0.65 M parameters. Other reproductions import it from here.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

MODULES, EVERY = 120, 20
"""How many modules are read, and every which of them is held out."""
VOCABULARY, CONTEXT, WIDTH, BLOCKS, HEADS = 1024, 64, 96, 4, 4
TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|\n| +|[^\w\s]")
UNKNOWN = 0


@dataclass(frozen=True)
class Corpus:
    """Token ids of the standard library's source."""

    words: tuple[str, ...]
    """What each token id is."""
    train: torch.Tensor
    held_out: torch.Tensor
    """Of other modules."""

    def text(self, ids: list[int] | tuple[int, ...]) -> str:
        """The source that ids stand for."""
        return "".join(self.words[one] for one in ids)


def load() -> Corpus:
    """The first `MODULES` modules by name; every 20th is held out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))[:MODULES]
    texts = [TOKEN.findall(path.read_text(encoding="utf-8")) for path in paths]
    train = [tokens for number, tokens in enumerate(texts) if number % EVERY != EVERY - 1]
    held_out = [tokens for number, tokens in enumerate(texts) if number % EVERY == EVERY - 1]
    counts = Counter(token for tokens in train for token in tokens)
    frequent = [token for token, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: VOCABULARY - 1]]
    words = ("<unk>", *frequent)
    known = {word: number for number, word in enumerate(words)}

    def ids(parts: list[list[str]]) -> torch.Tensor:
        return torch.tensor([known.get(token, UNKNOWN) for tokens in parts for token in tokens])

    return Corpus(words, ids(train), ids(held_out))


class Block(nn.Module):
    """One pre-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mixed, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Attention, then the feed-forward part."""
        rows, length, _ = hidden.shape
        parts = self.mixed(self.norm1(hidden)).reshape(rows, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(seen.transpose(1, 2).reshape(rows, length, WIDTH))
        return hidden + self.down(functional.gelu(self.up(self.norm2(hidden))))


class CodeModel(nn.Module):
    """Token ids (rows, length) to logits (rows, length, vocabulary)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        for parameter in (self.tokens.weight, self.places.weight, self.head.weight):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Next-token logits."""
        hidden = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


def train(corpus: Corpus, seed: int, steps: int, said: Callable[[int, float], None] | None = None) -> CodeModel:
    """Train a model from scratch: AdamW 2e-3 with 50 steps of warm-up and linear decay, 16 rows a step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CodeModel()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 50, (steps - step) / max(1, steps - 50))
    )
    for step in range(steps):
        starts = torch.randint(0, len(corpus.train) - CONTEXT - 1, (16,), generator=generator)
        rows = torch.stack([corpus.train[start : start + CONTEXT + 1] for start in starts.tolist()])
        logits = model(rows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if said is not None and step % 100 == 99:
            said(step + 1, loss.item())
    return model.eval()


def held_out_rows(corpus: Corpus, count: int, seed: int) -> torch.Tensor:
    """Windows of held-out source, shape (count, CONTEXT + 1), drawn by `seed`; none overlaps another."""
    places = len(corpus.held_out) // (CONTEXT + 1)
    chosen = torch.randperm(places, generator=torch.Generator().manual_seed(seed))[:count]
    return torch.stack([corpus.held_out[one * (CONTEXT + 1) : (one + 1) * (CONTEXT + 1)] for one in chosen.tolist()])
