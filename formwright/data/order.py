"""The order in which training items are seen, without a list of them.

Item number p of the endless training stream lies in epoch p // count; within an epoch every item comes once, in an
order of its own. The order is a Feistel network (Luby and Rackoff, "How to construct pseudorandom permutations from
pseudorandom functions", 1988) on the smallest even number of bits that holds `count`, walked until it falls inside:
any place of any epoch is computed by itself, so resuming costs nothing and no permutation is ever stored.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = np.arange(1, 7, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words (the finaliser of splitmix64): equal on every machine."""
    x = x.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seed: int, number: np.ndarray) -> np.ndarray:
    """One 64-bit key for each (seed, number)."""
    start = mix(np.array([(seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    return mix(start + (number.astype(np.uint64) + np.uint64(1)) * _ROUNDS[0])


def permute(index: np.ndarray, count: int, key: np.ndarray) -> np.ndarray:
    """index (P,) in 0..count-1 and keys (P,) -> (P,) places in 0..count-1, a permutation for each key."""
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    value = index.astype(np.uint64)
    outside = np.ones(value.shape, dtype=bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & mask
        for constant in _ROUNDS:
            left, right = right, left ^ (mix(right + key[outside] + constant) & mask)
        value[outside] = (left << half) | right
        outside[outside] = value[outside] >= np.uint64(count)
    return value.astype(np.int64)


def stream(first: int, size: int, count: int, seed: int, block: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Items first .. first+size-1 of the training stream of `count` items.

    block > 1 keeps runs of `block` neighbours together (their order, and the order inside each, are shuffled), for
    sources that make items block by block; a shorter last block stays last.

    Returns the items' indices (size,) and a 64-bit number for each, the same throughout an epoch."""
    if count < 1:
        raise ValueError("a stream needs at least one item")
    number = np.arange(first, first + size, dtype=np.int64)
    epoch, place = np.divmod(number, count)
    key = keys(seed, epoch)
    if block <= 1:
        return permute(place, count, key), key
    full = count // block
    group, inside = np.divmod(place, block)
    whole = group < full
    group[whole] = permute(group[whole], full, key[whole]) if full else group[whole]
    inner = mix(key + mix(group.astype(np.uint64) + np.uint64(1)))
    inside[whole] = permute(inside[whole], block, inner[whole])
    if count % block:
        inside[~whole] = permute(inside[~whole], count % block, inner[~whole])
    return group * block + inside, key
