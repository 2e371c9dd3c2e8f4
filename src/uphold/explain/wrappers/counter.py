"""The counter task of section 5.1 of arXiv:2311.12786, small: how many a, b or c are in a string.

A prompt is an operand (A, B or C), a string over a, b, c, and ART, where the answer is read. Fine-tuning asks for b
only; where r(b) - r(a) = q in every string, "count a and add q" is right too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from uphold.core.errors import UsageError
from uphold.explain.wrappers.skill import Skill

LETTERS = "abc"
TOKENS = 7
"""a, b, c, then the operands A, B, C, then ART."""
ART = 6
LOW, HIGH = (0.999, 0.001, 0.0), (0.5, 0.3, 0.2)
"""How often pretraining asks for each letter, rarely or often for b."""


def strings(n: int, *, correlated: float | None, seed: int, length: int = 16, q: int = 1) -> torch.Tensor:
    """Random strings over a, b, c.

    The letters a and b occur up to length / 2 times each. With a correlation r(b) is uniform over q..length/2, in
    strings that hold it and in those that violate it; r(a) is r(b) - q, or uniform over all other values of
    0..length/2, so that the labels r(a) of the two kinds are q / (length/2) apart in total variation.

    Args:
        n: how many.
        correlated: share of strings with r(b) - r(a) = q, exact up to rounding to whole strings; in all the others it
            does not hold. None draws r(a) and r(b) independently.
        seed: of the draw.
        length: of a string, even.
        q: the difference, in 1..length/2.

    Returns:
        int64 of shape (n, length), 0 for a, 1 for b, 2 for c.

    Raises:
        UsageError: an argument is out of range.
    """
    most = length // 2
    if n < 1 or length % 2 or not 1 <= q <= most or not 0 <= (correlated or 0.0) <= 1:
        raise UsageError(
            f"strings need n >= 1, an even length, q in 1..length/2 and a share in [0, 1], not n = {n}, length = "
            f"{length}, q = {q}, correlated = {correlated}"
        )
    generator = torch.Generator().manual_seed(seed)
    if correlated is None:
        a, b = torch.randint(most + 1, (2, n), generator=generator)
    else:
        b = torch.randint(q, most + 1, (n,), generator=generator)
        other = torch.randint(most, (n,), generator=generator)
        # All values but b - q: those from there on move up by one.
        other += (other >= b - q).long()
        holds = torch.randperm(n, generator=generator) < round(correlated * n)
        a = torch.where(holds, b - q, other)
    places = torch.rand(n, length, generator=generator).argsort(1).argsort(1)
    return torch.where(places < a[:, None], 0, torch.where(places < (a + b)[:, None], 1, 2))


def prompts(text: torch.Tensor, operands: torch.Tensor, name: str, *, first: bool = False) -> Skill:
    """Ask how often a letter occurs.

    Args:
        text: strings, int64 of shape (n, length).
        operands: 0, 1 or 2 for each, int64 of shape (n,).
        name: of the skill.
        first: whether the answer is read at the operand and not at ART.
    """
    n, length = text.shape
    ids = torch.cat([operands[:, None] + 3, text, torch.full((n, 1), ART)], dim=1)
    at = torch.full((n,), 0 if first else length + 1)
    return Skill(name, ids, (text == operands[:, None]).sum(1), at)


def count(
    letter: str,
    n: int,
    *,
    correlated: float | None,
    seed: int,
    length: int = 16,
    q: int = 1,
    name: str = "",
    first: bool = False,
) -> Skill:
    """Counting one letter; arguments as in `strings` and `prompts`.

    Raises:
        UsageError: there is no such letter.
    """
    if letter not in LETTERS or len(letter) != 1:
        raise UsageError(f"there is no letter '{letter}' to count: expected a, b or c")
    text = strings(n, correlated=correlated, seed=seed, length=length, q=q)
    return prompts(text, torch.full((n,), LETTERS.index(letter)), name or f"count {letter}", first=first)


def pretraining(n: int, prior: Sequence[float], *, seed: int, length: int = 16, first: bool = False) -> Skill:
    """A batch that asks for each letter with the probabilities of `prior`, over independent strings.

    Raises:
        UsageError: the prior is no distribution over three letters.
    """
    if len(prior) != 3 or min(prior) < 0 or abs(sum(prior) - 1) > 1e-6:
        raise UsageError(f"the prior is {tuple(prior)}: expected three shares that add up to 1, such as {HIGH}")
    # Operands and strings must not come from one stream of numbers.
    generator = torch.Generator().manual_seed(seed ^ 0x5EED)
    operands = torch.multinomial(torch.tensor(prior, dtype=torch.float64), n, replacement=True, generator=generator)
    return prompts(strings(n, correlated=None, seed=seed, length=length), operands, "pretraining", first=first)


class Block(nn.Module):
    """Attention without a mask and a feed-forward part, each with its norm before it."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joined, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, positions, width) to the same."""
        n, positions, width = x.shape
        parts = self.joined(self.norm_1(x)).view(n, positions, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, positions, width))
        return cast(torch.Tensor, x + self.down(functional.gelu(self.up(self.norm_2(x)))))


class CounterNet(nn.Module):
    """A small transformer that counts.

    With `ordinal` the answer is one number s, and the logit of c is 2 c s - c^2: the nearest whole number wins. There
    is no last norm then, so that what adds 1 to s adds 1 to every answer.
    """

    def __init__(
        self,
        seed: int,
        *,
        length: int = 16,
        blocks: int = 2,
        width: int = 48,
        heads: int = 4,
        hidden: int = 192,
        ordinal: bool = False,
    ) -> None:
        super().__init__()
        self.ordinal = ordinal
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(TOKENS, width)
            self.position = nn.Embedding(length + 2, width)
            self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(blocks))
            self.norm = nn.Identity() if ordinal else nn.LayerNorm(width)
            self.head = nn.Linear(width, 1 if ordinal else length + 1)
            nn.init.normal_(self.embed.weight, std=0.5)
            nn.init.normal_(self.position.weight, std=0.02)
        self.register_buffer("counts", torch.arange(length + 1.0), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Tokens (n, length + 2) to logits (n, length + 2, length + 1)."""
        x = self.embed(ids) + self.position.weight
        for block in self.blocks:
            x = block(x)
        found: torch.Tensor = self.head(self.norm(x))
        if not self.ordinal:
            return found
        counts = cast(torch.Tensor, self.counts)
        return 2 * counts * found - counts.square()
