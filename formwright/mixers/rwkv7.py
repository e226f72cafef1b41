"""RWKV-7's time mixing: a memory whose transition is a diagonal decay minus a removal of rank one.

    x^c_t = x_t + mu_c * (x_{t-1} - x_t)  for c in r, w, k, v, a, g                  the token shift
    r, k, v = W_r x^r, W_k x^k, W_v x^v
    log w = -exp(-1/2) sigmoid(w_0 + W_2 tanh(W_1 x^w))                             so that w is in 0.545..1
    a = sigmoid(a_0 + A_2 A_1 x^a),   g = G_2 sigmoid(G_1 x^g)                       a: the learning rate in context
    kappa = (k * xi) / |k * xi| in each head,   k' = k * (1 + (a - 1) * alpha)     keys to remove, to put instead
    S_t = diag(w_t) S_{t-1} - (a_t * kappa_t) (S_{t-1}^T kappa_t)^T + k'_t v_t^T,    o_t = S_t^T r_t
    y_t = W_o (g_t * (groupnorm(o_t) + (r_t . (rho * k'_t)) v_t))                    the norm over each head

The maps from the second layer on mix their values with the first layer's; a mixer sees no other layer, so this value
residual is left out: every layer is as the first. Weights begin as in the published code at its first layer, but for
W_o, which begins there at 0 and here as W_v does. With initial_state S_0 is a parameter instead of 0.
RWKV-7 "Goose" with Expressive Dynamic State Evolution, arXiv 2503.14456, 2025.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.linear_attention import packed_lengths
from formwright.mixers.sequences import first_state, learned_state, state_before
from formwright.ops import dplr
from formwright.ops.dplr import dplr_recurrence
from formwright.parts import register

# mu begins at 1 - (channel / dim)^power; in the order r, w, k, v, a, g.
SHIFT_POWERS = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)


def low_rank(dim: int, rank: int, out: int, between: nn.Module, bias: Tensor | None) -> nn.Sequential:
    """A map of this rank, its first factor 0, the second orthogonal and small; its bias begins at `bias` (out,)."""
    first, second = nn.Linear(dim, rank, bias=False), nn.Linear(rank, out, bias=bias is not None)
    nn.init.zeros_(first.weight)
    nn.init.orthogonal_(second.weight, 0.1 * math.sqrt(max(1.0, rank / out)))
    if bias is not None:
        with torch.no_grad():
            second.bias.copy_(bias)
    return nn.Sequential(first, between, second)


def default_rank(dim: int, factor: float) -> int:
    """factor sqrt(dim) as a multiple of 32, at least 32."""
    return max(32, round(factor * math.sqrt(dim) / 32) * 32)


@register
class RWKV7(TokenMixer):
    """RWKV-7's time mixing: (B, N, D) -> (B, N, D), causal. Raises ValueError for heads or ranks that don't fit."""

    card = Card(
        name="rwkv7",
        summary="a fading memory that removes under one key and writes under another, with token shift and a bonus",
        source='RWKV-7 "Goose" with Expressive Dynamic State Evolution, arXiv 2503.14456, 2025',
        patterns=("causal",),
        symmetries=("shift",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        decay_rank: int | None = None,
        rate_rank: int | None = None,
        gate_rank: int | None = None,
        initial_state: bool = False,
        eps: float = 64e-5,
    ):
        """Ranks left open are about 2.5, 2.5 and 5 times sqrt(dim), multiples of 32."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("rwkv7", dim, heads, head_dim)
        self.inner, self.eps = self.heads * self.head_dim, eps
        decay_rank = default_rank(dim, 2.5) if decay_rank is None else decay_rank
        rate_rank = default_rank(dim, 2.5) if rate_rank is None else rate_rank
        gate_rank = default_rank(dim, 5.0) if gate_rank is None else gate_rank
        self.ranks = decay_rank + rate_rank + gate_rank
        if min(decay_rank, rate_rank, gate_rank) < 1:
            raise ValueError(
                f"rwkv7: decay_rank={decay_rank}, rate_rank={rate_rank} and gate_rank={gate_rank} must be at least 1"
            )
        place = torch.arange(dim) / dim
        self.shift = nn.Parameter(torch.stack([1 - place**power for power in SHIFT_POWERS]))
        ramp = torch.linspace(0, 1, self.inner)
        zigzag = torch.linspace(-1, 1, self.head_dim).repeat(self.heads)
        zigzag = zigzag * zigzag.abs()
        self.receptance = nn.Linear(dim, self.inner, bias=False)
        self.key = nn.Linear(dim, self.inner, bias=False)
        self.value = nn.Linear(dim, self.inner, bias=False)
        self.decay = low_rank(dim, decay_rank, self.inner, nn.Tanh(), 6 * ramp - 5.5 + 2.5 * zigzag)
        rate = 0.4 * (ramp - 0.5) - 0.19 + 0.3 * zigzag
        self.rate = low_rank(dim, rate_rank, self.inner, nn.Identity(), rate)
        self.gate = low_rank(dim, gate_rank, self.inner, nn.Sigmoid(), None)
        self.removal = nn.Parameter(0.71 - 0.1 * (ramp - 0.5))
        self.replacement = nn.Parameter(torch.full((self.inner,), 1.02))
        self.bonus = nn.Parameter(torch.full((self.heads, self.head_dim), -0.04))
        self.norm_weight = nn.Parameter(torch.ones(self.inner))
        self.norm_bias = nn.Parameter(torch.zeros(self.inner))
        self.out = nn.Linear(self.inner, dim, bias=False)
        for layer, bound in ((self.receptance, 0.5), (self.key, 0.05), (self.value, 0.5), (self.out, 0.5)):
            nn.init.uniform_(layer.weight, -bound * dim**-0.5, bound * dim**-0.5)
        self.initial = learned_state(self, initial_state, self.heads, self.head_dim, self.head_dim)

    def _mix(self, x: Tensor, before: Tensor, state: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B,N,D), the tokens before them (B,N,D) -> (B,N,D) and the last state."""
        xr, xw, xk, xv, xa, xg = (x + (before - x) * mu for mu in self.shift)
        r, k, v, f, rate = self.receptance(xr), self.key(xk), self.value(xv), self.decay(xw), self.rate(xa).sigmoid()
        wide = torch.promote_types(f.dtype, torch.float32)
        log_decay = -math.exp(-0.5) * f.to(wide).sigmoid()
        kappa = F.normalize((k * self.removal).unflatten(-1, (self.heads, -1)), dim=-1)
        k = k * (1 + (rate - 1) * self.replacement)
        r, k, v, rate, log_decay = (t.unflatten(-1, (self.heads, -1)) for t in (r, k, v, rate, log_decay))
        o, state = dplr_recurrence(
            r, k, v, -kappa, kappa * rate, log_decay, state=state, offsets=offsets, backend=self.backend
        )
        o = F.layer_norm(o, (self.head_dim,), eps=self.eps).flatten(2) * self.norm_weight + self.norm_bias
        o = o + ((r * k * self.bonus).sum(-1, keepdim=True) * v).flatten(2)
        return self.out(o * self.gate(xg)), state

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        before = F.pad(x[:, :-1], (0, 0, 1, 0))
        if layout.offsets is not None:
            starts = torch.isin(torch.arange(x.shape[1], device=x.device), layout.offsets.to(x.device))
            before = before.masked_fill(starts[:, None], 0)
        return self._mix(x, before, first_state(self.initial, len(x), layout.offsets), layout.offsets)[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(the last token (B, D), S (B, H, K, V))."""
        like = self.key.weight if like is None else like
        shape = self.heads, self.head_dim, self.head_dim
        return like.new_zeros(batch, self.dim), state_before(like, batch, *shape, initial=self.initial)

    def extend(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        last, s = state
        y, s = self._mix(x, torch.cat([last.to(x.dtype)[:, None], x[:, :-1]], 1), s, None)
        return y, (x[:, -1].clone(), s)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        linear = batch * layout.tokens * (4 * self.dim * self.inner + self.ranks * (self.dim + self.inner))
        shape = batch, layout.tokens, self.heads, self.head_dim, self.head_dim
        products = dplr.macs(*shape, lengths=packed_lengths(layout))
        state = batch * (self.dim + self.inner * self.head_dim) * element_size(self)
        return Cost(parameter_count(self), linear + products, state, dplr.flops(*shape))
