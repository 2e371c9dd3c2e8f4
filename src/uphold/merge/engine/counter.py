"""Random numbers that are a function of where they are used: no state, no order, no threads."""

from __future__ import annotations

import hashlib

import numpy as np

from uphold.core.hashing import canonical_json

_PER_BLOCK = 8
"""Numbers that one step of Philox's counter gives: four words of 64 bits, two numbers of each."""


def uniform(seed: int, tensor: str, model: int, start: int, count: int) -> np.ndarray:
    """Numbers in [0, 1) for the elements `start` to `start + count` of one model's tensor.

    The raw output of Philox4x64 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), whose key is
    a hash of `seed`, `tensor` and `model`, and whose counter is the element's place.

    Args:
        seed: the recipe's.
        tensor: the tensor's name in the result.
        model: the model's number.
        start: first element, >= 0.
        count: how many, >= 0.

    Returns:
        Multiples of 2^-24. Shape: (count,), float32.
    """
    digest = hashlib.sha256(canonical_json([seed, tensor, model]).encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    first = start // _PER_BLOCK
    blocks = -(-(start + count) // _PER_BLOCK) - first
    words = np.random.Philox(key=key, counter=[first, 0, 0, 0]).random_raw(4 * blocks)
    halves = words.astype("<u8", copy=False).view("<u4")
    offset = start - first * _PER_BLOCK
    bits = halves[offset : offset + count] >> np.uint32(8)
    return bits.astype(np.float32) * np.float32(2.0**-24)
