"""Long Range Arena's public files, `lra_listops(folder='...')` and the like; data/lra.py says what they hold."""

from __future__ import annotations

from formwright.data.tasks import Opener, at_least, task


@task
def lra_listops(*, folder: str | None = None, length: int = 2000) -> Opener:
    """The ListOps of Long Range Arena, from its files. inputs (rows, length), targets (rows,)."""
    at_least("lra_listops", length=(length, 4))
    from formwright.data import lra

    return lambda name, seed, cache: lra.listops(name, folder, length, cache)


@task
def lra_text(*, folder: str | None = None, length: int = 4096) -> Opener:
    """Film reviews (IMDB), byte by byte: for or against? inputs (rows, length), targets (rows,)."""
    at_least("lra_text", length=(length, 4))
    from formwright.data import lra

    return lambda name, seed, cache: lra.text(name, folder, length, cache)


@task
def lra_retrieval(*, folder: str | None = None, length: int = 4000) -> Opener:
    """Pairs of papers (AAN), byte by byte: does one cite the other? inputs (rows, 2 length + 1), targets (rows,)."""
    at_least("lra_retrieval", length=(length, 4))
    from formwright.data import lra

    return lambda name, seed, cache: lra.retrieval(name, folder, length, cache)


@task
def lra_image(*, folder: str | None = None) -> Opener:
    """Photos of ten kinds (CIFAR-10), grey, pixel by pixel. inputs (rows, 1024), targets (rows,)."""
    from formwright.data import lra

    return lambda name, seed, cache: lra.image(name, folder, cache)


@task
def lra_pathfinder(*, folder: str | None = None, size: int = 32, level: str = "hard") -> Opener:
    """The published pictures of pathfinder, pixel by pixel. inputs (rows, size size), targets (rows,)."""
    at_least("lra_pathfinder", size=(size, 8))
    from formwright.data import lra

    return lambda name, seed, cache: lra.pathfinder(name, folder, size, level, cache)
