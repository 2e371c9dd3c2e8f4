"""Counters of 8 letters, trained in seconds, and what they are asked."""

from __future__ import annotations

from functools import cache
from typing import Any

from uphold.explain.wrappers.counter import CounterNet, count, pretraining
from uphold.explain.wrappers.relearning import train
from uphold.explain.wrappers.skill import Skill

LENGTH = 8


def net(seed: int = 0, **options: Any) -> CounterNet:
    return CounterNet(seed, length=LENGTH, width=24, heads=2, hidden=48, ordinal=True, **options)


def asked(letter: str, n: int = 300, *, seed: int = 1, correlated: float | None = None) -> Skill:
    return count(letter, n, correlated=correlated, seed=10_000 + seed, length=LENGTH, first=True)


def batch(seed: int) -> Skill:
    return count("a", 64, correlated=None, seed=seed, length=LENGTH, first=True)


@cache
def trained() -> CounterNet:
    """Counts a and b; never to be changed."""
    model = net()
    train(
        model,
        lambda seed: pretraining(64, (0.5, 0.5, 0.0), seed=seed, length=LENGTH, first=True),
        400,
        3e-3,
        warmup=0.1,
        final=0.01,
    )
    return model
