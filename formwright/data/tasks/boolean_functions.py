"""Boolean functions in context: x in {-1, 1}^dim, y a function of x drawn anew for each row.

Bhattamishra et al., "Understanding In-Context Learning in Transformers and LLMs by Learning to Learn Discrete
Functions", arXiv 2310.03016, 2023. The tokens are x_1, (y_1, 0, ...), x_2, ...; at every x the class of y is wanted,
1 where y = 1, 0 where y = -1. A ternary w is 0 with probability 1 - 2q, 1 and -1 with q each; w_i = 1 is the literal
x_i, w_i = -1 its negation. x is uniform but for a share of examples, in which the literals are set so that y is known.

    conjunctions         all literals hold; q = .15; in 30% of the examples they are made to
    disjunctions         one literal holds at least; q = .15; in 30% none is made to hold
    sparse_disjunctions  of 4 variables, none negated; in 30% none is made to hold
    dnf, cnf             one of 3 conjunctions holds; all of 3 disjunctions hold; q = .1; in 35% (dnf) the first of the
                         three is made to hold, in 30% (cnf) not to
    parities             an odd number of the chosen variables is 1; each is chosen with probability 1/2
    sparse_parities      likewise of 2 variables
    majority             sum_i w_i x_i > 1/2, w_i = 1 with probability .3, else 0
    thresholds           sum_i w_i x_i > b + 1/2, q = .15, b uniform over -3..2
    halfspaces           sum_i w_i x_i > 1/2, w_i uniform over -3..3

teaching=True begins with examples that tell the function from all others of its family. For conjunctions all literals
hold twice, the other variables first at -1, then at 1; then each literal alone fails, the other variables at -1. For
disjunctions no literal holds twice, then each alone does. For parities each variable alone is 1. Behind them examples
are drawn as ever, for conjunctions and disjunctions with 40% set.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, draw_distinct, in_context, task
from formwright.data.tasks.boolean_learners import learners

TERNARY = {"conjunctions": 0.15, "disjunctions": 0.15, "thresholds": 0.15, "dnf": 0.1, "cnf": 0.1}
SPARSE = {"sparse_disjunctions": 4, "sparse_parities": 2}
SET = {"conjunctions": 0.3, "disjunctions": 0.3, "sparse_disjunctions": 0.3, "dnf": 0.35, "cnf": 0.3}
SET_WHEN_TAUGHT = 0.4
CLAUSES = 3
TAUGHT = ("conjunctions", "disjunctions", "parities", "sparse_parities")
FAMILIES = (*TERNARY, *SPARSE, "parities", "majority", "halfspaces")


@task
def boolean_functions(
    *,
    family: str = "conjunctions",
    dim: int = 28,
    points: int = 70,
    relevant: int | None = None,
    teaching: bool = False,
    points_tested: int | None = None,
    apart: bool = False,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """The values of a Boolean function, after 0, 1, ... examples of it. inputs (rows, 2 points, dim), one channel more
    with y `apart`; targets (rows, 2 points), -100 at each y. `relevant`: the variables of a sparse function."""
    name = "boolean_functions"
    at_least(name, dim=(dim, 1), points=(points, 1), examples=(examples, 1), tests=(tests, 1))
    if family not in FAMILIES:
        raise DataError(f"{name}: family is one of {', '.join(sorted(FAMILIES))}, not {family!r}")
    for option, value in (("teaching", teaching), ("apart", apart)):
        if not isinstance(value, bool):
            raise DataError(f"{name}: {option} is True or False, not {value!r}")
    if teaching and family not in TAUGHT:
        raise DataError(f"{name}: teaching sequences are known for {', '.join(TAUGHT)}, not for {family}")
    if relevant is not None and family not in SPARSE:
        raise DataError(f"{name}: relevant is for {' and '.join(SPARSE)}; leave it out for {family}")
    size = SPARSE.get(family, 1) if relevant is None else relevant
    at_least(name, relevant=(size, 1), dim=(dim, size))
    tested = points if points_tested is None else points_tested
    needed = 0 if not teaching else dim + 2 if "junctions" in family else dim
    at_least(name, points=(points, needed), points_tested=(tested, max(1, needed)))

    def maker(count: int):
        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            w, bound = draw_functions(rng, rows, family, dim, size)
            x = draw_points(rng, w, family, count, teaching)
            y = values(family, w, bound, x)
            targets = np.full((rows, 2 * count), -100, dtype=np.int64)
            targets[:, 0::2] = y
            return in_context.interleaved(x, 2.0 * y - 1, apart), targets

        return make

    def judged(inputs, targets, inputs_tested, targets_tested) -> dict[str, float]:
        x, _ = in_context.parted(inputs_tested, apart)
        y = targets_tested[:, 0::2]
        return {name: float((predict(x, y) == y).mean()) for name, predict in learners(family, dim, size).items()}

    return Task(
        maker(points),
        {"variates": dim + apart, "vocab": 2, "length": 2 * max(points, tested)},
        embed="vectors",
        examples=examples,
        tests=tests,
        make_test=maker(tested) if tested != points else None,
        harder="its prompts have another number of points",
        chance=0.5,
        baselines=judged,
    )


def draw_functions(
    rng: np.random.Generator, rows: int, family: str, dim: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """w (rows, clauses, dim), and the bounds that sums of halfspaces and the like are compared with, (rows, 1)."""
    clauses = CLAUSES if family in ("dnf", "cnf") else 1
    shape, bound = (rows, clauses, dim), np.full((rows, 1), 0.5)
    if family in TERNARY:
        share = TERNARY[family]
        drawn = rng.random(shape)
        w = np.where(drawn < share, 1, np.where(drawn < 2 * share, -1, 0))
    elif family in SPARSE:
        w = np.zeros(shape, dtype=np.int64)
        np.put_along_axis(w[:, 0], draw_distinct(rng, rows, size, dim), 1, axis=1)
    elif family == "halfspaces":
        w = rng.integers(-3, 4, size=shape)
    else:
        w = (rng.random(shape) < (0.5 if family == "parities" else 0.3)).astype(np.int64)
    if family == "thresholds":
        bound = rng.integers(-3, 3, size=(rows, 1)) + 0.5
    return w, bound


def draw_points(rng: np.random.Generator, w: np.ndarray, family: str, points: int, teaching: bool) -> np.ndarray:
    """x (rows, points, dim) of functions with literals w."""
    x = 2 * rng.integers(0, 2, size=(len(w), points, w.shape[2])) - 1
    if family in SET:
        sign = 1 if family in ("conjunctions", "dnf") else -1
        chosen = rng.random((len(w), points, 1)) < (SET_WHEN_TAUGHT if teaching else SET[family])
        literals = w[:, :1]
        x = np.where(chosen & (literals != 0), sign * literals, x)
    if teaching:
        lesson, number = lessons(w[:, 0], family)
        lesson = np.pad(lesson, ((0, 0), (0, points - lesson.shape[1]), (0, 0)))
        x = np.where(np.arange(points)[:, None] < number[:, None, None], lesson, x)
    return x


def lessons(w: np.ndarray, family: str) -> tuple[np.ndarray, np.ndarray]:
    """The examples that tell w (rows, dim) from all others, (rows, most, dim), and how many they are, (rows,)."""
    rows, dim = w.shape
    if "junctions" not in family:
        return np.broadcast_to(2 * np.eye(dim, dtype=np.int64) - 1, (rows, dim, dim)), np.full(rows, dim)
    sign = 1 if family == "conjunctions" else -1
    positive, negative = w > 0, w < 0
    turn = np.where(positive, np.cumsum(positive, 1), np.cumsum(negative, 1) + positive.sum(1, keepdims=True)) + 1
    turned = (np.arange(dim + 2)[:, None] == turn[:, None]) & (w != 0)[:, None]
    others = np.where(np.arange(dim + 2) == 1, 1, -1)[:, None]
    lesson = np.where((w != 0)[:, None], np.where(turned, -sign, sign) * w[:, None], others)
    return lesson, 2 + (w != 0).sum(1)


def values(family: str, w: np.ndarray, bound: np.ndarray, x: np.ndarray) -> np.ndarray:
    """y (rows, points), 0 or 1, of the functions at x (rows, points, dim)."""
    sums = np.matmul(x.astype(np.float32), w.astype(np.float32).transpose(0, 2, 1))
    size = np.abs(w).sum(-1)[:, None]
    kind: dict[str, Callable[[], np.ndarray]] = {
        "conjunctions": lambda: (sums == size).any(-1),
        "dnf": lambda: (sums == size).any(-1),
        "disjunctions": lambda: (sums > -size).all(-1),
        "sparse_disjunctions": lambda: (sums > -size).all(-1),
        "cnf": lambda: (sums > -size).all(-1),
        "parities": lambda: (sums + size) % 4 == 2,
        "sparse_parities": lambda: (sums + size) % 4 == 2,
    }
    if family not in kind:
        return (sums[..., 0] > bound).astype(np.int64)
    found = kind[family]()
    return (found[..., 0] if "parities" in family else found).astype(np.int64)
