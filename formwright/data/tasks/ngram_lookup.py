"""Looking up what follows an n-gram (Jelassi et al., "Repeat After Me: Transformers are Better than State Space Models
at Copying", arXiv 2402.01032, 2024).

A string s of uniform letters, and n of its letters that stand so in it once: what follows them in s is wanted, the next
`answer` letters, or all; in training the end as well. The n-gram comes first, "$ n-gram | s | following .", or with
key="suffix" last, "$ s | n-gram following ." Training rows are packed with strings, `packed` tokens; the test has
longer strings (strings.py). Tokens: the letters, then $, |, . and padding.
"""

from __future__ import annotations

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.occurrences import stands_once
from formwright.data.tasks.slots import Lengths, lengths, span
from formwright.data.tasks.strings import Strings, joined, mark, piece, string_task

LEAST = 0.05  # share of strings in which an n-gram must stand alone


@task
def ngram_lookup(
    *,
    ngram: int = 3,
    key: str = "prefix",
    answer: int | None = None,
    letters: int = 26,
    lengths_seen: Lengths = (5, 20),
    lengths_tested: Lengths = (20, 100),
    packed: int = 220,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """What followed an n-gram in a string. inputs, targets (rows, packed - 1) in training, one string a row else."""
    name, following = "ngram_lookup", answer or 1
    at_least(name, ngram=(ngram, 1), letters=(letters, 2), examples=(examples, 1), tests=(tests, 1))
    if answer is not None:
        at_least(name, answer=(answer, 1))
    if key not in ("prefix", "suffix"):
        raise DataError(f"{name}: key is 'prefix' or 'suffix', not {key!r}")
    seen = span(name, "lengths_seen", lengths_seen, least=ngram + following)
    tested = span(name, "lengths_tested", lengths_tested, least=ngram + following)

    def found(string: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """(rows, W), whether an n-gram that begins here can be asked for."""
        codes = np.zeros((len(string), string.shape[1] - ngram + 1), dtype=np.int64)
        for i in range(ngram):
            codes = codes * letters + string[:, i : i + codes.shape[1]]
        begins = np.arange(codes.shape[1])
        alone = stands_once(np.where(begins <= sizes[:, None] - ngram, codes, -1 - begins))
        return alone & (begins <= sizes[:, None] - ngram - following)

    for bounds in (seen, tested):
        for size in bounds:
            drawn = np.random.default_rng(0).integers(0, letters, size=(1000, size))
            if found(drawn, np.full(1000, size)).any(1).mean() < LEAST:
                raise DataError(
                    f"{name}: in hardly any string of {size} of {letters} letters stand {ngram} letters in a row that "
                    "stand so nowhere else; take a larger ngram or more letters"
                )

    def draw(rng: np.random.Generator, rows: int, bounds: Lengths, end_wanted: bool) -> Strings:
        sizes = lengths(rng, rows, bounds)
        string = rng.integers(0, letters, size=(rows, bounds[1]))
        asked = found(string, sizes)
        while len(none := np.flatnonzero(~asked.any(1))):
            string[none] = rng.integers(0, letters, size=(len(none), bounds[1]))
            asked[none] = found(string[none], sizes[none])
        place = np.where(asked, rng.random(asked.shape), -1).argmax(1)
        gram = np.take_along_axis(string, place[:, None] + np.arange(ngram), axis=1)
        left = sizes - place - ngram
        after = np.minimum(place[:, None] + ngram + np.arange(bounds[1]), bounds[1] - 1)
        follows = piece(
            np.take_along_axis(string, after, axis=1),
            left if answer is None else np.minimum(left, answer),
            wanted=True,
        )
        start, bar, end = (mark(letters + i, rows, wanted=end_wanted and i == 2) for i in range(3))
        if key == "prefix":
            return joined(start, piece(gram), bar, piece(string, sizes), bar, follows, end)
        return joined(start, piece(string, sizes), bar, piece(gram), follows, end)

    marks = 4 if key == "prefix" else 3
    return string_task(
        name,
        draw,
        seen[0] + ngram + following + marks,
        lambda length: length + ngram + (length - ngram if answer is None else answer) + marks,
        seen,
        tested,
        packed,
        letters,
        examples=examples,
        tests=tests,
    )
