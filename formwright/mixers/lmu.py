"""The Legendre memory unit, the core of LMUFormer: a fixed linear memory of the last `window` tokens of some signals.

    u_t = relu(W_u x_t + b_u)
    m_t = A' m_{t-1} + B' u_t                    the window as `order` Legendre coefficients, for each signal of u
    y_t = relu(W_m m_t + W_x x_t + b)

A' and B' discretise the delay network by zero-order hold with one token as the step; q is the order, i, j = 0 ... q-1:

    window m' = A m + B u,    A_ij = (2 i + 1) (-1 if i < j else (-1)^(i-j+1)),    B_i = (2 i + 1) (-1)^i
    A' = exp(A / window),     B' = A^-1 (A' - 1) B

The first LMU also feeds its output back into u; without that the memory is linear and parallel, as in LMUFormer. Its
batch norms are left out: they would let other rows and later tokens be seen. All tokens are computed in chunks: inside
one by products with powers of A', from one to the next by the m at its end. With initial_state the first m is a
parameter instead of 0.
LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units, arXiv 2402.04882, 2024; Legendre Memory
Units: Continuous-Time Representation in Recurrent Neural Networks, NeurIPS 2019; Parallelizing Legendre Memory Unit
Training, arXiv 2102.11417, 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, per_sequence
from formwright.mixers.sequences import first_state, learned_state, state_before
from formwright.parts import register

# Numbers in the powers of A' that a chunk needs, chunk * order^2, and the longest chunk.
POWERS, CHUNK = 128 * 1024, 64


def delay_network(order: int, window: float) -> tuple[Tensor, Tensor]:
    """A' (q, q) and B' (q,) of the equations above, in float64."""
    i = torch.arange(order, dtype=torch.float64)[:, None]
    j = i.mT
    sign = torch.where(i < j, -1.0, 1 - 2 * ((i - j + 1) % 2))
    a, b = (2 * i + 1) * sign, (2 * i + 1) * (1 - 2 * (i % 2))
    step = torch.linalg.matrix_exp(a / window)
    return step, torch.linalg.solve(a, (step - torch.eye(order, dtype=torch.float64)) @ b)[:, 0]


@register
class LMU(TokenMixer):
    """The parallel Legendre memory unit: (B, N, D) -> (B, N, D), causal. Raises ValueError for sizes below 1."""

    card = Card(
        name="lmu",
        summary="keeps a sliding window of a few signals as Legendre coefficients, by a fixed linear recurrence",
        source="LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units, "
        "arXiv 2402.04882, 2024",
        patterns=("causal",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        window: int = 128,
        order: int | None = None,
        memory_dim: int | None = None,
        initial_state: bool = False,
    ):
        """memory_dim signals of `order` coefficients each. Where they are left open the memory has about dim numbers,
        as LMUFormer's: one signal, or as many as keep the order at 64 or less."""
        super().__init__(dim, causal=causal)
        self.order = min(dim, 64) if order is None else order
        self.signals = max(1, dim // max(1, self.order)) if memory_dim is None else memory_dim
        if min(window, self.order, self.signals) < 1:
            raise ValueError(f"lmu: window={window}, order={order} and memory_dim={memory_dim} must be at least 1")
        self.window = window
        self.chunk = max(1, min(CHUNK, POWERS // self.order**2))
        self.signal = nn.Linear(dim, self.signals)
        self.memory = nn.Linear(self.order * self.signals, dim, bias=False)
        self.input = nn.Linear(dim, dim)
        for layer in (self.signal, self.memory, self.input):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
        self.initial = learned_state(self, initial_state, self.order, self.signals)
        # No buffers: they would be rounded with the parameters, and powers of a rounded A' drift.
        self.step, self.write = delay_network(self.order, window)
        self.powers, self.response = self._chunk_matrices()

    def _chunk_matrices(self) -> tuple[Tensor, Tensor]:
        """A'^(t+1) (C, q, q), and (C, q, C): what u_j gives m_t, A'^(t-j) B' for j <= t."""
        powers = [self.step]
        for _ in range(self.chunk - 1):
            powers.append(powers[-1] @ self.step)
        impulse = torch.stack([self.write, *(p @ self.write for p in powers[:-1])])
        t = torch.arange(self.chunk)
        lag = t[:, None] - t
        response = torch.where((lag >= 0)[..., None], impulse[lag.clamp(min=0)], 0.0)
        return torch.stack(powers), response.mT.contiguous()

    def _remember(self, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """u (B, N, U), m before it (B, q, U) -> m (B, N, q, U) and the last m."""
        batch, tokens, signals = u.shape
        chunk, count = self._pieces(tokens)
        filled = nn.functional.pad(u, (0, 0, 0, chunk * count - tokens)).reshape(batch * count, chunk, signals)
        response = self.response[:chunk, :, :chunk].to(u.device, u.dtype).flatten(0, 1)
        powers = self.powers[:chunk].to(u.device, u.dtype)
        own = torch.matmul(response, filled).view(batch, count, chunk, self.order, signals)
        m = u.new_zeros(batch, self.order, signals) if state is None else state.to(u.dtype)
        before = [m]
        for i in range(count - 1):
            m = torch.matmul(powers[-1], m) + own[:, i, -1]
            before.append(m)
        past = torch.matmul(powers.flatten(0, 1), torch.stack(before, 1))
        m = (own + past.view_as(own)).flatten(1, 2)[:, :tokens]
        return m, m[:, -1]

    def _pieces(self, tokens: int) -> tuple[int, int]:
        chunk = min(self.chunk, tokens)
        return chunk, -(-tokens // chunk)

    def _signals(self, x: Tensor) -> Tensor:
        u = torch.relu(self.signal(x))
        return u.to(torch.promote_types(u.dtype, torch.float32))

    def _read(self, x: Tensor, m: Tensor) -> Tensor:
        return torch.relu(self.memory(m.flatten(2).to(x.dtype)) + self.input(x))

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        return self._read(x, self._remember(self._signals(x), first_state(self.initial, len(x)))[0])

    def reference(self, x: Tensor, layout: Layout) -> Tensor:
        """forward token by token."""
        u = self._signals(x)
        step, write = self.step.to(u), self.write.to(u)
        m, ms = state_before(u, len(u), self.order, self.signals, initial=self.initial), []
        for t in range(u.shape[1]):
            m = step @ m + write[:, None] * u[:, t, None]
            ms.append(m)
        return self._read(x, torch.stack(ms, 1))

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Tensor:
        """m (B, order, memory_dim)."""
        like = self.input.weight if like is None else like
        return state_before(like, batch, self.order, self.signals, initial=self.initial)

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        m, last = self._remember(self._signals(x), state)
        return self._read(x, m), last.to(state.dtype)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, size = layout.tokens, self.order * self.signals
        macs = batch * n * self.dim * (self.signals + size + self.dim)
        sizes = [n] if layout.offsets is None else [m for m in layout.offsets.diff().tolist() if m]
        for chunk, count in map(self._pieces, sizes):
            macs += batch * size * (count * chunk * (chunk + self.order) + (count - 1) * self.order)
        return Cost(parameter_count(self), macs, batch * size * element_size(self))
