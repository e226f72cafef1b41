"""One wide layer of attention is faster on a CPU than six layers with as many heads together, and half their size.

The paper's model of text as bytes (zoo/wide-attention.toml): 48 heads of 64 in one layer, or 8 in each of six, width
512. One input at a time, one thread, both timed in turn.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from claims import Condition, Finding, Result, at_most, least

DEEP, WIDE = "six layers of 8 heads", "one layer of 48 heads"
HEADS = {DEEP: (6, 8), WIDE: (1, 48)}
TOKENS = 1000  # as Long Range Arena cuts its texts


def measure(quick: bool) -> list[Result]:
    """Milliseconds of each round."""
    import torch

    import formwright
    from formwright.bench.measure import example_inputs, in_turn

    torch.set_num_threads(1)
    tokens = 100 if quick else TOKENS
    models = {}
    for name, (depth, heads) in HEADS.items():
        block = f"{depth}*(attention(heads={heads}, head_dim=64) + mlp)"
        text = f"tokens(dim=512, position=learned(length=1024)) >> {block} >> classify(pool='mean')"
        models[name] = formwright.build(text, facts={"vocab": 256, "classes": 2}).eval()
    inputs = example_inputs(models[DEEP], tokens)
    began = time.process_time()
    with torch.no_grad():
        calls = {name: (lambda model=model: model(inputs)) for name, model in models.items()}
        times = in_turn(calls, repeats=3 if quick else 11, seconds=60.0)
    seconds = (time.process_time() - began) / len(models)
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    macs = {name: model.cost((tokens,)).macs / 1e9 for name, model in models.items()}
    return [
        Result(name, tuple(1e3 * t for t in taken), {"gmacs": (macs[name],)}, None, sizes[name], seconds)
        for name, taken in times.items()
    ]


def judge(found: Mapping[str, Result]) -> list[Condition]:
    deep, wide = found[DEEP], found[WIDE]
    ratio = deep.median / wide.median
    return [
        least("time of the deep model over the wide one's", ratio, 1.2),
        least("the same, beside the published 3.1, a fifth less", ratio, 2.5),
        at_most("parameters of the wide model over the deep one's", wide.params / deep.params, 0.55),
    ]


FINDING = Finding(
    claim="A single wide layer is faster on a CPU than a deep stack with as many heads, and half its size",
    source="Wide Attention Is The Way Forward For Transformers?, arXiv 2210.00640, 2022",
    published="text as bytes: 3.1 times faster on a CPU at half the size",
    metric="milliseconds",
    lower_is_better=True,
    measure=measure,
    judge=judge,
)
