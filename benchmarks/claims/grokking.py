"""Grokking: with weight decay the unseen entries of a table become right well after the seen ones are known by heart.

Addition modulo 59, two fifths of the table seen. Measured: the step at which the training loss first
falls below that of an accuracy of 95 in 100, -log 0.95, and the step at which validation is right in 95 of 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trials import Trial

from claims import Condition, Finding, Result, at_most, least

DATA = "modular_table(prime=59, share=0.4, tests=1000)"
DECAYED, FREE = "weight decay 1", "no weight decay"
RIGHT, NEVER = 0.95, math.inf
STEPS = 1200


def steps(_: Any, __: Any, fit: Any) -> dict[str, float]:
    """The steps at which training and validation come to RIGHT; inf for never."""
    seen = [p["step"] for p in fit.curve if p["loss"] < -math.log(RIGHT)]
    unseen = [e["step"] for e in fit.evaluations if e["accuracy"] >= RIGHT]
    return {"trained_by": min(seen, default=NEVER), "validated_by": min(unseen, default=NEVER)}


def trial(decay: float) -> Trial:
    stack = "tokens(dim=128, position=learned(length=4)) >> attention(heads=4) + mlp"
    return Trial(stack, DATA, STEPS, batch=256, weight_decay=decay, after=f"{__name__}:steps")


def judge(found: Mapping[str, Result]) -> list[Condition]:
    grokked = found[DECAYED]
    late = [b / a for a, b in zip(grokked.more["trained_by"], grokked.more["validated_by"], strict=True)]
    return [
        least("weight decay 1: accuracy on the unseen, the worst seed", grokked.worst, 0.95),
        least("its step of knowing the unseen over that of knowing the seen, the least seed", min(late), 1.3),
        at_most("its last such step", max(grokked.more["validated_by"]), STEPS),
        at_most("no weight decay: step of knowing the seen, the last seed", max(found[FREE].more["trained_by"]), STEPS),
        at_most("no weight decay: accuracy on the unseen, the best seed", found[FREE].best, 0.9),
    ]


FINDING = Finding(
    claim="Well after it knows the seen part of a table by heart, a model with weight decay knows the rest",
    source="Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets, arXiv 2201.02177, 2022",
    published="validation accuracy rises long after training accuracy; weight decay makes it come sooner",
    contenders={DECAYED: trial(1.0), FREE: trial(0.0)},
    rates=(2e-3,),
    judge=judge,
)
