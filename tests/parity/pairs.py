"""Modules of other libraries, our mixers beside them, and our weights as functions of theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from formwright.contract import TokenMixer
from formwright.mixers.gated_deltanet import GatedDeltaNet
from formwright.mixers.kda import KimiDeltaAttention
from formwright.mixers.mamba import Mamba
from formwright.mixers.mamba2 import Mamba2
from formwright.mixers.mlstm import MLSTM
from formwright.mixers.rg_lru import RGLRU
from formwright.mixers.xlstm_7b import XLSTM7B


@dataclass(frozen=True)
class Pair:
    """theirs() and ours() build the modules; run(theirs, x) calls theirs; weights(theirs) are ours by name; lengths are
    the numbers of tokens to compare at."""

    theirs: Callable[[], nn.Module]
    ours: Callable[[], TokenMixer]
    weights: Callable[[nn.Module], dict[str, Tensor]]
    run: Callable[[nn.Module, Tensor], Tensor] = lambda theirs, x: theirs(x)
    dtype: torch.dtype = torch.float32
    lengths: tuple[int, ...] = (1, 61, 203)


def mamba() -> nn.Module:
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    return MambaMixer(MambaConfig(hidden_size=40, state_size=8, num_hidden_layers=1, time_step_rank=5), 0)


def mamba_weights(m: nn.Module) -> dict[str, Tensor]:
    return {
        "inputs.weight": m.in_proj.weight,
        "conv_weight": m.conv1d.weight[:, 0],
        "conv_bias": m.conv1d.bias,
        "select.weight": m.x_proj.weight,
        "dt.weight": m.dt_proj.weight,
        "dt.bias": m.dt_proj.bias,
        "a_log": m.A_log,
        "skip": m.D,
        "out.weight": m.out_proj.weight,
    }


def mamba2(groups: int) -> nn.Module:
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    config = Mamba2Config(
        hidden_size=32, num_heads=4, head_dim=16, state_size=24, n_groups=groups, num_hidden_layers=1, chunk_size=64
    )
    return Mamba2Mixer(config, 0)


def mamba2_weights(m: nn.Module) -> dict[str, Tensor]:
    norm = {} if isinstance(m.norm, nn.Identity) else {"norm_weight": m.norm.weight}
    bias = {} if m.in_proj.bias is None else {"inputs.bias": m.in_proj.bias, "out.bias": m.out_proj.bias}
    return (
        norm
        | bias
        | {
            "inputs.weight": m.in_proj.weight,
            "conv_weight": m.conv1d.weight[:, 0],
            "conv_bias": m.conv1d.bias,
            "a_log": m.A_log,
            "dt_bias": m.dt_bias,
            "skip": m.D,
            "out.weight": m.out_proj.weight,
        }
    )


def falcon_h1(normed: bool, before: bool = False, bias: bool = False) -> nn.Module:
    from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Config, FalconH1Mixer, compute_mup_vector

    config = FalconH1Config(
        hidden_size=32,
        mamba_d_ssm=48,
        mamba_n_heads=6,
        mamba_d_head=8,
        mamba_n_groups=2,
        mamba_d_state=16,
        mamba_chunk_size=64,
        mamba_rms_norm=normed,
        mamba_norm_before_gate=before,
        mamba_proj_bias=bias,
        projectors_bias=bias,
        num_hidden_layers=1,
        ssm_multipliers=[0.5, 0.7, 1.1, 1.3, 0.9],
        ssm_in_multiplier=1.25,
    )
    mixer = FalconH1Mixer(config, 0)
    mixer.register_buffer("mup_vector", compute_mup_vector(config))
    return mixer


def falcon_h1_weights(m: nn.Module) -> dict[str, Tensor]:
    """Their multipliers of the input and of its projections are part of our projection."""
    each = m.mup_vector.flatten()
    bias = {} if m.in_proj.bias is None else {"inputs.bias": m.in_proj.bias * each}
    return mamba2_weights(m) | bias | {"inputs.weight": m.in_proj.weight * each[:, None] * m.ssm_in_multiplier}


def qwen3_next(key_heads: int, value_heads: int) -> nn.Module:
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextConfig, Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=32,
        linear_num_key_heads=key_heads,
        linear_num_value_heads=value_heads,
        linear_key_head_dim=8,
        linear_value_head_dim=12,
        rms_norm_eps=1e-5,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    return Qwen3NextGatedDeltaNet(config, 0)


def qwen3_next_weights(m: nn.Module) -> dict[str, Tensor]:
    """Their projection holds q, k, v and the gate of each key head together."""
    k, v, each = m.head_k_dim, m.head_v_dim, m.num_v_heads // m.num_k_heads
    joint = m.in_proj_qkvz.weight.unflatten(0, (m.num_k_heads, -1))
    query, key, value, gate = joint.split([k, k, each * v, each * v], 1)
    beta, alpha = m.in_proj_ba.weight.unflatten(0, (m.num_k_heads, -1)).split([each, each], 1)
    return {
        "inputs.weight": torch.cat([query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)]),
        "conv_weight": m.conv1d.weight[:, 0],
        "alpha.weight": alpha.flatten(0, 1),
        "beta.weight": beta.flatten(0, 1),
        "a_log": m.A_log,
        "dt_bias": m.dt_bias,
        "gate.weight": gate.flatten(0, 1),
        "norm.weight": m.norm.weight,
        "out.weight": m.out_proj.weight,
    }


def olmo_hybrid(negative: bool) -> nn.Module:
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridConfig, OlmoHybridGatedDeltaNet

    config = OlmoHybridConfig(
        hidden_size=32,
        num_attention_heads=4,
        linear_num_key_heads=3,
        linear_num_value_heads=3,
        linear_key_head_dim=8,
        linear_value_head_dim=16,
        linear_allow_neg_eigval=negative,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
    )
    return OlmoHybridGatedDeltaNet(config, 0)


def olmo_hybrid_weights(m: nn.Module) -> dict[str, Tensor]:
    return {
        "inputs.weight": torch.cat([m.q_proj.weight, m.k_proj.weight, m.v_proj.weight]),
        "conv_weight": m.conv1d.weight[:, 0],
        "alpha.weight": m.a_proj.weight,
        "beta.weight": m.b_proj.weight,
        "a_log": m.A_log,
        "dt_bias": m.dt_bias,
        "gate.weight": m.g_proj.weight,
        "norm.weight": m.o_norm.weight,
        "out.weight": m.o_proj.weight,
    }


def kimi_linear() -> nn.Module:
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearConfig, KimiLinearDeltaAttention

    config = KimiLinearConfig(
        hidden_size=32, linear_num_heads=3, linear_head_dim=8, num_hidden_layers=1, layer_types=["linear_attention"]
    )
    return KimiLinearDeltaAttention(config, 0)


def kimi_linear_weights(m: nn.Module) -> dict[str, Tensor]:
    """Their output gate has no bias."""
    return kimi_delta_weights(m) | {
        "forget.0.weight": m.forget_gate.f_a_proj.weight,
        "forget.1.weight": m.forget_gate.f_b_proj.weight,
        "gate.0.weight": m.g_a_proj.weight,
        "gate.1.weight": m.g_b_proj.weight,
        "gate.1.bias": torch.zeros(m.qkv_dim),
    }


def kimi_delta_weights(m: nn.Module) -> dict[str, Tensor]:
    """All but the maps to gates."""
    return {
        "inputs.weight": torch.cat([m.q_proj.weight, m.k_proj.weight, m.v_proj.weight]),
        "conv_weight": m.conv1d.weight[:, 0],
        "a_log": m.forget_gate.A_log.flatten(),
        "dt_bias": m.forget_gate.dt_bias,
        "beta.weight": m.b_proj.weight,
        "norm.weight": m.o_norm.weight,
        "out.weight": m.o_proj.weight,
    }


def recurrent_gemma() -> nn.Module:
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
        RecurrentGemmaConfig,
        RecurrentGemmaRecurrentBlock,
    )

    config = RecurrentGemmaConfig(hidden_size=32, num_attention_heads=4, lru_width=48, num_hidden_layers=1)
    return RecurrentGemmaRecurrentBlock(config, 0)


def run_recurrent_gemma(m: nn.Module, x: Tensor) -> Tensor:
    places = torch.arange(x.shape[1]).expand(len(x), -1)
    return m(x, places, attention_mask=None, use_cache=False)[0]


def recurrent_gemma_weights(m: nn.Module) -> dict[str, Tensor]:
    lru = m.rg_lru
    return {
        "gate.weight": m.linear_y.weight,
        "gate.bias": m.linear_y.bias,
        "inputs.weight": m.linear_x.weight,
        "inputs.bias": m.linear_x.bias,
        "conv_weight": m.conv_1d.weight[:, 0],
        "conv_bias": m.conv_1d.bias,
        "gates": torch.cat([lru.input_gate_weight, lru.recurrent_gate_weight], -1),
        "gates_bias": torch.cat([lru.input_gate_bias, lru.recurrent_gate_bias], -1)[:, None],
        "rate": lru.recurrent_param,
        "out.weight": m.linear_out.weight,
        "out.bias": m.linear_out.bias,
    }


def xlstm_block() -> nn.Module:
    layer = pytest.importorskip("xlstm.blocks.mlstm.layer", reason="the mLSTM's block needs the package xlstm")
    return layer.mLSTMLayer(layer.mLSTMLayerConfig(embedding_dim=32, num_heads=4, context_length=256))


def xlstm_block_weights(m: nn.Module) -> dict[str, Tensor]:
    """Their norm's scale is 1 + weight."""
    cell = m.mlstm_cell
    return {
        "up.weight": m.proj_up.weight,
        "conv_weight": m.conv1d.conv.weight[:, 0],
        "conv_bias": m.conv1d.conv.bias,
        "query_key": torch.cat([m.q_proj.weight, m.k_proj.weight], 1).mT,
        "value": m.v_proj.weight.mT,
        "gates.weight": torch.cat([cell.igate.weight, cell.fgate.weight]),
        "gates.bias": torch.cat([cell.igate.bias, cell.fgate.bias]),
        "skip": m.learnable_skip,
        "norm_weight": 1 + cell.outnorm.weight,
        "down.weight": m.proj_down.weight,
    }


def transformers_xlstm() -> ModuleType:
    """Their own code of xLSTM 7B: with the package xlstm at hand, transformers would take that one's kernels."""
    with patch("transformers.utils.is_xlstm_available", lambda: False):
        from transformers.models.xlstm import modeling_xlstm
    return modeling_xlstm


def xlstm_7b() -> nn.Module:
    m = transformers_xlstm()
    return m.xLSTMLayer(m.xLSTMConfig(hidden_size=64, num_heads=4, chunk_size=64, norm_reduction_force_float32=False))


def xlstm_7b_weights(m: nn.Module) -> dict[str, Tensor]:
    return {
        "inputs.weight": torch.cat([m.q.weight, m.k.weight, m.v.weight, m.ogate_preact.weight]),
        "gates.weight": torch.cat([m.igate_preact.weight, m.fgate_preact.weight]),
        "gates.bias": torch.cat([m.igate_preact.bias, m.fgate_preact.bias]),
        "norm_weight": m.multihead_norm.weight,
        "out.weight": m.out_proj.weight,
    }


FALCON = {"heads": 6, "head_dim": 8, "state_dim": 16, "groups": 2}
GATED = {"heads": 3, "head_dim": 8, "expansion": 2.0}
PAIRS = {
    "mamba": Pair(mamba, partial(Mamba, 40, state_dim=8, dt_rank=5), mamba_weights),
    "mamba2": Pair(partial(mamba2, 1), partial(Mamba2, 32, heads=4, state_dim=24), mamba2_weights),
    "mamba2 in groups": Pair(partial(mamba2, 2), partial(Mamba2, 32, heads=4, state_dim=24, groups=2), mamba2_weights),
    "falcon_h1": Pair(partial(falcon_h1, False), partial(Mamba2, 32, **FALCON, gated_norm=False), falcon_h1_weights),
    "falcon_h1, normed": Pair(partial(falcon_h1, True), partial(Mamba2, 32, **FALCON), falcon_h1_weights),
    "falcon_h1, normed before the gate, biases": Pair(
        partial(falcon_h1, True, True, True),
        partial(Mamba2, 32, **FALCON, norm_before_gate=True, bias=True),
        falcon_h1_weights,
    ),
    "qwen3_next": Pair(
        partial(qwen3_next, 4, 4), partial(GatedDeltaNet, 32, heads=4, head_dim=8, expansion=1.5), qwen3_next_weights
    ),
    "qwen3_next, shared keys": Pair(
        partial(qwen3_next, 2, 4),
        partial(GatedDeltaNet, 32, heads=4, key_heads=2, head_dim=8, expansion=1.5),
        qwen3_next_weights,
    ),
    "olmo_hybrid": Pair(partial(olmo_hybrid, False), partial(GatedDeltaNet, 32, **GATED), olmo_hybrid_weights),
    "olmo_hybrid, negative eigenvalues": Pair(
        partial(olmo_hybrid, True), partial(GatedDeltaNet, 32, **GATED, negative_eigenvalues=True), olmo_hybrid_weights
    ),
    "kimi_linear": Pair(kimi_linear, partial(KimiDeltaAttention, 32, heads=3, head_dim=8), kimi_linear_weights),
    "recurrent_gemma": Pair(
        recurrent_gemma, partial(RGLRU, 32, expansion=1.5, heads=4), recurrent_gemma_weights, run_recurrent_gemma
    ),
    # The input gate's bias lifts all writes alike, and they are divided by their sum: its gradient is what is left of
    # large terms, and in float32 mostly their rounding, in theirs as in ours.
    "xlstm": Pair(xlstm_block, partial(MLSTM, 32, heads=4), xlstm_block_weights, dtype=torch.float64),
    # What one token reads from a memory of few is a multiple of few values, and the norm divides the multiple out:
    # gradients of keys and gates are then mostly rounding too.
    "xlstm_7b": Pair(
        xlstm_7b,
        partial(XLSTM7B, 64),
        xlstm_7b_weights,
        lambda theirs, x: theirs(x)[0],
        dtype=torch.float64,
        lengths=(61, 203),
    ),
}
