"""Right mixers of unlike kinds, written as a user writes them: with nothing but formwright.contract."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import (
    Card,
    Cost,
    Layout,
    TokenMixer,
    element_size,
    parameter_count,
    per_sequence,
    split_heads,
)


def state_dtype(module: nn.Module, like: Tensor | None) -> torch.dtype:
    if like is not None:
        return like.dtype
    return next((p.dtype for p in module.parameters()), torch.float32)


class CausalMean(TokenMixer):
    """The mean of all tokens so far, through one matrix; two-directional: the mean of all tokens. The state is a
    nested dict with a Python counter."""

    card = Card("causal_mean", patterns=("self", "causal"), time="N", state="1")

    def __init__(self, dim: int, *, causal: bool = False):
        super().__init__(dim, causal=causal)
        self.out = nn.Linear(dim, dim)

    def forward(self, x, layout, context=None, context_layout=None):
        if context is not None:
            self.refuse("context", "it mixes one sequence")
        if not layout.plain:
            return per_sequence(self, x, layout)
        if self.causal:
            counts = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
            return self.out(x.cumsum(1) / counts[:, None])
        return self.out(x.mean(1, keepdim=True).expand_as(x))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        where = self.out.weight
        total = torch.zeros(batch, 1, self.dim, dtype=state_dtype(self, like), device=where.device)
        return {"memory": {"total": total}, "count": 0}

    def extend(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        sums = state["memory"]["total"] + x.cumsum(1)
        counts = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype) + state["count"]
        after = {"memory": {"total": sums[:, -1:]}, "count": state["count"] + x.shape[1]}
        return self.out(sums / counts[:, None]), after

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        held = batch * self.dim * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), batch * layout.tokens * self.dim**2, held)


class SmallAttention(TokenMixer):
    """Softmax attention with a preallocated cache that extend writes in place; all four patterns."""

    card = Card(
        "small_attention",
        patterns=("self", "causal", "cross", "causal_cross"),
        time="N^2",
        state="N",
        symmetries=("permutation",),
    )

    def __init__(self, dim: int, *, causal: bool = False, heads: int | None = None, head_dim: int | None = None):
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("small_attention", dim, heads, head_dim)
        inner = self.heads * self.head_dim
        self.q, self.k, self.v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, m = q.shape[2], k.shape[2]
        mask = None
        if self.causal:
            mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x, layout, context=None, context_layout=None):
        if not layout.plain or (context_layout is not None and not context_layout.plain):
            if context is not None:
                self.refuse("padded or packed context", "write the sequences one by one")
            return per_sequence(self, x, layout)
        source = x if context is None else context
        return self._attend(self._split(self.q(x)), self._split(self.k(source)), self._split(self.v(source)))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        where = self.q.weight
        shape = (2, batch, self.heads, capacity or 16, self.head_dim)
        return [torch.zeros(shape, dtype=state_dtype(self, like), device=where.device), 0]

    def extend(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        cache, used = state
        need = used + x.shape[1]
        if need > cache.shape[3]:
            cache = F.pad(cache, (0, 0, 0, need - cache.shape[3] + 32))
        cache[0, :, :, used:need] = self._split(self.k(x))
        cache[1, :, :, used:need] = self._split(self.v(x))
        return self._attend(self._split(self.q(x)), *cache[:, :, :, :need]), [cache, need]

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, inner = layout.tokens, self.heads * self.head_dim
        macs = batch * (4 * n * self.dim * inner + 2 * n * n * inner)
        held = 2 * batch * n * inner * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), macs, held)


class Gated(TokenMixer):
    """S_t = a_t S_{t-1} + v_t k_t^T, o_t = S_t^T q_t with a scalar decay, in chunks of C; the loop beside it."""

    card = Card("gated", patterns=("causal",), grid_ranks=(1,), time="N", state="1")
    chunk = 64

    def __init__(self, dim: int, *, causal: bool = True):
        super().__init__(dim, causal=causal)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.decay = nn.Linear(dim, 1)
        self.out = nn.Linear(dim, dim, bias=False)

    def check_layout(self, layout: Layout, context: Tensor | None) -> None:
        if context is not None:
            self.refuse("context", "it mixes one sequence")
        if len(layout.grid) != 1:
            self.refuse(f"grid {layout.grid}", "it runs along one axis")
        if layout.offsets is not None:
            self.refuse("packed", "its chunks would mix sequences")

    def log_decay(self, x: Tensor) -> Tensor:
        return F.logsigmoid(self.decay(x) + 2)

    def step_chunk(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, D), state (B, D, D) -> outputs before the last matrix, the state after."""
        q, k, v = self.qkv(x).chunk(3, -1)
        k = k / self.dim**0.5
        g = self.log_decay(x).cumsum(1)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        decays = (g - g.transpose(1, 2)).masked_fill(~mask, -torch.inf).exp()
        y = (q @ k.transpose(1, 2) * decays) @ v + (q * g.exp()) @ state
        last = g[:, -1:]
        return y, last.exp() * state + (k * (last - g).exp()).transpose(1, 2) @ v

    def forward(self, x, layout, context=None, context_layout=None):
        self.check_layout(layout, context)
        return self.extend(x, self.empty(x.shape[0], like=x))[0]

    def reference(self, x, layout, context=None, context_layout=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        a, state, outs = self.log_decay(x).exp(), x.new_zeros(x.shape[0], self.dim, self.dim), []
        for t in range(x.shape[1]):
            state = a[:, t, :, None] * state + k[:, t, :, None] * v[:, t, None] / self.dim**0.5
            outs.append((q[:, t, None] @ state)[:, 0])
        return self.out(torch.stack(outs, 1))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        where = self.out.weight if like is None else like
        return torch.zeros(batch, self.dim, self.dim, dtype=where.dtype, device=where.device)

    def extend(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        outs = []
        for piece in x.split(self.chunk, 1):
            y, state = self.step_chunk(piece, state)
            outs.append(y)
        return self.out(torch.cat(outs, 1)), state

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, d, whole, rest = layout.tokens, self.dim, *divmod(layout.tokens, self.chunk)
        within = 2 * d * (whole * self.chunk**2 + rest**2)
        macs = batch * (4 * n * d * d + n * d + within + 2 * n * d * d)
        return Cost(parameter_count(self), macs, batch * d * d * element_size(self))


class GatedChunk128(Gated):
    chunk = 128


class RingConvolution(TokenMixer):
    """A depthwise causal convolution of W taps; the last W - 1 tokens stand in a ring that extend writes in place."""

    card = Card("ring_convolution", patterns=("causal",), time="N", state="1", symmetries=("shift",))

    def __init__(self, dim: int, *, causal: bool = True, window: int = 5):
        super().__init__(dim, causal=causal)
        self.window = window
        self.weight = nn.Parameter(torch.randn(dim, 1, window) / window**0.5)

    def forward(self, x, layout, context=None, context_layout=None):
        if context is not None:
            self.refuse("context", "it mixes one sequence")
        if not layout.plain:
            return per_sequence(self, x, layout)
        u = F.pad(x.transpose(1, 2), (self.window - 1, 0))
        return F.conv1d(u, self.weight, groups=self.dim).transpose(1, 2)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        where = self.weight if like is None else like
        ring = torch.zeros(batch, self.window - 1, self.dim, dtype=where.dtype, device=where.device)
        return {"ring": ring, "next": 0}

    def extend(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        ring, start = state["ring"], state["next"]
        order = [(start + i) % (self.window - 1) for i in range(self.window - 1)]
        past = torch.cat([ring[:, order], x], 1)
        y = F.conv1d(past.transpose(1, 2), self.weight, groups=self.dim).transpose(1, 2)
        for t in range(max(0, x.shape[1] - self.window + 1), x.shape[1]):
            ring[:, (start + t) % (self.window - 1)] = x[:, t]
        return y, {"ring": ring, "next": (start + x.shape[1]) % (self.window - 1)}

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        # Torch counts a convolution at its padded input's outputs: N of them.
        macs = batch * layout.tokens * self.dim * self.window
        held = batch * (self.window - 1) * self.dim * element_size(self)
        return Cost(parameter_count(self), macs, held)


class Float32State(TokenMixer):
    """h_t = a h_{t-1} + (1 - a) x_t, whose state is kept in float32 whatever the tokens are."""

    card = Card("float32_state", patterns=("causal",), time="N", state="1", symmetries=("shift",))

    def __init__(self, dim: int, *, causal: bool = True):
        super().__init__(dim, causal=causal)
        self.rate = nn.Parameter(torch.linspace(1, 4, dim))
        self.out = nn.Linear(dim, dim)

    def forward(self, x, layout, context=None, context_layout=None):
        if context is not None:
            self.refuse("context", "it mixes one sequence")
        if not layout.plain:
            return per_sequence(self, x, layout)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self._run(x, torch.zeros(x.shape[0], self.dim, dtype=dtype, device=x.device))[0]

    def _run(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        a, outs = torch.sigmoid(self.rate.to(h.dtype)), []
        for u in x.to(h.dtype).unbind(1):
            h = a * h + (1 - a) * u
            outs.append(h)
        return self.out(torch.stack(outs, 1).to(x.dtype)), h

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        return torch.zeros(batch, self.dim, dtype=torch.float32, device=self.rate.device)

    def extend(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        out, h = self._run(x, state)
        return out, h.float()

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        held = 4 * batch * self.dim
        tokens = batch * layout.tokens
        return Cost(parameter_count(self), tokens * self.dim**2, held, 3 * tokens * self.dim)


class LongFilter(TokenMixer):
    """A learned filter as long as the sequence by FFT; extend keeps all tokens."""

    card = Card("long_filter", patterns=("causal",), time="N", state="N")

    def __init__(self, dim: int, *, causal: bool = True, length: int = 1024):
        super().__init__(dim, causal=causal)
        self.filter = nn.Parameter(torch.randn(length, dim) * torch.exp(-torch.arange(length) / 50)[:, None])
        self.out = nn.Linear(dim, dim)

    def _convolve(self, u: Tensor) -> Tensor:
        n = u.shape[1]
        wide = u.to(torch.promote_types(u.dtype, torch.float32))
        spectrum = torch.fft.rfft(wide, 2 * n, 1) * torch.fft.rfft(self.filter[:n].to(wide.dtype), 2 * n, 0)
        return torch.fft.irfft(spectrum, 2 * n, 1)[:, :n].to(u.dtype)

    def forward(self, x, layout, context=None, context_layout=None):
        if context is not None:
            self.refuse("context", "it mixes one sequence")
        if x.shape[1] > len(self.filter):
            raise ValueError(f"long_filter: {x.shape[1]} tokens are more than its length={len(self.filter)}")
        if not layout.plain:
            return per_sequence(self, x, layout)
        return self.out(self._convolve(x))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        where = self.filter if like is None else like
        return torch.zeros(batch, 0, self.dim, dtype=where.dtype, device=where.device)

    def extend(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        past = torch.cat([state, x], 1)
        return self.out(self._convolve(past)[:, -x.shape[1] :]), past

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        held = batch * layout.tokens * self.dim * element_size(self)
        return Cost(parameter_count(self), batch * layout.tokens * self.dim**2, held)


RIGHT = [CausalMean, SmallAttention, Gated, GatedChunk128, RingConvolution, Float32State, LongFilter]
