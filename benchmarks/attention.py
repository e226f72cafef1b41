"""Attention measured: normalisers, windows, packed batches, query heads and layers, beside what else there is.

    python benchmarks/attention.py [--quick] [--rows window packed ...] [--lengths 512 2048 8192] [--threads 2]

How rows are compared and timed: driving.py. Writes a CSV of all times and one of the targets, and ends with 1 if a row
failed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import attention_rows
from attention_peers import PEERS
from attention_rows import BRANCHES, LONG, LOOKBACK, SDPA, SKEWED
from comparing import BOTH, FORWARD
from driving import Record, Study, run
from targets import Target, at_most, exponent, judged, least, timed_calls

GIB = 2**30


def verdicts(records: list[Record]) -> list[Record]:
    """Each target with what was found; only targets of measured rows."""
    return judged(records, _targets(timed_calls(records)))


def _targets(timed: dict) -> Iterator[Target]:
    def ratio(row: str, work: str, ours: str, theirs: str, tokens: int) -> float | None:
        a, b = timed.get((row, work, ours, tokens)), timed.get((row, work, theirs, tokens))
        return b["milliseconds"] / a["milliseconds"] if a and b else None

    for work in (FORWARD, BOTH):
        found = ratio("window", work, f"window {LOOKBACK}", "masked SDPA", 8192)
        yield "window", f"a window of {LOOKBACK}, {work}, 8192 tokens: against masked SDPA", least(10), found
        share = sum(SKEWED) / (len(SKEWED) * max(SKEWED))
        full = ratio("packed", work, "all rows full", "packed", sum(SKEWED))
        text = (
            f"packed lengths {max(SKEWED)} to {min(SKEWED)}, {work}: time beside their share of a full batch's tokens"
        )
        yield "packed", text, at_most(1.2), full and full / share
        cases = [n for row, w, call, n in timed if (row, w, call) == ("prefix", work, "a shared prefix")]
        found = [ratio("prefix", work, "a shared prefix", "a prefix for each", n) or 0 for n in cases]
        text = f"a prefix shared by {BRANCHES}, {work}: against one for each, the least of {len(found)} sizes"
        yield "prefix", text, least(1), min(found, default=None)
        cases = [n for row, w, call, n in timed if (row, w, call) == ("normalisers", work, "softmax")]
        same = [r for n in cases if (r := ratio("normalisers", work, "softmax", SDPA, n)) is not None]
        text = f"softmax, {work}: against SDPA, the least of {len(same)} sizes"
        yield "normalisers", text, least(0.95), min(same, default=None)
    found = ratio("query heads", FORWARD, "a quarter of the query heads", "multi-head", LONG)
    yield "query heads", f"a quarter of the query heads, {LONG} tokens: against all", least(2.5), found
    points = sorted((n, r["milliseconds"]) for (row, _, _, n), r in timed.items() if row == "relative")
    text = "kernelised attention with relative positions: exponent of time"
    yield "relative", text, at_most(1.15), exponent(points)
    for row in dict.fromkeys(row for row, *_ in timed if row.startswith("layer:")):
        peer = row.removeprefix("layer:")
        ours = PEERS[peer].ours
        cases = [(w, n) for r, w, call, n in timed if (r, call) == (row, ours)]
        found = [r for w, n in cases if (r := ratio(row, w, ours, peer, n)) is not None]
        text = f"{ours} beside {peer}, the least of {len(found)} sizes and kinds of work"
        yield row, text, least(0.95), min(found, default=None)
    for name in dict.fromkeys(call for row, _, call, _ in timed if row == "memory"):
        peak = timed.get(("memory", BOTH, name, LONG), {}).get("peak_bytes")
        text = f"{name}, {BOTH}, {LONG} tokens, one head of 64: GiB"
        yield "memory", text, at_most(2), None if peak is None else peak / GIB


def main() -> int:
    return run(
        Study(
            name="attention",
            about=__doc__.partition("\n")[0],
            rows=tuple(attention_rows.rows()),
            verdicts=verdicts,
            quick=lambda name: name not in ("memory", "query heads"),
            packages=("transformers", "x-transformers", "timm"),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
