"""The recurrent block of Griffin and Hawk: a gated diagonal recurrence (RG-LRU) between linear branches.

    r_t = sigmoid(W_r x_t + b_r),    i_t = sigmoid(W_i x_t + b_i)       W_r, W_i block-diagonal, a block a head
    log a_t = -c softplus(L) r_t,    c = 8
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t)                        from nothing: h_1 = i_1 x_1
    out = W_out (gelu(W_y u) * h),    x = short causal convolution of W_x u

a_t^(1/r_t) begins uniform in 0.9 .. 0.999 over the channels. With initial_state the first h is learned, and no token
is a first one (Lina-Speech, arXiv 2410.23320, 2024).
Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models, arXiv 2402.19427, 2024;
first tokens and blocks as in RecurrentGemma: Moving Past Transformers for Efficient Open Language Models,
arXiv 2404.07839, 2024.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.sequences import first_state, learned_state, state_before
from formwright.ops import gated_scan as core
from formwright.ops import scan
from formwright.ops.convolution import short_convolution, short_flops
from formwright.ops.gated_scan import gated_scan
from formwright.parts import register

# (the short convolution's last inputs, h (B, inner), tokens seen)
State = tuple[Tensor, Tensor, int]


def first_tokens(layout: Layout, device: torch.device) -> Tensor | None:
    """(N, 1) booleans, True where a packed sequence begins; None where nothing is packed."""
    ids = layout.sequence_ids(device)
    return None if ids is None else F.pad(ids.diff() != 0, (1, 0), value=True)[:, None]


def start_anew(a: Tensor, b: Tensor, first: Tensor | None, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """a and b of h_t = a_t h_{t-1} + b_t, changed so that the tokens of the mask `first` (N, 1) follow on `initial`
    (zero where None) instead of on the token before them."""
    if first is None:
        return a, b
    if initial is not None:
        b = torch.where(first, b + a * initial.to(b.dtype), b)
    return torch.where(first, torch.zeros_like(a), a), b


@register
class RGLRU(TokenMixer):
    """Griffin's recurrent block: (B, N, D) -> (B, N, D), causal. Raises ValueError for heads or widths that don't
    fit."""

    card = Card(
        name="rg_lru",
        summary="a diagonal recurrence with gates for input and decay, its input kept at unit size; gelu-gated output",
        source="Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models, "
        "arXiv 2402.19427, 2024",
        patterns=("causal",),
        symmetries=("shift",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        expansion: float = 1.0,
        heads: int | None = None,
        head_dim: int | None = None,
        short: int = 4,
        power: float = 8.0,
        initial_state: bool = False,
    ):
        """The recurrence is expansion * dim wide, in heads whose gates see one another; power is c."""
        super().__init__(dim, causal=causal)
        if expansion <= 0 or short < 1 or power <= 0:
            raise ValueError(f"rg_lru: expansion={expansion}, short={short} and power={power} must be above 0")
        self.heads, self.head_dim = split_heads("rg_lru", max(1, round(expansion * dim)), heads, head_dim)
        self.inner, self.short, self.power = self.heads * self.head_dim, short, power
        self.gate = nn.Linear(dim, self.inner)
        self.inputs = nn.Linear(dim, self.inner)
        self.conv_weight = nn.Parameter(torch.randn(self.inner, short) * (0.01 / short) ** 0.5)
        self.conv_bias = nn.Parameter(torch.zeros(self.inner))
        blocks = self.heads, self.head_dim, 2 * self.head_dim
        self.gates = nn.Parameter(torch.randn(*blocks) * self.head_dim**-0.5)
        self.gates_bias = nn.Parameter(torch.zeros(self.heads, 1, 2 * self.head_dim))
        decay = -torch.empty(self.inner).uniform_(0.9, 0.999).log() / power
        self.rate = nn.Parameter(torch.log(torch.expm1(decay)))
        self.out = nn.Linear(self.inner, dim)
        for layer in (self.gate, self.inputs, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        self.initial = learned_state(self, initial_state, self.inner)

    def _mix(
        self, u: Tensor, last: Tensor | None, state: Tensor | None, fresh: bool, offsets: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x, last = short_convolution(
            self.inputs(u), self.conv_weight, self.conv_bias, state=last, offsets=offsets, backend=self.backend
        )
        rate = -self.power * F.softplus(self.rate.to(torch.promote_types(x.dtype, torch.float32)))
        y, state = gated_scan(
            x, self.gate(u), self.gates, self.gates_bias, rate,
            state=state, fresh=fresh, offsets=offsets, backend=self.backend,
        )  # fmt: skip
        return self.out(y), (last, state)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        state = first_state(self.initial, len(x), layout.offsets)
        return self._mix(x, None, state, self.initial is None, layout.offsets)[0]

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> State:
        """(the short convolution's last inputs, h (B, inner), tokens seen)."""
        like = self.gate.weight if like is None else like
        state = state_before(like, batch, self.inner, initial=self.initial)
        return like.new_zeros(batch, self.short - 1, self.inner), state, 0

    def extend(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        last, h, seen = state
        y, (last, h) = self._mix(x, last, h, seen == 0 and self.initial is None, None)
        return y, (last, h, seen + x.shape[1])

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        shape = batch, layout.tokens, self.inner
        macs = batch * layout.tokens * self.inner * 3 * self.dim
        macs += core.macs(batch, layout.tokens, self.heads, self.head_dim)
        other = short_flops(layout.tokens, self.inner, self.short, batch) + scan.flops(*shape)
        return Cost(parameter_count(self), macs, batch * self.short * self.inner * element_size(self), other)
