"""Dividing the instances of a benchmark that comes without splits of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uphold.core.errors import UsageError
from uphold.core.hashing import sha256_of
from uphold.tasks.base import Instance, Split

SHARES: Mapping[Split, int] = {"test": 3, "validation": 1, "train": 6}
"""How instances are shared out where no sizes are given, in the order of dealing."""


def by_content(instances: Sequence[Instance], seed: int) -> list[Instance]:
    """`instances` in an order that their content and `seed` decide: what else there is does not move an instance."""
    return sorted(instances, key=lambda instance: sha256_of([seed, instance.id]))


def split_sizes_of(total: int, given: Mapping[Split, int | None], task: str) -> dict[Split, int]:
    """How many of `total` instances each split gets.

    Args:
        total: instances to divide, at least 0.
        given: sizes that were asked for; splits without one share the rest as `SHARES` says, the test split getting
            at least one.
        task: name for messages.

    Raises:
        UsageError: a size is negative, or together they are more than there is.
    """
    wanted = {split: size for split in SHARES if (size := given.get(split)) is not None}
    for split, size in wanted.items():
        if size < 0:
            raise UsageError(f"task '{task}': {split} must be a whole number of at least 0, not {size}")
    rest = total - sum(wanted.values())
    if rest < 0:
        raise UsageError(
            f"task '{task}': {sum(wanted.values())} instances are asked for and there are {total}: ask for fewer"
        )
    sizes: dict[Split, int] = dict(wanted)
    shares = {split: share for split, share in SHARES.items() if split not in wanted}
    for split, share in shares.items():
        left = sum(other for name, other in shares.items() if name not in sizes)
        least = 1 if split == "test" else 0
        sizes[split] = min(rest, max(least, round(rest * share / left)))
        rest -= sizes[split]
    return sizes
