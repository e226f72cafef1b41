"""Real data that are at hand, in the shapes of Long Range Arena's tasks; data/standins.py says what they hold."""

from __future__ import annotations

from formwright.data.tasks import Opener, at_least, task


@task
def source_topic(*, length: int = 512, classes: int = 5) -> Opener:
    """Which package of Python's library a piece of source code comes from. inputs (rows, length), targets (rows,)."""
    at_least("source_topic", length=(length, 16), classes=(classes, 2))
    from formwright.data import standins

    return lambda name, seed, cache: standins.topics(name, length, classes, seed, cache)


@task
def source_pairs(*, length: int = 512, examples: int = 20_000, tests: int = 2_000) -> Opener:
    """Whether two pieces of source code are of one file. inputs (rows, 2 length + 1), targets (rows,)."""
    at_least("source_pairs", length=(length, 16), examples=(examples, 4), tests=(tests, 4))
    from formwright.data import standins

    return lambda name, seed, cache: standins.pairs(name, length, examples, tests, seed, cache)


@task
def digits_sequence() -> Opener:
    """Handwritten digits of 8 x 8 pixels, pixel by pixel. inputs (rows, 64), targets (rows,)."""
    from formwright.data import standins

    return lambda name, seed, cache: standins.digits(name, seed, cache)
