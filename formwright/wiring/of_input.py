"""of_input(stack): what enters the stack stays readable inside it; static_attention takes queries and keys from there.

    e = norm(x_0),  x_0 the tokens as they came into of_input, x those of the layer
    q_i = W_q e_i,   k_j = W_k e_j,   v_j = W_v x_j
    y_i = W_o concat_h sum_j softmax_j(q_hi . k_hj / sqrt(K)) v_hj

Right after the embedding x_0 is what the tokens are, not what layers made of them: who attends to whom then depends on
the sequence, but not on the layers below. In the paper that is StaticEmbQK; its other ablations are parts as well:
`fixed_attention` (not on the sequence either), `elementwise_attention`, `based`.
Deconstructing Attention: Investigating Design Principles for Effective Language Modeling, arXiv 2510.11602, 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, Norm, Wiring, element_size, parameter_count, split_heads
from formwright.mixers.cache import Cache, append_heads, empty_cache
from formwright.mixers.scores import attend, attend_macs, looks_back
from formwright.norms.rmsnorm import RMSNorm
from formwright.ops.attention import attention
from formwright.parts import register
from formwright.wiring import handed_on
from formwright.wiring.cross import Cross

SOURCE = (
    "Deconstructing Attention: Investigating Design Principles for Effective Language Modeling, arXiv 2510.11602, 2025"
)


@register
class OfInput(Wiring):
    """A stack whose parts can read the tokens that came into it: (B, N, D) -> (B, N, D). Raises ValueError around a
    `cross`, which reads a source instead."""

    card = Card(
        name="of_input",
        kind="wiring",
        summary="a stack inside which static_attention reads the tokens as they came in",
        source=SOURCE,
    )

    def __init__(self, dim: int, stack: Wiring):
        super().__init__()
        if any(isinstance(part, Cross) for part in stack.modules()):
            raise ValueError("of_input: a cross inside would read the stack's input in the place of a source")
        self.stack, self.dim, self.dim_out, self.normed = stack, dim, stack.dim_out, stack.normed

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        return self.stack(x, layout, x, layout)

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        return self.stack.extend(x, state, x, Layout((x.shape[1],)))

    empty, after, inner = handed_on.empty, handed_on.after, handed_on.inner


@register
class StaticAttention(Wiring):
    """Softmax attention by what the tokens of the enclosing of_input are: (B, N, D) -> (B, N, D).

    Raises ValueError outside of an of_input, or where a stage in between has changed the number of tokens."""

    card = Card(
        name="static_attention",
        kind="wiring",
        summary="softmax attention whose queries and keys are made of the enclosing of_input's input",
        source=SOURCE,
    )
    stacks = ()
    branch = True

    def __init__(
        self, dim: int, *, causal: bool = False, heads: int | None = None, head_dim: int | None = None,
        bias: bool = False, norm: Callable[[int], Norm] = RMSNorm,
    ):  # fmt: skip
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        bias             of the four linear maps
        norm             of the tokens that queries and keys are made of
        """
        super().__init__()
        self.dim, self.dim_out, self.causal = dim, dim, causal
        self.heads, self.head_dim = split_heads("static_attention", dim, heads, head_dim)
        width = self.heads * self.head_dim
        self.norm = norm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, width, bias=bias) for _ in range(3))
        self.out = nn.Linear(width, dim, bias=bias)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        q, k, v = self._heads(x, context)
        o = attend(q, k, v, layout, causal=self.causal, mask=looks_back(self.causal))
        return self.out(o.flatten(2)), layout

    def _heads(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if context is None:
            raise ValueError(
                "static_attention reads what came into an of_input, and here is none around it; write for example "
                "of_input(4*(static_attention + swiglu))"
            )
        if context.shape != x.shape:
            raise ValueError(
                f"static_attention: {tuple(x.shape[1:])} tokens and width here, {tuple(context.shape[1:])} at the "
                "beginning of of_input; let nothing in between change them"
            )
        e = self.norm(context)
        rows = (self.query(e), self.key(e), self.value(x))
        return tuple(row.unflatten(-1, (self.heads, self.head_dim)) for row in rows)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys and values (B, H, capacity, K)."""
        shape = (batch, self.heads, self.head_dim)
        return empty_cache(self.key.weight if like is None else like, capacity, keys=shape, values=shape)

    def extend(
        self, x: Tensor, state: Cache, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Cache]:
        if not self.causal:
            raise ValueError("static_attention: only a causal model decodes; end it with lm")
        q, k, v = self._heads(x, context)
        k, v, state = append_heads(state, k, v)
        return self.out(attention(q, k, v, mask=looks_back(True)).flatten(2)), state

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        return [("norm", self.norm, layout)]

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        n, width = layout.tokens, self.heads * self.head_dim
        how = {"heads": self.heads, "key_dim": self.head_dim, "value_dim": self.head_dim}
        products = attend_macs(layout, batch, causal=self.causal, mask=looks_back(self.causal), **how)
        state = 2 * batch * n * width * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), 4 * batch * n * self.dim * width + products, state)
