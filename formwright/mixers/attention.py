"""Attention: every token reads all others, weighted by the softmax of query-key products.

    q_i = W_q x_i,  k_j = W_k x_j,  v_j = W_v x_j        (heads of width K; H query heads, G key/value heads, G | H)
    o_hi = sum_j softmax_j(q_hi . k_gj / sqrt(K) + bias_hij) v_gj,   g = h G // H
    y_i = W_o concat_h (gate_hi o_hi),   gate_hi = sigmoid(W_g x_i + b_g)        one number a head, or one a channel

In the place of softmax stands any of ops.normalisers: sigmoid, clipped, relu, ...; "learned_sink" is softmax with one
more score in every row, learned for each head, whose weight goes nowhere (gpt-oss, 2508.10925, 2025).
Attention Is All You Need, 1706.03762, 2017. Fewer key/value heads: Fast Transformer Decoding (multi-query), 1911.02150,
2019; GQA, 2305.13245, 2023. Fewer query heads than the width holds: SQA, 2510.01817, 2025. Window: Longformer,
2004.05150, 2020; Mistral 7B, 2310.06825, 2023. Normalised queries and keys: Query-Key Normalization for Transformers,
2010.04245, 2020, in its RMS form with a learned scale (Qwen3, 2505.09388, 2025). A gate a head, and softmax clipped so
that weights can be 0: Quantizable Transformers, 2306.12929, 2023; a gate a channel: Gated Attention for Large Language
Models, 2505.06708, 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, Unsupported, element_size, parameter_count, split_heads
from formwright.mixers.cache import Cache, append, append_ring, empty_cache
from formwright.mixers.scores import attend, attend_macs, looks_back
from formwright.ops.attention import Distance, attention
from formwright.ops.masks import Mask
from formwright.ops.normalisers import Clipped, Normaliser, Sink, normaliser_of
from formwright.parts import card_of, class_of, register


@register
class Attention(TokenMixer):
    card = Card(
        name="attention",
        summary="softmax attention: grouped or fewer heads, windows, rotary or biased positions, normalised q and k",
        source="Attention Is All You Need, 1706.03762, 2017",
        patterns=("self", "causal", "cross", "causal_cross"),
        time="N^2",
        state="N",
        symmetries=("permutation",),
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        kv_heads: int | None = None,
        q_heads: int | None = None,
        head_dim: int | None = None,
        window: int | None = None,
        position: Callable | None = None,
        qk_norm: bool = False,
        normaliser: str = "softmax",
        clip: tuple | None = None,
        gate: str | None = None,
        bias: bool | str = False,
    ):
        """
        heads, head_dim  heads of width head_dim; dim / heads without it
        q_heads          query heads that are kept of them (SQA), all without it
        kv_heads         key/value heads, a divisor of the query heads, as many without it
        window           a token sees those fewer than `window` places away
        position         a rotary or bias position
        qk_norm          RMS norm of queries and keys
        normaliser       a name in ops.normalisers, or "learned_sink"
        clip             (gamma, zeta) of normaliser="clipped"
        gate             "head": a number in (0, 1) a head, with a bias always; "channel": one a channel of a head
        bias             of the linear maps; "out": of the output map alone

        Raises ValueError or Unsupported for what doesn't fit."""
        super().__init__(dim, causal=causal)
        heads, self.head_dim = split_heads("attention", dim, heads, head_dim)
        self.heads = heads if q_heads is None else q_heads
        self.kv_heads = self.heads if kv_heads is None else kv_heads
        if not 1 <= self.heads <= heads:
            self.refuse(f"q_heads={q_heads}", f"query heads are 1 to heads={heads}")
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            self.refuse(f"kv_heads={kv_heads}", f"the {self.heads} query heads must be a multiple of them")
        if window is not None and window < 1:
            self.refuse(f"window={window}", "a window holds at least the token itself")
        if clip is not None and normaliser != "clipped":
            self.refuse(f"clip={clip}", f"it holds the limits of clipped softmax, but the normaliser is {normaliser!r}")
        if gate not in (None, "head", "channel"):
            self.refuse(f"gate={gate!r}", "it is None, 'head' or 'channel'")
        if bias not in (True, False, "out"):
            self.refuse(f"bias={bias!r}", "it is True, False or 'out'")
        biased = bias is True
        self.sink = nn.Parameter(torch.zeros(self.heads)) if normaliser == "learned_sink" else None
        if self.sink is None:
            self._fixed = normaliser_of(normaliser) if clip is None else Clipped(*clip)
        self.window = window
        self.query = nn.Linear(dim, self.heads * self.head_dim, bias=biased)
        self.key = nn.Linear(dim, self.kv_heads * self.head_dim, bias=biased)
        self.value = nn.Linear(dim, self.kv_heads * self.head_dim, bias=biased)
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=bool(bias))
        self.query_norm = nn.RMSNorm(self.head_dim, eps=1e-6) if qk_norm else None
        self.key_norm = nn.RMSNorm(self.head_dim, eps=1e-6) if qk_norm else None
        self.gate = None
        if gate is not None:
            gates = self.heads if gate == "head" else self.heads * self.head_dim
            self.gate = nn.Linear(dim, gates, bias=biased or gate == "head")
        self.position = None if position is None else self._make(position)
        if window is not None or position is not None:  # places: neither a context's nor those of shuffled tokens
            self.card = replace(self.card, patterns=("self", "causal"), symmetries=())

    def _make(self, factory: Callable) -> nn.Module:
        name, role = card_of(factory).name, getattr(class_of(factory), "role", None)
        if role == "rotate":
            tokens = {"heads": self.kv_heads, "width": self.dim} if class_of(factory).contextual else {}
            return factory(dim=self.head_dim, **tokens)
        if role == "bias":
            return factory(heads=self.heads)
        reasons = {"embed": "it is added to embedded tokens: give it to the embedding instead"}
        reasons["value"] = "it is added to outputs, by mixers that have an option for it"
        raise Unsupported("attention", f"position={name}", reasons.get(role, "it is no position"))

    @property
    def role(self) -> str | None:
        return None if self.position is None else self.position.role

    @property
    def contextual(self) -> bool:
        """Whether tokens stand where a position reads off the tokens themselves."""
        return self.position is not None and self.position.contextual

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D), context (B, M, D) -> (B, N, D). With a context every token reads all of it and no other token of
        x, so that the causal cross pattern is the same."""
        if context is not None:
            context_layout = Layout((context.shape[1],)) if context_layout is None else context_layout
        self._check(layout, context_layout)
        across = layout if context is None else context_layout
        places = [layout.positions(x.device), across.positions(x.device)]
        if self.contextual:
            places = [self.position.coordinates(x)[0]] * 2
        q = self._queries(x, places[0])
        k, v = self._keys(x if context is None else context, places[1])
        mask = self.mask if context is None else None
        how = {"mask": mask, "bias": self._bias(layout, x), "normaliser": self.normaliser, "backend": self.backend}
        o = attend(q, k, v, layout, causal=self.causal, context_layout=context_layout, **how)
        return self._join(o, x)

    def _check(self, layout: Layout, context_layout: Layout | None) -> None:
        if self.window is not None and len(layout.grid) != 1:
            self.refuse("window", f"it counts places along one axis, but the grid has {len(layout.grid)}")
        if context_layout is not None and (layout.offsets is None) != (context_layout.offsets is None):
            self.refuse("packed tokens", "tokens and context must both be packed, or neither")

    @property
    def normaliser(self) -> Normaliser:
        """What turns scores into weights."""
        return self._fixed if self.sink is None else Sink(self.sink)

    @property
    def mask(self) -> Mask | None:
        """What a token may attend to within its own sequence."""
        return looks_back(self.causal, self.window)

    def _queries(self, x: Tensor, positions: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, self.head_dim))
        q = q if self.query_norm is None else self.query_norm(q)
        return self.position.rotate(q, positions) if self.role == "rotate" else q

    def _keys(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        k = self.key(x).unflatten(-1, (self.kv_heads, self.head_dim))
        k = k if self.key_norm is None else self.key_norm(k)
        k = self.position.rotate(k, positions) if self.role == "rotate" else k
        return k, self.value(x).unflatten(-1, (self.kv_heads, self.head_dim))

    def _join(self, o: Tensor, x: Tensor) -> Tensor:
        """The heads' outputs o (B, N, H, K), gated by the tokens x (B, N, D) that asked -> (B, N, D)."""
        if self.gate is not None:
            o = o * torch.sigmoid(self.gate(x)).unflatten(-1, (self.heads, -1))
        return self.out(o.flatten(2))

    def _bias(self, layout: Layout, x: Tensor) -> Any:
        """The position's bias in the form that costs least memory."""
        if self.role != "bias":
            return None
        if len(layout.grid) == 1 and layout.prefix == 0 and layout.coords is None and self._relative:
            return self._distances(layout.tokens, x)
        places = layout.positions(x.device)
        if any(p.requires_grad for p in self.position.parameters()):
            return self.position.bias(places, places).to(x.dtype)
        return lambda i, j: self.position.bias(places[..., i, :], places[..., j, :]).to(x.dtype)

    @property
    def _relative(self) -> bool:
        """Whether the position says that its bias depends on distance alone, on one axis."""
        return getattr(self.position, "relative", False)

    def _distances(self, m: int, x: Tensor) -> Distance:
        """The bias of each distance up to m tokens."""
        distances = torch.arange(1 - m, m, device=x.device)[:, None]
        table = self.position.bias(distances, torch.zeros_like(distances[:1]))
        return Distance(table[..., 0].to(x.dtype), m - 1)

    def remember(self, context: Tensor, context_layout: Layout) -> tuple[Tensor, Tensor]:
        """A context's keys and values (B, M, G, K), which are the same for every token that will read it."""
        return self._keys(context, context_layout.positions(context.device))

    def recall(self, x: Tensor, memory: tuple[Tensor, Tensor], context_layout: Layout) -> Tensor:
        """Further tokens x (B, T, D) that read a context remembered -> (B, T, D)."""
        layout = Layout((x.shape[1],))
        q = self._queries(x, layout.positions(x.device))
        how = {"normaliser": self.normaliser, "backend": self.backend}
        return self._join(attend(q, *memory, layout, causal=self.causal, context_layout=context_layout, **how), x)

    def remembered(self, context_layout: Layout, batch: int = 1) -> int:
        """The bytes of what is remembered."""
        return 2 * batch * context_layout.tokens * self.kv_heads * self.head_dim * element_size(self)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Keys and values (B, G, capacity, K), a window keeps a ring of its own size; where contextual places end."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        room = capacity if self.window is None else min(capacity or 0, self.window)
        shape = batch, self.kv_heads, self.head_dim
        like = self.key.weight if like is None else like
        cache = empty_cache(like, room, keys=shape, values=shape)
        if self.contextual:
            cache["place"] = self.position.start(batch, like)
        return cache

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """x (B, T, D) -> outputs (B, T, D) and the state after them."""
        count, t = state["count"], x.shape[1]
        positions = torch.arange(count, count + t, device=x.device)[:, None]
        place = {}
        if self.contextual:
            positions, place["place"] = self.position.coordinates(x, state["place"])
        q = self._queries(x, positions)
        new = dict(zip(("keys", "values"), (each.transpose(1, 2) for each in self._keys(x, positions)), strict=True))
        if self.window is None:
            seen, state = append(state, **new)
        else:
            seen, state = append_ring(state, self.window, ordered=self.role == "bias", **new)
        k, v = seen["keys"].transpose(1, 2), seen["values"].transpose(1, 2)
        # A single token sees all that is left of a window, and no normaliser heeds order.
        mask, bias = None if t == 1 else self.mask, self._cached_bias(k.shape[1], count, t, x)
        o = attention(q, k, v, mask=mask, bias=bias, normaliser=self.normaliser, backend=self.backend)
        return self._join(o, x), state | place

    def _cached_bias(self, m: int, count: int, t: int, x: Tensor) -> Any:
        """The bias of the last t tokens towards the m keys that end with them."""
        if self.role != "bias":
            return None
        if self._relative:
            return self._distances(m, x)
        places = torch.arange(count + t - m, count + t, device=x.device)[:, None]
        return self.position.bias(places[m - t :], places).to(x.dtype)

    def cost(self, layout: Layout, batch: int = 1, context_layout: Layout | None = None) -> Cost:
        """Projections, and what `ops.attention` computes for each sequence; with a context, of its tokens."""
        n, width = layout.tokens, self.head_dim
        m = n if context_layout is None else context_layout.tokens
        linear = batch * self.dim * 2 * (n * self.heads + m * self.kv_heads) * width
        linear += 0 if self.gate is None else batch * n * self.gate.weight.numel()
        how = {"mask": self.mask if context_layout is None else None, "bias": self.role == "bias"}
        how |= {"heads": self.heads, "kv_heads": self.kv_heads, "key_dim": width}
        how |= {"normaliser": self.normaliser, "backend": self.backend}
        products = attend_macs(layout, batch, causal=self.causal, context_layout=context_layout, **how)
        slots = n if self.window is None else min(n, self.window)
        state = 2 * batch * self.kv_heads * slots * width * element_size(self) if self.causal else 0
        if self.contextual:
            places = self.position.cost(layout, batch)
            linear, state = linear + places.macs, state + (places.state_bytes if self.causal else 0)
        return Cost(parameter_count(self), linear + products, state)
