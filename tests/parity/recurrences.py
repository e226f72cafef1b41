"""Our recurrences and the naive forms of flash-linear-attention that are the same function.

theirs(naive, inputs) and ours(inputs) of a case take tensors by name in our layout, tokens before heads, and return
outputs by name. Their naive forms compute in float32 and scale by 1 / sqrt(K).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from formwright.mixers.based import Based
from formwright.mixers.lightning import LightningAttention
from formwright.mixers.linear_attention import normalised
from formwright.ops.dplr import dplr_recurrence
from formwright.ops.recurrence import linear_recurrence
from formwright.ops.scan import linear_scan
from formwright.ops.selective_scan import selective_scan

BATCH, HEADS, KEY, VALUE = 2, 3, 16, 24
SCALE = KEY**-0.5
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """op: the folder in fla/ops. inputs: what test_fla.py draws. chunk: theirs takes whole chunks of so many tokens."""

    op: str
    inputs: str
    theirs: Callable[[ModuleType, Inputs], Inputs]
    ours: Callable[[Inputs], Inputs]
    chunk: int = 1


def named(o: Tensor, state: Tensor | None = None) -> Inputs:
    return {"output": o} if state is None else {"output": o, "state": state}


def swapped(*tensors: Tensor) -> list[Tensor]:
    """Heads before tokens, or back."""
    return [t.transpose(1, 2) for t in tensors]


def heads_first(function: str, names: str, **options) -> Callable[[ModuleType, Inputs], Inputs]:
    """A function of theirs that takes these inputs in order, heads before tokens, and the state where there is one."""

    def run(m: ModuleType, i: Inputs) -> Inputs:
        more = {"initial_state": i["state"]} if "state" in i else {}
        found = getattr(m, function)(*swapped(*(i[n] for n in names.split())), **more, **options)
        o, state = found if isinstance(found, tuple) else (found, None)
        return named(o.transpose(1, 2), state if "state" in i else None)

    return run


def tokens_first(function: str, **names: str) -> Callable[[ModuleType, Inputs], Inputs]:
    """A function of theirs in our layout: names of its arguments = names of the inputs."""

    def run(m: ModuleType, i: Inputs) -> Inputs:
        more = {"initial_state": i["state"], "output_final_state": True} if "state" in i else {}
        o, state = getattr(m, function)(**{theirs: i[ours] for theirs, ours in names.items()}, **more)
        return named(o, state if "state" in i else None)

    return run


def ours(i: Inputs, **options) -> Inputs:
    """linear_recurrence of the inputs that are there."""
    decay = i.get("scalar", i.get("diagonal"))
    key = i["k"] if "k" in i else i["unit"]
    o, state = linear_recurrence(
        i["q"], key, i["v"], log_decay=decay, beta=i.get("beta"), scale=SCALE, state=i.get("state"), **options
    )
    return named(o, state if "state" in i else None)


def faded(rates: Tensor) -> Callable[[Inputs], Inputs]:
    """Ours with one fixed log decay (H,) a head."""
    return lambda i: ours(i | {"scalar": rates.expand(i["q"].shape[:3])})


def lightning_rates() -> Tensor:
    """TransNormerLLM's, down to exp(-8 (H-1)/H)."""
    mixer = LightningAttention(HEADS * KEY, causal=True, heads=HEADS, slopes="linear")
    return mixer.log_decay(torch.float32, torch.device("cpu"))


def theirs_lightning(m: ModuleType, i: Inputs) -> Inputs:
    g = lightning_rates().expand(i["q"].shape[:3])
    return named(*m.naive_recurrent_simple_gla(i["q"], i["k"], i["v"], g, initial_state=i["state"]))


def theirs_normalised(m: ModuleType, i: Inputs) -> Inputs:
    q, k, first = i["q"].exp(), i["k"].exp(), (i["state"], i["total"])
    o, (state, total) = m.naive_recurrent_linear_attn(
        q, k, i["v"], initial_state=first, output_final_state=True, normalize=True
    )
    return {"output": o, "state": state, "total": total}


def ours_normalised(i: Inputs) -> Inputs:
    first = torch.cat([i["state"], i["total"].squeeze(1)[..., None]], -1)
    o, state = normalised(i["q"].exp() * SCALE, i["k"].exp(), i["v"], 1e-10, state=first)
    return {"output": o, "state": state[..., :-1], "total": state[..., -1][:, None]}


def ours_based(i: Inputs) -> Inputs:
    mixer = Based(HEADS * VALUE, causal=True, heads=HEADS, feature_dim=KEY)
    return named(normalised(mixer.series(i["q"]), mixer.series(i["k"]), i["v"], 1e-6)[0])


def generalised(i: Inputs, a: Tensor, b: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None) -> Inputs:
    log_decay = torch.zeros_like(k) if log_decay is None else log_decay.expand(k.shape)
    return named(*dplr_recurrence(i["q"] * SCALE, k, v, a, b, log_decay, state=i["state"]))


def ours_rwkv7(i: Inputs) -> Inputs:
    """RWKV-7: what is removed is read under the key and put back with the rate in context, `erase`."""
    decay = -math.exp(-0.5) * i["diagonal"].exp()
    return generalised(i, -i["unit"], i["unit"] * i["erase"], i["k"], i["v"], decay)


def theirs_rwkv7(m: ModuleType, i: Inputs) -> Inputs:
    decay = -math.exp(-0.5) * i["diagonal"].exp()
    q, k, v, a, b, decay = swapped(i["q"], i["k"], i["v"], -i["unit"], i["unit"] * i["erase"], decay)
    o, state = m.dplr_recurrence(q, k, v, a, b, decay, initial_state=i["state"])
    return named(o.transpose(1, 2), state)


def ours_dplr(i: Inputs) -> Inputs:
    return generalised(i, i["reads"], -i["unit"] * i["erase"], i["k"], i["v"], i.get("diagonal"))


def theirs_dplr(function: str) -> Callable[[ModuleType, Inputs], Inputs]:
    def run(m: ModuleType, i: Inputs) -> Inputs:
        decay = [i["diagonal"]] if "diagonal" in i else []
        terms = swapped(i["q"], i["k"], i["v"], i["reads"], -i["unit"] * i["erase"], *decay)
        o, state = getattr(m, function)(*terms, initial_state=i["state"])
        return named(o.transpose(1, 2), state)

    return run


def ours_comba(i: Inputs) -> Inputs:
    """Comba: a delta rule that reads under another key than it writes."""
    decay, beta = i["scalar"][..., None], i["beta"][..., None]
    return generalised(i, decay.exp() * i["reads"], -beta * i["unit"], beta * i["unit"], i["v"], decay)


def ours_gdn2(i: Inputs) -> Inputs:
    """Gated DeltaNet-2: gates of their own for what each channel erases and writes."""
    a = i["diagonal"].exp() * i["erase"] * i["unit"]
    return generalised(i, a, -i["unit"], i["unit"], i["v"] * i["write"], i["diagonal"])


def ours_product(i: Inputs) -> Inputs:
    """DeltaProduct: each token takes two steps of the delta rule, fades before the first and is read after the second.
    Tokens are drawn in pairs; the first's query and the second's decay have no part."""
    first = torch.arange(i["q"].shape[1]) % 2 == 0
    found = ours(i | {"scalar": i["scalar"] * first[:, None]})
    return found | {"output": found["output"][:, 1::2]}


def theirs_product(m: ModuleType, i: Inputs) -> Inputs:
    q, g = i["q"][:, 1::2], i["scalar"][:, ::2]
    return named(
        *m.naive_recurrent_gated_delta_product(
            q, i["unit"], i["v"], g, i["beta"], SCALE, initial_state=i["state"], num_householder=2
        )
    )


def theirs_hgrn(m: ModuleType, i: Inputs) -> Inputs:
    return named(*m.naive_recurrent_hgrn(i["x"], i["gate"], initial_state=i["last"], output_final_state=True))


def theirs_selective(m: ModuleType, i: Inputs) -> Inputs:
    """Mamba's scan as gated linear attention: channels are heads with values of width 1, states are their keys."""
    shape = (BATCH, i["u"].shape[1], KEY, VALUE)
    q, k = (i[n][:, :, None].expand(shape) for n in "cb")
    decay = i["delta"][..., None] * i["a"]
    v = (i["delta"] * i["u"])[..., None] * VALUE**0.5
    o, state = m.naive_recurrent_gla(q, k, v, decay, i["channels"][..., None] * VALUE**0.5, True)
    return named(o.squeeze(-1), state.squeeze(-1) * VALUE**-0.5)


def ours_selective(i: Inputs) -> Inputs:
    return named(*selective_scan(i["u"], i["delta"], i["a"], i["b"], i["c"], state=i["channels"]))


QKV = {"q": "q", "k": "k", "v": "v"}
UNIT = {"q": "q", "k": "unit", "v": "v", "beta": "beta"}
RETENTION = torch.log1p(-(2.0 ** (-5 - torch.arange(HEADS))))
DPLR = "q k v reads unit erase state"
CASES = {
    "retention": Case("retention", "q k v", heads_first("naive_retention", "q k v"), faded(RETENTION)),
    "lightning": Case("simple_gla", "q k v state", theirs_lightning, faded(lightning_rates())),
    "simple_gla": Case(
        "simple_gla", "q k v scalar state", tokens_first("naive_recurrent_simple_gla", **QKV, g="scalar"), ours
    ),
    "simple_gla, chunks": Case(
        "simple_gla", "q k v scalar state", tokens_first("naive_chunk_simple_gla", **QKV, g="scalar"), ours
    ),
    "simple_gla, parallel": Case(
        "simple_gla", "q k v scalar", tokens_first("naive_parallel_simple_gla", **QKV, g="scalar"), ours
    ),
    "gla": Case("gla", "q k v diagonal state", tokens_first("naive_recurrent_gla", **QKV, gk="diagonal"), ours),
    "linear_attn": Case(
        "linear_attn", "q k v state", tokens_first("naive_recurrent_linear_attn", **QKV), ours
    ),
    "linear_attn, chunks": Case(
        "linear_attn", "q k v", lambda m, i: named(m.naive_chunk_linear_attn(i["q"], i["k"], i["v"])), ours, 64
    ),
    "linear_attn, normalised": Case("linear_attn", "q k v state total", theirs_normalised, ours_normalised),
    "delta_rule": Case(
        "delta_rule", "q unit v beta state", heads_first("delta_rule_recurrence", "q unit v beta"), ours
    ),
    "delta_rule, chunks": Case(
        "delta_rule", "q unit v beta", heads_first("delta_rule_chunkwise", "q unit v beta"), ours, 32
    ),
    "delta_rule, parallel": Case(
        "delta_rule", "q unit v beta", heads_first("delta_rule_parallel", "q unit v beta"), ours, 128
    ),
    "gated_delta_rule": Case(
        "gated_delta_rule", "q unit v beta scalar state",
        tokens_first("naive_recurrent_gated_delta_rule", **UNIT, g="scalar"), ours,
    ),
    "gated_delta_rule, chunks": Case(
        "gated_delta_rule", "q unit v beta scalar state",
        tokens_first("naive_chunk_gated_delta_rule", **UNIT, g="scalar"), ours,
    ),
    "kda": Case(
        "kda", "q unit v beta diagonal state", tokens_first("naive_recurrent_kda", **UNIT, g="diagonal"), ours
    ),
    "kda, chunks": Case(
        "kda", "q unit v beta diagonal state", tokens_first("naive_chunk_kda", **UNIT, g="diagonal"), ours, 64
    ),
    "gated_delta_product": Case("gated_delta_product", "q unit v beta scalar state", theirs_product, ours_product, 2),
    "rwkv7": Case("generalized_delta_rule/dplr", "q k v unit erase diagonal state", theirs_rwkv7, ours_rwkv7),
    "dplr": Case("generalized_delta_rule/dplr", f"{DPLR} diagonal", theirs_dplr("dplr_recurrence"), ours_dplr),
    "dplr, chunks": Case(
        "generalized_delta_rule/dplr", f"{DPLR} diagonal", theirs_dplr("dplr_chunkwise"), ours_dplr, 32
    ),
    "iplr": Case("generalized_delta_rule/iplr", DPLR, theirs_dplr("iplr_recurrence"), ours_dplr),
    "iplr, chunks": Case("generalized_delta_rule/iplr", DPLR, theirs_dplr("iplr_chunkwise"), ours_dplr, 32),
    "comba": Case(
        "comba", "q unit reads v beta scalar state",
        tokens_first("naive_recurrent_comba", **UNIT, p="reads", g="scalar"), ours_comba,
    ),
    "gdn2": Case(
        "gdn2", "q unit v erase write diagonal state",
        tokens_first("naive_recurrent_gdn2", q="q", k="unit", v="v", g="diagonal", b="erase", w="write"), ours_gdn2,
    ),
    "hgrn": Case(
        "hgrn", "x gate last", theirs_hgrn, lambda i: named(*linear_scan(i["gate"].exp(), i["x"], state=i["last"]))
    ),
    # One token alone is its own average: the gradients of its query and key are of their eps, and mostly rounding.
    "based": Case("based", "q k v", heads_first("naive_parallel_based", "q k v"), ours_based, 2),
    "based, chunks": Case("based", "q k v", heads_first("naive_chunk_based", "q k v"), ours_based, 256),
    "selective scan": Case("gla", "u delta a b c channels", theirs_selective, ours_selective),
}  # fmt: skip
