"""k-means cross attention: every token of the context goes to the one query it is most like, and updates that alone.

    L_ij = (W_q x_i) . (W_k c_j) / sqrt(K)                        queries x_i as cluster centres, M context tokens c_j
    A_ij = 1 where i = argmax_l L_lj, else 0                      over the queries, not over the context
    y_i = W_o norm(sum_j A_ij W_v c_j)

One step of k-means: assignment, then each centre's update by what it was given; the residual around the mixer keeps the
old centre. The norm, root mean square in place of the paper's batch norm, makes a sum and a mean the same. A query
that no token chose gets zero. Queries compete for tokens, so that none of them is computed without the others.
Gradients go straight through the argmax to the softmax over the queries; the paper leaves W_q and W_k to the loss of
its segmentation masks, whose logits are `assignment`. It uses one head.
kMaX-DeepLab: k-means Mask Transformer, arXiv 2207.04044, 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, parameter_count, split_heads
from formwright.mixers.sse import exactly
from formwright.ops.straight_through import Held, straight_through
from formwright.parts import register


@register
class KMeansCrossAttention(TokenMixer):
    """k-means cross attention: x (B, N, D), context (B, M, D) -> (B, N, D), the queries' updates.

    Raises Unsupported for packed tokens, ValueError for heads that don't fit."""

    card = Card(
        name="kmeans_cross_attention",
        summary="each context token updates the one query it is most like: a step of k-means as cross attention",
        source="kMaX-DeepLab: k-means Mask Transformer, arXiv 2207.04044, 2022",
        patterns=("cross",),
        time="N^2",
        state="0",
    )
    held: Held | None = None

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int = 1,
        head_dim: int | None = None,
        eps: float = 1e-6,
    ):
        """Each head assigns tokens by itself."""
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("kmeans_cross_attention", dim, heads, head_dim)
        inner = self.heads * self.head_dim
        self.query = nn.Linear(dim, inner, bias=False)
        self.key = nn.Linear(dim, inner, bias=False)
        self.value = nn.Linear(dim, inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)
        self.norm = nn.RMSNorm(inner, eps=eps)

    def assignment(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B,N,D), context (B,M,D) -> L (B,H,N,M), in float32 at least, so that rounding seldom decides."""
        q, k = (
            exactly(t, linear).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t, linear in ((x, self.query), (context, self.key))
        )
        with torch.autocast(x.device.type, enabled=False):
            return q @ k.mT * self.head_dim**-0.5

    def _logits(self, x: Tensor, layout: Layout, context: Tensor, context_layout: Layout | None) -> Tensor:
        if layout.offsets is not None or (context_layout is not None and context_layout.offsets is not None):
            self.refuse("packed tokens", "pad them, or run each sequence with its own context")
        logits, centres = self.assignment(x, context), layout.valid(x.device)
        return logits if centres is None else logits.masked_fill(~centres[:, None, :, None], float("-inf"))

    def _values(self, context: Tensor, context_layout: Layout | None, wide: torch.dtype) -> Tensor:
        """(B,H,M,V), zero at padding."""
        v = self.value(context).unflatten(-1, (self.heads, -1)).transpose(1, 2).to(wide)
        valid = None if context_layout is None else context_layout.valid(context.device)
        return v if valid is None else v * valid[:, None, :, None]

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        logits = self._logits(x, layout, context, context_layout)
        centres = torch.arange(x.shape[1], device=x.device)[:, None]
        hard = (centres == logits.argmax(2, keepdim=True)).to(logits.dtype)
        update = straight_through(hard, logits.softmax(2), self.held) @ self._values(
            context, context_layout, hard.dtype
        )
        return self.out(self.norm(update.transpose(1, 2).flatten(2).to(x.dtype)))

    def reference(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """One context token after another."""
        logits = self._logits(x, layout, context, context_layout)
        v = self._values(context, context_layout, logits.dtype)
        update = torch.zeros(*logits.shape[:3], self.head_dim, dtype=logits.dtype, device=x.device)
        for j in range(context.shape[1]):
            scores = logits[..., j]
            raised = torch.exp(scores - scores.amax(-1, keepdim=True))
            first = torch.zeros_like(raised).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)
            chosen = straight_through(first, raised / raised.sum(-1, keepdim=True))
            update = update + chosen[..., None] * v[:, :, None, j]
        return self.out(self.norm(update.transpose(1, 2).flatten(2).to(x.dtype)))

    def cost(self, layout: Layout, batch: int = 1, context_layout: Layout | None = None) -> Cost:
        n, inner = layout.tokens, self.heads * self.head_dim
        m = n if context_layout is None else context_layout.tokens
        return Cost(parameter_count(self), batch * 2 * inner * ((n + m) * self.dim + n * m))
