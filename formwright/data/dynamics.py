"""Chaotic systems integrated step by step: Lorenz-96 and Kuramoto-Sivashinsky, as Vlachas et al. set them up in
"Backpropagation Algorithms and Reservoir Computing in Recurrent Neural Networks for the Forecasting of Complex
Spatiotemporal Dynamics", arXiv 1910.05266, 2019.

    Lorenz-96     dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F            indices modulo the number of variables
    KS            u_t = -u u_x - u_xx - u_xxxx                               periodic in x

Lorenz-96 is stepped by the classical Runge-Kutta method, Kuramoto-Sivashinsky in Fourier space by ETDRK4, its
coefficients as means over a circle of 32 complex points: Kassam and Trefethen, "Fourth-Order Time-Stepping for Stiff
PDEs", SIAM J. Sci. Comput. 26(4), 2005.

Lorenz-96 needs sums and products of single numbers alone, so a trajectory is the same to the last bit on every machine.
Fourier transforms are not: where they round otherwise, Kuramoto-Sivashinsky gives another stretch of the same chaos.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from formwright.data import cache as caching
from formwright.data.source import Source

Opener = Callable[[str, int, str | None], Source]


def halves(samples: int) -> tuple[int, int, int]:
    """Rows where the parts end: a first half to train on, its last tenth kept for validation, a second to test on."""
    half = samples // 2
    return half - half // 10, half, samples


def trajectory(
    made_of: dict[str, str | float],
    run: Callable[[np.random.Generator], np.ndarray],
    *,
    bounds: tuple[int, int, int],
    input_length: int,
    horizon: int,
    names: list[str],
    notes: list[str],
) -> Opener:
    """One long run of a system, generator -> (rows, V), as what a registered task gives: (name, seed, cache) -> a
    Source of its windows. It is integrated once, and kept in the cache folder by what it is made of and the seed."""

    def open_it(name: str, seed: int, cache: str | None) -> Source:
        from formwright.data.series import open_series

        definition = caching.digest("trajectory", made_of, seed)

        def build(folder: Path) -> None:
            words = [int(definition[i : i + 8], 16) for i in range(0, len(definition), 8)]
            values = run(np.random.Generator(np.random.PCG64(np.random.SeedSequence(words))))
            np.save(folder / "values.npy", values.astype(np.float32))

        values = np.load(caching.entry(cache, f"trajectory-{definition}", build) / "values.npy", mmap_mode="r")
        return open_series(
            name, values, names, notes, forecast=horizon, input_length=input_length, bounds=bounds, cache=cache
        )

    return open_it


def lorenz96_slope(x: np.ndarray, forcing: float) -> np.ndarray:
    """dx/dt of states x (..., variables)."""
    ahead, one, two = np.roll(x, -1, -1), np.roll(x, 1, -1), np.roll(x, 2, -1)
    return (ahead - two) * one - x + forcing


def run_lorenz96(
    start: np.ndarray, forcing: float, step: float, samples: int, *, every: int = 1, transient: int = 0
) -> np.ndarray:
    """From a state (..., variables), `transient` steps thrown away and then every `every`-th kept ->
    (samples, ..., variables) float64."""
    x = np.array(start, dtype=np.float64)
    number = x.shape[-1]
    at = np.arange(number)
    around = np.stack([(at + 1) % number, at - 2, at - 1]) % number
    near = np.empty((*x.shape[:-1], 3, number))
    ahead, two, one = near[..., 0, :], near[..., 1, :], near[..., 2, :]
    slopes = [np.empty_like(x) for _ in range(4)]
    place, kept = np.empty_like(x), np.empty((samples, *x.shape))

    def slope(state: np.ndarray, out: np.ndarray) -> None:
        # Each result goes to memory that is there already: at 40 numbers, making arrays costs more than filling them.
        np.take(state, around, axis=-1, out=near, mode="clip")
        np.subtract(ahead, two, out=out)
        np.multiply(out, one, out=out)
        np.subtract(out, state, out=out)
        np.add(out, forcing, out=out)

    a, b, c, d = slopes
    for moment in range(1, transient + samples * every + 1):
        slope(x, a)
        for before, here, share in ((a, b, step / 2), (b, c, step / 2), (c, d, step)):
            np.multiply(before, share, out=place)
            np.add(place, x, out=place)
            slope(place, here)
        np.add(b, c, out=b)
        np.multiply(b, 2.0, out=b)
        np.add(a, b, out=a)
        np.add(a, d, out=a)
        np.multiply(a, step / 6, out=a)
        np.add(x, a, out=x)
        if moment > transient and (moment - transient) % every == 0:
            kept[(moment - transient) // every - 1] = x
    return kept


def etdrk4(linear: np.ndarray, step: float) -> tuple[np.ndarray, ...]:
    """exp(h L), exp(h L / 2) and the four weights of ETDRK4 for a real diagonal L (K,), at the step h."""
    points = np.exp(1j * np.pi * (np.arange(1, 33) - 0.5) / 32)
    z = step * linear[:, None] + points  # an upper half circle: with L real, the lower half is its mirror image
    e = np.exp(z)
    weights = (
        (np.exp(z / 2) - 1) / z,
        (-4 - z + e * (4 - 3 * z + z**2)) / z**3,
        (2 + z + e * (z - 2)) / z**3,
        (-4 - 3 * z - z**2 + e * (4 - z)) / z**3,
    )
    return np.exp(step * linear), np.exp(step * linear / 2), *(step * w.mean(1).real for w in weights)


def run_kuramoto_sivashinsky(
    start: np.ndarray, length: float, step: float, samples: int, *, every: int = 1, transient: int = 0, points: int = 0
) -> np.ndarray:
    """From u (..., N) on N places of a circle of `length`, `transient` steps thrown away and then every `every`-th
    kept, at `points` equally spaced places (0: all N) -> (samples, ..., points) float64."""
    size = start.shape[-1]
    stride = size // points if points else 1
    wave = 2 * np.pi / length * np.arange(size // 2 + 1)
    whole, half, q, f1, f2, f3 = etdrk4(wave**2 - wave**4, step)
    factor = -0.5j * wave
    if size % 2 == 0:
        factor[-1] = 0  # the highest wave has no slope on this grid
    v = np.fft.rfft(np.asarray(start, dtype=np.float64))
    kept = np.empty((samples, *start.shape[:-1], size // stride))

    def bend(w: np.ndarray) -> np.ndarray:
        u = np.fft.irfft(w, size)
        return factor * np.fft.rfft(u * u)

    for moment in range(1, transient + samples * every + 1):
        first = bend(v)
        middle = half * v
        a = middle + q * first
        second = bend(a)
        b = middle + q * second
        third = bend(b)
        c = half * a + q * (2 * third - first)
        v = whole * v + f1 * first + 2 * f2 * (second + third) + f3 * bend(c)
        if moment > transient and (moment - transient) % every == 0:
            kept[(moment - transient) // every - 1] = np.fft.irfft(v, size)[..., ::stride]
    return kept


def lyapunov_exponent(
    advance: Callable[[np.ndarray], np.ndarray], start: np.ndarray, time: float, rounds: int, *, apart: float = 1e-8
) -> float:
    """The largest Lyapunov exponent, in units of 1/time (Benettin et al., 1980): two states, `apart` at first, are
    advanced (2, ...) -> (2, ...) by `time` and brought together again along their difference, `rounds` times; the first
    third is thrown away."""
    other = start + apart / np.sqrt(start.size)
    growth = []
    for _ in range(rounds):
        start, other = advance(np.stack([start, other]))
        difference = other - start
        distance = float(np.sqrt((difference**2).sum()))
        growth.append(np.log(distance / apart))
        other = start + difference * (apart / distance)
    return float(np.mean(growth[rounds // 3 :]) / time)
