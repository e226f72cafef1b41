"""A published architecture at another width: its heads stay about as wide as published, and there are fewer of them.

A model of 4096 channels has 32 heads of 128; at 256 channels 32 heads of 8 would be another architecture, 2 of 128 are
the same one, smaller.
"""

from __future__ import annotations

from dataclasses import replace

from formwright import lang
from formwright.lang import Expr, Part

DIVIDE_HEADS = ("kv_heads", "key_heads", "groups")


def narrowed(tree: Expr, published: int, dim: int) -> Expr:
    """The tree with heads in proportion to the width `dim` instead of `published`: at least one, and a divisor of the
    width where head_dim follows from it; what divides heads still does. Depth, windows and states stay."""
    share = dim / published

    def change(part: Part) -> Part:
        heads = part.options.get("heads")
        if not isinstance(heads, int):
            return part
        # Rotary positions turn pairs of channels, so that a head keeps an even number of them.
        fewer = max(1, round(heads * share)) if "head_dim" in part.options else divisor(max(1, dim // 2), heads * share)
        options = {**part.options, "heads": fewer}
        for name in DIVIDE_HEADS:
            if isinstance(options.get(name), int):
                options[name] = divisor(fewer, options[name] * share)
        return replace(part, options=options)

    return lang.rewrite(tree, change)


def divisor(number: int, wanted: float) -> int:
    """The divisor of a number nearest to what is wanted, by ratio."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: max(d / wanted, wanted / d))
