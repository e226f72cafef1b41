"""minGRU: a GRU whose gates see the token alone, so that all tokens are computed at once by a scan.

    z_t = sigmoid(W_z x_t + b_z),    c_t = g(W_h x_t + b_h)
    h_t = (1 - z_t) h_{t-1} + z_t c_t,    y_t = W_o h_t              g(x) = x + 1/2 for x >= 0, sigmoid(x) below

h is expansion * dim wide; at expansion 1 it is the output itself, without W_o. With initial_state the first h is
learned instead of zero.
Were RNNs All We Needed?, arXiv 2410.01201, 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count
from formwright.mixers.rg_lru import first_tokens, start_anew
from formwright.mixers.sequences import first_state
from formwright.ops import scan
from formwright.ops.scan import linear_scan
from formwright.parts import register


@register
class MinGRU(TokenMixer):
    """minGRU: (B, N, D) -> (B, N, D), causal. Raises ValueError for an expansion that leaves no width."""

    card = Card(
        name="min_gru",
        summary="a GRU stripped of its dependence on the past inside gates: one gate, one candidate, one scan",
        source="Were RNNs All We Needed?, arXiv 2410.01201, 2024",
        patterns=("causal",),
        symmetries=("shift",),
    )

    def __init__(self, dim: int, *, causal: bool = False, expansion: float = 1.0, initial_state: bool = False):
        super().__init__(dim, causal=causal)
        self.inner = round(expansion * dim)
        if self.inner < 1:
            raise ValueError(f"min_gru: expansion={expansion} leaves no width; it must be above 0")
        self.gates = nn.Linear(dim, 2 * self.inner)
        self.out = nn.Identity() if expansion == 1 else nn.Linear(self.inner, dim, bias=False)
        self.initial = nn.Parameter(torch.zeros(self.inner)) if initial_state else None

    def _mix(self, x: Tensor, state: Tensor | None, first: Tensor | None) -> tuple[Tensor, Tensor]:
        gates = self.gates(x)
        z, c = gates.to(torch.promote_types(gates.dtype, torch.float32)).chunk(2, -1)
        # Of the candidate's two branches the one that holds is the larger.
        b = torch.sigmoid(z) * torch.maximum(c + 0.5, torch.sigmoid(c))
        a, b = start_anew(torch.sigmoid(-z), b, first, self.initial)
        h, state = linear_scan(a, b, state=state, backend=self.backend)
        return self.out(h.to(x.dtype)), state

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        return self._mix(x, first_state(self.initial, len(x)), first_tokens(layout, x.device))[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Tensor:
        """h (B, inner)."""
        like = self.gates.weight if like is None else like
        state = like.new_zeros(batch, self.inner)
        return state if self.initial is None else state + self.initial.to(like)

    def extend(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, last = self._mix(x, state, None)
        return y, last.to(state.dtype)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, maps = layout.tokens, 2 if isinstance(self.out, nn.Identity) else 3
        state = batch * self.inner * element_size(self)
        return Cost(
            parameter_count(self), maps * batch * n * self.dim * self.inner, state, scan.flops(batch, n, self.inner)
        )
