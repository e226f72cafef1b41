"""Attention layers of Hugging Face transformers that are mixers of ours: latent, differential, gated, with sinks.

Same weights, same outputs and gradients, as in test_transformers. Their layers get cosines and sines of the places made
here, and a mask of what comes later. Where their rotary pairs are neighbours (DeepSeek), ours are half a head apart, so
that our weights take their rows in another order.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from agreement import agree, difference, differences
from pairs import Pair
from torch import Tensor, nn
from torch.func import functional_call

from formwright.contract import Layout
from formwright.mixers.attention import Attention
from formwright.mixers.differential_attention import DifferentialAttention
from formwright.mixers.mla import MultiHeadLatentAttention
from formwright.positions.rope import Rope

transformers = pytest.importorskip("transformers", reason="parity needs transformers; run make parity")

# A token alone attends to itself, whatever queries and keys are: two are the fewest that tell.
BATCH, LENGTHS, LAYER = 2, [2, 61, 150], 2
LATENT = {"heads": 4, "head_dim": 8, "value_dim": 12, "kv_rank": 20, "rope_dim": 6}


def angles(n: int, channels: int) -> Tensor:
    return torch.arange(n)[:, None] * 10000 ** (-torch.arange(0, channels, 2) / channels)


def hidden(n: int) -> Tensor:
    return torch.full((n, n), -torch.inf).triu(1)[None, None]


def run(theirs: nn.Module, x: Tensor, channels: int, repeats: int = 2) -> Tensor:
    """A layer that takes (cosines, sines) of as many channels, most in two halves that repeat."""
    a = angles(x.shape[1], channels).repeat(1, repeats)[None]
    return theirs(x, position_embeddings=(a.cos(), a.sin()), attention_mask=hidden(x.shape[1]))[0]


def run_v2(theirs: nn.Module, x: Tensor) -> Tensor:
    a = angles(x.shape[1], 6)[None]
    turns = torch.polar(torch.ones_like(a), a)
    return theirs(x, position_embeddings=turns, attention_mask=hidden(x.shape[1]))[0]


def run_unplaced(theirs: nn.Module, x: Tensor) -> Tensor:
    return theirs(x, attention_mask=hidden(x.shape[1]))[0]


def latent(name: str, q_rank: int | None, **options) -> nn.Module:
    module = {"DeepseekV2": "deepseek_v2", "DeepseekV3": "deepseek_v3", "KimiLinear": "kimi_linear"}[name]
    found = __import__(f"transformers.models.{module}.modeling_{module}", fromlist=["*"])
    config = getattr(found, f"{name}Config")(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=4, qk_nope_head_dim=8, qk_rope_head_dim=6,
        v_head_dim=12, kv_lora_rank=20, q_lora_rank=q_rank, attn_implementation="eager", **options,
    )  # fmt: skip
    return getattr(found, f"{name}Attention")(config, 0)


def latent_weights(m: nn.Module, neighbours: bool) -> dict[str, Tensor]:
    order = torch.cat([torch.arange(0, 6, 2), torch.arange(1, 6, 2)]) if neighbours else torch.arange(6)
    own, shared = torch.arange(8), 8 + order
    head = torch.cat([own, shared])
    heads = (14 * torch.arange(4)[:, None] + head).flatten()
    if m.q_lora_rank is None:
        query = {"query.weight": m.q_proj.weight[heads]}
    else:
        query = {"query.0.weight": m.q_a_proj.weight, "query.1.weight": m.q_a_layernorm.weight}
        query |= {"query.2.weight": m.q_b_proj.weight[heads]}
    return query | {
        "down.weight": m.kv_a_proj_with_mqa.weight[torch.cat([torch.arange(20), 20 + order])],
        "norm.weight": m.kv_a_layernorm.weight,
        "up.weight": m.kv_b_proj.weight,
        "out.weight": m.o_proj.weight,
    }


def differential() -> nn.Module:
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaConfig

    config = DiffLlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, attn_implementation="eager"
    )
    return DiffLlamaAttention(config, LAYER)


def differential_weights(m: nn.Module) -> dict[str, Tensor]:
    """Their values of one group are two heads, half of all heads apart."""
    return {
        "query.weight": m.q_proj.weight,
        "key.weight": m.k_proj.weight,
        "value.weight": m.v_proj.weight.unflatten(0, (2, -1, 8)).transpose(0, 1).flatten(0, 2),
        "out.weight": m.o_proj.weight,
        "lambda_query": torch.stack([m.lambda_q1, m.lambda_q2]),
        "lambda_key": torch.stack([m.lambda_k1, m.lambda_k2]),
    }


def qwen3_next() -> nn.Module:
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention, Qwen3NextConfig

    config = Qwen3NextConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_hidden_layers=1,
        layer_types=["full_attention"], attn_implementation="eager",
    )  # fmt: skip
    return Qwen3NextAttention(config, 0)


def qwen3_next_weights(m: nn.Module) -> dict[str, Tensor]:
    """Their projection holds a head's query and its gate together; their norms' scales are beside 1."""
    query, gate = m.q_proj.weight.unflatten(0, (4, 2, 16)).unbind(1)
    return {
        "query.weight": query.flatten(0, 1),
        "gate.weight": gate.flatten(0, 1),
        "key.weight": m.k_proj.weight,
        "value.weight": m.v_proj.weight,
        "out.weight": m.o_proj.weight,
        "query_norm.weight": 1 + m.q_norm.weight,
        "key_norm.weight": 1 + m.k_norm.weight,
    }


def gpt_oss() -> nn.Module:
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssConfig

    config = GptOssConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_hidden_layers=1,
        layer_types=["full_attention"], attn_implementation="eager",
    )  # fmt: skip
    return GptOssAttention(config, 0)


def gpt_oss_weights(m: nn.Module) -> dict[str, Tensor]:
    maps = {"query": m.q_proj, "key": m.k_proj, "value": m.v_proj, "out": m.o_proj}
    found = {f"{name}.{p}": getattr(linear, p) for name, linear in maps.items() for p in ("weight", "bias")}
    return found | {"sink": m.sinks}


mla = partial(MultiHeadLatentAttention, 32, **LATENT)
grouped = partial(Attention, 32, heads=4, kv_heads=2, head_dim=16, position=partial(Rope))
PAIRS = {
    "deepseek_v2": Pair(partial(latent, "DeepseekV2", None), mla, partial(latent_weights, neighbours=True), run_v2),
    "deepseek_v3": Pair(
        partial(latent, "DeepseekV3", 10),
        partial(mla, q_rank=10),
        partial(latent_weights, neighbours=True),
        partial(run, channels=6),
    ),
    "deepseek_v3_halves": Pair(
        partial(latent, "DeepseekV3", None, rope_interleave=False),
        mla,
        partial(latent_weights, neighbours=False),
        partial(run, channels=6),
    ),
    "kimi_linear": Pair(
        partial(latent, "KimiLinear", None),
        partial(mla, position=None),
        partial(latent_weights, neighbours=False),
        run_unplaced,
    ),
    "diffllama": Pair(
        differential,
        partial(
            DifferentialAttention,
            32,
            heads=2,
            kv_heads=1,
            position=Rope,
            lambda_init=0.8 - 0.6 * math.exp(-0.3 * LAYER),
            scaled_norm=False,
        ),
        differential_weights,
        partial(run, channels=8),
    ),
    "qwen3_next": Pair(
        qwen3_next, partial(grouped, qk_norm=True, gate="channel"), qwen3_next_weights, partial(run, channels=16)
    ),
    "gpt_oss": Pair(
        gpt_oss,
        partial(grouped, normaliser="learned_sink", bias=True),
        gpt_oss_weights,
        partial(run, channels=16, repeats=1),
    ),
}


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "norm" in name:
                p.normal_(1, 0.3)
            else:
                p.normal_(0, 0.5 if p.ndim == 1 else p.shape[-1] ** -0.5)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_same_weights_same_function(pair, n):
    torch.manual_seed(n)
    theirs, ours = pair.theirs(), pair.ours(causal=True)
    randomise(theirs)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    x = torch.randn(BATCH, n, 32, requires_grad=True)
    found = differences(
        {"output": pair.run(theirs, x)},
        {"output": functional_call(ours, pair.weights(theirs), (x, Layout((n,))), strict=True)},
        {"x": x, **dict(theirs.named_parameters())},
    )
    agree(found)


@pytest.mark.parametrize("name", ["deepseek_v3", "kimi_linear", "diffllama", "gpt_oss"])
def test_decoding_token_by_token_is_their_forward(name):
    torch.manual_seed(0)
    pair = PAIRS[name]
    theirs, ours = pair.theirs(), pair.ours(causal=True)
    randomise(theirs)
    ours.load_state_dict(pair.weights(theirs))
    x = torch.randn(BATCH, 40, 32)
    state, out = ours.empty(BATCH, 40), []
    with torch.no_grad():
        for piece in x.split([17, *[1] * 23], 1):
            o, state = ours.extend(piece, state)
            out.append(o)
        agree({"output": difference(torch.cat(out, 1), pair.run(theirs, x))})
