"""What comes with Python and scikit-learn in the shapes of Long Range Arena's text, retrieval and image tasks: real
data to try long-range models on where the public files are not at hand. Scores on them are their own, not the arena's.

source_topic     the package of Python's standard library that a piece of source code comes from
source_pairs     whether two pieces of source code come from the same file
digits_sequence  handwritten digits, pixel by pixel

Pieces of one file never stand in two splits. The standard library differs with Python's version, so the first two do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from formwright.data import bundled, sequences
from formwright.data import cache as caching
from formwright.data.source import SPLITS, DataError, Source, shuffled


def topics(name: str, length: int, classes: int, seed: int, cache: str | None) -> Source:
    """Pieces of `length` bytes of the packages with most of them, as many of each in every split."""
    top, files = bundled.python_files()
    key = caching.digest("source_topic", caching.listing(files), length, classes, seed)

    def build(work: Path) -> None:
        rng = np.random.Generator(np.random.PCG64(seed))
        packages: dict[str, list[Path]] = {}
        for file in files:
            inner = file.relative_to(top).parts
            if len(inner) > 1:
                packages.setdefault(inner[0], []).append(file)
        cut = {package: _cut(own, length, rng) for package, own in sorted(packages.items())}
        fewest = {package: min(map(len, parts.values())) for package, parts in cut.items()}
        chosen = sorted(sorted(cut, key=lambda p: (-fewest[p], p))[:classes])
        if len(chosen) < classes or min(fewest[p] for p in chosen) < 2:
            fit = sum(count >= 2 for count in fewest.values())
            raise DataError(
                f"source_topic: {fit} packages have enough pieces of {length} bytes, not {classes}; ask for fewer "
                "classes, or for a smaller length"
            )
        pieces, answers, sizes = [], [], []
        for split in SPLITS:
            number = min(len(cut[p][split]) for p in chosen)
            for label, package in enumerate(chosen):
                pieces += [cut[package][split][i] for i in rng.permutation(len(cut[package][split]))[:number]]
                answers += [label] * number
            sizes.append(number * classes)
        sequences.write(work, pieces)
        np.savez(work / "answers.npz", answers=answers, sizes=sizes, names=chosen)

    made = caching.entry(cache, f"source-topic-{key}", build)
    kept, documents = np.load(made / "answers.npz"), sequences.read(made, length)
    return sequences.classified(name, "arrays", documents.rows, length, sequences.BYTES, kept["answers"],
                                sequences.consecutive(kept["sizes"]), kept["names"].tolist(), [], key,
                                features=documents.counts, cache=cache)  # fmt: skip


def pairs(name: str, length: int, examples: int, tests: int, seed: int, cache: str | None) -> Source:
    """Two pieces of `length` bytes each, of one file (1) or of two (0), as many of either."""
    _, files = bundled.python_files()
    sizes = [examples, tests, tests]
    key = caching.digest("source_pairs", caching.listing(files), length, sizes, seed)

    def build(work: Path) -> None:
        rng = np.random.Generator(np.random.PCG64(seed))
        pieces, answers = [], []
        for number, own in zip(sizes, _split(files, rng).values(), strict=True):
            cut = [found for file in own if len(found := _pieces(file, length)) > 1]
            if len(cut) < 2:
                raise DataError(f"source_pairs: too few files hold two pieces of {length} bytes; take a smaller length")
            labels = rng.permutation(np.arange(number) % 2)
            answers += labels.tolist()
            for label in labels:
                one = int(rng.integers(len(cut)))
                other = one if label else (one + 1 + int(rng.integers(len(cut) - 1))) % len(cut)
                here, there = rng.permutation(len(cut[one]))[:2]
                pieces += [cut[one][here], cut[other][there if label else int(rng.integers(len(cut[other])))]]
        sequences.write(work, pieces)
        np.savez(work / "answers.npz", answers=answers)

    made = caching.entry(cache, f"source-pairs-{key}", build)
    answers, documents = np.load(made / "answers.npz")["answers"], sequences.read(made, length, 2)
    return sequences.classified(name, "arrays", documents.rows, documents.length, sequences.PAIRS, answers,
                                sequences.consecutive(sizes), ["two files", "one file"], [], key,
                                features=documents.counts, cache=cache)  # fmt: skip


def digits(name: str, seed: int, cache: str | None) -> Source:
    """64 values of 0 to 16 a digit, row by row."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels, answers = bunch.data.astype(np.int64), bunch.target.astype(np.int64)
    key = caching.digest("digits_sequence", caching.array_hash(pixels), seed)
    return sequences.classified(name, "arrays", lambda which: pixels[which], 64, 17, answers,
                                shuffled(len(answers), seed, answers), [str(k) for k in range(10)], [], key,
                                features=lambda which: pixels[which] / 16, cache=cache)  # fmt: skip


def _split(files: list[Path], rng: np.random.Generator) -> dict[str, list[Path]]:
    """Whole files, in random order, 80/10/10 of their bytes."""
    order = [files[i] for i in rng.permutation(len(files))]
    sizes = np.array([file.stat().st_size for file in order])
    share = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    which = np.digitize(share, [0.8, 0.9])
    return {split: [file for file, w in zip(order, which, strict=True) if w == k] for k, split in enumerate(SPLITS)}


def _cut(files: list[Path], length: int, rng: np.random.Generator) -> dict[str, list[bytes]]:
    """Each piece once: files begin alike."""
    out: dict[str, list[bytes]] = {}
    seen: set[bytes] = set()
    for split, own in _split(files, rng).items():
        out[split] = [p for p in dict.fromkeys(p for f in own for p in _pieces(f, length)) if p not in seen]
        seen.update(out[split])
    return out


def _pieces(file: Path, length: int) -> list[bytes]:
    """Whole pieces, one after the other."""
    text = file.read_bytes()
    return [text[i : i + length] for i in range(0, len(text) - length + 1, length)]
