"""A decoder-only model can't invert permutations in one pass; empty tokens behind the input, or an encoder, cure it.

At y_j's place the model must say x_j, which stands at y_i with p_i = j, and may stand later. Scores are whole
strings; the shares of single letters are beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trials import Trial

from claims import Condition, Finding, Result, at_most, least

DECODER, SCRATCH, PAIR = "decoder only", "with scratch tokens", "encoder-decoder"
SIZE, LETTERS, STEPS = 4, 8, 2000


def letters(model: Any, source: Any, _: Any) -> dict[str, float]:
    """The accuracy of single letters."""
    from formwright.train import evaluate

    return {"letters": evaluate(model, source, "test", 64)["accuracy"]}


def trial(form: str, stack: str) -> Trial:
    data = f"inverse_permutation(size={SIZE}, letters={LETTERS}, form='{form}', tests=500)"
    tokens = f"tokens(dim=64, position=learned(length={3 * SIZE}))"
    return Trial(f"{tokens} >> {stack}", data, STEPS, after=f"{__name__}:letters")


def judge(found: Mapping[str, Result]) -> list[Condition]:
    seen = (SIZE + 1) / (2 * SIZE)  # x_j stands at or before j
    bound = seen + (1 - seen) / LETTERS
    return [
        at_most("decoder only, whole strings, the best seed", found[DECODER].best, 0.15),
        at_most(
            f"decoder only, letters, the best seed, beside the {bound:.2f} that are seen or guessed",
            max(found[DECODER].more["letters"]),
            bound + 0.03,
        ),
        least("with scratch tokens, whole strings, the worst seed", found[SCRATCH].worst, 0.9),
        least("encoder-decoder, whole strings, the worst seed", found[PAIR].worst, 0.9),
    ]


DEEP = "2*(attention(heads=4) + swiglu)"
ENCODER = "attention(heads=4) + swiglu, attention(heads=4) + cross(attention(heads=4)) + swiglu"

FINDING = Finding(
    claim="A decoder-only model can't learn inverse permutations; scratch tokens or an encoder make it possible",
    source="The Impossibility of Inverse Permutation Learning in Transformer Models, arXiv 2509.24125, 2025",
    published="impossible at any depth without scratch tokens; constructions with them, and with an encoder",
    contenders={
        DECODER: trial("decoder", DEEP),
        SCRATCH: trial("scratch", DEEP),
        PAIR: trial("encoder_decoder", f"encoder_decoder({ENCODER})"),
    },
    rates=(1e-3, 3e-3),
    metric="string_accuracy",
    judge=judge,
)
