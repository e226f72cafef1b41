"""Token embedding:  x_t = E[token_t] + P_t + S[type_t],  a learned vector for each of the vocabulary, plus a position
and a segment's vector where asked for.

scaled: E[token_t] sqrt(D), as in Attention Is All You Need, 1706.03762, 2017. Segments ("token types") and a norm at
the end: BERT, 1810.04805, 2018.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Embed, Layout, parameter_count
from formwright.parts import register


@register
class Tokens(Embed):
    """Integers (B, N) below `vocab` -> (B, N, D), drawn with deviation `std`; `position` is a part of role "embed".

    scaled    vectors of tokens are multiplied by sqrt(D)
    segments  how many kinds of segments there are; inputs are then (B, N, 2), a token and its segment, or (B, N), all
              of segment 0
    norm      of the sum

    Padded and packed batches come with a layout that says so. Raises ValueError for numbers outside the vocabulary and
    for positions of another role."""

    card = Card(name="tokens", kind="embed", summary="a learned vector for each token of a vocabulary")
    rank = 1

    def __init__(
        self,
        dim: int,
        *,
        vocab: int,
        position: Callable | None = None,
        std: float = 0.02,
        scaled: bool = False,
        segments: int | None = None,
        norm: Callable | None = None,
    ):
        super().__init__()
        if segments is not None and segments < 1:
            raise ValueError(f"tokens: segments is {segments}, but there is at least one kind")
        self.dim, self.vocab, self.segments = dim, vocab, segments
        self.scale = dim**0.5 if scaled else 1.0
        self.weight = nn.Parameter(torch.randn(vocab, dim) * std)
        self.position = embedded_position("tokens", position, dim)
        self.segment = None if segments is None else nn.Parameter(torch.randn(segments, dim) * std)
        self.norm = None if norm is None else norm(dim)

    def forward(self, inputs: Tensor, layout: Layout | None = None) -> tuple[Tensor, Layout]:
        layout = layout or Layout((inputs.shape[1],))
        return self._embed(inputs, None if self.position is None else layout.positions(inputs.device)), layout

    def layout(self, inputs: tuple[int, ...]) -> Layout:
        return Layout((inputs[0],))

    def extend(self, inputs: Tensor, start: int) -> Tensor:
        places = None
        if self.position is not None:
            places = torch.arange(start, start + inputs.shape[1], device=inputs.device)[:, None]
        return self._embed(inputs, places)

    def _embed(self, inputs: Tensor, places: Tensor | None) -> Tensor:
        tokens, segments = inputs, None
        if inputs.ndim == 3:
            if self.segments is None or inputs.shape[-1] != 2:
                raise ValueError(
                    f"tokens: inputs are (B, N), or (B, N, 2) where segments are told apart, not {tuple(inputs.shape)}"
                )
            tokens, segments = inputs.unbind(-1)
            self._check("segments", segments, self.segments)
        self._check("vocab", tokens, self.vocab)
        x = F.embedding(tokens, self.weight)
        x = x if self.scale == 1 else x * self.scale
        x = x if places is None else self.position.embed(x, places)
        if self.segment is not None:
            x = x + (self.segment[0] if segments is None else F.embedding(segments, self.segment))
        return x if self.norm is None else self.norm(x)

    def _check(self, option: str, inputs: Tensor, size: int) -> None:
        # On an accelerator the check would wait for the device, and the look-up there fails by itself.
        if not torch.compiler.is_compiling() and inputs.device.type == "cpu" and inputs.numel():
            low, high = int(inputs.min()), int(inputs.max())
            if low < 0 or high >= size:
                raise ValueError(
                    f"tokens: the inputs run from {low} to {high}, but {option}={size} has 0 to {size - 1}"
                )

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost(params=parameter_count(self))


def embedded_position(part: str, position: Callable | None, dim: int) -> nn.Module | None:
    """The position that an embedding adds, made at its width; ValueError for one that acts elsewhere."""
    if position is None:
        return None
    made_by = getattr(position, "func", position)
    if getattr(made_by, "role", None) != "embed":
        name = made_by.card.name if hasattr(made_by, "card") else repr(position)
        raise ValueError(
            f"{part}: position={name} is not added to embeddings; give it to the mixer: attention(position={name})"
        )
    return position(dim=dim)
