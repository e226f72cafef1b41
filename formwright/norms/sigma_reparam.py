"""sigmaReparam: each linear map divided by its largest singular value, times a learned scalar.

    W^ = gamma / sigma(W) W,     sigma(W) = u^T W v

u and v are the singular vectors, exact at first, moved on by one power iteration at each training forward: v <- W^T u
/ |.|, u <- W v / |.|; the gradient flows through W in sigma. gamma begins at 1. The spectral norm of a map moves by
gamma alone, and with it the attention logits' size, so that attention's entropy can't collapse: the paper trains
without warm-up, weight decay and layer norm. It is no norm of tokens: `reparametrise` rewrites the linear maps of a
module, the wiring `sigma_reparam(stack)` those of a stack. Stabilizing Transformer Training by Preventing Attention
Entropy Collapse, 2303.06296, 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Sigma(nn.Module):
    """W (out, in) -> gamma / sigma(W) W."""

    def __init__(self, weight: Tensor):
        super().__init__()
        wide = torch.promote_types(weight.dtype, torch.float32)
        u, _, v = torch.linalg.svd(weight.detach().to(wide), full_matrices=False)
        self.gamma = nn.Parameter(weight.new_ones(()))
        self.register_buffer("left", u[:, 0].to(weight.dtype).contiguous())
        self.register_buffer("right", v[0].to(weight.dtype).contiguous())

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                right = F.normalize(weight.T @ self.left, dim=0)
                self.left.copy_(F.normalize(weight @ right, dim=0))
                self.right.copy_(right)
        # Copies, so that backward finds them as they were when the next forward moves them on.
        sigma = (weight * self.right.clone()).sum(1) @ self.left.clone()
        return self.gamma / sigma * weight


def reparametrise(module: nn.Module) -> nn.Module:
    """The module itself, the weight of every nn.Linear inside as gamma / sigma(W) W. Those that are already stay, and
    those that begin at 0, which have no singular vectors."""
    for part in list(module.modules()):
        if isinstance(part, nn.Linear) and not parametrize.is_parametrized(part, "weight") and part.weight.any():
            parametrize.register_parametrization(part, "weight", Sigma(part.weight))
    return module


def settle(module: nn.Module) -> nn.Module:
    """The module itself with plain weights again, each as reparametrised last: what is left to do after training."""
    for part in list(module.modules()):
        if isinstance(part, nn.Linear) and parametrize.is_parametrized(part, "weight"):
            was = part.training
            part.eval()
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
            part.train(was)
    return module
