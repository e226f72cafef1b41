"""What a model is trained on: a Source hands out Batches of its three splits.

A Source is opened from (spec, options) by `formwright.data.open` and can be opened again, in another process, by
`open(**source.options)`. Its training batches are a pure function of (seed, step, size): items step*size ..
(step+1)*size-1 of an endless stream of epochs, each a permutation of the training items (order.py). Statistics (means,
scales, categories, vocabularies) come from the training split alone.

Shapes of a batch, B rows:

    embed     inputs                                                 head      targets
    tokens    (B, N) int64                                           lm        (B, N) int64, -100 where not scored
    patches   (B, H, W, C) float32, normalised                       classify  (B,) int64
    series    (B, T, V) float32, z-scored, nothing missing           forecast  (B, horizon, V) float32, NaN if missing
    columns   (B, F) float32: z-scored numbers, then category codes  regress   (B, outputs) float32, z-scored
    vectors   (B, N, variates) float32                               values    (B, N, outputs) float32, NaN: not scored

A source of pairs gives, for an encoder-decoder, inputs (source, target): the source's rows are of `source_shape`, the
target's of `shape`; the layout is then a pair as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from formwright.data.order import stream

if TYPE_CHECKING:
    from torch import Tensor

    from formwright.contract import Layout

SPLITS = ("train", "validation", "test")


class DataError(ValueError):
    """The data, or the options given for them, can't be used. The message says where, and what to do."""


@dataclass
class Batch:
    """B rows of inputs and targets (shapes: see this module); `tokens` counts the tokens read by all rows, and `score`
    gives scores besides the head's, from (outputs, inputs, targets)."""

    inputs: Tensor | tuple[Tensor, Tensor]
    targets: Tensor
    layout: Layout | tuple[Layout, Layout] | None = None
    items: int = 0
    tokens: int = 0
    score: Callable[[Tensor, Tensor, Tensor], dict[str, tuple[Any, int]]] | None = None


class Codec(Protocol):
    """Text to tokens and back."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Scale:
    """z = (value - mean) / deviation, one mean and deviation a variate, (V,) each."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray) -> Scale:
        """Of values (rows, V), NaN left out. A variate that never changes keeps deviation 1."""
        mean, deviation = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
        flat = ~(deviation > 1e-8 * np.maximum(1.0, np.abs(mean)))
        return cls(mean, np.where(flat, 1.0, deviation))

    def forward(self, values: np.ndarray) -> np.ndarray:
        return ((values - self.mean) / self.deviation).astype(np.float32)

    def back(self, values: np.ndarray) -> np.ndarray:
        return values * self.deviation + self.mean


@dataclass
class Source:
    """Data ready for training, of one kind. Made by `formwright.data.open`.

    name             what people call it: a file's name, a bundled name, or a task's text
    kind             "text" | "series" | "table" | "images" | "arrays" | "synthetic"
    embed, head      the parts that suit it
    facts            what the builder fills into parts (vocab, classes, variates, ...)
    shape            the shape of one input, without the batch; of a pair's target
    source_shape     the shape of a pair's source; None: inputs are single
    metric           the score that ranks: a key of report(); lower_is_better and unit go with it
    counts           split -> number of items; `sizes` likewise, but tokens for text
    tokens_per_item  tokens (text, synthetic), time steps (series), pixels or columns in one item, both of a pair
    take             (split, indices, epoch numbers) -> inputs, targets
    options          open(**options) opens this source again
    fingerprint      changes when the data or the options that shape them do
    notes            sentences for the user: what was filled, dropped, skipped, assumed
    padding          the token behind the end of a row (of token inputs), left out of the layout; None: rows are full
    names            of the outputs: classes, variates, target columns
    baselines        what answers without a model score on the test part, in the metric: {"the commonest answer": 0.17}
    score            scores besides the head's: (outputs, inputs, targets) of a batch -> a name and (sum, number) each
    """

    name: str
    kind: str
    embed: str
    head: str
    facts: dict[str, Any]
    shape: tuple[int, ...]
    metric: str
    lower_is_better: bool
    unit: str
    counts: dict[str, int]
    take: Callable[[str, np.ndarray, np.ndarray], tuple[Tensor, Tensor]]
    tokens_per_item: int
    fingerprint: str
    sizes: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    baselines: dict[str, float] = field(default_factory=dict)
    padding: int | None = None
    source_shape: tuple[int, ...] | None = None
    score: Callable[[Tensor, Tensor, Tensor], dict[str, tuple[Any, int]]] | None = None
    block: int = 1
    codec: Codec | None = None
    scale: Scale | None = None
    derive: Callable[[dict[str, float], str], dict[str, float]] | None = None
    prepare: Callable[[str], tuple[Tensor, list[str]]] | None = None

    def __post_init__(self) -> None:
        self.sizes = self.sizes or dict(self.counts)
        for split in SPLITS:
            if self.counts.get(split, 0) < 1:
                raise DataError(f"{self.name}: its {split} part is empty; give more data")

    def batch(self, split: str, step: int, size: int, *, seed: int = 0) -> Batch:
        """The step-th batch of `size` items of a split, in an order that `seed` names: a pure function."""
        self._known(split)
        if size < 1 or step < 0:
            raise ValueError(f"a batch has size >= 1 and step >= 0, but got size={size}, step={step}")
        index, epoch = stream(step * size, size, self.counts[split], seed, self.block)
        return self._batch(split, index, epoch)

    def evaluation(self, split: str, size: int, limit: int | None = None) -> Iterator[Batch]:
        """Each item of a split once, in fixed order, `size` at a time; with a limit, that many items spread evenly
        over the split."""
        self._known(split)
        count = self.counts[split]
        chosen = count if limit is None else max(1, min(limit, count))
        index = np.arange(chosen, dtype=np.int64) * count // chosen
        for start in range(0, chosen, size):
            part = index[start : start + size]
            yield self._batch(split, part, np.zeros(len(part), dtype=np.uint64))

    def report(self, totals: dict[str, tuple[float, int]], split: str) -> dict[str, float]:
        """Summed scores (sum, number of scored things) -> means, and what follows from them: bits_per_byte for text
        (with the split's own tokens per byte), r2 and scores in the target's own unit where there is one target. Scores
        named with a leading "_" are there for others to follow from, and are left out."""
        self._known(split)
        means = {name: float(total) / n if n else math.nan for name, (total, n) in totals.items()}
        means |= self.derive(means, split) if self.derive else {}
        return {name: mean for name, mean in means.items() if not name.startswith("_")}

    def encode(self, text: str) -> list[int]:
        """Text -> tokens."""
        return self._text().encode(text)

    def decode(self, ids: list[int]) -> str:
        """Tokens -> text; bytes that are no UTF-8 become a replacement sign."""
        return self._text().decode([int(i) for i in ids])

    def unscale(self, values: Any) -> np.ndarray:
        """Forecasts (..., V) or regressed values (..., outputs), z-scored -> in the data's own units."""
        if self.scale is None or self.embed == "patches":
            raise DataError(f"{self.name} is {self.kind} data: it has no scaled values")
        return self.scale.back(np.asarray(values, dtype=np.float64))

    def picture(self, image: Any) -> np.ndarray:
        """One normalised input (H, W, C) -> uint8 (H, W) grey or (H, W, 3) colour."""
        if self.embed != "patches" or self.scale is None:
            raise DataError(f"{self.name} is {self.kind} data: its inputs are no pictures")
        pixels = self.scale.back(np.asarray(image, dtype=np.float64))
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]

    def read(self, path: str) -> tuple[Tensor, list[str]]:
        """A new file prepared as the training data were -> (inputs, a label for each row of them): a series' last
        window, a table's rows, a picture or a folder of pictures. Raises DataError where that can't be."""
        if self.prepare is None:
            raise DataError(f"{self.name} is {self.kind} data: new inputs are not read from files")
        return self.prepare(path)

    def _batch(self, split: str, index: np.ndarray, epoch: np.ndarray) -> Batch:
        inputs, targets = self.take(split, index, epoch)
        layout = None
        if self.padding is not None:
            pair = isinstance(inputs, tuple)
            layout = tuple(map(self._padded, inputs)) if pair else self._padded(inputs)
        return Batch(inputs, targets, layout, len(index), len(index) * self.tokens_per_item, self.score)

    def _padded(self, inputs: Tensor) -> Layout:
        from formwright.contract import Layout

        return Layout((inputs.shape[1],), lengths=(inputs != self.padding).sum(1))

    def _known(self, split: str) -> None:
        if split not in self.counts:
            raise ValueError(f"a source has the splits {', '.join(self.counts)}, not {split!r}")

    def _text(self) -> Codec:
        if self.codec is None:
            raise DataError(f"{self.name} is {self.kind} data: it has no text")
        return self.codec


def shuffled(count: int, seed: int, labels: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Split 0..count-1 (at least 3) into 80/10/10 at random, by seed; with labels (count,), each class in these shares
    and at least once in train."""
    rng = np.random.Generator(np.random.PCG64(seed))
    order = rng.permutation(count)
    if labels is not None:
        group = np.asarray(labels)[order]
        arranged = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[arranged], group[arranged])
        rank = np.arange(count) - starts
        number = np.bincount(group)[group[arranged]]
        share = np.empty(count)
        share[arranged] = (rank + 0.5) / number
        share[arranged[rank == 0]] = 0.0
        order = order[np.argsort(share, kind="stable")]
    a = min(round(0.8 * count), count - 2)
    b = min(max(round(0.9 * count), a + 1), count - 1)
    return {"train": np.sort(order[:a]), "validation": np.sort(order[a:b]), "test": np.sort(order[b:])}
