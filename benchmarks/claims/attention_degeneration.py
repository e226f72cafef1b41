"""A decoder-only model looks away from its source as it writes; partial attention, to the source alone, cures it.

The source is written four times over: the first copy can come from the source alone, later ones from what was written
as well. Measured in each copy: the source's share of the sensitivity, that of the gradients of the true next tokens'
log-probabilities by all embedded tokens (norms, summed). Positions are rotary; with learned ones,
by which a place of the source is found as easily from the last copy as from the first, the share fell less: from 0.92
to 0.78, and from 0.93 to 0.87 with partial attention (means of three seeds).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trials import Trial

from claims import Condition, Finding, Result, at_most, least

SIZE, REPEATS = 8, 4
ALONE, PARTIAL = "attention", "with partial attention"


def sensitivity(model: Any, source: Any, _: Any) -> dict[str, float]:
    """The source's share of the gradients' norms, of each copy."""
    import torch

    batch = next(source.evaluation("test", 64))
    found = {}
    for copy in range(REPEATS):
        x, layout = model.embed(batch.inputs)
        x = x.detach().requires_grad_()
        h, layout = model.stack(x, layout)
        logits = model.head(model.norm(h), layout, batch.inputs).log_softmax(-1)
        written = slice(SIZE * (copy + 1), SIZE * (copy + 2))
        (gradient,) = torch.autograd.grad(logits[:, written].gather(-1, batch.targets[:, written, None]).sum(), x)
        norms = gradient.norm(dim=-1).sum(0)
        found[f"copy_{copy + 1}"] = (norms[:SIZE].sum() / norms.sum()).item()
    return found


def trial(extra: str) -> Trial:
    stack = f"2*(attention(heads=2, position=rope) + {extra}swiglu)"
    data = f"repeated_copying(size={SIZE}, repeats={REPEATS}, letters=32, tests=500)"
    return Trial(f"tokens(dim=32) >> {stack}", data, steps=800, after=f"{__name__}:sensitivity")


def judge(found: Mapping[str, Result]) -> list[Condition]:
    def kept(name: str) -> list[float]:
        """What is left in the last copy of the share in the first, of each seed."""
        more = found[name].more
        return [last / first for first, last in zip(more["copy_1"], more[f"copy_{REPEATS}"], strict=True)]

    last = f"copy_{REPEATS}"
    gaps = [p - a for a, p in zip(found[ALONE].more[last], found[PARTIAL].more[last], strict=True)]
    return [
        least("accuracy, the worst of all seeds", min(found[ALONE].worst, found[PARTIAL].worst), 0.95),
        at_most(
            "attention: what is left of the source's share in the last copy, the greatest seed", max(kept(ALONE)), 0.8
        ),
        least(
            "the source's share in the last copy, with partial attention less without, the least seed", min(gaps), 0.1
        ),
        least("with partial attention: what is left of it, the least seed", min(kept(PARTIAL)), 0.8),
    ]


FINDING = Finding(
    claim="A decoder-only model's attention to its source fades as it writes; partial attention cures it",
    source="Decoder-Only or Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder, "
    "arXiv 2304.04052, 2023",
    published="sensitivity to the source falls with every token written; with partial attention it doesn't",
    contenders={ALONE: trial(""), PARTIAL: trial(f"partial_attention(source={SIZE}, heads=2) + ")},
    rates=(2e-3, 5e-3),
    judge=judge,
    tried="With rotary positions the source loses nearly all of its share after the first copy, for the copy before is "
    "at a fixed distance; partial attention keeps a tenth and more of the sensitivity on it, but it still fades, "
    "since the other attention may still read the copies. With learned positions (three seeds) the share falls from "
    "0.92 to 0.78, and from 0.93 to 0.87 with partial attention. The published model has positions and a loss of the "
    "source's own besides.",
)
