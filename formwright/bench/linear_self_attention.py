"""Linear self-attention on linear regression in context: its closed form, training that finds it, and its brittleness.

    prompt    e_i = (x_i, y_i), i = 1..N, and e_q = (x_q, 0);  x ~ N(0, C), y = <w, x> + noise,  w ~ N(0, I)
    layer     y_q = [W_PV sum_j e_j (e_j^T W_KQ e_q)]_last / N
    optimum   y_q = x_q^T A (1/N) sum_i y_i x_i,   A^-1 = Gamma = (1 + 1/N) C + (tr C + noise^2) / N I

Gradient flow on the mean squared error reaches this global minimum. With M examples of covariance C' and a query of
covariance Q its error, E (y_q - <w, x_q>)^2, is

    tr Q - 2 tr(A C' Q) + tr(A [(1 + 1/M) C'^2 + (tr C' + noise^2) / M C'] A Q)

which falls to that of the best linear predictor as N and M grow, whatever w and Q are, but for C' = C alone: else A C'
stays away from I. Trained Transformers Learn Linear Models In-Context, arXiv 2306.09927, 2023 (there without noise).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ISOTROPIC_SHIFTS = (0.5, 1.0, 2.0, 3.0)


def optimum(covariance: Tensor, points: int, noise: float = 0.0) -> Tensor:
    """A (d, d), the best that the layer can do on prompts of `points` examples with covariance C (d, d)."""
    one = torch.eye(len(covariance), dtype=covariance.dtype)
    gamma = (1 + 1 / points) * covariance + (covariance.trace() + noise**2) / points * one
    return torch.linalg.inv(gamma)


def expected_error(
    a: Tensor, covariance: Tensor, points: int, *, noise: float = 0.0, query: Tensor | None = None
) -> float:
    """The mean squared error of x_q^T A (1/M) sum y_i x_i over prompts of M = `points` examples with this covariance,
    and queries of covariance `query` (the examples' without it). The query's own noise is not counted."""
    query = covariance if query is None else query
    spread = (covariance.trace() + noise**2) / points * covariance
    second = (1 + 1 / points) * covariance @ covariance + spread
    return float(query.trace() - 2 * (a @ covariance @ query).trace() + (a @ second @ a.T @ query).trace())


def draw(
    rows: int,
    points: int,
    covariance: Tensor,
    generator: torch.Generator,
    *,
    noise: float = 0.0,
    query: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (rows, points, d), y (rows, points), the queries x_q (rows, d) and the values <w, x_q> (rows,)."""
    dim, dtype = len(covariance), covariance.dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    w = normal(rows, dim)
    x = normal(rows, points, dim) @ torch.linalg.cholesky(covariance).T
    asked = normal(rows, dim) @ torch.linalg.cholesky(covariance if query is None else query).T
    y = torch.einsum("rnd,rd->rn", x, w) + noise * normal(rows, points)
    return x, y, asked, (asked * w).sum(-1)


class LinearSelfAttention(nn.Module):
    """One layer without softmax, its products of weights merged, W_PV and W_KQ (d + 1, d + 1), all free.

    It begins as in the paper: W_PV nothing but `size` for y, W_KQ nothing but size T T^T for x, T random, |T T^T| = 1.
    From small random weights throughout training may stay at a saddle where A is of rank one."""

    def __init__(self, dim: int, size: float = 0.3):
        super().__init__()
        pv, kq, t = torch.zeros(dim + 1, dim + 1), torch.zeros(dim + 1, dim + 1), torch.randn(dim, dim)
        pv[-1, -1] = size
        kq[:-1, :-1] = size * t @ t.T / (t @ t.T).norm()
        self.pv, self.kq = nn.Parameter(pv), nn.Parameter(kq)

    @classmethod
    def at_optimum(cls, covariance: Tensor, points: int, noise: float = 0.0) -> LinearSelfAttention:
        """The layer at the global minimum: W_PV and W_KQ weigh as much."""
        layer, a = cls(len(covariance)).to(covariance.dtype), optimum(covariance, points, noise)
        size = a.square().sum() ** 0.25
        with torch.no_grad():
            layer.pv.zero_()[-1, -1] = size
            layer.kq.zero_()[:-1, :-1] = a / size
        return layer

    def forward(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """x (B, N, d), y (B, N), x_q (B, d) -> y_q (B,)."""
        examples = torch.cat([x, y[..., None]], -1)
        query = torch.cat([asked, asked.new_zeros(len(asked), 1)], -1)
        tokens = torch.cat([examples, query[:, None]], 1)
        scores = torch.einsum("bnd,de,be->bn", tokens, self.kq, query)
        return torch.einsum("bn,bnd,d->b", scores, tokens, self.pv[-1]) / x.shape[1]


def train(
    covariance: Tensor,
    points: int,
    *,
    noise: float = 0.0,
    steps: int = 1000,
    rows: int = 256,
    lr: float = 1e-2,
    seed: int = 0,
) -> LinearSelfAttention:
    """A layer trained by Adam on fresh prompts, its learning rate falling to 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = LinearSelfAttention(len(covariance)).to(covariance.dtype)
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, y, asked, value = draw(rows, points, covariance, generator, noise=noise)
        loss = (layer(x, y, asked) - value).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return layer


def error(
    layer: nn.Module,
    covariance: Tensor,
    points: int,
    *,
    noise: float = 0.0,
    query: Tensor | None = None,
    rows: int = 20_000,
    seed: int = 1,
) -> float:
    """The mean squared error of a layer on fresh prompts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        x, y, asked, value = draw(rows, points, covariance, generator, noise=noise, query=query)
        return float((layer(x, y, asked) - value).square().mean())


def brittleness(
    layer: nn.Module, covariance: Tensor, points: int, *, points_tested: int | None = None, noise: float = 0.0
) -> list[dict[str, Any]]:
    """What shifts between training and test cost: rows {shift, trained, formula}, the layer's errors and those that the
    optimum is foretold, over the error of always saying 0. Examples and query are stretched (the covariate shift that
    breaks the layer), or the query alone (which it bears)."""
    a, count = optimum(covariance, points, noise), points_tested or points
    rows = []
    for factor in ISOTROPIC_SHIFTS:
        for what in ("all x", "the query"):
            shifted = factor**2 * covariance
            examples = shifted if what == "all x" else covariance
            zero = float(shifted.trace())
            given = {"noise": noise, "query": shifted}
            rows.append(
                {
                    "shift": f"{what} times {factor:g}",
                    "trained": error(layer, examples, count, **given) / zero,
                    "formula": expected_error(a, examples, count, **given) / zero,
                }
            )
    return rows
