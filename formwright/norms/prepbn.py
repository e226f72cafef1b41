"""Progressive re-parameterised batch norm: layer norm at first, batch norm in the end.

    y = lambda LN(x) + (1 - lambda) RepBN(x),   RepBN(x) = BN(x) + eta x,   lambda = 1 - t / steps, 0 from t = steps on

t counts training forwards, and is saved with the weights; eta is learned. BN takes the mean and variance of each
channel over all tokens of a batch in training (padding among them), and their running averages in evaluation. The
paper's published code evaluates RepBN alone at any t; here evaluation has the lambda of the last training forward, so
that what is measured on the way is what was trained. From t = steps on nothing of a token is measured, and the norm is
one scale and shift of each channel, which `fused` gives and `fold` puts into the linear maps that follow:

    y = a x + c,   a = g / sqrt(var + eps) + eta,   c = b - g mean / sqrt(var + eps)
    W (a x + c) + d = (W a) x + (W c + d)

SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization,
2405.11582, 2024.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import Card, Norm
from formwright.norms.affine import Affine
from formwright.parts import register


@register
class PRepBN(Norm):
    """LN, mixed with RepBN more and more: (..., D) -> (..., D).

    In a causal stack the statistics of a training batch let tokens see later ones, as batch norm does anywhere;
    evaluation and decoding don't."""

    card = Card(
        name="prepbn",
        kind="norm",
        summary="layer norm that turns into batch norm over training, and into nothing when fused",
        source="SLAB: Efficient Transformers with Simplified Linear Attention and PRepBN, 2405.11582, 2024",
    )
    batched = True

    def __init__(self, dim: int, *, steps: int = 1000, eps: float = 1e-5, momentum: float = 0.1):
        """steps is the number of training forwards until batch norm stands alone. Raises ValueError below 1."""
        super().__init__(dim)
        if steps < 1:
            raise ValueError(f"prepbn: steps is {steps}, but layer norm needs at least 1 to become batch norm")
        self.steps, self.eps, self.momentum = steps, eps, momentum
        self.layer_weight = nn.Parameter(torch.ones(dim))
        self.layer_bias = nn.Parameter(torch.zeros(dim))
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eta = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @property
    def mixture(self) -> Tensor:
        """lambda, of the last training forward; before there was one, of the first."""
        return 1 - self.step.clamp(1, self.steps).to(self.weight.dtype) / self.steps

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.step += 1
        own = [t.to(x.dtype) for t in (self.layer_weight, self.layer_bias)]
        layer = F.layer_norm(x, (self.dim,), *own, self.eps)
        batch = self._batch_norm(x) + self.eta.to(x.dtype) * x
        return torch.lerp(batch, layer, self.mixture.to(x.dtype))

    def _batch_norm(self, x: Tensor) -> Tensor:
        """BN(x); the averages move on in training, with the unbiased variance, as torch's do."""
        mean, variance = self.mean, self.variance
        if self.training:
            tokens = x.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32))
            variance, mean = torch.var_mean(tokens, 0, correction=0)
            with torch.no_grad():
                unbiased = variance * len(tokens) / max(len(tokens) - 1, 1)
                self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)
                self.variance.lerp_(unbiased.to(self.variance.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale.to(x.dtype) + (self.bias - mean * scale).to(x.dtype)


def fused(norm: PRepBN) -> Affine:
    """The norm as one scale and shift. Raises ValueError before `steps`, when layer norm has a part in it yet."""
    if norm.step < norm.steps:
        raise ValueError(
            f"prepbn: after {int(norm.step)} of {norm.steps} steps layer norm is left in it; train on to fuse"
        )
    scale = norm.weight * (norm.variance + norm.eps).rsqrt()
    affine = Affine(norm.dim).to(norm.weight)
    affine.weight.data.copy_(scale + norm.eta)
    affine.bias.data.copy_(norm.bias - norm.mean * scale)
    return affine


def fold(norm: PRepBN | Affine, *linears: nn.Linear) -> list[nn.Linear]:
    """linear(norm(x)) as linears of x, for every map that reads the norm; all have a bias, though the given have none.
    Raises ValueError for a norm that isn't done."""
    affine = fused(norm) if isinstance(norm, PRepBN) else norm
    return [_folded(affine, linear) for linear in linears]


@torch.no_grad()
def _folded(affine: Affine, linear: nn.Linear) -> nn.Linear:
    like = {"dtype": linear.weight.dtype, "device": linear.weight.device}
    one = nn.Linear(linear.in_features, linear.out_features, **like)
    one.weight.copy_(linear.weight * affine.weight)
    one.bias.copy_(linear.weight @ affine.bias + (0 if linear.bias is None else linear.bias))
    return one


def fuse(model: nn.Module) -> nn.Module:
    """The model itself, every PRepBN inside fused. Raises ValueError where one isn't done, and changes nothing."""
    places = [
        (m, name, child) for m in model.modules() for name, child in m.named_children() if isinstance(child, PRepBN)
    ]
    made = [fused(child) for _, _, child in places]
    for (module, name, _), affine in zip(places, made, strict=True):
        setattr(module, name, affine)
    return model
