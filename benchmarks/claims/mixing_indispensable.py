"""Language models need tokens to meet; how they meet matters less, above all where every second layer is attention.

Bytes of Python's own source. Beside attention: no mixing at all; weights that are the same for every input
(fixed_attention); weights without pairs of tokens (elementwise_attention); and both of these in every second layer.
"""

from __future__ import annotations

from collections.abc import Mapping

from trials import Trial

from claims import Condition, Finding, Result, at_most, least

ATTENTION, NONE, FIXED, ALONE = "attention", "no mixing", "fixed", "element-wise"
LAYERS = {
    ATTENTION: "4*(attention(heads=4) + swiglu)",
    NONE: "4*(swiglu + swiglu)",
    FIXED: "4*(fixed_attention(heads=4) + swiglu)",
    ALONE: "4*(elementwise_attention(heads=4) + swiglu)",
    f"{FIXED}, attention": "2*(fixed_attention(heads=4) + swiglu + attention(heads=4) + swiglu)",
    f"{ALONE}, attention": "2*(elementwise_attention(heads=4) + swiglu + attention(heads=4) + swiglu)",
}


def judge(found: Mapping[str, Result]) -> list[Condition]:
    best = found[ATTENTION].mean
    hybrids = [found[f"{name}, attention"].mean / best for name in (FIXED, ALONE)]
    alone = [found[name].mean / best for name in (FIXED, ALONE)]
    return [
        least("bits without mixing beside attention's", found[NONE].mean / best, 1.1),
        at_most("bits of the worse hybrid beside attention's", max(hybrids), 1.03),
        least("bits of the better variant alone beside the worse hybrid's", min(alone) / max(hybrids), 1.0),
    ]


FINDING = Finding(
    claim="Mixing tokens is indispensable; variants that fail alone serve in every second layer beside attention",
    source="Deconstructing Attention: Investigating Design Principles for Effective Language Modeling, "
    "arXiv 2510.11602, 2025",
    published="without mixing near random; hybrids with standard attention as good as attention alone",
    contenders={
        name: Trial(
            f"tokens(dim=48, position=learned) >> {stack} >> lm",
            "python-source",
            steps=500,
            batch=8,
            options=(("length", 128),),
            limit=300,
        )
        for name, stack in LAYERS.items()
    },
    metric="bits_per_byte",
    lower_is_better=True,
    judge=judge,
    tried="500 steps of 1024 bytes leave all near what pairs of bytes tell (3.60 bits), where mixing is little used: "
    "each hybrid is better than its variant alone, no mixing is worst, but all by little.",
)
