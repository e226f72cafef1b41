"""Text as tokens: bytes, or byte pairs (bpe.py); next-token prediction, judged in bits per byte.

A folder's documents are read in the order of their paths, joined by one byte 0 each (the end of a document). The text
is split 90/5/5 in that order, contiguously: at the end of a document where one lies within 2% of the text, else inside
one. A training epoch cuts its part into windows of `length` tokens, beginning at a place of the epoch's own;
evaluation cuts it into windows from the start, so every token but the first is scored once. Tokens lie in memory-mapped
files: the text may be larger than memory.

bits_per_byte = mean loss / ln 2 * (tokens / bytes of that split).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from formwright.data import baselines
from formwright.data import cache as caching
from formwright.data.source import SPLITS, DataError, Source

_EXTENSIONS = """
    .txt .text .md .markdown .rst .tex .bib .org .log .html .htm .xml .json .jsonl .ndjson .yaml .yml .toml .ini .cfg
    .conf .srt .vtt .abc .pgn .fasta .fa .sql .sh .bash .py .pyi .ipynb .js .mjs .ts .tsx .jsx .css .scss .c .h .cc .cpp
    .cxx .hpp .hh .cs .java .kt .scala .go .rs .swift .rb .php .pl .lua .r .jl .hs .ml .mli .lisp .el .clj .ex .exs .erl
    .f .f90 .m .v .vhd .asm .s .bat .ps1 .cmake .mk .tcl .dart .nim .zig
"""
EXTENSIONS = frozenset(_EXTENSIONS.split())
END = 0  # the token (and byte) that ends a document
_PIECE = 1 << 22


class Bytes:
    """The codec of plain bytes: 256 tokens."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def is_binary(path: Path) -> bool:
    """Whether a byte 0 stands among the first 8192, as in no text."""
    with path.open("rb") as file:
        return b"\0" in file.read(8192)


def gather(folder: Path) -> tuple[list[Path], list[str]]:
    """The text files below a folder in order of their paths, and notes on what was left out: hidden files and folders,
    binary files, files without a known text extension, empty files."""
    found, binary, other, hidden, empty = [], [], [], 0, 0
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        if not path.is_file():
            continue
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            hidden += 1
        elif path.suffix.lower() not in EXTENSIONS and path.suffix:
            other.append(path)
        elif path.stat().st_size == 0:
            empty += 1
        elif is_binary(path):
            binary.append(path)
        else:
            found.append(path)
    notes = []
    for paths, why in ((binary, "binary"), (other, "with an extension that is no text's")):
        if paths:
            names = ", ".join(p.name for p in paths[:3]) + (", ..." if len(paths) > 3 else "")
            notes.append(f"Skipped {len(paths)} file{'s' * (len(paths) > 1)} {why}: {names}.")
    if hidden:
        notes.append(f"Skipped {hidden} hidden file{'s' * (hidden > 1)}.")
    if empty:
        notes.append(f"Skipped {empty} empty file{'s' * (empty > 1)}.")
    if not found:
        raise DataError(f"{folder} holds no text files; text extensions are .txt, .md, .py and the like")
    return found, notes


def cuts(total: int, ends: list[int]) -> list[int]:
    """Where train ends and validation ends, in bytes: about 90% and 95%, at a document's end where one is near."""
    places = []
    for share in (0.90, 0.95):
        want = round(share * total)
        near = min(ends[:-1], key=lambda end: abs(end - want), default=None)
        good = near is not None and abs(near - want) <= 0.02 * total and near > (places[-1] if places else 0)
        places.append(near if good else want)
    return places


def _join(files: list[Path], folder: Path) -> None:
    """Write text.bin (unless one file is its own), and meta.json: fingerprint, size, where documents end."""
    seen, ends, total = hashlib.blake2b(digest_size=12), [], 0
    target = (folder / "text.bin").open("wb") if len(files) > 1 else None
    try:
        for number, file in enumerate(files):
            with file.open("rb") as source:
                while piece := source.read(_PIECE):
                    seen.update(piece)
                    total += len(piece)
                    if target:
                        target.write(piece)
            if target and number < len(files) - 1:
                target.write(bytes([END]))
                seen.update(bytes([END]))
                total += 1
            ends.append(total)
    finally:
        if target:
            target.close()
    caching.save_json(folder / "meta.json", {"fingerprint": seen.hexdigest(), "bytes": total, "ends": ends})


def open_text(
    name: str,
    files: Iterable[Path],
    notes: list[str],
    *,
    length: int | None = None,
    vocab: int | None = None,
    cache: str | None = None,
) -> Source:
    """Files of text -> a Source. Raises DataError where they are empty, shorter than a window, or (with vocab) not
    UTF-8."""
    files = list(files)
    length = 256 if length is None else length
    folder = caching.entry(cache, "text-" + caching.listing(files), lambda work: _join(files, work))
    meta = caching.load_json(folder / "meta.json")
    total, ends = meta["bytes"], meta["ends"]
    if total == 0:
        raise DataError(f"{name} is empty; give a text")
    if total < 64:
        raise DataError(f"{name} has only {total} bytes; give a longer text")
    data = np.memmap(files[0] if len(files) == 1 else folder / "text.bin", dtype=np.uint8, mode="r", shape=(total,))
    if len(files) > 1:
        notes = [f"Read {len(files)} files, {total:,} bytes, in the order of their paths.", *notes]
    bounds = [0, *cuts(total, ends), total]

    if vocab is None:
        codec, count = Bytes(), 256
        parts = {split: data[a:b] for split, a, b in zip(SPLITS, bounds, bounds[1:], strict=False)}
    else:
        from formwright.data.bpe import tokenise

        codec, count, parts, bounds, more = tokenise(name, files, data, ends, bounds, vocab, cache, meta["fingerprint"])
        notes = notes + more
    sizes = {split: len(part) for split, part in parts.items()}
    if sizes["train"] < length + 1:
        raise DataError(
            f"the training part of {name} has {sizes['train']} tokens, less than one window of length={length}; "
            "give a smaller length or a longer text"
        )
    if min(sizes.values()) < 2:
        raise DataError(f"{name} is too short to be split in three; give a longer text")
    spans = {split: b - a for split, a, b in zip(SPLITS, bounds, bounds[1:], strict=False)}

    def derive(means: dict[str, float], split: str) -> dict[str, float]:
        return {"bits_per_byte": means["loss"] / math.log(2) * sizes[split] / spans[split]}

    counts = {split: -(-(size - 1) // length) for split, size in sizes.items()}
    counts["train"] = (sizes["train"] - 1) // length
    scores = baselines.kept(
        cache,
        caching.digest(meta["fingerprint"], bounds),
        lambda: baselines.text(data[: bounds[1]], data[bounds[2] : bounds[3]]),
    )
    return Source(
        name=name,
        kind="text",
        embed="tokens",
        head="lm",
        facts={"vocab": count, "length": length},
        shape=(length,),
        metric="bits_per_byte",
        lower_is_better=True,
        unit="bits per byte",
        counts=counts,
        sizes=sizes,
        take=windows(parts, length),
        tokens_per_item=length,
        fingerprint=caching.digest("text", meta["fingerprint"], length, vocab),
        notes=notes,
        baselines=scores,
        codec=codec,
        derive=derive,
    )


def windows(parts: dict[str, np.ndarray], length: int):
    """The `take` of token streams: index i is the window at i*length, moved by the epoch's own shift (epoch number 0:
    not at all). Places beyond the end are read as 0 and not scored."""

    def take(split: str, index: np.ndarray, epoch: np.ndarray) -> tuple[Tensor, Tensor]:
        tokens = parts[split]
        start = index * length
        if split == "train":
            shift = (epoch % np.uint64(length)).astype(np.int64)
            start = np.minimum(start + shift, len(tokens) - 1 - length)
        at = start[:, None] + np.arange(length + 1)
        beyond = at >= len(tokens)
        chunk = np.asarray(tokens[np.minimum(at, len(tokens) - 1)]).astype(np.int64)
        inputs, targets = np.where(beyond, 0, chunk)[:, :-1], np.where(beyond, -100, chunk)[:, 1:]
        return torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(np.ascontiguousarray(targets))

    return take
