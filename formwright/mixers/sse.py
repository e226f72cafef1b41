"""Sparse State Expansion: a memory of many partitions, of which each token writes and reads the few it belongs to.

    v = silu(W_v x),  q^0 = silu(W_q x),  k^0 = softmax(W_k x)                      softmax over a head's rows
    q^1 = silu(W_q x + B_q A_q x),  k^1 = softmax(W_k x + B_k A_k x)                B A of low rank
    a^i = sigmoid(F_i E_i x + b_i)^(1/16),  p = softmax(W_p x)                      one p_c a partition
    S^0_t = diag(a^0_t) S^0_{t-1} + k^0_t v_t^T                                     shared, always written
    S^c_t = diag(a^1_t) S^c_{t-1} + p_c k^1_t v_t^T    for the `writers` partitions c of largest p; others stay
    o_t = (S^0_t^T q^0_t + sum_c p_c S^c_t^T q^1_t) / sqrt(K)    over the `readers` partitions of largest p
    y_t = W_o (rmsnorm(o_t) * swish(G_2 G_1 x_t))                   the norm over each head, with a scale

All partitions share the weights: the state grows with their number, the parameters don't but for W_p, and the work
grows with the partitions chosen alone. With `rows` a key keeps its `rows` largest entries (the softmax is over those),
so that only these rows of a state are written. With initial_state all first states are parameters instead of 0.
Scaling Linear Attention with Sparse State Expansion, arXiv 2507.16577, 2025.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.linear_attention import packed_lengths
from formwright.mixers.sequences import first_state, learned_state, state_before
from formwright.ops import recurrence
from formwright.ops import sparse_state as partitioned
from formwright.ops.recurrence import linear_recurrence
from formwright.ops.sparse_state import sparse_state
from formwright.parts import register


def largest(scores: Tensor, count: int) -> Tensor:
    """The indices of the `count` largest of the last axis, largest first; of equals the earlier."""
    return torch.sort(scores, dim=-1, descending=True, stable=True)[1][..., :count]


def through(dim: int, rank: int, out: int, bias: bool = False) -> nn.Sequential:
    """A linear map through `rank` channels."""
    return nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, out, bias=bias))


def exactly(x: Tensor, *layers: nn.Linear) -> Tensor:
    """x through linear maps without bias, in float32 at least, so that rounding seldom decides a choice."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(wide)
        for layer in layers:
            x = F.linear(x, layer.weight.to(wide))
    return x


@register
class SparseStateExpansion(TokenMixer):
    """Sparse State Expansion on gated linear attention: (B, N, D) -> (B, N, D), causal.

    Raises ValueError for widths and counts that don't fit."""

    card = Card(
        name="sse",
        summary="gated linear attention whose state has many partitions; each token writes and reads its top few",
        source="Scaling Linear Attention with Sparse State Expansion, arXiv 2507.16577, 2025",
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
        expansion: float = 1.0,
        partitions: int = 4,
        writers: int = 1,
        readers: int = 1,
        rows: int | None = None,
        low_rank: int | None = None,
        gate_rank: int = 16,
        gate_temperature: float = 16.0,
        initial_state: bool = False,
        eps: float = 1e-5,
    ):
        """head_dim is the width of a head's keys; its values are `expansion` times as wide. low_rank is the rank of the
        maps that tell the partitions' queries and keys from the shared ones and of the output gate's, a head's value
        width where it is left open; gate_rank that of the maps to decays."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("sse", dim, heads, head_dim)
        self.value_dim = round(self.head_dim * expansion)
        self.low_rank = self.value_dim if low_rank is None else low_rank
        self.gate_rank, self.gate_temperature = gate_rank, gate_temperature
        if min(self.value_dim, self.low_rank, gate_rank) < 1 or gate_temperature <= 0:
            raise ValueError(
                f"sse: expansion={expansion}, low_rank={low_rank}, gate_rank={gate_rank} and gate_temperature="
                f"{gate_temperature} must leave at least one value channel, one rank each and a temperature above 0"
            )
        if not (1 <= writers <= partitions and 1 <= readers <= partitions):
            raise ValueError(
                f"sse: writers={writers} and readers={readers} must each lie in 1..partitions, which is {partitions}"
            )
        if rows is not None and not 1 <= rows <= self.head_dim:
            raise ValueError(f"sse: rows={rows} must lie in 1..{self.head_dim}, the rows of a head's state")
        self.partitions, self.writers, self.readers, self.rows = partitions, writers, readers, rows
        self.keys, self.values = self.heads * self.head_dim, self.heads * self.value_dim
        self.query = nn.Linear(dim, self.keys, bias=False)
        self.key = nn.Linear(dim, self.keys, bias=False)
        self.value = nn.Linear(dim, self.values, bias=False)
        self.query_shift = through(dim, self.low_rank, self.keys)
        self.key_shift = through(dim, self.low_rank, self.keys)
        self.forget = nn.ModuleList(through(dim, gate_rank, self.keys, bias=True) for _ in range(2))
        self.router = nn.Linear(dim, partitions, bias=False)
        self.gate = through(dim, self.low_rank, self.values)
        self.norm = nn.RMSNorm(self.value_dim, eps=eps)
        self.out = nn.Linear(self.values, dim, bias=False)
        shape = self.heads, self.head_dim, self.value_dim
        self.initial = learned_state(self, initial_state, 1 + partitions, *shape)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,N,D) -> the partitions each token chose (B,N,max(readers, writers)), the most wanted first; p (B,N,P)
        in float32 at least."""
        scores = exactly(x, self.router)
        return largest(scores.detach(), max(self.readers, self.writers)), scores.softmax(-1)

    def balance(self, x: Tensor) -> Tensor:
        """The router's load-balancing loss at x (B,N,D), a scalar to add to a training loss: 1 where all
        partitions are written alike, up to P / writers where the same are always written."""
        choice, p = self.route(x)
        written = torch.zeros_like(p).scatter(2, choice[..., : self.writers], 1.0)
        return (p.mean((0, 1)) * written.mean((0, 1))).sum() * self.partitions / self.writers

    def _keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,N,D) -> how far each token belongs to each of K rows, for the shared state and for the partitions."""
        if self.rows is None:
            shared = self.key(x)
            scores = shared, shared + self.key_shift(x)
        else:
            shared = exactly(x, self.key)
            scores = shared, shared + exactly(x, *self.key_shift)
        return tuple(self._belongs(t.unflatten(-1, (self.heads, -1))).to(x.dtype) for t in scores)

    def _belongs(self, scores: Tensor) -> Tensor:
        if self.rows is not None:
            kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, largest(scores.detach(), self.rows), True)
            scores = scores.masked_fill(~kept, float("-inf"))
        return scores.softmax(-1)

    def _log_decay(self, x: Tensor, which: int) -> Tensor:
        """(B,N,H,K), in float32 at least; `which` is 0 for the shared state, 1 for the partitions."""
        f = self.forget[which](x).unflatten(-1, (self.heads, -1))
        return F.logsigmoid(f.to(torch.promote_types(f.dtype, torch.float32))) / self.gate_temperature

    def _mix(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None, offsets: Tensor | None, last: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        shared, held = (None, None) if state is None else state
        q, v = self.query(x), F.silu(self.value(x))
        q, sparse_q, v = (t.unflatten(-1, (self.heads, -1)) for t in (F.silu(q), F.silu(q + self.query_shift(x)), v))
        k, sparse_k = self._keys(x)
        options = {"scale": self.head_dim**-0.5, "offsets": offsets, "backend": self.backend}
        o, shared = linear_recurrence(q, k, v, log_decay=self._log_decay(x, 0), state=shared, **options)
        choice, p = self.route(x)
        chosen = p.gather(-1, choice).to(v.dtype)
        sparse, held = sparse_state(
            sparse_q,
            sparse_k,
            v,
            choice,
            chosen[..., : self.readers],
            chosen[..., : self.writers],
            partitions=self.partitions,
            log_decay=self._log_decay(x, 1),
            state=held,
            last=last,
            **options,
        )
        return self.out(self.norm(o + sparse).flatten(2) * F.silu(self.gate(x))), (shared, held)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        first = first_state(self.initial, len(x), layout.offsets)
        return self._mix(x, None if first is None else (first[:, 0], first[:, 1:]), layout.offsets, last=False)[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(the shared state (B, H, K, V), the partitions' (B, P, H, K, V))."""
        like = self.query.weight if like is None else like
        shape = self.heads, self.head_dim, self.value_dim
        shared, held = (None, None) if self.initial is None else (self.initial[0], self.initial[1:])
        return (
            state_before(like, batch, *shape, initial=shared),
            state_before(like, batch, self.partitions, *shape, initial=held),
        )

    def extend(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self._mix(x, state, None, last=True)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, keys, values = layout.tokens, self.keys, self.values
        full = self.dim * (2 * keys + 2 * values + self.partitions)
        narrow = self.low_rank * (3 * self.dim + 2 * keys + values) + 2 * self.gate_rank * (self.dim + keys)
        shape = batch, n, self.heads, self.head_dim, self.value_dim
        lengths = packed_lengths(layout)
        products = recurrence.macs(*shape, log_decay="diagonal", lengths=lengths)
        products += partitioned.macs(
            *shape,
            partitions=self.partitions,
            chosen=max(self.readers, self.writers),
            log_decay="diagonal",
            state=self.initial is not None,
            lengths=lengths,
        )
        state = batch * (1 + self.partitions) * keys * self.value_dim * element_size(self)
        return Cost(parameter_count(self), batch * n * (full + narrow) + products, state)
