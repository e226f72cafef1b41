"""Residual styles: how a branch f joins the stream x.

    prenorm    x + f(norm(x))              Xiong et al., On Layer Normalization in the Transformer, 2002.04745, 2020
    postnorm   norm(x + f(x))              Vaswani et al., Attention Is All You Need, 1706.03762, 2017
    sandwich   x + norm'(f(norm(x)))       Ding et al., CogView, 2105.13290, 2021
    gated      g(x, relu(f(norm(x))))      Parisotto et al., Stabilizing Transformers for RL, 1910.06764, 2019
               r = sigma(W_r y + U_r x),  z = sigma(W_z y + U_z x - b),  h = tanh(W_h y + U_h (r x)),
               g = (1 - z) x + z h
    plain      f(x)

Each is written around a stack, `postnorm(6*(attention + mlp))`, and holds for all branches inside it. The norm that
the last branch of a stack uses, options included, stands at the stack's end as well, where one is needed there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, Norm, ResidualStyle, parameter_count
from formwright.norms.rmsnorm import RMSNorm
from formwright.parts import register


@register
class PreNorm(ResidualStyle):
    card = Card(
        name="prenorm",
        kind="wiring",
        summary="x + f(norm(x)): the stream itself is never normalised; the default",
        source="On Layer Normalization in the Transformer Architecture, 2002.04745, 2020",
    )

    def __init__(self, dim: int, *, norm: Callable[[int], Norm] = RMSNorm):
        super().__init__(dim)
        self.make_norm = norm
        self.norm = norm(dim)

    def before(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def inner(self) -> list[tuple[str, nn.Module]]:
        return [("norm", self.norm)]


@register
class PostNorm(ResidualStyle):
    card = Card(
        name="postnorm",
        kind="wiring",
        summary="norm(x + f(x)): the stream is normalised after every branch",
        source="Attention Is All You Need, 1706.03762, 2017",
    )
    normed = True

    def __init__(self, dim: int, *, norm: Callable[[int], Norm] = RMSNorm):
        super().__init__(dim)
        self.make_norm = norm
        self.norm = norm(dim)

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x + y)

    def inner(self) -> list[tuple[str, nn.Module]]:
        return [("norm", self.norm)]


@register
class Sandwich(ResidualStyle):
    card = Card(
        name="sandwich",
        kind="wiring",
        summary="x + norm(f(norm(x))): a norm on either side of the branch",
        source="CogView: Mastering Text-to-Image Generation via Transformers, 2105.13290, 2021",
    )

    def __init__(self, dim: int, *, norm: Callable[[int], Norm] = RMSNorm):
        super().__init__(dim)
        self.make_norm = norm
        self.norm, self.norm_after = norm(dim), norm(dim)

    def before(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.norm_after(y)

    def inner(self) -> list[tuple[str, nn.Module]]:
        return [("norm", self.norm), ("norm after", self.norm_after)]


class _GRUGate(nn.Module):
    """GTrXL's gated recurrent unit over depth; opens little at first because of its bias."""

    def __init__(self, dim: int, bias: float):
        super().__init__()
        self.dim = dim
        self.from_branch = nn.Linear(dim, 3 * dim, bias=False)
        self.from_stream = nn.Linear(dim, 2 * dim, bias=False)
        self.from_reset = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.full((dim,), float(bias)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        branch_r, branch_z, branch_h = self.from_branch(y).chunk(3, -1)
        stream_r, stream_z = self.from_stream(x).chunk(2, -1)
        r = torch.sigmoid(branch_r + stream_r)
        z = torch.sigmoid(branch_z + stream_z - self.bias)
        h = torch.tanh(branch_h + self.from_reset(r * x))
        return (1 - z) * x + z * h

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self), macs=6 * batch * layout.tokens * self.dim**2)


@register
class Gated(ResidualStyle):
    card = Card(
        name="gated",
        kind="wiring",
        summary="a gated recurrent unit joins branch and stream, nearly closed at the start",
        source="Stabilizing Transformers for Reinforcement Learning, 1910.06764, 2019",
    )

    def __init__(self, dim: int, *, norm: Callable[[int], Norm] = RMSNorm, bias: float = 2.0):
        super().__init__(dim)
        self.make_norm = norm
        self.norm = norm(dim)
        self.gate = _GRUGate(dim, bias)

    def before(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return self.gate(x, torch.relu(y))

    def inner(self) -> list[tuple[str, nn.Module]]:
        return [("norm", self.norm), ("gate", self.gate)]


@register
class NoResidual(ResidualStyle):
    card = Card(
        name="plain",
        kind="wiring",
        summary="f(x): neither norm nor residual around the parts inside",
        source="Deep networks before residual learning; for ablations",
    )

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return y
