"""timm's image models beside zoo entries: each entry's expression made small, timm's model made as small, its random
weights handed over in the order in which both hold them, or by name where that differs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formwright import build, zoo
from formwright.model import Model


def ours(name: str, replaced: dict[str, str], **facts: object) -> Model:
    """The zoo entry of that name, texts in its expression replaced (depths, heads) and facts changed, in float64."""
    text = zoo.get(name)
    for old, new in replaced.items():
        assert old in text, f"{old} does not stand in {text}"
        text = text.replace(old, new)
    return build(text, facts={**zoo.entry(name).facts, **facts}).double().eval()


def drawn(model: nn.Module) -> nn.Module:
    """timm's model in float64 with all its weights and running statistics random, so that each of them matters."""
    model = model.double().eval()
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, p in model.named_parameters():
            wide = p[0].numel() ** -0.5 if p.ndim > 1 else 0.3
            p.copy_(wide * noise(p) + (p.ndim == 1 and not name.endswith("bias")))
        for name, statistic in model.named_buffers():
            if name.endswith("running_var"):
                statistic.copy_(noise(statistic).square() + 0.5)
            elif name.endswith("running_mean"):
                statistic.copy_(noise(statistic))
    return model


def hand_over(model: Model, given: list[Tensor]) -> None:
    """Their weights, in the order of our parameters, into ours. Raises AssertionError where shapes differ."""
    held = list(model.named_parameters())
    assert len(held) == len(given), f"ours hold {len(held)} tensors, but {len(given)} are given"
    with torch.no_grad():
        for (name, own), other in zip(held, given, strict=True):
            assert own.shape == other.shape, f"{name} is {tuple(own.shape)}, theirs {tuple(other.shape)}"
            own.copy_(other)


def both(model: nn.Module, theirs: nn.Module, image: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Logits of two random images, ours and theirs."""
    x = torch.randn(2, 3, *image, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x.movedim(1, -1)), theirs(x)


def plain(*modules: nn.Module) -> list[Tensor]:
    """Weight and bias of each module, where it has them; 1 x 1 convolutions as matrices."""
    tensors = [t for m in modules for t in (m.weight, m.bias) if t is not None]
    return [t.flatten(1) if t.ndim == 4 and t.shape[2:] == (1, 1) else t for t in tensors]


def patches(projection: nn.Conv2d) -> list[Tensor]:
    """A convolution of disjoint patches as the matrix of their pixels, channels last."""
    return [projection.weight.permute(0, 2, 3, 1).flatten(1), projection.bias]


def heads(attention: nn.Module) -> list[Tensor]:
    """qkv as query, key and value, then the output map."""
    weights = attention.qkv.weight.chunk(3)
    biases = [None] * 3 if attention.qkv.bias is None else attention.qkv.bias.chunk(3)
    each = [t for pair in zip(weights, biases, strict=True) for t in pair if t is not None]
    return each + plain(attention.proj)
