"""Sequences of tokens that are classified: documents of bytes, one or two a row, or rows of whole numbers.

A document's bytes b are the tokens b + 1; 0 is the padding behind a row's end, 257 stands between two documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from formwright.data import baselines
from formwright.data.source import SPLITS, Source

PADDING, BETWEEN = 0, 257
BYTES, PAIRS = 257, 258  # vocabularies


@dataclass
class Documents:
    """Many documents in one array of bytes (uint8, perhaps memory-mapped) and where each ends (n,); `each` of them make
    a row, of every one the first `most` bytes."""

    text: np.ndarray
    ends: np.ndarray
    most: int
    each: int = 1

    @property
    def length(self) -> int:
        return self.each * (self.most + 1) - 1

    def document(self, number: int) -> np.ndarray:
        start = self.ends[number - 1] if number else 0
        return self.text[start : min(self.ends[number], start + self.most)]

    def rows(self, which: np.ndarray) -> np.ndarray:
        """Token rows (m, length) of these rows."""
        out = np.full((len(which), self.length), PADDING, dtype=np.int64)
        for row, number in zip(out, which.tolist(), strict=True):
            at = 0
            for k in range(self.each):
                if k:
                    row[at] = BETWEEN
                    at += 1
                found = self.document(number * self.each + k)
                row[at : at + len(found)] = found
                row[at : at + len(found)] += 1
                at += len(found)
        return out

    def counts(self, which: np.ndarray) -> np.ndarray:
        """How often each byte occurs in these rows, as shares (m, 256 each): what a linear model is given."""
        numbers = (which[:, None] * self.each + np.arange(self.each)).ravel().tolist()
        found = [np.bincount(self.document(n), minlength=256) for n in numbers]
        shares = np.stack(found) / np.maximum(1, np.array([f.sum() for f in found]))[:, None]
        shares = shares.reshape(len(which), -1) ** 0.5
        return np.abs(shares[:, :256] - shares[:, 256:]) if self.each == 2 else shares


def write(folder: Path, documents: Iterable[bytes]) -> None:
    """Documents into a folder, for `read`."""
    ends, total = [], 0
    with (folder / "text.bin").open("wb") as out:
        for document in documents:
            out.write(document)
            total += len(document)
            ends.append(total)
    np.save(folder / "ends.npy", np.array(ends, dtype=np.int64))


def read(folder: Path, most: int, each: int = 1) -> Documents:
    size = (folder / "text.bin").stat().st_size
    text = np.memmap(folder / "text.bin", dtype=np.uint8, mode="r") if size else np.zeros(0, np.uint8)
    return Documents(text, np.load(folder / "ends.npy"), most, each)


def consecutive(sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """The rows of each split, where they stand one split after the other."""
    ends = np.cumsum([0, *sizes])
    return {split: np.arange(a, b) for split, a, b in zip(SPLITS, ends, ends[1:], strict=False)}


def classified(
    name: str,
    kind: str,
    rows: Callable[[np.ndarray], np.ndarray],
    length: int,
    vocab: int,
    answers: np.ndarray,
    parts: dict[str, np.ndarray],
    names: list[str],
    notes: list[str],
    fingerprint: str,
    *,
    features: Callable[[np.ndarray], np.ndarray] | None = None,
    padding: int | None = None,
    cache: str | None = None,
) -> Source:
    """rows(numbers) -> token rows (m, length) int64, with answers (n,), split by `parts` -> Source. features are what a
    linear model is given of a row."""
    targets = torch.from_numpy(answers.astype(np.int64))

    def take(split: str, index: np.ndarray, epoch: np.ndarray) -> tuple[Tensor, Tensor]:
        which = parts[split][index]
        return torch.from_numpy(rows(which)), targets[torch.from_numpy(which)]

    scores = baselines.kept(cache, fingerprint, lambda: baselines.items(answers, parts, features))
    return Source(
        name=name,
        kind=kind,
        embed="tokens",
        head="classify",
        facts={"vocab": vocab, "length": length, "classes": len(names)},
        shape=(length,),
        metric="accuracy",
        lower_is_better=False,
        unit="",
        counts={split: len(which) for split, which in parts.items()},
        take=take,
        tokens_per_item=length,
        fingerprint=fingerprint,
        notes=notes,
        names=names,
        baselines={"guessing": 1 / len(names), **scores},
        padding=padding,
    )
