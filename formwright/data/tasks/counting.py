"""Counting a letter under several tokenisations (Zhang, Cao and You, "Counting Ability of Large Language Models and
Impact of Tokenization", arXiv 2410.19730, 2024).

A row asks for one letter, then holds a string of uniform letters; how often the letter occurs in it is wanted in the
slot behind it (count c is answered by c + 1) or, with running=True, how often so far at every token of the string: the
inductive count that a chain of thought spells out. What a token holds is the option `tokenisation`:

letters   one letter
pairs     two neighbours, the last of an odd number alone
merged    what `merges` byte-pair merges of random strings make of it (merges.py)
spaced    a letter or the space between two
quoted    a letter, a quotation mark on each side of it, or the comma between two

The first three hold 1, 2, and a varying number of letters; the last two hold letters apart. (The paper asks language
models for letters a, b, e, z in strings of 10-20, 20-30, 30-40 letters; here a model learns to count.) With most > 0
the letter asked for occurs 0..most times (uniform; at most everywhere), the others filling the rest: so that longer
strings in the test have no counts but those seen.
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.merges import Pairs, encode, learn, spelled
from formwright.data.tasks.slots import Lengths, lengths, placed, span

TOKENISATIONS = ("letters", "pairs", "merged", "spaced", "quoted")


@task
def counting(
    *,
    letters: int = 2,
    tokenisation: str = "letters",
    merges: int = 16,
    lengths_seen: Lengths = (10, 40),
    lengths_tested: Lengths = (10, 40),
    most: int = 0,
    running: bool = False,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """How often a letter occurs. inputs, targets (rows, most tokens of a string + 2); lengths are in letters."""
    name = "counting"
    seen, tested = span(name, "lengths_seen", lengths_seen), span(name, "lengths_tested", lengths_tested)
    at_least(name, letters=(letters, 2), merges=(merges, 1), most=(most, 0))
    at_least(name, examples=(examples, 1), tests=(tests, 1))
    if tokenisation not in TOKENISATIONS:
        raise DataError(f"{name}: tokenisation is one of {', '.join(TOKENISATIONS)}, not {tokenisation!r}")
    if not isinstance(running, bool):
        raise DataError(f"{name}: running is True or False, not {running!r}")
    pairs = dictionary(tokenisation, letters, merges)
    held = occurrences(letters, pairs)
    extra = {"spaced": 1, "quoted": 2}.get(tokenisation, 0)
    step = {"spaced": 2, "quoted": 4}.get(tokenisation, 1)
    words = len(held) + extra  # tokens of strings; before them come the slot 0 and the letters asked for

    def maker(bounds: Lengths):
        width = step * bounds[1] + 2

        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            sizes = lengths(rng, rows, bounds)
            string = rng.integers(0, letters, size=(rows, bounds[1]))
            asked = rng.integers(0, letters, size=rows)
            if most:
                string = limited(rng, sizes, bounds[1], asked, letters, most)
            tokens, number = tokens_of(string, sizes, tokenisation, letters, pairs)
            times = np.append(held, np.zeros((extra, letters), dtype=np.int64), axis=0)[tokens, asked[:, None]]
            so_far = np.cumsum(times, axis=1)
            question = np.concatenate((asked[:, None] + 1, tokens + letters + 1), axis=1)
            if not running:
                total = np.take_along_axis(so_far, number[:, None] - 1, axis=1)
                return placed(question, number + 1, total + 1, np.ones(rows, dtype=np.int64), width)
            inputs, _ = placed(question, number + 1, question, np.zeros(rows, dtype=np.int64), width)
            targets = np.full((rows, width), -100, dtype=np.int64)
            targets[:, 1 : tokens.shape[1] + 1] = so_far + 1
            return inputs, np.where((np.arange(width) > 0) & (np.arange(width) <= number[:, None]), targets, -100)

        return make

    longest, unseen = max(seen[1], tested[1]), tested[1] > seen[1] and not 0 < most <= seen[1]
    return Task(
        maker(seen),
        {"vocab": max(words + letters + 1, longest + 2), "length": step * longest + 2},
        make_test=maker(tested) if tested != seen else None,
        ragged=True,
        baselines=by_place,
        notes=[f"The test has counts above {seen[1]}, and many that training hardly has; most= bounds them."] * unseen,
        examples=examples,
        tests=tests,
    )


def limited(
    rng: np.random.Generator, sizes: np.ndarray, width: int, asked: np.ndarray, letters: int, most: int
) -> np.ndarray:
    """(rows, width) strings in whose first `sizes` letters the one asked for (rows,) occurs 0..most times."""
    times = rng.integers(0, np.minimum(sizes, most) + 1)
    other = rng.integers(0, letters - 1, size=(len(sizes), width))
    key = np.where(np.arange(width) < sizes[:, None], rng.random((len(sizes), width)), 2.0)
    rank = np.argsort(np.argsort(key, axis=1, kind="stable"), axis=1, kind="stable")
    return np.where(rank < times[:, None], asked[:, None], other + (other >= asked[:, None]))


def dictionary(tokenisation: str, letters: int, merges: int) -> Pairs:
    """The merges of a tokenisation: every pair once, those learned from random strings, or none."""
    if tokenisation == "pairs":
        return [(a, b) for a in range(letters) for b in range(letters)]
    if tokenisation == "merged":
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([letters, merges])))
        return learn(rng.integers(0, letters, size=(500, 200)), letters, merges)
    return []


def occurrences(letters: int, pairs: Pairs) -> np.ndarray:
    """(tokens, letters) how often each token holds each letter."""
    return np.array([np.bincount(token, minlength=letters) for token in spelled(letters, pairs)])


def tokens_of(
    string: np.ndarray, sizes: np.ndarray, tokenisation: str, letters: int, pairs: Pairs
) -> tuple[np.ndarray, np.ndarray]:
    """Strings (rows, N) of `sizes` letters -> tokens (rows, most), anything behind the ends; how many (rows,)."""
    rows, width = string.shape
    if tokenisation == "pairs":
        left, right = string[:, 0::2], np.append(string[:, 1::2], np.zeros((rows, width % 2), dtype=np.int64), axis=1)
        whole = 2 * np.arange(left.shape[1]) + 1 < sizes[:, None]
        return np.where(whole, letters + left * letters + right, left), (sizes + 1) // 2
    if tokenisation == "merged":
        return encode(string, letters, pairs, sizes)
    if tokenisation == "letters":
        return string, sizes
    mark, comma = np.full_like(string, letters), np.full_like(string, letters + 1)
    parts = (string, mark) if tokenisation == "spaced" else (mark, string, mark, comma)
    return np.stack(parts, axis=2).reshape(rows, -1), len(parts) * sizes - 1


def by_place(x: np.ndarray, y: np.ndarray, tested_x: np.ndarray, tested_y: np.ndarray) -> dict[str, float]:
    """The accuracy of the answer commonest in training at the same place of a row: of the number of tokens alone."""
    width, answers = max(y.shape[1], tested_y.shape[1]), max(int(y.max()), int(tested_y.max())) + 1
    row, place = np.nonzero(y >= 0)
    table = np.bincount(place * answers + y[row, place], minlength=width * answers).reshape(width, answers)
    guess = np.where(table.any(1), table.argmax(1), table.sum(0).argmax())
    row, place = np.nonzero(tested_y >= 0)
    return {"the number of tokens alone": float((guess[place] == tested_y[row, place]).mean())}
