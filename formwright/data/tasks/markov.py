"""Markov sources of order k, with and without tokens of several symbols (Rajaraman et al., "Toward a Theory of
Tokenization in LLMs", arXiv 2404.08335, 2024; Makkuva et al., "Attention with Markov", arXiv 2402.04161, 2024).

law="switching"   x_t differs from x_(t-k) with probability `switch` (uniform over the other symbols), whatever the k-1
                  symbols between: single symbols are uniform, and a model that hasn't found x_(t-k) stays at the
                  unigram's log2 S bits
law="random"      one distribution for each context of k symbols, drawn from a Dirichlet law with all parameters
                  `concentration` (the table numbered `table`)
law="dirichlet"   such a table drawn anew for each row, which begins with k uniform symbols: the chain is to be learned
                  in context (Edelman et al., "The Evolution of Statistical Induction Heads", arXiv 2402.11004, 2024).
                  Contexts counted so far, with `concentration` added, are the best there is

With merges=m, strings are written in S + m tokens of a byte-pair dictionary learned from the source: with enough of
them, even a unigram of tokens comes near the entropy rate. The score is the cross-entropy in bits for each symbol (not
token), so that all tokenisations are measured alike; the entropy rate is its floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task
from formwright.data.tasks.merges import Pairs, encode, learn, spelled

if TYPE_CHECKING:
    from torch import Tensor

CONTEXTS = 1 << 16  # at most so many; with a table for each row 1 << 10


@task
def markov(
    *,
    order: int = 2,
    symbols: int = 2,
    law: str = "switching",
    switch: float = 0.8,
    concentration: float = 0.5,
    table: int = 0,
    merges: int = 0,
    length: int = 256,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """The next token of a Markov source. inputs, targets (rows, length), all scored."""
    at_least("markov", order=(order, 1), symbols=(symbols, 2), merges=(merges, 0), length=(length, 1), table=(table, 0))
    at_least("markov", examples=(examples, 1), tests=(tests, 1))
    if symbols**order > CONTEXTS:
        raise DataError(
            f"markov: {symbols} symbols have {symbols**order} contexts of order {order}; at most {CONTEXTS}"
        )
    if law not in ("switching", "random", "dirichlet"):
        raise DataError(f"markov: law is 'switching', 'random' or 'dirichlet', not {law!r}")
    if not 0 < switch < 1 or not concentration > 0:
        raise DataError(f"markov: switch={switch} must lie between 0 and 1, and concentration={concentration} above 0")
    if law == "dirichlet":
        if merges or symbols**order > CONTEXTS >> 6:
            raise DataError(f"markov: law='dirichlet' has no merges, and at most {CONTEXTS >> 6} contexts")
        return in_context(order, symbols, concentration, length, examples, tests)
    rule = switching(order, symbols, switch) if law == "switching" else random_law(order, symbols, concentration, table)
    share = stationary(rule)
    pairs, mean = dictionary(law, order, symbols, switch, concentration, table, merges)
    held = np.array([len(token) for token in spelled(symbols, pairs)])

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = np.zeros((rows, 0), dtype=np.int64)
        wanted = length + 1 if not pairs else round(1.15 * mean * length) + 4 * int(held.max())
        while True:  # until each row has its tokens, those at its cut end left out
            more = walk(rng, rows, wanted, rule, share, drawn[:, -order:])
            drawn = np.concatenate((drawn, more), axis=1)
            tokens, counts = encode(drawn, symbols, pairs)
            if counts.min() > length + (2 if pairs else 0):
                return tokens[:, :length], tokens[:, 1 : length + 1]
            wanted = drawn.shape[1] // 4 + 1

    def baselines(x: np.ndarray, y: np.ndarray, tested_x: np.ndarray, tested_y: np.ndarray) -> dict[str, float]:
        alone = share.reshape(-1, symbols).sum(0)
        scores = {"one distribution of symbols": -float((alone * np.log2(alone)).sum())}
        scores |= {"one distribution of tokens": unigram_bits(y, tested_y, held)} if pairs else {}
        return scores | {"the entropy rate": entropy_rate(rule, share)}

    return _in_bits(make, baselines, held, length=length, examples=examples, tests=tests)


def in_context(order: int, symbols: int, concentration: float, length: int, examples: int, tests: int) -> Task:
    """The task of law="dirichlet"."""
    held = np.ones(symbols, dtype=np.int64)

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        rules = rng.dirichlet(np.full(symbols, concentration), size=(rows, symbols**order))
        out, row = rng.integers(0, symbols, size=(rows, length + 1)), np.arange(rows)
        bounds = np.cumsum(rules, axis=2)[:, :, :-1]
        for t in range(order, length + 1):
            out[:, t] = (rng.random(rows)[:, None] >= bounds[row, number(out[:, t - order : t], symbols)]).sum(1)
        return out[:, :-1], out[:, 1:]

    def baselines(x: np.ndarray, y: np.ndarray, tested_x: np.ndarray, tested_y: np.ndarray) -> dict[str, float]:
        rows = np.append(tested_x[:, :1], tested_y, axis=1)
        return {
            "one distribution of symbols": unigram_bits(y, tested_y, held),
            "symbols counted so far": counted_bits(rows, 0, symbols, 1.0),
            "contexts counted so far": counted_bits(rows, order, symbols, concentration),
        }

    return _in_bits(make, baselines, held, length=length, examples=examples, tests=tests)


def _in_bits(make: Callable, baselines: Callable, held: np.ndarray, **sizes: int) -> Task:
    """The task of predicting tokens that hold so many symbols each."""
    facts = {"vocab": len(held), "length": sizes.pop("length")}
    return Task(
        make,
        facts,
        metric="bits_per_symbol",
        lower_is_better=True,
        unit="bits per symbol",
        baselines=baselines,
        score=bits_per_symbol(held),
        **sizes,
    )


def number(context: np.ndarray, symbols: int) -> np.ndarray:
    """The number of each context (rows, k), its oldest symbol the highest digit."""
    return context @ symbols ** np.arange(context.shape[1] - 1, -1, -1)


def counted_bits(rows: np.ndarray, order: int, symbols: int, added: float) -> float:
    """Bits for each symbol but the first of rows (R, N), from how often each followed its context so far, `added` to
    all; symbols without a whole context are uniform."""
    row, times = np.arange(len(rows)), np.full((len(rows), symbols**order, symbols), added)
    bits = 0.0
    for t in range(rows.shape[1]):
        share = np.full(len(rows), 1 / symbols)
        if t >= order:
            context, now = number(rows[:, t - order : t], symbols), rows[:, t]
            share = times[row, context, now] / times[row, context].sum(1)
            times[row, context, now] += 1
        bits -= np.log2(share).sum() if t else 0.0
    return float(bits / (len(rows) * (rows.shape[1] - 1)))


def switching(order: int, symbols: int, switch: float) -> np.ndarray:
    """(contexts, S) probabilities of the next symbol. A context's number has its oldest symbol as highest digit."""
    oldest = np.arange(symbols**order) // symbols ** (order - 1)
    same = oldest[:, None] == np.arange(symbols)
    return np.where(same, 1 - switch, switch / (symbols - 1))


def random_law(order: int, symbols: int, concentration: float, table: int) -> np.ndarray:
    """(contexts, S) probabilities drawn from the Dirichlet law, the same for the same options everywhere."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([order, symbols, table])))
    return rng.dirichlet(np.full(symbols, concentration), size=symbols**order)


def stationary(rule: np.ndarray) -> np.ndarray:
    """(contexts,) the share of each context in the long run, started from all alike."""
    contexts, symbols = rule.shape
    share = np.full(contexts, 1 / contexts)
    for _ in range(10_000):
        after = (share[:, None] * rule).reshape(symbols, contexts // symbols, symbols).sum(0).ravel()
        mixed = (share + after) / 2  # a cycle would never settle by itself
        if np.abs(mixed - share).max() < 1e-15:
            break
        share = mixed
    return share / share.sum()


def entropy_rate(rule: np.ndarray, share: np.ndarray) -> float:
    """Bits for each symbol, its whole past known."""
    return -float((share[:, None] * rule * np.log2(np.maximum(rule, 1e-300))).sum())


def walk(
    rng: np.random.Generator, rows: int, steps: int, rule: np.ndarray, share: np.ndarray, past: np.ndarray
) -> np.ndarray:
    """(rows, steps) further symbols after `past` (rows, order), or from the long run's law where that is empty."""
    contexts, symbols = rule.shape
    order = round(math.log(contexts, symbols))
    out = np.empty((rows, steps), dtype=np.int64)
    done = 0
    if past.shape[1] == order:
        context = number(past, symbols)
    else:
        context = np.minimum(np.searchsorted(np.cumsum(share), rng.random(rows), side="right"), contexts - 1)
        done = min(order, steps)
        out[:, :done] = (context[:, None] // symbols ** np.arange(order - 1, -1, -1) % symbols)[:, :done]
    bounds = np.cumsum(rule, axis=1)[:, :-1]
    for t in range(done, steps):
        out[:, t] = (rng.random(rows)[:, None] >= bounds[context]).sum(1)
        context = (context * symbols + out[:, t]) % contexts
    return out


@lru_cache
def dictionary(
    law: str, order: int, symbols: int, switch: float, concentration: float, table: int, merges: int
) -> tuple[Pairs, float]:
    """The merges learned from 100 strings of 2,000 symbols of a source, and how many symbols a token then holds."""
    if not merges:
        return [], 1.0
    rule = switching(order, symbols, switch) if law == "switching" else random_law(order, symbols, concentration, table)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([order, symbols, table, merges])))
    strings = walk(rng, 100, 2000, rule, stationary(rule), np.zeros((100, 0), dtype=np.int64))
    pairs = learn(strings, symbols, merges)
    return pairs, strings.size / float(encode(strings, symbols, pairs)[1].sum())


def unigram_bits(seen: np.ndarray, tested: np.ndarray, held: np.ndarray) -> float:
    """Bits for each symbol under the tokens' shares in `seen` (each counted once more than it occurs)."""
    times = np.bincount(seen.ravel(), minlength=len(held)) + 1
    bits = -np.log2(times / times.sum())
    return float(bits[tested].sum() / held[tested].sum())


def bits_per_symbol(held: np.ndarray) -> Callable[[Tensor, Tensor, Tensor], dict[str, tuple[float, int]]]:
    """The score, for tokens that hold so many symbols each."""

    def score(outputs: Tensor, inputs: Tensor, targets: Tensor) -> dict[str, tuple[float, int]]:
        import torch
        from torch.nn import functional

        total = functional.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten(), reduction="sum")
        number = torch.as_tensor(held, device=targets.device)[targets].sum()
        return {"bits_per_symbol": (float(total.detach()) / math.log(2), int(number))}

    return score
