"""What turns a query's scores s into weights p over the keys that it may attend to, n of them.

    softmax      p_j = exp(s_j) / sum_l exp(s_l)
    sink         p_j = exp(s_j) / (exp(sink) + sum_l exp(s_l))                   sink 0 is "off by one"
    clipped      p_j = clip((zeta - gamma) softmax(s)_j + gamma, 0, 1)
    sigmoid      p_j = 1 / (1 + exp(-(s_j + shift)))                             shift -log n unless it is given
    relu, relu2  p_j = max(s_j, 0) / n,  max(s_j, 0)^2 / n
    linear       p_j = s_j / n
    sparsemax    p_j = max(s_j - tau, 0)                                         tau so that they sum to 1
    entmax       p_j = max(s_j / 2 - tau, 0)^2                                   likewise: alpha-entmax at alpha = 1.5

n counts the keys that the query may attend to, so that a causal query's weights never depend on what comes later.
Softmax: Attention Is All You Need, 1706.03762, 2017. Sink: Attention Is Off By One (Miller, 2023); Efficient Streaming
Language Models with Attention Sinks, 2309.17453, 2023. Clipped: Quantizable Transformers, 2306.12929, 2023. Sigmoid:
Theory, Analysis, and Best Practices for Sigmoid Self-Attention, 2409.04431, 2024. ReLU: Replacing softmax with ReLU in
Vision Transformers, 2309.08586, 2023. Squared ReLU: Primer, 2109.08668, 2021; Transformer Quality in Linear Time,
2202.10447, 2022. Sparsemax: From Softmax to Sparsemax, 1602.02068, 2016. Entmax: Sparse Sequence-to-Sequence Models,
1905.05702, 2019; weights by the `entmax` package. A sink learned for each head: gpt-oss (OpenAI, 2508.10925, 2025).

Each has `weights` (scores, `hidden` where a key may not be seen, -> weights) and `slope` (the gradient of the weights
-> that of the scores), which is all that block-wise attention asks for: another normaliser is one more class here. One
that learns a number for each head gives it as `learned`, and its gradient as `learned_slope`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


class Normaliser:
    """Base of all. `hidden` is the score of a key that may not be seen. Weights at hidden keys are zero, and so are all
    weights of a query that may see none."""

    hidden = -math.inf

    def weights(self, scores: Tensor, count: Tensor | int) -> Tensor:
        """scores (..., M), count of allowed keys (broadcastable to (..., 1)) -> weights (..., M)."""
        raise NotImplementedError

    def slope(self, scores: Tensor, weights: Tensor, gradient: Tensor, count: Tensor | int) -> Tensor:
        """scores, their weights and the gradient of the weights, all (..., M) -> the gradient of the scores."""
        raise NotImplementedError

    def learned(self, heads: int) -> Tensor | None:
        """The number that each head learns, (H,); None where there is none."""
        return None

    def with_learned(self, learned: Tensor) -> Normaliser:
        """The same with these learned numbers, broadcastable to scores (..., 1)."""
        raise NotImplementedError

    def learned_slope(self, scores: Tensor, weights: Tensor, gradient: Tensor, count: Tensor | int) -> Tensor:
        """As `slope`, the gradient of the learned number, (..., 1), not summed over queries."""
        raise NotImplementedError


@dataclass(frozen=True)
class Softmax(Normaliser):
    def weights(self, scores, count):
        return torch.softmax(scores, -1)

    def slope(self, scores, weights, gradient, count):
        return torch.ops.aten._softmax_backward_data(gradient, weights, -1, weights.dtype)


@dataclass(frozen=True, eq=False)
class Sink(Normaliser):
    """Softmax with one more score, `sink`, whose weight goes nowhere; at 0, softmax off by one. A tensor (H,) is the
    sink of each head and gets a gradient."""

    sink: float | Tensor = 0.0

    def weights(self, scores, count):
        shape = (*scores.shape[:-1], 1)
        if isinstance(self.sink, Tensor):
            sink = self.sink.to(scores.dtype).expand(shape)
        else:
            sink = scores.new_full(shape, self.sink)
        return torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1]

    def slope(self, scores, weights, gradient, count):
        return weights * (gradient - (weights * gradient).sum(-1, keepdim=True))

    def learned(self, heads):
        if not isinstance(self.sink, Tensor):
            return None
        if self.sink.shape != (heads,):
            raise ValueError(f"sink: it has the shape {tuple(self.sink.shape)}, but there are {heads} heads: give (H,)")
        return self.sink

    def with_learned(self, learned):
        return replace(self, sink=learned)

    def learned_slope(self, scores, weights, gradient, count):
        return (weights.sum(-1, keepdim=True) - 1) * (weights * gradient).sum(-1, keepdim=True)


@dataclass(frozen=True)
class Clipped(Normaliser):
    """Softmax stretched to (gamma, zeta) and cut to (0, 1): weights can be exactly 0 or 1."""

    gamma: float = -0.03
    zeta: float = 1.0

    def __post_init__(self) -> None:
        if self.gamma > 0 or self.zeta < 1:
            raise ValueError(
                f"clipped softmax: gamma must be <= 0 and zeta >= 1, but they are {self.gamma}, {self.zeta}"
            )

    def weights(self, scores, count):
        return ((self.zeta - self.gamma) * torch.softmax(scores, -1) + self.gamma).clamp(0, 1)

    def slope(self, scores, weights, gradient, count):
        softmax = torch.softmax(scores, -1)
        stretched = (self.zeta - self.gamma) * softmax + self.gamma
        inside = (stretched >= 0) & (stretched <= 1)
        gradient = gradient * inside * (self.zeta - self.gamma)
        return softmax * (gradient - (softmax * gradient).sum(-1, keepdim=True))


@dataclass(frozen=True)
class Sigmoid(Normaliser):
    """Each key for itself; shift None is -log of the count of allowed keys."""

    shift: float | None = None

    def weights(self, scores, count):
        return torch.sigmoid(scores + (-_log(count) if self.shift is None else self.shift))

    def slope(self, scores, weights, gradient, count):
        return gradient * weights * (1 - weights)


@dataclass(frozen=True)
class Relu(Normaliser):
    """ReLU to the given power, over the count of allowed keys."""

    power: int = 1

    def __post_init__(self) -> None:
        if self.power not in (1, 2):
            raise ValueError(f"relu: power is {self.power}, but must be 1 or 2 (squared)")

    def weights(self, scores, count):
        positive = scores.clamp_min(0)
        return (positive if self.power == 1 else positive * positive) / count

    def slope(self, scores, weights, gradient, count):
        positive = (scores > 0) if self.power == 1 else 2 * scores.clamp_min(0)
        return gradient * positive / count


@dataclass(frozen=True)
class Linear(Normaliser):
    """The scores themselves, over the count of allowed keys."""

    hidden = 0.0

    def weights(self, scores, count):
        return scores / count

    def slope(self, scores, weights, gradient, count):
        return gradient / count


@dataclass(frozen=True)
class Entmax(Normaliser):
    """Softmax that gives 0 to all but the largest scores: alpha 1.5 is entmax, alpha 2 sparsemax. Needs the `entmax`
    package."""

    alpha: float = 1.5

    def __post_init__(self) -> None:
        if self.alpha not in (1.5, 2):
            raise ValueError(f"entmax: alpha is {self.alpha}, but the exact forms are those of 1.5 and 2 (sparsemax)")

    def weights(self, scores, count):
        exact = _entmax("sparsemax" if self.alpha == 2 else "entmax15")
        # few weights are above 0, so that few scores need sorting; when compiling, none may decide how many
        few = None if torch.compiler.is_compiling() else (LARGEST_SPARSEMAX if self.alpha == 2 else LARGEST_ENTMAX)
        return exact(scores, -1, few)

    def slope(self, scores, weights, gradient, count):
        rate = weights.sqrt() if self.alpha == 1.5 else (weights > 0).to(weights.dtype)
        steep = rate * gradient
        return steep.addcmul_(rate, steep.sum(-1, keepdim=True) / rate.sum(-1, keepdim=True), value=-1)


LARGEST_SPARSEMAX, LARGEST_ENTMAX = 32, 128  # scores sorted at first; as many more as it takes where they are too few

NORMALISERS = {
    "softmax": Softmax(),
    "sink": Sink(),
    "clipped": Clipped(),
    "sigmoid": Sigmoid(),
    "relu": Relu(),
    "relu2": Relu(power=2),
    "linear": Linear(),
    "entmax": Entmax(),
    "sparsemax": Entmax(alpha=2),
}


def normaliser_of(name: str | Normaliser) -> Normaliser:
    """The normaliser of that name, or the one given. Raises ValueError with the names there are."""
    if isinstance(name, Normaliser):
        return name
    if name not in NORMALISERS:
        raise ValueError(f"{name!r} is no normaliser; there are {', '.join(NORMALISERS)}, and the classes behind them")
    return NORMALISERS[name]


def _log(count: Tensor | int) -> Tensor | float:
    return count.log() if isinstance(count, Tensor) else math.log(count)


def _entmax(name: str) -> Callable[[Tensor, int, int | None], Tensor]:
    try:
        import entmax
    except ImportError as missing:
        raise ImportError(
            'entmax and sparsemax need the entmax package: `pip install entmax`, or `pip install "formwright[entmax]"`'
        ) from missing
    return getattr(entmax, name)
