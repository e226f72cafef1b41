"""Byte-pair tokens, learned from the training part alone (Sennrich et al., "Neural Machine Translation of Rare Words
with Subword Units", arXiv 1508.07909, 2015; on bytes, as in GPT-2), by the `tokenizers` library.

Token 0 ends a document. The text is read in pieces of a megabyte, cut after a line's end where there is one, and its
tokens are written to memory-mapped files in the cache. Of a training part above 256 MB, pieces spread evenly over it,
256 MB in all, teach the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from formwright.data import cache as caching
from formwright.data.source import SPLITS, DataError

_PIECE, _TEACH, _BATCH = 1 << 20, 256 << 20, 16
_END = "<|end|>"


class BytePairs:
    """The codec of a trained tokenizer; document ends (token 0) are read as a character 0."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # a user's text that spells the end token is text

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        pieces: list[list[int]] = [[]]
        for token in ids:
            if token == 0:
                pieces.append([])
            else:
                pieces[-1].append(token)
        return "\0".join(self.tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces)


def character_start(data: np.ndarray, place: int) -> int:
    """The nearest place at or before `place` where a UTF-8 character begins (place itself if none is near)."""
    for back in range(min(4, place)):
        if data[place - back] & 0xC0 != 0x80:
            return place - back
    return place


def pieces(data: np.ndarray, start: int, stop: int, ends: list[int]) -> Iterator[tuple[int, bytes, bool]]:
    """(place, bytes, whether a document ends here) of data[start:stop], never across documents; the byte that joins
    documents is left out."""
    for number, end in enumerate(ends):
        first, last = max(start, ends[number - 1] if number else 0), min(stop, end)
        if first >= last:
            continue
        joined = number < len(ends) - 1 and last == end
        body = last - 1 if joined else last
        while first < body:
            cut = min(first + _PIECE, body)
            if cut < body:
                lines = np.flatnonzero(data[cut - 4096 : cut] == 10)
                cut = cut - 4096 + int(lines[-1]) + 1 if len(lines) else character_start(data, cut)
            yield first, bytes(data[first:cut]), joined and cut == body
            first = cut


def tokenise(
    name: str,
    files: list[Path],
    data: np.ndarray,
    ends: list[int],
    bounds: list[int],
    vocab: int,
    cache: str | None,
    fingerprint: str,
) -> tuple[BytePairs, int, dict[str, np.ndarray], list[int], list[str]]:
    """Text (bytes, joined documents) cut at `bounds` -> codec, vocabulary size, split -> tokens (memory-mapped), the
    bounds moved to where characters begin, notes.

    Raises DataError, with the place, where the text is not UTF-8."""
    from tokenizers import Tokenizer

    if vocab < 300:
        raise DataError(f"vocab={vocab} is too small: byte pairs need at least 300 tokens (256 of them are the bytes)")
    bounds = [0, *(character_start(data, place) for place in bounds[1:-1]), bounds[-1]]

    def text(place: int, piece: bytes) -> str:
        try:
            return piece.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(files, ends, place + error.start) from error

    def build(work: Path) -> None:
        tokenizer = _learn(data, bounds[1], ends, vocab, text)
        tokenizer.save(str(work / "tokenizer.json"))
        codec = BytePairs(tokenizer)
        kind = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
        for split, start, stop in zip(SPLITS, bounds, bounds[1:], strict=False):
            with (work / f"{split}.bin").open("wb") as file:
                for batch in _batches(pieces(data, start, stop, ends)):
                    texts = [text(place, piece) for place, piece, _ in batch]
                    for row, (_, _, ended) in zip(codec.tokenizer.encode_batch_fast(texts), batch, strict=True):
                        file.write(np.array(row.ids + [0] * ended, dtype=kind).tobytes())

    folder = caching.entry(cache, "bpe-" + caching.digest("bpe", fingerprint, bounds, ends, vocab), build)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    count = tokenizer.get_vocab_size()
    kind = np.uint16 if count <= 1 << 16 else np.uint32
    parts = {}
    for split in SPLITS:
        path = folder / f"{split}.bin"
        empty = path.stat().st_size == 0
        parts[split] = np.zeros(0, dtype=kind) if empty else np.memmap(path, dtype=kind, mode="r")
    notes = []
    if count < vocab:
        notes.append(f"The training part of {name} yields {count} byte-pair tokens, fewer than vocab={vocab}.")
    if bounds[1] > _TEACH:
        notes.append("The vocabulary was learned from 256 MB spread evenly over the training part.")
    return BytePairs(tokenizer), count, parts, bounds, notes


def _learn(data: np.ndarray, stop: int, ends: list[int], vocab: int, text):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        max_token_length=16,
    )
    stride = max(1, -(-stop // _TEACH))
    chosen = (text(p, b) for i, (p, b, _) in enumerate(pieces(data, 0, stop, ends)) if i % stride == 0)
    tokenizer.train_from_iterator(chosen, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _batches(stream: Iterator[tuple[int, bytes, bool]]) -> Iterator[list[tuple[int, bytes, bool]]]:
    batch: list[tuple[int, bytes, bool]] = []
    for item in stream:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _not_utf8(files: list[Path], ends: list[int], place: int) -> DataError:
    number = next(i for i, end in enumerate(ends) if place < end)
    offset = place - (ends[number - 1] if number else 0)
    return DataError(
        f"{files[number]} is not UTF-8 at byte {offset}; leave vocab out to train on plain bytes, or convert the file "
        "(for example: iconv -f latin1 -t utf-8 old.txt > new.txt)"
    )
