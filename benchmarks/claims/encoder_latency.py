"""An encoder-decoder gives its first token sooner than a decoder-only model of its size, and further tokens faster.

Two thirds of the layers read the source once, in both directions; a third writes, with a cross mixer in each layer; the
decoder-only model has as many parameters. A source of 512 tokens, then 32 tokens one by one; one input, one thread, all
timed in turn. First token: the source and the first target token. Throughput: further tokens, the source being read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from claims import Condition, Finding, Result, at_most, least

SOURCE, WRITTEN = 512, 32
PAIR, ALONE = "encoder-decoder", "decoder only"
BLOCK = "attention(heads=4, position=rope) + swiglu"
CROSS = "attention(heads=4, position=rope) + cross(attention(heads=4)) + swiglu"
STACKS = {PAIR: f"encoder_decoder(8*({BLOCK}), 4*({CROSS}))", ALONE: f"13*({BLOCK})"}


def first(model: Any, source: Any, token: Any, pair: bool) -> Any:
    """The state and the outputs after the source and the first token."""
    import torch

    state = model.empty(1, capacity=SOURCE + WRITTEN + 1, **({"source": source} if pair else {}))
    return model.extend(token if pair else torch.cat([source, token], 1), state)


def write(model: Any, token: Any, state: Any) -> None:
    for _ in range(WRITTEN):
        _, state = model.extend(token, state)


def measure(quick: bool) -> list[Result]:
    """Milliseconds of the first token and of each further token."""
    import torch

    import formwright
    from formwright.bench.measure import in_turn

    torch.set_num_threads(1)
    facts = {"vocab": 256, "length": SOURCE + WRITTEN + 1, "source_length": SOURCE}
    models = {n: formwright.build(f"tokens(dim=256) >> {s}", facts=facts).eval() for n, s in STACKS.items()}
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(0, 256, (1, SOURCE), generator=generator)
    token = torch.randint(0, 256, (1, 1), generator=generator)
    began = time.process_time()
    calls = {}
    with torch.no_grad():
        for name, model in models.items():
            _, state = first(model, source, token, name == PAIR)
            calls[f"{name}, first token"] = lambda m=model, pair=name == PAIR: first(m, source, token, pair)
            calls[f"{name}, further tokens"] = lambda m=model, s=state: write(m, token, s)
        times = in_turn(calls, repeats=3 if quick else 11, seconds=90.0)
    seconds = (time.process_time() - began) / len(calls)
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    return [
        Result(
            name,
            tuple(1e3 * t / (WRITTEN if "further" in name else 1) for t in taken),
            params=sizes[name.partition(",")[0]],
            seconds=seconds,
        )
        for name, taken in times.items()
    ]


def judge(found: Mapping[str, Result]) -> list[Condition]:
    early = found[f"{PAIR}, first token"].median / found[f"{ALONE}, first token"].median
    fast = found[f"{ALONE}, further tokens"].median / found[f"{PAIR}, further tokens"].median
    sizes = found[f"{PAIR}, first token"].params / found[f"{ALONE}, first token"].params
    return [
        Condition("parameters of both within a tenth", f"{sizes:.3g}", abs(sizes - 1) < 0.1),
        at_most("first token: time beside the decoder-only model's", early, 0.85),
        at_most("the same, beside the published 0.53, a fifth more", early, 0.64),
        least("further tokens: throughput beside the decoder-only model's", fast, 1.5),
        least("the same, beside the published 4.7, a fifth less", fast, 3.8),
    ]


FINDING = Finding(
    claim="On a CPU an encoder-decoder gives its first token sooner than a decoder-only model, and others faster",
    source="Return of the Encoder: Maximizing Parameter Efficiency for SLMs, arXiv 2501.16273, 2025",
    published="47 % lower first-token latency and 4.7 times the throughput on edge devices",
    metric="milliseconds",
    lower_is_better=True,
    measure=measure,
    judge=judge,
)
