"""Token embedding:  x_t = E[token_t], a learned vector for each of the vocabulary, plus a position where asked for."""

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

    Padded and packed batches come with a layout that says so. Raises ValueError for numbers outside the vocabulary and
    for positions of another role."""

    card = Card(name="tokens", kind="embed", summary="a learned vector for each token of a vocabulary")
    rank = 1

    def __init__(self, dim: int, *, vocab: int, position: Callable | None = None, std: float = 0.02):
        super().__init__()
        self.dim, self.vocab = dim, vocab
        self.weight = nn.Parameter(torch.randn(vocab, dim) * std)
        self.position = embedded_position("tokens", position, dim)

    def forward(self, inputs: Tensor, layout: Layout | None = None) -> tuple[Tensor, Layout]:
        layout = layout or Layout((inputs.shape[1],))
        x = self._look_up(inputs)
        return (x if self.position is None else self.position.embed(x, layout.positions(x.device))), layout

    def layout(self, inputs: tuple[int, ...]) -> Layout:
        return Layout((inputs[0],))

    def extend(self, inputs: Tensor, start: int) -> Tensor:
        x = self._look_up(inputs)
        if self.position is None:
            return x
        return self.position.embed(x, torch.arange(start, start + x.shape[1], device=x.device)[:, None])

    def _look_up(self, inputs: Tensor) -> Tensor:
        # On an accelerator the check would wait for the device, and the look-up there fails by itself.
        if not torch.compiler.is_compiling() and inputs.device.type == "cpu" and inputs.numel():
            low, high = int(inputs.min()), int(inputs.max())
            if low < 0 or high >= self.vocab:
                raise ValueError(
                    f"tokens: the inputs run from {low} to {high}, but vocab={self.vocab} has 0 to {self.vocab - 1}"
                )
        return F.embedding(inputs, self.weight)

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
