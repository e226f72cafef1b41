"""Weighted monomials as features: phi(x) . phi(y) = sum_n w_n^2 (x . y)^n, n = 0..p.

phi are all monomials of x (K,) up to a degree p, the root of how often each stands in (x . y)^n before it, so that
there are binomial(K+p, p) = F of them; w_n^2 = 1/n! is the exponential's Taylor series. `expanded` makes them by
products, `one_by_one` by their definition; `kernel` needs none of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def features(width: int, degree: int) -> int:
    """F, the number of monomials of `width` variables up to a degree."""
    return math.comb(width + degree, degree)


def monomials(width: int, degree: int) -> tuple[list[list[int]], list[float]]:
    """The monomials of a degree as sorted variables, and the square roots of how often each is in (x . y)^degree."""
    # With each the product of factorials of how often a variable stands in it, and how often the last one does.
    chosen: list[tuple[list[int], int, int]] = [([], 1, 0)]
    for _ in range(degree):
        grown = []
        for few, repeats, run in chosen:
            first = few[-1] if few else 0
            for i in range(first, width):
                again = run + 1 if i == first else 1
                grown.append(([*few, i], repeats * again, again))
        chosen = grown
    times = math.factorial(degree)
    return [few for few, _, _ in chosen], [math.sqrt(times / repeats) for _, repeats, _ in chosen]


def one_by_one(x: Tensor, weights: Tensor) -> Tensor:
    """phi(x) of x (B,H,C,K), monomial by monomial."""
    found = []
    for n in range(weights.shape[-1]):
        for few, root in zip(*monomials(x.shape[-1], n), strict=True):
            product = torch.ones_like(x[..., 0])
            for i in few:
                product = product * x[..., i]
            found.append(weights[:, n, None] * root * product)
    return torch.stack(found, -1)


def expanded(x: Tensor, weights: Tensor) -> Tensor:
    """x (B,H,...,K), weights (H,p+1) -> its monomials (B,H,...,F), in the order of monomials."""
    weights = weights.view(weights.shape[0], *[1] * (x.ndim - 3), -1)
    found = [torch.ones_like(x[..., :1]) * weights[..., :1]]
    if weights.shape[-1] > 1:
        found.append(x * weights[..., 1:2])
    for n in range(2, weights.shape[-1]):
        chosen, roots = monomials(x.shape[-1], n)
        # Choosing by products with ones and zeros: the gradient of an index would add one number after another.
        places = torch.tensor(chosen, device=x.device).T.reshape(-1)
        select = (torch.arange(x.shape[-1], device=x.device)[:, None] == places).to(x.dtype)
        product = torch.tensor(roots, dtype=x.dtype, device=x.device) * weights[..., n : n + 1]
        for factor in (x @ select).split(len(chosen), -1):
            product = product * factor
        found.append(product)
    return torch.cat(found, -1)


def kernel(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """phi(x) . phi(y) of x (B,H,n,R,K) against y (B,H,n,C,K): (B,H,n,R,C)."""
    *lower, last, most = weights.square()[..., None, None, None].unbind(1)
    # The innermost step of Horner's rule, last + most (x . y), is a product too.
    ones = torch.ones_like(y[..., :1])
    total = torch.cat([x * most, last.expand_as(x[..., :1])], -1) @ torch.cat([y, ones], -1).mT
    if lower:
        s = x @ y.mT
        for weight in reversed(lower):
            total = torch.addcmul(weight, s, total)
    return total
