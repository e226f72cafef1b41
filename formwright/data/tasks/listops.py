"""ListOps: nested lists of digits under MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10).

A node at a depth below `depth` is an operator with probability 1/4, the root too, else a digit; an operator has 2 to
`arguments` arguments. Expressions are kept whose tokens (operators, digits, closing marks) number between `shortest`
and `longest`, both left out. Tokens: 0 is padding, digit d is d + 1, then MIN, MAX, MED, SM and the closing mark.
Nangia and Bowman, "ListOps: A Diagnostic Dataset for Latent Tree Learning", arXiv 1804.06028, 2018; sizes as in Tay et
al., "Long Range Arena", arXiv 2011.04006, 2020.

Few trees are as large as wanted. So first only the numbers of nodes, operators and arguments of each level are drawn,
for many trees at once; given those of a tree that is kept, which nodes are operators and in what order the numbers of
arguments stand is uniform, so the tree is drawn from just the law above. All trees are then laid out and evaluated
level by level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, task

OPERATOR = 0.25
DIGITS = 10
MIN, MAX, MED, SM = range(4)
CLOSE = 1 + DIGITS + 4
LEAST_KEPT = 2e-5  # share of trees that must fit the bounds


@dataclass
class Level:
    """All nodes of one depth, tree after tree: tree (n,), operator (n,) or -1 for digits, arguments (n,), digit (n,),
    and parent (n,) in the level above."""

    tree: np.ndarray
    operator: np.ndarray
    arguments: np.ndarray
    digit: np.ndarray
    parent: np.ndarray


@task
def listops(
    *,
    shortest: int = 500,
    longest: int = 2000,
    depth: int = 10,
    arguments: int = 10,
    examples: int = 96_000,
    tests: int = 2_000,
) -> Task:
    """The value of a nested list. inputs (rows, longest), targets (rows,)."""
    at_least("listops", shortest=(shortest, 0), longest=(longest, shortest + 2), depth=(depth, 2))
    at_least("listops", arguments=(arguments, 2), examples=(examples, 1), tests=(tests, 1))
    bounds = shortest, longest
    if _kept(np.random.default_rng(0), 400_000, bounds, depth, arguments)[1] < LEAST_KEPT * 400_000:
        raise DataError(
            f"listops: hardly any list of depth {depth} and up to {arguments} arguments has more than {shortest} and "
            f"fewer than {longest} tokens; ask for shorter ones, or allow more depth"
        )

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        counts = draw_counts(rng, rows, bounds, depth, arguments)
        levels = draw_trees(rng, counts, arguments)
        return lay_out(levels, rows, longest), evaluate(levels)

    facts = {"vocab": CLOSE + 1, "length": longest, "classes": DIGITS}
    return Task(
        make,
        facts,
        head="classify",
        examples=examples,
        tests=tests,
        padding=0,
        chance=1 / DIGITS,
        baselines=root_alone,
    )


def root_alone(
    inputs: np.ndarray, targets: np.ndarray, inputs_tested: np.ndarray, targets_tested: np.ndarray
) -> dict[str, float]:
    """The score of the answer that was commonest in training under the same root operator, or digit."""
    commonest = np.zeros((CLOSE + 1, DIGITS), dtype=np.int64)
    np.add.at(commonest, (inputs[:, 0], targets), 1)
    return {"the root operator alone": float((commonest.argmax(1)[inputs_tested[:, 0]] == targets_tested).mean())}


def draw_counts(
    rng: np.random.Generator, rows: int, bounds: tuple[int, int], depth: int, arguments: int
) -> list[np.ndarray]:
    """For each level, (rows, arguments - 1): how many operators of each tree have 2, 3, ... arguments."""
    found: list[list[np.ndarray]] = []
    have, tried = 0, 4 * rows
    while have < rows:
        kept, number = _kept(rng, tried, bounds, depth, arguments)
        found.append(kept)
        have += number
        tried = min(2 * tried, 400_000)
    return [np.concatenate([kept[d] for kept in found])[:rows] for d in range(depth)]


def _kept(
    rng: np.random.Generator, tried: int, bounds: tuple[int, int], depth: int, arguments: int
) -> tuple[list[np.ndarray], int]:
    """The counts of those of `tried` trees whose size fits, level by level, and how many they are."""
    sizes = np.arange(2, arguments + 1)
    share = np.full(arguments - 1, 1 / (arguments - 1))
    nodes, tokens = np.ones(tried, dtype=np.int64), np.zeros(tried, dtype=np.int64)
    alive, levels, ended = np.arange(tried), [], np.zeros(0, dtype=np.int64)
    for d in range(depth):
        operators = rng.binomial(nodes, OPERATOR) if d < depth - 1 else np.zeros(len(nodes), dtype=np.int64)
        counts = rng.multinomial(operators, share)
        tokens = tokens + nodes + operators
        nodes = counts @ sizes
        levels.append((alive, counts))
        # A tree that has ended, or is too large already, is judged; the others go on.
        on = (nodes > 0) & (tokens + nodes < bounds[1])
        done = (nodes == 0) & (bounds[0] < tokens) & (tokens < bounds[1])
        ended = np.concatenate([ended, alive[done]])
        alive, nodes, tokens = alive[on], nodes[on], tokens[on]
    ended.sort()
    out = []
    for who, counts in levels:
        place = np.searchsorted(who, ended)
        place[place == len(who)] = 0
        there = who[place] == ended if len(who) else np.zeros(len(ended), dtype=bool)
        out.append(np.where(there[:, None], counts[place] if len(who) else 0, 0))
    return out, len(ended)


def draw_trees(rng: np.random.Generator, counts: list[np.ndarray], arguments: int) -> list[Level]:
    """Trees with these numbers of operators, level by level."""
    rows = len(counts[0])
    tree, parent, levels = np.arange(rows), np.zeros(rows, dtype=np.int64), []
    for wanted in counts:
        if not len(tree):
            break
        held, number = np.full(len(tree), -1), np.zeros(len(tree), dtype=np.int64)
        operators = wanted.sum(1)
        if operators.any():
            chosen = draw_places(rng, np.bincount(tree, minlength=rows), operators)
            held[chosen] = rng.integers(0, 4, size=len(chosen))
            number[chosen] = np.repeat(np.tile(np.arange(2, arguments + 1), rows), wanted.ravel())
        digit = rng.integers(0, DIGITS, size=len(tree))
        levels.append(Level(tree, held, number, digit, parent))
        parent = np.repeat(np.arange(len(tree)), number)
        tree = tree[parent]
    return levels


def draw_places(rng: np.random.Generator, sizes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of groups of these sizes, one behind the other, so many distinct places each (at most its size), in random order
    within a group. All draw a place; of several that drew the same one keeps it, the others draw anew."""
    group = np.repeat(np.arange(len(sizes)), wanted)
    first = (np.cumsum(sizes) - sizes)[group]
    size = sizes[group]
    owner = np.full(int(sizes.sum()), -1, dtype=np.int64)
    places = np.zeros(len(group), dtype=np.int64)
    rest = np.arange(len(group))
    while len(rest):
        drawn = first[rest] + (rng.random(len(rest)) * size[rest]).astype(np.int64)
        free = owner[drawn] < 0
        owner[drawn[free]] = rest[free]
        places[rest] = drawn
        rest = rest[owner[drawn] != rest]
    return places


def lay_out(levels: list[Level], rows: int, width: int) -> np.ndarray:
    """(rows, width) tokens: an operator, its arguments in turn, the closing mark."""
    lengths = [np.where(level.operator >= 0, 2, 1) for level in levels]
    for below in range(len(levels) - 1, 0, -1):
        parent = levels[below].parent
        lengths[below - 1] += np.bincount(parent, lengths[below], len(lengths[below - 1])).astype(np.int64)
    out = np.zeros(rows * width, dtype=np.uint8)
    place = np.arange(rows) * width
    for d, level in enumerate(levels):
        if d:
            before = np.cumsum(lengths[d]) - lengths[d]
            number = levels[d - 1].arguments
            # A parent's first argument stands right after it, the others after those before them.
            since = np.where(number > 0, place + 1 - np.append(before, 0)[np.cumsum(number) - number], 0)
            place = since[level.parent] + before
        operator = level.operator >= 0
        out[place] = np.where(operator, 1 + DIGITS + level.operator, 1 + level.digit)
        ends = place + lengths[d] - 1
        out[ends[operator]] = CLOSE
    return out.reshape(rows, width)


def evaluate(levels: list[Level]) -> np.ndarray:
    """(rows,) values of all trees."""
    value = levels[-1].digit
    for d in range(len(levels) - 2, -1, -1):
        level, parent = levels[d], levels[d + 1].parent
        own = np.flatnonzero(level.operator >= 0)
        place = np.zeros(len(level.tree), dtype=np.int64)
        place[own] = np.arange(len(own)) * DIGITS
        counts = np.bincount(place[parent] + value, minlength=len(own) * DIGITS).reshape(-1, DIGITS)
        upto = counts.cumsum(1)
        number = upto[:, -1:]
        # The digit of rank r (from 0) is the number of digits that at most r arguments reach.
        least, low, high, most = ((upto <= r).sum(1) for r in (0, (number - 1) // 2, number // 2, number - 1))
        choices = [least, most, (low + high) // 2, counts @ np.arange(DIGITS) % 10]
        value = level.digit.copy()
        value[own] = np.choose(level.operator[own], choices)
    return value
