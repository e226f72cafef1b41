"""Multi-head latent attention: keys and values of all heads are read off one narrow latent, all that decoding keeps.

    c_j = norm(W_dkv x_j)  of kv_rank channels,     r_j = turn(W_kr x_j)  of rope_dim, one for all heads
    k_hj = [W_uk^h c_j, r_j],    v_hj = W_uv^h c_j
    q_hi = [a_hi, turn(b_hi)],   (a_hi, b_hi) = W_q^h x_i,  or W_uq^h norm(W_dq x_i) with q_rank channels between
    y_i = W_o concat_h sum_j softmax_j(q_hi . k_hj / sqrt(head_dim + rope_dim)) v_hj

The state is (c_j, r_j). Since a_hi . W_uk^h c_j = (W_uk^h^T a_hi) . c_j, a few further tokens never make keys and
values again: their queries take W_uk in ("absorbed"), attend to the latents as one key/value head, and W_uv comes
after. Many tokens are cheaper the plain way, so that extend takes the way of fewer multiply-adds.
DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model, arXiv 2405.04434, 2024. With
position=None nothing is turned, as in Kimi Linear: An Expressive, Efficient Attention Architecture, 2510.26692, 2025.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, TokenMixer, element_size, parameter_count, split_heads
from formwright.mixers.cache import Cache, append, empty_cache
from formwright.mixers.rotary import rotary, turned
from formwright.mixers.scores import attend, attend_macs, looks_back
from formwright.ops.attention import attention
from formwright.parts import register
from formwright.positions.rope import Rope


@register
class MultiHeadLatentAttention(TokenMixer):
    """Multi-head latent attention: (B, N, D) -> (B, N, D).

    Raises ValueError or Unsupported for widths and positions that don't fit."""

    card = Card(
        name="mla",
        summary="softmax attention whose keys and values are low-rank: decoding keeps one narrow latent a token",
        source="DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model, "
        "arXiv 2405.04434, 2024",
        patterns=("self", "causal"),
        time="N^2",
        state="N",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        heads: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        kv_rank: int | None = None,
        q_rank: int | None = None,
        rope_dim: int | None = None,
        position: Callable | None = Rope,
        bias: bool = False,
    ):
        """
        heads, head_dim  heads whose queries and keys have head_dim channels of their own; dim / heads without it
        value_dim        channels of a head's value, head_dim without it
        kv_rank          channels of the latent; 4 head_dim without it, and no more than dim
        q_rank           channels between the token and its queries; None maps directly
        rope_dim         channels of the key that all heads share, head_dim / 2 without it; 0 leaves it out
        position         the rotary position that turns them; None turns nothing
        bias             of the maps from and to the width of the model
        """
        super().__init__(dim, causal=causal)
        self.heads, self.head_dim = split_heads("mla", dim, heads, head_dim)
        self.value_dim = self.head_dim if value_dim is None else value_dim
        self.kv_rank = min(4 * self.head_dim, dim) if kv_rank is None else kv_rank
        self.rope_dim = max(2, self.head_dim // 4 * 2) if rope_dim is None else rope_dim
        if min(self.kv_rank, self.value_dim, 1 if q_rank is None else q_rank) < 1 or self.rope_dim < 0:
            raise ValueError(
                "mla: kv_rank, value_dim and q_rank must be at least 1 and rope_dim at least 0, but they are "
                f"{self.kv_rank}, {self.value_dim}, {q_rank} and {self.rope_dim}"
            )
        self.down = nn.Linear(dim, self.kv_rank + self.rope_dim, bias=bias)
        self.norm = nn.RMSNorm(self.kv_rank, eps=1e-6)
        self.up = nn.Linear(self.kv_rank, self.heads * (self.head_dim + self.value_dim), bias=False)
        queries = self.heads * (self.head_dim + self.rope_dim)
        if q_rank is None:
            self.query = nn.Linear(dim, queries, bias=False)
        else:
            between = nn.Linear(dim, q_rank, bias=bias), nn.RMSNorm(q_rank, eps=1e-6)
            self.query = nn.Sequential(*between, nn.Linear(q_rank, queries, bias=False))
        self.out = nn.Linear(self.heads * self.value_dim, dim, bias=bias)
        self.scale = (self.head_dim + self.rope_dim) ** -0.5
        self.position = rotary(self, position if self.rope_dim else None, self.rope_dim)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        places = layout.positions(x.device)
        q, (k, v) = self._queries(x, places), self._keys(self._latent(x, places))
        how = {"mask": looks_back(self.causal), "scale": self.scale, "backend": self.backend}
        return self.out(attend(q, k, v, layout, causal=self.causal, **how).flatten(2))

    def _queries(self, x: Tensor, places: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, H, head_dim + rope_dim)"""
        q = self.query(x).unflatten(-1, (self.heads, -1))
        own, shared = q.split([self.head_dim, self.rope_dim], -1)
        return torch.cat([own, turned(shared, self.position, places)], -1)

    def _latent(self, x: Tensor, places: Tensor) -> Tensor:
        """(B, N, D) -> the latent and the shared key of each token, (B, N, kv_rank + rope_dim)."""
        latent, shared = self.down(x).split([self.kv_rank, self.rope_dim], -1)
        return torch.cat([self.norm(latent), turned(shared.unsqueeze(2), self.position, places).squeeze(2)], -1)

    def _keys(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, kv_rank + rope_dim) -> keys (B, M, H, head_dim + rope_dim) and values (B, M, H, value_dim)."""
        latent, shared = latent.split([self.kv_rank, self.rope_dim], -1)
        k, v = self.up(latent).unflatten(-1, (self.heads, -1)).split([self.head_dim, self.value_dim], -1)
        return torch.cat([k, shared.unsqueeze(2).expand(-1, -1, self.heads, -1)], -1), v

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Cache:
        """Latents and shared keys (B, capacity, kv_rank + rope_dim)."""
        if not self.causal:
            self.refuse("extend", "only a causal part decodes; build with causal=True")
        like = self.up.weight if like is None else like
        return empty_cache(like, capacity, latent=(batch, self.kv_rank + self.rope_dim))

    def extend(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        count, t = state["count"], x.shape[1]
        places = torch.arange(count, count + t, device=x.device)[:, None]
        seen, state = append(state, latent=self._latent(x, places))
        q, latent = self._queries(x, places), seen["latent"]
        how = {"mask": looks_back(self.causal), "scale": self.scale, "backend": self.backend}
        if self._absorbs(t, latent.shape[1]):
            up_key, up_value = self.up.weight.unflatten(0, (self.heads, -1)).split([self.head_dim, self.value_dim], 1)
            own, shared = q.split([self.head_dim, self.rope_dim], -1)
            q = torch.cat([torch.einsum("bthk,hkr->bthr", own, up_key), shared], -1)
            latent = latent.unsqueeze(2)
            # The shared key is weighted along with the latent and dropped: cheaper than a copy of the cache without it.
            o = attention(q, latent, latent, **how)[..., : self.kv_rank]
            o = torch.einsum("bthr,hvr->bthv", o, up_value)
        else:
            o = attention(q, *self._keys(latent), **how)
        return self.out(o.flatten(2)), state

    def _absorbs(self, t: int, m: int) -> bool:
        """Whether t queries of m latents cost fewer multiply-adds absorbed than with keys and values made anew."""
        narrow = self.head_dim + self.value_dim
        absorbed = t * self.kv_rank * narrow + 2 * t * m * (self.kv_rank + self.rope_dim)
        return absorbed < m * self.kv_rank * narrow + t * m * (narrow + self.rope_dim)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        maps = [m for m in self.modules() if isinstance(m, nn.Linear)]
        linear = batch * layout.tokens * sum(m.weight.numel() for m in maps)
        widths = {"key_dim": self.head_dim + self.rope_dim, "value_dim": self.value_dim, "backend": self.backend}
        mask = looks_back(self.causal)
        products = attend_macs(layout, batch, causal=self.causal, mask=mask, heads=self.heads, **widths)
        state = batch * layout.tokens * (self.kv_rank + self.rope_dim) * element_size(self) if self.causal else 0
        return Cost(parameter_count(self), linear + products, state)
