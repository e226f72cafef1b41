"""Where attention looks: the weights of a model's attention layers, and the share of them that one token draws.

    share_i = w_is / sum_j w_ij        of a query i and a token s (the sink), the mean over queries that give any weight

Attention sinks: Efficient Streaming Language Models with Attention Sinks, 2309.17453, 2023; measured on
bigram-backcopy: Active-Dormant Attention Heads, 2410.13835, 2024. Normalisers other than softmax needn't sum to 1, and
a query may give no weight at all: the share is of what it gives, and the `total` it gives stands beside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from formwright.contract import Unsupported
from formwright.mixers.attention import Attention


def attention_weights(model: nn.Module, inputs: Any, layout: Any = None) -> list[Tensor]:
    """The weights (B, H, N, M) of every `attention` of a model on raw inputs, in the order in which they run.

    Raises Unsupported for layers with a bias position or in padded or packed batches, and where there is none."""
    found: list[Tensor] = []
    hooks = [
        m.register_forward_hook(lambda mixer, args, _: found.append(_weights(mixer, *args)))
        for m in model.modules()
        if isinstance(m, Attention)
    ]
    if not hooks:
        raise Unsupported("attention_weights", "this model", "it has no layer of `attention`")
    try:
        with torch.no_grad():
            model(inputs, layout)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _weights(
    mixer: Attention, x: Tensor, layout: Any, context: Tensor | None = None, context_layout: Any = None
) -> Tensor:
    """One layer's, by its own projections and normaliser."""
    if mixer.role == "bias" or not layout.plain:
        mixer.refuse("attention_weights", "bias positions and padded or packed batches are not measured")
    places = layout.positions(x.device)
    across = places if context is None else context_layout.positions(x.device)
    if mixer.contextual:
        places = across = mixer.position.coordinates(x)[0]
    q = mixer._queries(x, places)
    k, _ = mixer._keys(x if context is None else context, across)
    k = k.repeat_interleave(mixer.heads // mixer.kv_heads, 2)
    scores = torch.einsum("bnhk,bmhk->bhnm", q, k) * mixer.head_dim**-0.5
    n, m = scores.shape[-2:]
    count: Tensor | int = m
    if mixer.mask is not None and context is None:
        allowed = mixer.mask.materialize(n, m).to(x.device)
        scores = scores.masked_fill(~allowed, mixer.normaliser.hidden)
        count = allowed.sum(-1, keepdim=True)
    normaliser = mixer.normaliser
    learned = normaliser.learned(mixer.heads)
    if learned is not None:
        normaliser = normaliser.with_learned(learned[:, None, None])
    return normaliser.weights(scores, count)


def sink_share(weights: Tensor, queries: Tensor, place: int = 0, least: float = 1e-6) -> dict[str, float]:
    """weights (B, H, N, M) and which queries count (B, N) -> {"share": the share of a query's weight that token `place`
    draws, "total": the weight it gives, "idle": the share of queries that give none, at most `least`}.

    Raises ValueError where no query counts."""
    if not queries.any():
        raise ValueError("sink_share: no query counts; give some")
    chosen = weights.transpose(1, 2)[queries]  # (S, H, M)
    total = chosen.sum(-1)
    busy = total > least
    share = chosen[..., place][busy] / total[busy]
    idle = 1 - busy.double().mean().item()
    return {"share": share.mean().item() if len(share) else 0.0, "total": total.mean().item(), "idle": idle}
