"""One layer of attention doesn't recall: to find what followed a key, one layer moves what stands before a token to it
and the next looks there.
"""

from __future__ import annotations

from collections.abc import Mapping

from claims import Condition, Finding, Result, at_most, least
from claims.mqar_convolutions import ATTENTION, mqar


def judge(found: Mapping[str, Result]) -> list[Condition]:
    return [
        least("two layers, the best seed", found["two layers"].best, 0.9),
        at_most("one layer, the best seed", found["one layer"].best, 0.3),
    ]


FINDING = Finding(
    claim="Attention needs two layers to recall what followed a key; one layer doesn't",
    source="In-context Learning and Induction Heads, arXiv 2209.11895, 2022",
    published="induction heads form from two layers on, and never in models of one",
    contenders={
        "two layers": mqar(ATTENTION, "2*attention(heads=1)"),
        "one layer": mqar(ATTENTION, "attention(heads=1)"),
    },
    rates=(1e-3, 2e-3),
    judge=judge,
)
