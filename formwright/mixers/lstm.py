"""LSTM: a recurrence whose gates see the output before, so that tokens are computed one after another.

    [i, f, g, o]_t = W x_t + U h_{t-1} + b
    c_t = sigmoid(f_t) c_{t-1} + sigmoid(i_t) tanh(g_t),    h_t = sigmoid(o_t) tanh(c_t)
    y_t = W_o h_t                                           at expansion 1 h is the output itself, without W_o

The maps of the inputs are computed for all tokens at once, the rest token by token: a baseline for what the state of a
nonlinear recurrence can track, not for speed. The forget gate's bias begins at 1.
Long Short-Term Memory, Neural Computation 9(8), 1997; forget gates and their bias: Learning to Forget, Neural
Computation 12(10), 2000.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, per_sequence
from formwright.parts import register

State = tuple[Tensor, Tensor]  # h, c (B, inner)


@register
class LSTM(TokenMixer):
    """The LSTM: (B, N, D) -> (B, N, D), causal. Raises ValueError for an expansion that leaves no width."""

    card = Card(
        name="lstm",
        summary="the long short-term memory: gates that see the last output, one token after another",
        source="Long Short-Term Memory, Neural Computation 9(8), 1997",
        patterns=("causal",),
    )

    def __init__(self, dim: int, *, causal: bool = False, expansion: float = 1.0):
        """h is expansion * dim wide."""
        super().__init__(dim, causal=causal)
        self.inner = round(expansion * dim)
        if self.inner < 1:
            raise ValueError(f"lstm: expansion={expansion} leaves no width; it must be above 0")
        self.inputs = nn.Linear(dim, 4 * self.inner)
        self.recurrent = nn.Linear(self.inner, 4 * self.inner, bias=False)
        self.out = nn.Identity() if expansion == 1 else nn.Linear(self.inner, dim, bias=False)
        bound = self.inner**-0.5
        with torch.no_grad():
            for p in (self.inputs.weight, self.inputs.bias, self.recurrent.weight):
                p.uniform_(-bound, bound)
            self.inputs.bias[self.inner : 2 * self.inner] = 1.0

    def _mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        gates = self.inputs(x)
        h, c = state
        outputs = []
        for given in gates.unbind(1):
            i, f, g, o = (given + self.recurrent(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return self.out(torch.stack(outputs, 1)), (h, c)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        if layout.offsets is not None:
            return per_sequence(self, x, layout)
        return self._mix(x, self.empty(len(x), like=x))[0]

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """By torch's own LSTM."""
        none = torch.zeros_like(self.inputs.bias)
        weights = [self.inputs.weight, self.recurrent.weight, self.inputs.bias, none]
        before = [t[None] for t in self.empty(len(x), like=x)]
        h, _, _ = torch._VF.lstm(x, before, weights, True, 1, 0.0, False, False, True)
        return self.out(h)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> State:
        """(h, c), zeros."""
        like = self.inputs.weight if like is None else like
        return like.new_zeros(batch, self.inner), like.new_zeros(batch, self.inner)

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._mix(x, state)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n = layout.tokens
        macs = batch * n * 4 * self.inner * (self.dim + self.inner)
        macs += 0 if isinstance(self.out, nn.Identity) else batch * n * self.inner * self.dim
        # a token: 3 sigmoids, 2 tanhs and 4 products and sums of `inner` numbers, the gates' sum apart
        return Cost(
            parameter_count(self), macs, 2 * batch * self.inner * element_size(self), 13 * batch * n * self.inner
        )
