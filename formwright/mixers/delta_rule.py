"""The delta rule between short convolutions and an output norm: what DeltaNet, Gated DeltaNet and Kimi Delta Attention
have in common.

    q, k, v = silu(short causal convolutions of linear maps of x);   q, k scaled to length 1
    beta_t = sigmoid(W_b x_t), or twice that
    S' = diag(exp(g_t)) S_{t-1},   S_t = S' + beta_t k_t (v_t - S'^T k_t)^T,   o_t = S_t^T q_t / sqrt(K)

Where `keys` holds fewer heads than `values`, neighbouring heads share theirs.

The functions, three of which are methods, read their mixer's widths and parameters by name: heads, head_dim, value_dim,
keys, values, convolved, short, negative_eigenvalues; inputs, conv_weight, beta, initial.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Cost, Layout, TokenMixer, element_size, parameter_count
from formwright.mixers.linear_attention import packed_lengths
from formwright.mixers.mamba2 import to_heads
from formwright.mixers.sequences import first_state, state_before
from formwright.ops import recurrence
from formwright.ops.convolution import short_convolution, short_flops
from formwright.ops.recurrence import linear_recurrence

# (the short convolutions' last inputs, S (B, H, K, V)); None of them before a sequence of its own.
State = tuple[Tensor | None, Tensor | None]


def value_width(mixer: TokenMixer, expansion: float, short: int) -> int:
    """The width of a head's values, `expansion` times its keys'. Raises ValueError where no value channel or no tap is
    left."""
    width = round(mixer.head_dim * expansion)
    if width < 1 or short < 1:
        raise ValueError(f"{mixer.card.name}: expansion={expansion} and short={short} leave no values or no taps")
    return width


def taps(channels: int, short: int) -> nn.Parameter:
    """The weights of short depthwise convolutions, as torch begins its own."""
    return nn.Parameter(torch.empty(channels, short).uniform_(-(short**-0.5), short**-0.5))


def unit_length(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x (..., K) / sqrt(|x|^2 + eps)."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def corrected(
    mixer: TokenMixer, x: Tensor, log_decay: Tensor | None, before: State, offsets: Tensor | None
) -> tuple[Tensor, State]:
    """x (B,N,D), g (B,N,H) or (B,N,H,K) or None, the state before x -> o (B,N,H,V) and the state after it."""
    last, state = before
    mixed, last = short_convolution(
        mixer.inputs(x), mixer.conv_weight, state=last, offsets=offsets, backend=mixer.backend
    )
    qk, v = F.silu(mixed).split([2 * mixer.keys, mixer.values], -1)
    q, k = (to_heads(t, mixer.heads) for t in unit_length(qk.unflatten(-1, (2, -1, mixer.head_dim))).unbind(2))
    beta = torch.sigmoid(mixer.beta(x))
    o, state = linear_recurrence(
        q,
        k,
        v.unflatten(-1, (mixer.heads, -1)),
        log_decay=log_decay,
        beta=2 * beta if mixer.negative_eigenvalues else beta,
        scale=mixer.head_dim**-0.5,
        state=state,
        offsets=offsets,
        backend=mixer.backend,
    )
    return o, (last, state)


def forward(
    mixer: TokenMixer, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
) -> Tensor:
    """The method forward of a mixer with mix(x, the state before x, offsets) -> (y, the state after x)."""
    return mixer.mix(x, (None, first_state(mixer.initial, len(x), layout.offsets)), layout.offsets)[0]


def empty(mixer: TokenMixer, batch: int, capacity: int | None = None, like: Tensor | None = None) -> State:
    """Its method empty."""
    like = mixer.inputs.weight if like is None else like
    last = like.new_zeros(batch, mixer.short - 1, mixer.convolved)
    return last, state_before(like, batch, mixer.heads, mixer.head_dim, mixer.value_dim, initial=mixer.initial)


def extend(mixer: TokenMixer, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Its method extend."""
    return mixer.mix(x, state, None)


def cost(mixer: TokenMixer, layout: Layout, batch: int, linear: int, log_decay: str | None) -> Cost:
    """The cost with `linear` multiply-adds a token in maps other than those to q, k, v and beta."""
    n = layout.tokens
    maps = batch * n * (mixer.dim * (mixer.convolved + mixer.heads) + linear)
    shape = batch, n, mixer.heads, mixer.head_dim, mixer.value_dim
    products = recurrence.macs(*shape, log_decay=log_decay, beta=True, lengths=packed_lengths(layout))
    held = (mixer.short - 1) * mixer.convolved + mixer.heads * mixer.head_dim * mixer.value_dim
    taps_flops = short_flops(n, mixer.convolved, mixer.short, batch)
    return Cost(parameter_count(mixer), maps + products, batch * held * element_size(mixer), taps_flops)
