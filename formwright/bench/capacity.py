"""How many pairs of key and value a memory of key width d_k holds before they disturb each other.

Keys k_1 ... k_n are random directions of length 1. A memory that has been written with all n pairs and is read at k_i
gives  o_i = sum_j A_ij v_j : perfect recall is A = 1. The memories:

    linear    S = sum_j k_j v_j^T, linear attention's, so that A_ij = k_i . k_j
    delta     S_j = S_(j-1) + k_j (v_j - S_(j-1)^T k_j)^T, one pass of the delta rule
    best      the linear map of least squares: what no linear memory can better, without error up to n = d_k
    softmax   A_ij = softmax_j(sqrt(d_k) k_i . k_j): attention, whose memory grows with n

and the criteria, means over i, by which n is as large as it may be:

    error     sum_j (A_ij - 1_ij)^2 <= threshold, the expected |o_i - v_i|^2 / |v_i|^2 of independent values. For the
              linear memory it is (n - 1) / d_k:  capacity grows as d_k
    worst     sum_j |A_ij - 1_ij| <= threshold, values chosen to disturb. For the linear memory it is about
              (n - 1) sqrt(2 / (pi d_k)):  capacity grows as sqrt(d_k)
    recall    the share of i whose v_i is the nearest to o_i of all n values, random directions of `value_width`;
              >= threshold

These are the average case and the worst of the capacity theorem of "Understanding Transformers through the Lens of
Pavlovian Conditioning" (arXiv 2508.08289, 2025). Measured with the project's own recurrence:

    python -m formwright.bench.capacity --memory linear --widths 16 32 64 128
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from formwright.ops.recurrence import linear_recurrence

MEMORIES = ("linear", "delta", "best", "softmax")
CRITERIA = {"error": 0.5, "worst": 1.0, "recall": 0.9}  # and their thresholds


def coefficients(memory: str, keys: Tensor) -> Tensor:
    """A: how much of each value is read at each key. keys (B, n, K) of length 1 -> (B, n, n)."""
    batch, number, width = keys.shape
    if memory == "softmax":
        return torch.softmax(math.sqrt(width) * keys @ keys.mT, dim=-1)
    one_each = torch.eye(number, dtype=keys.dtype, device=keys.device).expand(batch, number, number)
    if memory == "best":
        return keys @ (torch.linalg.pinv(keys) @ one_each)
    beta = keys.new_ones(batch, number, 1) if memory == "delta" else None
    heads = keys[:, :, None]
    _, state = linear_recurrence(heads, heads, one_each[:, :, None], beta=beta)
    return keys @ state[:, 0]


def quality(criterion: str, read: Tensor, values: Tensor) -> float:
    """A criterion of A (B, n, n), recalled values being those of `values` (B, n, V)."""
    wrong = read - torch.eye(read.shape[-1], dtype=read.dtype, device=read.device)
    if criterion == "error":
        return float(wrong.square().sum(-1).mean())
    if criterion == "worst":
        return float(wrong.abs().sum(-1).mean())
    nearest = (read @ values @ values.mT).argmax(-1)
    return float((nearest == torch.arange(read.shape[-1], device=read.device)).double().mean())


def capacity(
    memory: str,
    key_width: int,
    criterion: str = "error",
    *,
    threshold: float | None = None,
    value_width: int = 64,
    trials: int = 8,
    most: int = 2048,
    seed: int = 0,
) -> int:
    """The largest number of pairs, up to `most`, at which the criterion is kept, averaged over `trials` memories; each
    number takes the first of the same pairs. Raises ValueError for memories and criteria that don't exist."""
    if memory not in MEMORIES:
        raise ValueError(f"memory is one of {', '.join(MEMORIES)}, not {memory!r}")
    if criterion not in CRITERIA:
        raise ValueError(f"criterion is one of {', '.join(CRITERIA)}, not {criterion!r}")
    if min(key_width, value_width, trials, most) < 1:
        raise ValueError("key_width, value_width, trials and most must be at least 1")
    threshold = CRITERIA[criterion] if threshold is None else threshold
    generator = torch.Generator().manual_seed(seed)
    keys, values = (
        functional.normalize(torch.randn(trials, most, width, dtype=torch.float64, generator=generator), dim=-1)
        for width in (key_width, value_width)
    )

    def kept(number: int) -> bool:
        found = quality(criterion, coefficients(memory, keys[:, :number]), values[:, :number])
        return found >= threshold if criterion == "recall" else found <= threshold

    low, high = 1, 2  # one pair alone is kept by all of them
    while high <= most and kept(high):
        low, high = high, 2 * high
    if high > most:
        if kept(most):
            return most
        high = most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def law(memory: str, widths: list[int], criterion: str = "error", **options) -> tuple[list[int], float | None]:
    """The capacity at each key width, and the power of d_k that it grows by (None for a single width). Options are
    those of `capacity`."""
    found = [capacity(memory, width, criterion, **options) for width in widths]
    if len(set(widths)) < 2:
        return found, None
    return found, float(np.polyfit(np.log(widths), np.log(found), 1)[0])


def main(arguments: list[str] | None = None) -> None:
    """The capacities of one memory, or all, over key widths, printed as a table."""
    parser = argparse.ArgumentParser(prog="formwright.bench.capacity", description=main.__doc__)
    parser.add_argument("--memory", choices=MEMORIES, help="one memory; all without")
    parser.add_argument("--criterion", choices=CRITERIA, default="error")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128], help="key widths")
    parser.add_argument("--threshold", type=float, help="the criterion's bound")
    parser.add_argument("--most", type=int, default=2048, help="pairs tried at most")
    chosen = parser.parse_args(arguments)
    options = {"threshold": chosen.threshold, "most": chosen.most}
    print(f"{'d_k':>10}" + "".join(f"{width:>7}" for width in chosen.widths) + "   grows as")
    for memory in [chosen.memory] if chosen.memory else MEMORIES:
        found, power = law(memory, chosen.widths, chosen.criterion, **options)
        shown = "".join(f"{'>=' if n == chosen.most else ''}{n}".rjust(7) for n in found)
        reached = chosen.most in found or power is None
        print(f"{memory:>10}{shown}   " + ("-" if reached else f"d_k^{power:.2f}"))


if __name__ == "__main__":
    main()
