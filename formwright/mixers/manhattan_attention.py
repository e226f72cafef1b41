"""Manhattan self-attention: softmax attention on a grid whose weights fade with distance, at a rate for each head.

    q_n = r_n(W_q x_n),  k_m = r_m(W_k x_m),  v_m = W_v x_m                            r: rotary, by row-major place
    p_nm = softmax_m(q_n . k_m / sqrt(K)) gamma_h^(|row_n - row_m| + |column_n - column_m|)       before normalising
    y = W_o (p v + lepe(v)),   lepe: a depthwise convolution over the grid
    gamma_h = 1 - 2^(-start - spread h / H)

Normalised after the decay, p is the softmax of q . k / sqrt(K) + distance log gamma. Decomposed, tokens attend along
their rows, and what they read then along their columns: p = p_column p_row, whose decays multiply to the same. It costs
N (rows + columns) instead of N^2. A sequence is a grid of one row.
The paper starts at 2, spreads 4 to 6, decomposes in all stages but the last, and its blocks add depthwise convolutions
outside of this mixer.
RMT: Retentive Networks Meet Vision Transformers, arXiv 2309.11523, 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, parameter_count, per_sequence, split_heads
from formwright.mixers.scores import attend
from formwright.ops import attention as scores
from formwright.ops.attention import Distance, attention
from formwright.parts import register


@register
class ManhattanAttention(TokenMixer):
    """Attention that fades with Manhattan distance, on sequences and images: (B, N, D) -> (B, N, D).

    Raises Unsupported for prefix tokens on an image, ValueError for an odd head_dim, an even kernel and heads that
    don't fit."""

    card = Card(
        name="manhattan_attention",
        summary="softmax attention fading with Manhattan distance at a rate a head, whole or axis by axis; local conv",
        source="RMT: Retentive Networks Meet Vision Transformers, arXiv 2309.11523, 2023",
        patterns=("self",),
        grid_ranks=(1, 2),
        time="N^2",
        state="0",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        decomposed: bool = False,
        start: float = 2.0,
        spread: float = 4.0,
        kernel: int = 5,
        bias: bool = True,
    ):
        """decomposed attends along rows, then along columns; kernel is lepe's width, 0 leaves it out; bias that of the
        four linear maps."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("manhattan_attention", dim, heads, head_dim)
        if self.head_dim % 2:
            raise ValueError(
                f"manhattan_attention: head_dim is {self.head_dim}, but pairs of channels are turned; make it even"
            )
        if kernel < 0 or (kernel and kernel % 2 == 0):
            raise ValueError(f"manhattan_attention: kernel is {kernel}, but must be odd, so that it has a centre, or 0")
        if start <= 0 or spread < 0:
            raise ValueError(f"manhattan_attention: start={start} must be above 0 and spread={spread} not below")
        self.decomposed, self.start, self.spread, self.kernel = decomposed, start, spread, kernel
        inner = self.heads * self.head_dim
        self.query = nn.Linear(dim, inner, bias=bias)
        self.key = nn.Linear(dim, inner, bias=bias)
        self.value = nn.Linear(dim, inner, bias=bias)
        self.out = nn.Linear(inner, dim, bias=bias)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_normal_(layer.weight, gain=2**-2.5)
        nn.init.xavier_normal_(self.out.weight)
        self.lepe = nn.Conv2d(inner, inner, kernel, padding="same", groups=inner) if kernel else None

    def log_decay(self, like: Tensor) -> Tensor:
        """log gamma_h, (H,)."""
        wide = torch.promote_types(like.dtype, torch.float32)
        rates = self.start + self.spread * torch.arange(self.heads, dtype=wide, device=like.device) / self.heads
        return torch.log1p(-(2**-rates))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        rows, columns = self._grid(layout)
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.key, self.value))
        q, k = self._turned(q), self._turned(k)
        decay = self.log_decay(x)
        if rows == 1:
            o = attend(q, k, v, layout, causal=False, bias=_fading(decay, columns, x), backend=self.backend)
        elif self.decomposed:
            o = self._along_axes(q, k, v, (rows, columns), decay)
        else:
            places = layout.positions(x.device)

            def fade(i: Tensor, j: Tensor) -> Tensor:
                distance = (places[i][:, None] - places[j]).abs().sum(-1)
                return (distance * decay[:, None, None]).to(x.dtype)

            o = attention(q, k, v, bias=fade, backend=self.backend)
        return self.out(self._with_lepe(o.flatten(2), v.flatten(2), layout, (rows, columns)))

    def _grid(self, layout: Layout) -> tuple[int, int]:
        if len(layout.grid) == 1:
            return 1, layout.tokens
        if layout.prefix:
            self.refuse("prefix", "class tokens have no distance to those of an image; set cls=False")
        return layout.grid

    def _turned(self, x: Tensor) -> Tensor:
        """x (B,N,H,K) with pairs of neighbouring channels turned by their row-major place."""
        wide = torch.promote_types(x.dtype, torch.float32)
        theta = 10000 ** -torch.linspace(0, 1, self.head_dim // 2, dtype=wide, device=x.device)
        angles = (torch.arange(x.shape[1], dtype=wide, device=x.device)[:, None] * theta)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)

    def _along_axes(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], decay: Tensor) -> Tensor:
        batch, (rows, columns) = len(q), grid
        q, k, v = (t.unflatten(1, grid) for t in (q, k, v))
        lines = (t.flatten(0, 1) for t in (q, k, v))
        v = attention(*lines, bias=_fading(decay, columns, q), backend=self.backend).unflatten(0, (batch, rows))
        lines = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        o = attention(*lines, bias=_fading(decay, rows, q), backend=self.backend).unflatten(0, (batch, columns))
        return o.transpose(1, 2).flatten(1, 2)

    def _with_lepe(self, o: Tensor, v: Tensor, layout: Layout, grid: tuple[int, int]) -> Tensor:
        if self.lepe is None:
            return o
        valid = layout.valid(o.device)
        if valid is not None:
            v = v * valid[..., None]
        return o + self.lepe(v.mT.unflatten(-1, grid)).flatten(2).mT

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, inner = layout.tokens, self.heads * self.head_dim
        linear = batch * n * inner * (4 * self.dim + self.kernel**2)
        how = {"heads": self.heads, "key_dim": self.head_dim, "bias": True, "backend": self.backend}
        rows, columns = self._grid(layout)
        if rows > 1 and self.decomposed:
            products = scores.macs(columns, columns, batch=batch * rows, **how)
            products += scores.macs(rows, rows, batch=batch * columns, **how)
        elif layout.plain:
            products = scores.macs(n, n, batch=batch, **how)
        else:
            products = sum(scores.macs(p.tokens, p.tokens, **how) for _, _, p in layout.sequences())
        return Cost(parameter_count(self), linear + products)


def _fading(decay: Tensor, n: int, like: Tensor) -> Distance:
    """The bias of distances along an axis of n tokens."""
    distance = torch.arange(1 - n, n, device=like.device).abs()
    return Distance((distance * decay[:, None]).to(like.dtype), n - 1)
