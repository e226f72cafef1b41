"""What the records say: ratios beside the targets set for 2 CPU cores, and exponents of growth with N."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from comparing import BOTH, FORWARD, STEP
from op_rows import NAIVE, VARIANTS
from targets import EXPONENT, FLAT, Record, at_most, exponent, judged, least, near_one, timed_calls


def verdicts(records: list[Record]) -> list[Record]:
    """Each target with what was found; only targets of measured rows."""
    return judged(records, _targets(timed_calls(records)))


def _targets(timed: dict) -> Iterator[tuple[str, str, tuple[str, Callable], float | None]]:
    def ratio(row: str, work: str, ours: str, theirs: str, tokens: int, other: int | None = None) -> float | None:
        a, b = timed.get((row, work, ours, tokens)), timed.get((row, work, theirs, other or tokens))
        return b["milliseconds"] / a["milliseconds"] if a and b else None

    for work, against in ((FORWARD, 13), (BOTH, 18)):
        record = timed.get(("ops", work, "scalar", 8192), {})
        text = f"scalar decay, {work}, 8192 tokens"
        yield "ops", f"{text}: share of a matrix product's rate", least(0.4), record.get("share_of_matrix_product")
        yield "ops", f"{text}: against SDPA", least(against), ratio("ops", work, "scalar", "SDPA causal", 8192)
        text = f"diagonal decay, {work}, 8192 tokens: its speed beside the scalar decay's"
        yield "ops", text, least(0.5), ratio("ops", work, "diagonal", "scalar", 8192)
    for work, wanted in ((FORWARD, 2), (BOTH, 4)):
        found = ratio("rules", work, "scalar+delta", "hf: gated delta rule", 8192)
        yield "rules", f"gated delta rule, {work}, 8192 tokens: against Hugging Face", least(wanted), found
        found = ratio("rules", work, "diagonal+delta", "hf: kimi delta rule", 2048)
        yield "rules", f"Kimi delta rule, {work}, 2048 tokens: against Hugging Face", least(30), found
    for variant in dict.fromkeys(v for v, *_ in NAIVE.values()):
        cases = [(w, n, call) for row, w, call, n in timed if row == "fla" and NAIVE.get(call, ("",))[0] == variant]
        found = [r for w, n, call in cases if (r := ratio("fla", w, variant, call, n)) is not None]
        text = f"{variant}: against fla's naive forms, the least of {len(found)} forms, sizes and kinds of work"
        yield "fla", text, least(1), min(found, default=None)
    for peer, wanted, tokens in (("hf: mamba scan", 30, 512), ("plain loop", 1, 2048), ("mambapy: scan", 3, 2048)):
        found = ratio("selective_scan", BOTH, "selective scan", peer, tokens)
        yield "selective_scan", f"selective scan, {BOTH}, {tokens} tokens: against {peer}", least(wanted), found
    found = ratio("rg_lru", BOTH, "rg_lru", "hf: rg_lru", 2048)
    yield "rg_lru", f"RG-LRU, {BOTH}, 2048 tokens: against Hugging Face", least(30), found
    for name in ("rg_lru", "kda"):
        found = ratio(f"mixer:{name}", BOTH, name, f"hf: {name}", 2048)
        yield f"mixer:{name}", f"whole layer {name}, {BOTH}, 2048 tokens: against Hugging Face", least(30), found
    layers = sorted({row.partition(":")[2] for row, *_ in timed if row.startswith("mixer:")})
    for name in layers:
        cases = [(w, n) for row, w, call, n in timed if row == f"mixer:{name}" and call == name]
        found = [r for w, n in cases if (r := ratio(f"mixer:{name}", w, name, f"hf: {name}", n)) is not None]
        text = f"whole layer {name}: against Hugging Face, the least of {len(found)} sizes and kinds of work"
        yield f"mixer:{name}", text, least(1), min(found, default=None)
    yield from _steps(timed, ratio)
    yield from _growth(timed)


def _steps(timed: dict, ratio: Callable) -> Iterator:
    rows = list(dict.fromkeys(row for row, work, *_ in timed if work == STEP))
    for row in rows:
        name = row.partition(":")[2]
        lengths = sorted(n for r, w, call, n in timed if r == row and call == name)
        if name == "attention":
            found = ratio(row, STEP, name, f"hf: {name}", 32768)
            yield row, "one token of attention after 32768: against Hugging Face's growing cache", least(8), found
            continue
        if any(r == row and call == f"hf: {name}" for r, _, call, _ in timed):
            found = ratio(row, STEP, name, f"hf: {name}", lengths[0])
            yield row, f"one token of {name}: against Hugging Face", least(3), found
        found = ratio(row, STEP, name, name, lengths[0], lengths[-1])
        yield row, f"one token of {name}: after {lengths[-1]} beside after {lengths[0]}", at_most(FLAT), found


def _growth(timed: dict) -> Iterator:
    for work in (FORWARD, BOTH):
        for variant in VARIANTS:
            found = sorted(
                (n, r) for (row, w, call, n), r in timed.items() if (row, w, call) == ("growth", work, variant)
            )
            if not found:
                continue
            span = f"from {found[0][0]} to {found[-1][0]} tokens"
            times = exponent([(n, r["milliseconds"]) for n, r in found])
            yield "growth", f"{variant}, {work}: exponent of time {span}", near_one(), times
            memory = [(n, r["peak_bytes"]) for n, r in found if r["peak_bytes"] is not None]
            yield "growth", f"{variant}, {work}: exponent of memory {span}", at_most(1 + EXPONENT), exponent(memory)
