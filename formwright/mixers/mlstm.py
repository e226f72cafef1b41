"""mLSTM: a matrix memory with exponential input gates, a normaliser, and the block the paper puts around it.

    [x', z] = W_up x                                         twice `expansion` D wide in all
    c = silu(short causal convolution of x' + bias);   q, k = blocks W_q c, W_k c;   v = blocks W_v x'
    [i_t, f_t] = W_g [q_t, k_t, v_t] + b                     input and forget gates before their functions, one a head
    C_t = sigmoid(f_t) C_{t-1} + exp(i_t) k_t v_t^T,   n_t = sigmoid(f_t) n_{t-1} + exp(i_t) k_t
    h_t = C_t^T q'_t / max(|n_t . q'_t|, 1),   q' = q / sqrt(K)
    y_t = W_down ((layernorm(h_t) * scale + skip * c_t) * silu(z_t))           the norm over each head

Nothing overflows: C and n are held times exp(-m_t), m_t = max(log sigmoid(f_t) + m_{t-1}, i_t, 0), m_0 = 0, so that
both gates become numbers <= 1 and the bound 1 becomes exp(-m_t) <= 1. Whatever m is, h is the same, but for the
published code's eps beside the bound, added at that scale. (Its m leaves the 0 out; then exp(-m_t) may overflow.) The
state carries m. q, k, v are block-diagonal maps with small blocks. The paper scales W_down's beginning by depth, which
a mixer does not know; here it begins as small as the other maps. With initial_state C_0 and n_0 are parameters instead
of 0.
xLSTM: Extended Long Short-Term Memory, arXiv 2405.04517, 2024.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.linear_attention import packed_lengths
from formwright.mixers.sequences import first_state, learned_state, state_before
from formwright.ops import recurrence
from formwright.ops.convolution import short_convolution, short_flops
from formwright.ops.recurrence import linear_recurrence
from formwright.parts import register


def stabiliser(log_forget: Tensor, write: Tensor, before: Tensor) -> Tensor:
    """m_t = max(log_forget_t + m_{t-1}, write_t) along dimension 1, (B,N,H), from m_0 = before (B,H): rounds that join
    1, 2, 4, ... tokens, no difference of long sums."""
    step = 1
    while step < write.shape[1]:
        joined = torch.maximum(write[:, step:], log_forget[:, step:] + write[:, :-step])
        write = torch.cat([write[:, :step], joined], 1)
        log_forget = torch.cat([log_forget[:, :step], log_forget[:, step:] + log_forget[:, :-step]], 1)
        step *= 2
    return torch.maximum(write, log_forget + before[:, None])


def block_map(x: Tensor, weight: Tensor) -> Tensor:
    """Neighbouring channels mapped block by block: x (B, N, G I), weight (G, I, O) -> (B, N, G, O)."""
    blocks = x.flatten(0, 1).unflatten(-1, weight.shape[:2]).transpose(0, 1)
    return torch.bmm(blocks, weight).transpose(0, 1).unflatten(0, x.shape[:2])


def mlstm_cell(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    memory: Tensor | None = None,
    m: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k (B,N,H,K), v (B,N,H,V), gates [i, f] (B,N,2H), [C, n] (B,H,K,V+1) and m (B,H) before the first token -> h
    (B,N,H,V), and [C, n] and m after the last."""
    gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
    write, forget = gates.chunk(2, -1)
    log_forget = F.logsigmoid(forget)
    first = torch.zeros_like(write[:, 0]) if m is None else m.to(write.dtype)
    starts = None
    if offsets is not None:
        steps = torch.arange(q.shape[1], device=q.device)
        starts = torch.isin(steps, offsets.to(q.device))[:, None]
    flow = log_forget if starts is None else log_forget.masked_fill(starts, -math.inf)
    scale = stabiliser(flow, write.clamp(min=0), first)
    before = torch.cat([first[:, None], scale[:, :-1]], 1)
    if starts is not None:
        before = before.masked_fill(starts, 0)
    o, memory = linear_recurrence(
        q,
        k * (write - scale).exp()[..., None].to(k.dtype),
        torch.cat([v, torch.ones_like(v[..., :1])], -1),
        log_decay=log_forget + before - scale,
        scale=q.shape[-1] ** -0.5,
        state=memory,
        offsets=offsets,
        backend=backend,
    )
    bound = torch.maximum(o[..., -1].abs(), (-scale).exp().to(o.dtype)) + eps
    last = scale[:, -1]
    if m is not None:
        # A state in half precision holds a rounded m: what is rounded off goes to the memory.
        last = last.to(m.dtype)
        memory = memory * (scale[:, -1] - last).exp()[..., None, None].to(memory.dtype)
    return o[..., :-1] / bound[..., None], memory, last


@register
class MLSTM(TokenMixer):
    """The mLSTM with its block: (B, N, D) -> (B, N, D), causal. Raises ValueError for widths that don't fit."""

    card = Card(
        name="mlstm",
        summary="a matrix memory with exponential input gates and a normaliser, between projections up and down",
        source="xLSTM: Extended Long Short-Term Memory, arXiv 2405.04517, 2024",
        patterns=("causal",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        expansion: float = 2.0,
        short: int = 4,
        block: int = 4,
        initial_state: bool = False,
        eps: float = 1e-6,
    ):
        """The heads share `expansion` times dim channels, four heads where both words are left open; `block` is how
        many channels the maps to q, k and v take together."""
        super().__init__(dim, causal=causal)
        wide = round(expansion * dim)
        if wide < 1 or short < 1 or block < 1:
            raise ValueError(f"mlstm: expansion={expansion}, short={short} and block={block} must be at least 1 wide")
        if heads is None and head_dim is None:
            heads, head_dim = 4, math.ceil(wide / 32) * 8
        self.heads, self.head_dim = split_heads("mlstm", wide, heads, head_dim)
        self.inner = self.heads * self.head_dim
        if self.inner % block:
            raise ValueError(
                f"mlstm: {self.heads} heads of {self.head_dim} channels do not fall into blocks of {block}; choose "
                f"another block or head_dim"
            )
        self.short, self.block, self.eps = short, block, eps
        self.up = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.inner, short).uniform_(-(short**-0.5), short**-0.5))
        self.conv_bias = nn.Parameter(torch.empty(self.inner).uniform_(-(short**-0.5), short**-0.5))
        groups = self.inner // block
        self.query_key = nn.Parameter(torch.empty(groups, block, 2 * block))
        self.value = nn.Parameter(torch.empty(groups, block, block))
        self.gates = nn.Linear(3 * self.inner, 2 * self.heads)
        self.skip = nn.Parameter(torch.ones(self.inner))
        self.norm_weight = nn.Parameter(torch.ones(self.inner))
        self.down = nn.Linear(self.inner, dim, bias=False)
        for weight in (self.up.weight, self.query_key, self.value, self.down.weight):
            nn.init.normal_(weight, std=math.sqrt(2 / (5 * dim)))
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias[: self.heads].normal_(0, 0.1)
            self.gates.bias[self.heads :] = torch.linspace(3, 6, self.heads)
        self.initial = learned_state(self, initial_state, self.heads, self.head_dim, self.head_dim + 1)

    def _mix(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor] | None, offsets: Tensor | None):
        last, memory, m = (None, None, None) if state is None else state
        if state is None:
            memory = first_state(self.initial, len(x), offsets)
        inside, z = self.up(x).chunk(2, -1)
        c, last = short_convolution(
            inside, self.conv_weight, self.conv_bias, state=last, offsets=offsets, backend=self.backend
        )
        c = F.silu(c)
        q, k = (t.flatten(2) for t in block_map(c, self.query_key).chunk(2, -1))
        v = block_map(inside, self.value).flatten(2)
        gates = self.gates(torch.cat([q, k, v], -1))
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        h, memory, m = mlstm_cell(q, k, v, gates, memory, m, offsets=offsets, eps=self.eps, backend=self.backend)
        h = F.layer_norm(h, (self.head_dim,)).flatten(2) * self.norm_weight
        return self.down((h + self.skip * c) * F.silu(z)), (last, memory, m)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return self._mix(x, None, layout.offsets)[0]

    def empty(
        self, batch: int, capacity: int | None = None, like: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(the short convolution's last inputs, [C, n] (B, H, K, V+1), m (B, H))."""
        like = self.up.weight if like is None else like
        memory = state_before(like, batch, self.heads, self.head_dim, self.head_dim + 1, initial=self.initial)
        return like.new_zeros(batch, self.short - 1, self.inner), memory, like.new_zeros(batch, self.heads)

    def extend(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]):
        return self._mix(x, state, None)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, key = layout.tokens, self.head_dim
        linear = batch * n * self.inner * (3 * self.dim + 3 * self.block + 6 * self.heads)
        products = recurrence.macs(
            batch, n, self.heads, key, key + 1, log_decay="scalar", lengths=packed_lengths(layout)
        )
        state = batch * ((self.short - 1) * self.inner + self.heads * (key * (key + 1) + 1)) * element_size(self)
        return Cost(parameter_count(self), linear + products, state, short_flops(n, self.inner, self.short, batch))
