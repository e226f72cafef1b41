"""Byte-pair merges of small alphabets, for tasks that ask what tokenisation changes (Sennrich et al., "Neural Machine
Translation of Rare Words with Subword Units", arXiv 1508.07909, 2015).

Symbols are 0..S-1; merge number i joins a pair of tokens, wherever it stands, to the token S + i.
"""

from __future__ import annotations

import numpy as np

Pairs = list[tuple[int, int]]


def learn(symbols: np.ndarray, alphabet: int, count: int) -> Pairs:
    """The `count` merges of the commonest pair each (the first of equals), learned from strings (rows, N)."""
    tokens, pairs = _joined(symbols), []
    for number in range(alphabet, alphabet + count):
        left, right = tokens[:-1], tokens[1:]
        whole = (left >= 0) & (right >= 0)
        times = np.bincount(left[whole].astype(np.int64) * number + right[whole], minlength=number * number)
        pairs.append(divmod(int(times.argmax()), number))
        tokens = _merge(tokens, *pairs[-1], number)
    return pairs


def encode(symbols: np.ndarray, alphabet: int, pairs: Pairs, sizes: np.ndarray | None = None) -> tuple:
    """Strings (rows, N), of which the first `sizes` symbols count -> tokens (rows, most), 0 behind the ends; how many
    (rows,)."""
    inside = None if sizes is None else np.arange(symbols.shape[1]) < sizes[:, None]
    tokens = _joined(symbols, inside)
    for number, (left, right) in enumerate(pairs, alphabet):
        tokens = _merge(tokens, left, right, number)
    ends = np.flatnonzero(tokens < 0)
    counts = np.diff(ends, prepend=-1) - 1
    out = np.zeros((len(symbols), int(counts.max())), dtype=np.int64)
    out[np.arange(out.shape[1]) < counts[:, None]] = tokens[tokens >= 0]
    return out, counts


def spelled(alphabet: int, pairs: Pairs) -> list[list[int]]:
    """The symbols of every token."""
    tokens = [[symbol] for symbol in range(alphabet)]
    for left, right in pairs:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def _joined(symbols: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
    """All strings in one, a -1 behind each."""
    ended = np.concatenate((symbols, np.full((len(symbols), 1), -1)), axis=1).astype(np.int32)
    if inside is None:
        return ended.ravel()
    return ended[np.concatenate((inside, np.ones((len(symbols), 1), dtype=bool)), axis=1)]


def _merge(tokens: np.ndarray, left: int, right: int, merged: int) -> np.ndarray:
    """Overwrites `tokens`."""
    places = np.flatnonzero((tokens[:-1] == left) & (tokens[1:] == right))
    if left == right:  # in a run of equals every other pair, from its beginning
        begins = np.diff(places, prepend=-2) > 1
        number = np.arange(len(places))
        places = places[(number - np.maximum.accumulate(np.where(begins, number, 0))) % 2 == 0]
    kept = np.ones(len(tokens), dtype=bool)
    kept[places + 1] = False
    tokens[places] = merged
    return tokens[kept]
