"""AdamW, and which parameters decay.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = w - lr (m' / (sqrt(v') + eps) + decay w)

Decoupled Weight Decay Regularization, arXiv 1711.05101, 2017. Matrices decay; what sets a scale, a place or a look-up
does not: parameters of fewer than two dimensions, those of norms, positions and embeddings, and any that its part has
marked by an attribute `no_decay = True`.
"""

from __future__ import annotations

import torch
from torch import nn

from formwright.contract import Norm, Position

UNDECAYED = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    Norm,
    Position,
)


def undecayed(model: nn.Module) -> set[str]:
    """Names of the trainable parameters that weight decay leaves alone."""
    spared = {id(p) for m in model.modules() if isinstance(m, UNDECAYED) for p in m.parameters()}
    return {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.ndim < 2 or id(p) in spared or getattr(p, "no_decay", False))
    }


def adamw(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model` in two groups, decayed and not.

    Raises ValueError where nothing can be trained."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
    spared = undecayed(model)
    groups = [
        {"params": [p for name, p in parameters.items() if name not in spared], "weight_decay": weight_decay},
        {"params": [p for name, p in parameters.items() if name in spared], "weight_decay": 0.0},
    ]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters.values())
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True if fused else None)
