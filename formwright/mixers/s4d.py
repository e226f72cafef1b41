"""S4D: for each channel a state space with a diagonal matrix, computed as a long convolution.

    h' = A h + u,  discretised with step dt by zero-order hold:    h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A u_t
    y_t = 2 Re(C h_t) + d u_t,    so y = K * u + d u  with  K_s = 2 Re sum_p C_p (exp(dt A_p) - 1) / A_p exp(s dt A_p)
    out = W_1 gelu(y) * sigmoid(W_2 gelu(y))

A has P = state_dim / 2 complex numbers, which stand for conjugate pairs, and begins as

    spectrum "lin"    A_p = -1/2 + i pi p
    spectrum "inv"    A_p = -1/2 + i (S / pi) (S / (2 p + 1) - 1),   S = state_dim

Two-directional: a second C reads a second kernel over the tokens after t. A grid is read in row-major order. With
initial_state h_0, in units of (exp(dt A) - 1) / A, is a parameter instead of 0; what it adds to y is one kernel more.
On the Parameterization and Initialization of Diagonal State Space Models, arXiv 2206.11893, 2022.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, per_sequence
from formwright.mixers.sequences import learned_state, state_before
from formwright.ops.convolution import long_convolution, long_flops
from formwright.parts import register

# Tokens that share one factor of exp(s dt A), s = i CHUNK + j; extend's pieces are as long.
CHUNK = 64


@register
class S4D(TokenMixer):
    """The S4D layer with its gated output: (B, N, D) -> (B, N, D). Raises ValueError for odd states, unknown spectra
    and steps out of order."""

    card = Card(
        name="s4d",
        summary="a diagonal state space for each channel, alike for all tokens: a long convolution of few parameters",
        source="On the Parameterization and Initialization of Diagonal State Space Models, arXiv 2206.11893, 2022",
        patterns=("self", "causal"),
        time="N log N",
        symmetries=("shift",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        state_dim: int = 64,
        spectrum: str = "lin",
        steps: tuple[float, float] = (0.001, 0.1),
        initial_state: bool = False,
    ):
        """steps are the least and the greatest dt to begin with."""
        super().__init__(dim, causal=causal)
        if state_dim < 2 or state_dim % 2:
            raise ValueError(f"s4d: state_dim={state_dim} must be even, for states come in conjugate pairs")
        if spectrum not in ("lin", "inv"):
            raise ValueError(f"s4d: spectrum is 'lin' or 'inv', not {spectrum!r}")
        if not 0 < steps[0] <= steps[1]:
            raise ValueError(f"s4d: steps={steps} must be above 0 and rise")
        self.pairs = state_dim // 2
        order = torch.arange(self.pairs)
        angles = math.pi * order
        if spectrum == "inv":
            angles = state_dim / math.pi * (state_dim / (2 * order + 1) - 1)
        low, high = (math.log(step) for step in steps)
        self.log_step = nn.Parameter(torch.rand(dim) * (high - low) + low)
        self.log_rate = nn.Parameter(torch.full((dim, self.pairs), math.log(0.5)))
        self.angle = nn.Parameter(angles.float().repeat(dim, 1))
        self.read = nn.Parameter(torch.randn(1 if causal else 2, dim, self.pairs, 2) * 0.5**0.5)
        self.skip = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, 2 * dim)
        self.initial = learned_state(self, initial_state, dim, self.pairs, 2)

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """dt A (D, P) and the weights C (exp(dt A) - 1) / A (1 or 2, D, P) of its powers, then those of the first
        state's trace where it is learned, in complex128: angles of late tokens are many turns."""
        a = torch.complex(-self.log_rate.double().exp(), self.angle.double())
        rates = a * self.log_step.double().exp()[:, None]
        weights = torch.view_as_complex(self.read.double()) * (rates.exp() - 1) / a
        if self.initial is not None:
            trace = weights[0] * rates.exp() * torch.view_as_complex(self.initial.double())
            weights = torch.cat([weights, trace[None]])
        return rates, weights

    def kernels(self, tokens: int, dtype: torch.dtype) -> Tensor:
        """K (1 or 2, tokens, D), the second for the tokens after t, and last what a learned first state adds; memory
        grows as tokens / CHUNK * state_dim."""
        rates, weights = self._discrete()
        chunk, count = self._pieces(tokens)
        late = weights[:, :, None] * torch.exp(rates[:, None] * self._times(count, chunk)[:, None])
        early = torch.exp(rates[:, None] * self._times(chunk)[:, None])
        late, early = torch.cat([late.real, -late.imag], -1), torch.cat([early.real, early.imag], -1)
        k = 2 * torch.matmul(late.to(dtype), early.to(dtype).mT)
        return k.flatten(2)[..., :tokens].mT

    def _times(self, count: int, step: int = 1) -> Tensor:
        return torch.arange(count, device=self.skip.device, dtype=torch.float64) * step

    @staticmethod
    def _pieces(tokens: int) -> tuple[int, int]:
        chunk = min(CHUNK, tokens)
        return chunk, -(-tokens // chunk)

    def _dtype(self, x: Tensor) -> torch.dtype:
        return torch.promote_types(x.dtype, torch.float32)

    def _gated(self, x: Tensor, y: Tensor) -> Tensor:
        return F.glu(self.out(F.gelu(y.to(x.dtype) + self.skip * x)), -1)

    def _convolved(self, x: Tensor, kernels: Tensor, backend: str) -> Tensor:
        if self.causal:
            y = long_convolution(x, kernels[0], backend=backend)
            return y if self.initial is None else y + kernels[1]
        # Lags -(N-1) ... -1 are those of the second kernel, whose first number meets the next token.
        return long_convolution(x, torch.cat([kernels[1, :-1].flip(0), kernels[0]]), causal=False, backend=backend)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None or (layout.lengths is not None and not self.causal):
            return per_sequence(self, x, layout)
        wide = x.to(self._dtype(x))
        return self._gated(x, self._convolved(wide, self.kernels(x.shape[1], wide.dtype), self.backend))

    def reference(self, x: Tensor, layout: Layout) -> Tensor:
        """forward by the sum that defines K and by summing lag by lag."""
        rates, weights = self._discrete()
        powers = torch.exp(rates[..., None] * self._times(x.shape[1]))
        kernels = 2 * torch.einsum("kdp,dpn->knd", weights, powers).real.to(self._dtype(x))
        return self._gated(x, self._convolved(x.to(kernels.dtype), kernels, "reference"))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Tensor:
        """sum of exp((t - s) dt A) u_s, h without its weights (B, D, P, 2), real and imaginary parts."""
        like = self.out.weight if like is None else like
        return state_before(like, batch, self.dim, self.pairs, 2, initial=self.initial)

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.to(self._dtype(x))
        h = torch.view_as_complex(state.to(wide.dtype))
        rates, weights = self._discrete()
        if x.shape[1] == 1:
            h = h * rates.exp().to(h.dtype) + wide[:, 0, :, None]
            y = 2 * (weights[0].to(h.dtype) * h).sum(-1).real[:, None]
            return self._gated(x, y), torch.view_as_real(h).to(state.dtype)
        chunk, _ = self._pieces(x.shape[1])
        kernel = self.kernels(chunk, wide.dtype)[0]
        # Powers 0 ... chunk of exp(dt A).
        powers = torch.exp(rates[..., None] * self._times(chunk + 1)).to(h.dtype)
        read = weights[0].to(h.dtype)
        ys = []
        for piece in wide.split(chunk, 1):
            size = piece.shape[1]
            past = torch.einsum("bdp,dpn->bnd", h * read, powers[..., 1 : size + 1])
            ys.append(long_convolution(piece, kernel[:size]) + 2 * past.real)
            written = torch.einsum("bnd,dpn->bdp", piece.to(h.dtype), powers[..., :size].flip(-1))
            h = h * powers[..., size] + written
        return self._gated(x, torch.cat(ys, 1)), torch.view_as_real(h).to(state.dtype)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n = layout.tokens
        sizes = [n] if layout.offsets is None else [m for m in layout.offsets.diff().tolist() if m]
        count = len(self.read) + (self.initial is not None)
        kernel = sum(count * self.dim * math.prod(self._pieces(m)) * 2 * self.pairs for m in sizes)
        macs = kernel + 2 * batch * n * self.dim**2
        state = 2 * batch * self.dim * self.pairs * element_size(self) if self.causal else 0
        other = sum(long_flops((m,), self.dim, causal=self.causal, batch=batch) for m in sizes)
        return Cost(parameter_count(self), macs, state, other)
