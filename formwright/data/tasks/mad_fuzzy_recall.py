"""Fuzzy in-context recall of MAD (Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv
2403.17844, 2024).

As mad_recall, but a key is an ordered tuple of 1 to `key_tokens` different tokens, and a value one of 1 to
`value_tokens` others: sizes uniform, then tuples. Keys of validation and test have all `key_tokens`. A key's value is
drawn once for the whole row. One pair stands somewhere in the row, uniformly as far as pairs begin there, and again at
its end. Rows are padded at the left by the last token of the vocabulary. The model is trained to say every next token,
paddings too, and scored on the values of keys seen already.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, draw_distinct, task
from formwright.data.tasks.mad_recall import commonest_so_far
from formwright.data.tasks.occurrences import first_seen
from formwright.data.tasks.scoring import macro, per_class


@task
def mad_fuzzy_recall(
    *,
    length: int = 128,
    vocab: int = 16,
    key_tokens: int = 3,
    value_tokens: int = 3,
    examples: int = 12_800,
    tests: int = 1_280,
) -> Task:
    """The value of a key, both of several tokens. inputs, targets (rows, length)."""
    name, widest = "mad_fuzzy_recall", key_tokens + value_tokens
    at_least(name, key_tokens=(key_tokens, 1), value_tokens=(value_tokens, 1), examples=(examples, 1), tests=(tests, 1))
    at_least(name, length=(length, 3 * widest), vocab=(vocab, 3))
    of_keys, of_values, padding = (vocab - 1) // 2, vocab // 2, vocab - 1
    if of_keys < key_tokens or of_values < value_tokens:
        raise DataError(
            f"{name}: a vocab of {vocab} has {of_keys} tokens for keys and {of_values} for values, too few for "
            f"key_tokens={key_tokens} and value_tokens={value_tokens} different ones"
        )
    slots = length // 2

    def make(rng: np.random.Generator, rows: int, seen_alone: bool) -> tuple[np.ndarray, np.ndarray]:
        # slot 0 is the pair asked for at the end, the others are the row's pairs one after another
        shape = rows, slots + 1
        key_size = np.full(shape, key_tokens) if seen_alone else rng.integers(1, key_tokens + 1, size=shape)
        value_size = rng.integers(1, value_tokens + 1, size=shape)
        key = draw_distinct(rng, rows * (slots + 1), key_tokens, of_keys).reshape(*shape, key_tokens)
        value = draw_distinct(rng, rows * (slots + 1), value_tokens, of_values).reshape(*shape, value_tokens) + of_keys
        inside = np.arange(key_tokens) < key_size[..., None]
        ids = np.where(inside, key + 1, 0) @ (of_keys + 1) ** np.arange(key_tokens)
        first, row = first_seen(ids), np.arange(rows)[:, None]
        value, value_size = value[row, first], value_size[row, first]

        size = key_size + value_size
        limit = length - size[:, :1] - widest
        begins = np.cumsum(size[:, 1:], axis=1) - size[:, 1:]
        wanted = np.floor(rng.random((rows, 1)) * (length - 2 * size[:, :1]))
        place = np.minimum((begins < wanted).sum(1), (begins < limit).sum(1) - 1)
        before = ((ids[:, 1:] == ids[:, :1]) & (np.arange(slots) < place[:, None])).any(1)
        order = np.tile(np.append(np.arange(1, slots + 1), 0), (rows, 1))
        order[np.arange(rows)[~before], place[~before]] = 0

        size, ids, key, value = size[row, order], ids[row, order], key[row, order], value[row, order]
        key_size, value_size = key_size[row, order], value_size[row, order]
        begins = np.cumsum(size, axis=1) - size
        kept = begins < limit
        kept[:, -1] = True
        begins[:, -1] = np.where(kept[:, :-1], size[:, :-1], 0).sum(1)
        known = first_seen(ids) < np.arange(slots + 1)
        begins += length + 1 - (begins[:, -1:] + size[:, -1:])

        tokens = np.full((rows, length + 1), padding)
        scored = np.zeros((rows, length + 1), dtype=bool)
        for part, number, since in ((key, key_size, begins), (value, value_size, begins + key_size)):
            who, slot, place = np.nonzero(kept[..., None] & (np.arange(part.shape[2]) < number[..., None]))
            tokens[who, since[who, slot] + place] = part[who, slot, place]
            scored[who, since[who, slot] + place] = known[who, slot] & (part is value)
        targets = np.where(scored, tokens, -100) if seen_alone else tokens
        return tokens[:, :-1], targets[:, 1:]

    return Task(
        partial(make, seen_alone=False),
        {"vocab": vocab, "length": length},
        metric="macro_accuracy",
        examples=examples,
        tests=tests,
        make_validation=partial(make, seen_alone=True),
        chance=1 / of_values,
        baselines=partial(commonest_so_far, of_keys, of_keys + of_values),
        score=per_class,
        derive=macro,
    )
