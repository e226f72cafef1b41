"""Embedding head: one vector for a whole input,  r / |r|,  r read out of the tokens; no weights of its own.

Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, arXiv 1908.10084, 2019.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from formwright.contract import Card, Cost, Head, Layout
from formwright.heads.readout import check_pool, read_out, regression_loss, regression_scores
from formwright.parts import register


@register
class Pool(Head):
    """(B, N, D) -> (B, D); one row a sequence for packed batches. normalise=True gives vectors of length 1. Targets
    (B, D) are vectors to come near to, as those of a teacher. pool as in `classify`, the mean where it is left open."""

    card = Card(
        name="pool",
        kind="head",
        summary="one vector for a whole input: an embedding of a text or an image",
        source="Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, arXiv 1908.10084, 2019",
    )

    def __init__(self, dim: int, *, pool: str = "mean", normalise: bool = True, causal: bool = False):
        super().__init__()
        check_pool("pool", pool)
        self.dim, self.pool, self.normalise, self.reads_causal = dim, pool, normalise, causal

    def forward(self, x: Tensor, layout: Layout, inputs: Tensor | None = None) -> Tensor:
        r = read_out(x, layout, self.pool, self.reads_causal, "pool")
        return F.normalize(r, dim=-1) if self.normalise else r

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return regression_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        return regression_scores(outputs, targets)

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        return Cost()
