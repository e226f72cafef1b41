"""Rows of whole mixers: a layer beside its peer's with the same weights, and single tokens after long prefixes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import peers
import torch
from comparing import (
    BATCH,
    BOTH,
    DIM,
    FORWARD,
    HEADS,
    LENGTHS,
    PREFILL,
    SMALL,
    STEP,
    WIDTH,
    Calls,
    Row,
    difference,
    working,
)
from torch import Tensor

from formwright import parts
from formwright.contract import Layout

STEPPING = (
    "attention", "gated_deltanet", "kda", "mamba", "mamba2", "rg_lru", "based", "deltanet", "gla", "hgrn2", "lightning",
    "linear_attention", "lmu", "lru", "min_gru", "mlstm", "retention", "rwkv7", "s4d",
)  # fmt: skip


def _build_layer(name: str, tokens: int, work: str) -> Calls:
    layer = peers.LAYERS[name]()
    x = torch.randn(BATCH, tokens, DIM, generator=torch.Generator().manual_seed(tokens)).requires_grad_()
    if work == PREFILL:
        ours = lambda: layer.ours.extend(x, layer.ours.empty(BATCH, capacity=tokens))[0]  # noqa: E731
        theirs = lambda: layer.run(x, layer.cache())  # noqa: E731
    else:
        ours, theirs = (lambda: layer.ours(x, Layout((tokens,)))), (lambda: layer.run(x, None))
    return {
        name: working(ours, [x, *layer.ours.parameters()], work),
        f"hf: {name}": working(theirs, [x, *layer.theirs.parameters()], work),
    }


def _gate_layer(name: str) -> dict[str, float]:
    """Outputs and the input's gradient, ours beside theirs; that every weight's agrees is tests/parity's to show."""
    layer = peers.LAYERS[name]()
    x = torch.randn(BATCH, SMALL, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours, theirs = layer.ours(x, Layout((SMALL,))), layer.run(x, None)
    cotangent = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad(y, x, cotangent)[0] for y in (ours, theirs)]
    return {name: max(difference(ours, theirs), difference(*gradients))}


def _mixer(name: str) -> Any:
    torch.manual_seed(0)
    options = {"heads": HEADS} if name == "attention" else {}
    return parts.get(name, "mixer")(DIM, causal=True, **options).eval()


def stepper(extend: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """One token more at every call."""
    token = torch.randn(1, 1, DIM, generator=torch.Generator().manual_seed(2))

    def step() -> Tensor:
        with torch.no_grad():
            return extend(token)

    return step


def build_steps(name: str, lengths: tuple[int, ...], work: str, room: int = 512) -> Calls:
    """One token after each of the lengths, ours, and theirs: a state of fixed size is made by few tokens, a cache of
    keys and values filled with as many."""
    paired = name in peers.LAYERS and peers.missing("transformers") is None
    layer = peers.LAYERS[name]() if paired else None
    mixer = layer.ours if paired else _mixer(name)
    calls: Calls = {}
    for tokens in lengths:
        x = torch.randn(1, tokens, DIM, generator=torch.Generator().manual_seed(tokens))
        with torch.no_grad():
            _, state = mixer.extend(x, mixer.empty(1, capacity=tokens + room))
        held = [state]

        def ours(token: Tensor, held: list = held) -> Tensor:
            y, held[0] = mixer.extend(token, held[0])
            return y

        calls[f"{name} @{tokens}"] = stepper(ours)
        if paired and (name == "attention" or tokens == lengths[0]):
            cache = layer.cache()
            with torch.no_grad():
                if name == "attention":
                    layer.run(x[:, :1], cache)
                    cache.update(*(torch.randn(1, HEADS, tokens - 1, WIDTH) for _ in range(2)), 0)
                else:
                    layer.run(x[:, :64], cache)
            calls[f"hf: {name} @{tokens}"] = stepper(lambda token, cache=cache: layer.run(token, cache))
    return calls


def gate_steps(name: str) -> dict[str, float]:
    """A token after others, beside the same token of a forward over all, and beside theirs."""
    paired = name in peers.LAYERS and peers.missing("transformers") is None
    layer = peers.LAYERS[name]() if paired else None
    mixer = layer.ours if paired else _mixer(name)
    x = torch.randn(1, 70, DIM, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = mixer(x, Layout((70,)))[:, 69:]
        _, state = mixer.extend(x[:, :69], mixer.empty(1, capacity=70))
        last, _ = mixer.extend(x[:, 69:], state)
        found = {name: difference(last, whole)}
        if paired:
            cache = layer.cache()
            layer.run(x[:, :69], cache)
            found[f"hf: {name}"] = difference(layer.run(x[:, 69:], cache), last)
    return found


def _layer_row(name: str, **most: int) -> Row:
    peer = f"hf: {name}"
    return Row(
        f"mixer:{name}", (FORWARD, BOTH, PREFILL), partial(_build_layer, name), partial(_gate_layer, name),
        most={(peer, work): most[work.replace("+", "_")] for work in (FORWARD, BOTH, PREFILL)},
        needs={name: "transformers", peer: "transformers"}, whole=True, slow=((peer, BOTH),) if name == "mamba" else (),
    )  # fmt: skip


def _both(forward: int, both: int) -> dict[str, int]:
    return {"forward": forward, "forward_backward": both, "prefill": forward}


def rows() -> list[Row]:
    """Layers, then steps."""
    return [
        _layer_row("gated_deltanet", **_both(8192, 8192)),
        _layer_row("kda", **_both(2048, 2048)),
        _layer_row("mamba", **_both(8192, 512)),
        _layer_row("mamba2", **_both(8192, 8192)),
        _layer_row("rg_lru", **_both(8192, 2048)),
        *(Row(f"step:{name}", (STEP,), partial(build_steps, name), partial(gate_steps, name), batch=1, joint=LENGTHS,
              needs={f"hf: {name}": "transformers"} if name in peers.LAYERS else {}) for name in STEPPING),
    ]  # fmt: skip
