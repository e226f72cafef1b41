"""Reconstruction head: every token again, from the last token's vector alone.

    z_t = norm(r + P_t)        r the vector at the last token, P_t fixed sines and cosines of its place
    h_t = norm(GELU(W_1 z_t + b_1)),  logits_t = W norm(GELU(W_2 h_t + b_2)) + b

The decoder of the compression task of Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv
2403.17844, 2024.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Cost, Head, Layout, Unsupported, parameter_count
from formwright.heads.lm import classification_loss, classification_scores
from formwright.heads.readout import read_out
from formwright.parts import register
from formwright.positions.sinusoidal import Sinusoidal


@register
class Reconstruct(Head):
    """Logits over the vocabulary: (B, N, D) -> (B, N, vocab), all read off the last valid token; makes the stack
    causal. Targets (B, N) of -100 are not scored. Refuses packed batches and widths below 2."""

    card = Card(
        name="reconstruct",
        kind="head",
        summary="logits of every token again, decoded from the last token's vector and fixed positions",
        source="Mechanistic Design and Scaling of Hybrid Architectures, arXiv 2403.17844, 2024",
    )
    causal = True

    def __init__(self, dim: int, *, vocab: int):
        super().__init__()
        self.dim, self.vocab = dim, vocab
        self.position = Sinusoidal(dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))
        self.project = nn.Linear(dim, vocab)

    def forward(self, x: Tensor, layout: Layout, inputs: Tensor | None = None) -> Tensor:
        if layout.offsets is not None:
            raise Unsupported("reconstruct", "packed sequences", "each row is decoded from one vector")
        places = torch.arange(layout.tokens, device=x.device)[:, None]
        last = read_out(x, layout, "last", True, "reconstruct")[:, None]
        z = self.norms[0](self.position.embed(last.expand(-1, layout.tokens, -1), places))
        for layer, norm in zip(self.layers, self.norms[1:], strict=True):
            z = norm(F.gelu(layer(z)))
        return self.project(z)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return classification_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        return classification_scores(outputs, targets)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        macs = batch * layout.tokens * self.dim * (2 * self.dim + self.vocab)
        return Cost(params=parameter_count(self), macs=macs)
