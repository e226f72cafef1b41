"""What recurrent mixers share: their first state, which may be learned, the places of each sequence's tokens, and
readings from both ends.

A learned first state, the same for all sequences and 0 to begin with, is a prompt tuned instead of written:
Lina-Speech: Gated Linear Attention and Initial-State Tuning for Multi-Sample Prompting Text-To-Speech Synthesis,
arXiv 2410.23320, 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Layout, TokenMixer
from formwright.ops.recurrence import linear_recurrence


def learned_state(mixer: TokenMixer, wanted: bool, *shape: int) -> nn.Parameter | None:
    """The parameter of a mixer's option initial_state, zeros of this shape; None where it isn't wanted.

    Raises Unsupported for a mixer that isn't causal."""
    if not wanted:
        return None
    if not mixer.causal:
        mixer.refuse("initial_state=True", "tokens read in both directions have no first state; build it causal")
    return nn.Parameter(torch.zeros(*shape))


def first_state(initial: Tensor | None, batch: int, offsets: Tensor | None = None) -> Tensor | None:
    """The learned first state (...) for each row of the batch, or for each packed sequence: (rows, ...); None where
    none is learned."""
    if initial is None:
        return None
    return initial.expand(batch if offsets is None else len(offsets) - 1, *initial.shape)


def sequence_count(x: Tensor, layout: Layout) -> int:
    """How many sequences x (B, N, D) holds: its rows, or those packed in one."""
    return len(x) if layout.offsets is None else len(layout.offsets) - 1


def state_before(like: Tensor, batch: int, *shape: int, initial: Tensor | None = None) -> Tensor:
    """The state (batch, *shape) before the first token, in `like`'s dtype and device: zeros, or the learned one."""
    state = like.new_zeros(batch, *shape)
    return state if initial is None else state + initial.to(like)


def places(layout: Layout, device: torch.device) -> Tensor:
    """(N,) how many tokens of its own sequence stand before each token; grids in row-major order, after the prefix."""
    steps = torch.arange(layout.tokens, device=device)
    if layout.offsets is None:
        return steps
    return steps - layout.offsets.to(device)[layout.sequence_ids(device)]


def reversed_tokens(x: Tensor, layout: Layout) -> Tensor:
    """x (B, N, ...) with the tokens of each sequence in reverse order, prefix tokens last; padding stays where it is.
    Done twice it gives x back."""
    if layout.plain:
        return x.flip(1)
    steps = torch.arange(layout.tokens, device=x.device)
    if layout.offsets is not None:
        bounds, ids = layout.offsets.to(x.device), layout.sequence_ids(x.device)
        return x[:, bounds[ids] + bounds[ids + 1] - 1 - steps]
    mirrored = layout.lengths.to(x.device)[:, None] - 1 - steps
    order = torch.where(mirrored >= 0, mirrored, steps)
    return x[torch.arange(len(x), device=x.device)[:, None], order]


def decayed_both_ways(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, layout: Layout, *, scale: float = 1.0, backend: str = "auto"
) -> Tensor:
    """o_t = scale sum_s exp(|t - s| log_decay) (q_t . k_s) v_s over the tokens s of t's own sequence, before and after
    it: q, k (B,N,H,K), v (B,N,H,V), log_decay (H,) -> (B,N,H,V).

    Two recurrences, one over the tokens in reverse, and the token itself counted once; backend "reference" sums as
    written."""
    if backend == "reference":
        steps, ids = places(layout, q.device), layout.sequence_ids(q.device)
        weights = ((steps[:, None] - steps).abs() * log_decay[:, None, None]).exp().to(q.dtype)
        if ids is not None:
            weights = weights * (ids[:, None] == ids)
        valid = layout.valid(q.device)
        if valid is not None:
            weights = weights * valid[:, None, None]
        return scale * torch.einsum("bnhk,bmhk,bhnm,bmhv->bnhv", q, k, weights.expand(len(q), -1, -1, -1), v)
    options = {"scale": scale, "offsets": layout.offsets, "backend": backend}
    ahead, _ = linear_recurrence(q, k, v, log_decay=log_decay.expand(q.shape[:3]), **options)
    turned = (reversed_tokens(t, layout) for t in (q, k, v))
    back, _ = linear_recurrence(*turned, log_decay=log_decay.expand(q.shape[:3]), **options)
    return ahead + reversed_tokens(back, layout) - scale * (q * k).sum(-1, keepdim=True) * v
