"""The linear recurrent unit: a complex diagonal recurrence, begun on a ring inside the unit circle.

    l = exp(-exp(nu) + i exp(theta)),    h_t = l h_{t-1} + exp(gamma) (B x_t),    y_t = Re(C h_t) + d x_t
    out = W_1 gelu(y) * sigmoid(W_2 gelu(y))

|l| begins uniform in area between the two radii, its angle uniform in 0 .. `phase`; exp(gamma), which keeps h at the
size of its inputs, at sqrt(1 - |l|^2). With initial_state h_0 is a parameter instead of 0.
Resurrecting Recurrent Neural Networks for Long Sequences, arXiv 2303.06349, 2023.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count
from formwright.mixers.rg_lru import first_tokens, start_anew
from formwright.mixers.sequences import first_state, learned_state, state_before
from formwright.ops import scan
from formwright.ops.scan import linear_scan
from formwright.parts import register


@register
class LRU(TokenMixer):
    """The LRU with its gated output: (B, N, D) -> (B, N, D), causal. Raises ValueError for radii that make no ring."""

    card = Card(
        name="lru",
        summary="a linear recurrence with fixed complex decays on a ring, normalised inputs, gated output",
        source="Resurrecting Recurrent Neural Networks for Long Sequences, arXiv 2303.06349, 2023",
        patterns=("causal",),
        symmetries=("shift",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        state_dim: int | None = None,
        radii: tuple[float, float] = (0.9, 0.999),
        phase: float = 2 * math.pi,
        initial_state: bool = False,
    ):
        """state_dim complex states, dim of them where it is left open."""
        super().__init__(dim, causal=causal)
        self.state_dim = dim if state_dim is None else state_dim
        low, high = radii
        if self.state_dim < 1 or not 0 <= low < high < 1 or phase <= 0:
            raise ValueError(
                f"lru: state_dim={state_dim} and phase={phase} must be above 0, and radii={radii} rise between 0 and 1"
            )
        square = torch.rand(self.state_dim) * (high**2 - low**2) + low**2
        square = square.clamp(min=1e-6)
        self.nu = nn.Parameter(torch.log(-0.5 * torch.log(square)))
        self.theta = nn.Parameter(torch.log(phase * torch.rand(self.state_dim).clamp(min=1e-6)))
        self.gamma = nn.Parameter(0.5 * torch.log1p(-square))
        self.inputs = nn.Linear(dim, 2 * self.state_dim, bias=False)
        self.outputs = nn.Linear(2 * self.state_dim, dim, bias=False)
        nn.init.normal_(self.inputs.weight, std=(2 * dim) ** -0.5)
        nn.init.normal_(self.outputs.weight, std=self.state_dim**-0.5)
        self.skip = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, 2 * dim)
        self.initial = learned_state(self, initial_state, self.state_dim, 2)

    def _mix(self, x: Tensor, state: Tensor | None, first: Tensor | None) -> tuple[Tensor, Tensor]:
        u = self.inputs(x)
        u = u.to(torch.promote_types(u.dtype, torch.float32))
        nu, theta, gamma = (t.to(u.dtype) for t in (self.nu, self.theta, self.gamma))
        b = torch.complex(*u.chunk(2, -1)) * gamma.exp()
        a = torch.polar(torch.exp(-nu.exp()), theta.exp()).expand_as(b)
        a, b = start_anew(a, b, first, None if self.initial is None else self._complex(self.initial))
        h, last = linear_scan(a, b, state=None if state is None else self._complex(state), backend=self.backend)
        # Re(C h) is one real product: `outputs` holds Re C and -Im C.
        y = self.outputs(torch.cat([h.real, h.imag], -1).to(x.dtype)) + self.skip * x
        return F.glu(self.out(F.gelu(y)), -1), torch.view_as_real(last)

    def _complex(self, state: Tensor) -> Tensor:
        return torch.view_as_complex(state.to(torch.promote_types(state.dtype, torch.float32)))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return self._mix(x, first_state(self.initial, len(x)), first_tokens(layout, x.device))[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Tensor:
        """h (B, state_dim, 2), real and imaginary parts."""
        like = self.out.weight if like is None else like
        return state_before(like, batch, self.state_dim, 2, initial=self.initial)

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, last = self._mix(x, state, None)
        return y, last.to(state.dtype)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n = layout.tokens
        macs = batch * n * self.dim * (4 * self.state_dim + 2 * self.dim)
        # A complex product is six real operations, and a sum two: four times as many as of real numbers.
        other = 4 * scan.flops(batch, n, self.state_dim)
        return Cost(parameter_count(self), macs, batch * 2 * self.state_dim * element_size(self), other)
