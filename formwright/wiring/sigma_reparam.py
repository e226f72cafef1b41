"""sigma_reparam(stack): the linear maps of all parts inside are reparametrised, W^ = gamma / sigma(W) W.

The equations are in norms/sigma_reparam.py. Written around a whole stack or a part of it; plain(...) inside leaves
out norms, as the paper does for vision: sigma_reparam(plain(...)). Stabilizing Transformer Training by Preventing
Attention Entropy Collapse, 2303.06296, 2023.
"""

from __future__ import annotations

from formwright.contract import Card, Wiring
from formwright.norms.sigma_reparam import reparametrise
from formwright.parts import register
from formwright.wiring import handed_on


@register
class SigmaReparam(Wiring):
    card = Card(
        name="sigma_reparam",
        kind="wiring",
        summary="divides each linear map inside by its largest singular value, times a learned scalar",
        source="Stabilizing Transformer Training by Preventing Attention Entropy Collapse, 2303.06296, 2023",
    )

    def __init__(self, dim: int, stack: Wiring):
        super().__init__()
        self.stack = reparametrise(stack)
        self.dim, self.dim_out = dim, stack.dim_out
        self.normed = stack.normed

    forward, empty, extend = handed_on.forward, handed_on.empty, handed_on.extend
    after, inner = handed_on.after, handed_on.inner
