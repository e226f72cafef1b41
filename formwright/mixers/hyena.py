"""Hyena: long convolutions with implicit filters between gates that the data control.

    v, x^1, ..., x^P = short convolutions of linear maps of x,      z^1 = v,      P the order
    z^{p+1}_t = x^p_t * sum_s h^p_{t-s} z^p_s,                      y = W z^{P+1}
    h^p_t = exp(-alpha t) * MLP^p(t, cos, sin of t),  sines between its layers,  plus a free tap at lag 0

t runs to 1 at `length` tokens, so that the filter is the same for any N, beyond `length` too. alpha differs from
channel to channel. Two-directional: the filter has negative lags as well.

Over a grid of R >= 2 axes (rank=R) lags have R coordinates, the MLP sees features of each, the window decays along
each, and the filter covers the lags that are >= 0 on all axes; the operator runs from all 2^R corners of the grid
(directions="all") and a learned weight for each merges them, or from the first alone (directions="first").

Hyena Hierarchy: Towards Larger Convolutional Language Models, arXiv 2302.10866, 2023; Multi-Dimensional Hyena for
Spatial Inductive Bias, arXiv 2309.13600, 2023.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, per_sequence
from formwright.ops import mixing
from formwright.ops.convolution import long_convolution, long_flops, short_convolution, short_flops
from formwright.parts import register

# (short convolution's state, filters, histories of z^p, tokens seen)
State = tuple[Tensor, Tensor, tuple[Tensor, ...], int]


@register
class Hyena(TokenMixer):
    """The Hyena operator of an order: (B, N, D) -> (B, N, D).

    rank is the number of axes of its filters. With rank 1 any grid is read as a sequence in row-major order. Raises
    Unsupported for a causal rank above 1 and, at ranks above 1, for grids of other rank and for class tokens.

    Its state holds the filter and the inputs of each long convolution: exact, and growing with N."""

    card = Card(
        name="hyena",
        summary="long convolutions whose filters a small network of sines writes, between gates",
        source="Hyena Hierarchy: Towards Larger Convolutional Language Models, arXiv 2302.10866, 2023",
        patterns=("self", "causal"),
        time="N log N",
        state="N",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        order: int = 2,
        length: int = 1024,
        rank: int = 1,
        directions: str = "all",
        short: int = 3,
        filter_dim: int = 64,
        filter_depth: int = 4,
        bands: int = 16,
        frequency: float = 14.0,
        fast_decay: float = 0.3,
        slow_decay: float = 1.5,
    ):
        super().__init__(dim, causal=causal)
        self.rank = rank
        if rank not in (1, 2, 3):
            self.refuse(f"rank={rank}", "its filters have one, two or three axes")
        if causal and rank > 1:
            self.refuse(f"rank={rank}", "a causal order has one axis; set rank=1 to read the grid in rows")
        if directions not in ("all", "first"):
            raise ValueError(f"hyena: directions is 'all' or 'first', not {directions!r}")
        if order < 1 or filter_depth < 2:
            raise ValueError(f"hyena: order must be at least 1 and filter_depth 2, but are {order} and {filter_depth}")
        if short < 1 or (not causal and short % 2 == 0):
            raise ValueError(f"hyena: short is {short}, but a two-directional short filter has an odd number of taps")
        self.order, self.length, self.short, self.bands = order, length, short, bands
        self.filter_dim, self.filter_depth = filter_dim, filter_depth
        self.inputs = nn.Linear(dim, (order + 1) * dim)
        self.out = nn.Linear(dim, dim)
        taps = short**self.rank
        self.short_weight = nn.Parameter(torch.empty((order + 1) * dim, *[short] * self.rank))
        self.short_bias = nn.Parameter(torch.empty((order + 1) * dim))
        for parameter in (self.short_weight, self.short_bias):
            nn.init.uniform_(parameter, -(taps**-0.5), taps**-0.5)
        widths = [self.rank * (2 * bands + 1), *[filter_dim] * (filter_depth - 1)]
        self.filter = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.filter_out = nn.Linear(filter_dim, order * dim, bias=False)
        self.frequency = nn.Parameter(torch.full((filter_dim,), frequency))
        self.tap = nn.Parameter(torch.randn(order, dim))
        # A window falls to 1 % after a share of the length that runs from slow_decay to fast_decay over the channels.
        decay = torch.linspace(-math.log(0.01) / slow_decay, -math.log(0.01) / fast_decay, dim)
        self.register_buffer("decay", decay, persistent=False)
        corners = 2**self.rank if self.rank > 1 and directions == "all" else 1
        self.merge = nn.Parameter(torch.full((corners,), 1 / corners)) if corners > 1 else None

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None or (layout.lengths is not None and not self.causal):
            return per_sequence(self, x, layout)
        grid = self._grid(layout)
        if self.rank == 1:
            u, _ = short_convolution(
                self.inputs(x), self.short_weight, self.short_bias, causal=self.causal, backend=self.backend
            )
            return self.out(self._long(u, self.filters(grid), self.causal))
        u = self._short_grid(self.inputs(x).unflatten(1, grid))
        filters = self.filters(grid)
        if self.merge is None:
            return self.out(self._long(u, filters, True).flatten(1, -2))
        axes = range(1, self.rank + 1)
        corners = [[a for a, turned in zip(axes, c, strict=True) if turned] for c in self._corners()]
        turned = torch.cat([u.flip(c) if c else u for c in corners])
        parts = self._long(turned, filters, True).chunk(len(corners))
        back = [part.flip(c) if c else part for part, c in zip(parts, corners, strict=True)]
        merged = sum(w * part for w, part in zip(self.merge, back, strict=True))
        return self.out(merged.flatten(1, -2))

    def filters(self, grid: tuple[int, ...]) -> Tensor:
        """The filters that cover a grid: (P, *extents, D), of lags >= 0 (causal or N-D) or centred (two-directional).

        They are computed in float32 at least: in half precision neighbouring lags would have the same features."""
        scale = self.length ** (1 / self.rank)
        device = self.decay.device
        axes = [torch.arange(n if self.causal or self.rank > 1 else 2 * n - 1, device=device) for n in grid]
        if not self.causal and self.rank == 1:
            axes = [axes[0] - (grid[0] - 1)]
        dtype = torch.float64 if self.tap.dtype == torch.float64 else torch.float32
        with torch.autocast(device.type, enabled=False):
            frequencies = torch.linspace(1e-4, self.bands - 1, self.bands, device=device, dtype=dtype)
            features, reach = [], 0
            for t in torch.meshgrid(*[axis.to(dtype) / scale for axis in axes], indexing="ij"):
                phase = 2 * math.pi * t[..., None] * frequencies
                features.append(torch.cat([t[..., None], phase.cos(), -phase.sin()], -1))
                reach = reach + t.abs()
            h = torch.cat(features, -1)
            for layer in self.filter:
                h = F.linear(h, layer.weight.to(dtype), layer.bias.to(dtype))
                h = torch.sin(self.frequency.to(dtype) * h)
            h = F.linear(h, self.filter_out.weight.to(dtype)).unflatten(-1, (self.order, self.dim)).movedim(-2, 0)
            h = h * torch.exp(-reach[..., None] * self.decay.to(dtype))
            here = (reach == 0).to(dtype)[..., None]
            return h + here * self.tap.to(dtype).view(self.order, *[1] * self.rank, self.dim)

    def _long(self, u: Tensor, filters: Tensor, causal: bool) -> Tensor:
        z, *gates = u.chunk(self.order + 1, -1)
        for h, gate in zip(filters, gates, strict=True):
            z = gate * long_convolution(z, h, causal=causal, backend=self.backend)
        return z

    def _short_grid(self, u: Tensor) -> Tensor:
        convolve = {2: F.conv2d, 3: F.conv3d}[self.rank]
        u = convolve(
            u.movedim(-1, 1), self.short_weight[:, None], self.short_bias, padding=self.short // 2, groups=u.shape[-1]
        )
        return u.movedim(1, -1)

    def _corners(self) -> list[tuple[int, ...]]:
        return list(itertools.product((0, 1), repeat=self.rank))

    def _grid(self, layout: Layout) -> tuple[int, ...]:
        if self.rank == 1:
            return (layout.tokens,)
        if layout.prefix:
            self.refuse("prefix", f"class tokens have no place in a grid of {self.rank} axes; set cls=False or rank=1")
        if len(layout.grid) != self.rank:
            self.refuse(f"rank={self.rank}", f"the grid has {len(layout.grid)} axes; rank=1 reads any")
        return layout.grid

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> State:
        """The short convolution's last inputs, filters for `capacity` tokens (by default `length`), room for the inputs
        of each long convolution, and the number of tokens seen."""
        if not self.causal:
            self.refuse("empty", "it was built with causal=False")
        like = self.tap if like is None else like
        room = capacity or self.length
        last = like.new_zeros(batch, self.short - 1, (self.order + 1) * self.dim)
        histories = tuple(like.new_zeros(batch, room, self.dim) for _ in range(self.order))
        return last, self.filters((room,)), histories, 0

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        last, filters, histories, count = state
        end = count + x.shape[1]
        if end > filters.shape[1]:
            filters = self.filters((max(end, 2 * count),))
        u, last = short_convolution(
            self.inputs(x), self.short_weight, self.short_bias, state=last, backend=self.backend
        )
        z, *gates = u.chunk(self.order + 1, -1)
        grown = []
        for h, gate, history in zip(filters, gates, histories, strict=True):
            before = history[:, :count] if count else None
            y = long_convolution(z, h[:end], history=before, backend=self.backend)
            grown.append(mixing.append(history, count, z))
            z = gate * y
        return self.out(z), (last, filters, tuple(grown), end)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        grid, dim, order = self._grid(layout), self.dim, self.order
        tokens, width = layout.tokens, (order + 1) * dim
        lags = tokens if self.causal or self.rank > 1 else 2 * tokens - 1
        network = sum(layer.weight.numel() for layer in self.filter) + self.filter_out.weight.numel()
        macs = batch * tokens * (dim * width + dim * dim) + lags * network
        other = order * long_flops(grid, dim, batch=batch * (1 if self.merge is None else len(self.merge)))
        if self.rank == 1:
            other += short_flops(tokens, width, self.short, batch)
        else:
            macs += batch * tokens * width * self.short**self.rank
        state = 0
        if self.causal:
            size = element_size(self)
            state = batch * ((self.short - 1) * width + order * tokens * dim) * size + order * tokens * dim * max(
                size, 4
            )
        return Cost(params=parameter_count(self), macs=macs, state_bytes=state, other_flops=other)
