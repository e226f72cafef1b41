"""Softmax attention makes a sink of the first token, ReLU attention does not: it gives no weight at all.

Bigram-backcopy asks a head to look at the token before where a trigger stands, and for nothing elsewhere. Measured: the
share of weight that the row's first mark draws from tokens that are no triggers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trials import Trial

from claims import Condition, Finding, Result, at_most, least

DATA, TRIGGERS, FIRST = "bigram_backcopy(length=64, tests=1000)", 3, 8
SOFTMAX, RELU = "softmax", "ReLU"


def sinks(model: Any, source: Any, _: Any) -> dict[str, float]:
    """The mark's share of weight away from triggers and at them, and the loss at triggers."""
    import torch

    from formwright.bench.sinks import attention_weights, sink_share

    batch = next(source.evaluation("test", 128))
    trigger = (batch.inputs >= 1) & (batch.inputs <= TRIGGERS)
    late = torch.arange(batch.inputs.shape[1]) >= FIRST  # the first few tokens have little else to look at
    (weights,) = attention_weights(model, batch.inputs)
    rest, asked = sink_share(weights, ~trigger & late), sink_share(weights, trigger & late)
    with torch.no_grad():
        loss = -model(batch.inputs).log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    told = {"sink": rest["share"], "idle": rest["idle"], "sink_at_triggers": asked["share"]}
    return told | {"trigger_loss": loss[trigger].mean().item()}


def judge(found: Mapping[str, Result]) -> list[Condition]:
    soft, relu = found[SOFTMAX].more, found[RELU].more
    return [
        at_most("loss at triggers, the worst of all seeds", max(soft["trigger_loss"] + relu["trigger_loss"]), 0.1),
        least("softmax: the mark's share of weight away from triggers, the least seed", min(soft["sink"]), 0.5),
        at_most("softmax: its share at triggers, the greatest seed", max(soft["sink_at_triggers"]), 0.1),
        at_most("ReLU: its share away from triggers, the greatest seed", max(relu["sink"]), 0.1),
    ]


def trial(normaliser: str) -> Trial:
    mixer = f"attention(heads=1, normaliser='{normaliser}')"
    stack = f"tokens(dim=64, position=learned(length=64)) >> {mixer}"
    return Trial(stack, DATA, steps=1000, weight_decay=1e-4, after=f"{__name__}:sinks")


FINDING = Finding(
    claim="A softmax head that has nothing to do puts its weight on the first token; a ReLU head makes no such sink",
    source="Active-Dormant Attention Heads: Mechanistically Demystifying Extreme-Token Phenomena in LLMs, "
    "arXiv 2410.13835, 2024",
    published="softmax heads are dormant sinks away from triggers; with ReLU attention the sink is gone",
    contenders={SOFTMAX: trial("softmax"), RELU: trial("relu")},
    rates=(2e-3, 5e-3),
    metric="loss",
    lower_is_better=True,
    judge=judge,
)
