"""Recurrent layers of further hybrid models in Hugging Face transformers that are mixers of ours, some under an option.

Zamba2's and Nemotron-H's least time step is 0.001; random weights of a test would seldom reach it, so that it is larger
here.
"""

from __future__ import annotations

from functools import partial

import torch
from pairs import Pair, kimi_delta_weights, kimi_linear_weights, mamba2_weights
from torch import Tensor, nn

from formwright.mixers.gated_deltanet import GatedDeltaNet
from formwright.mixers.kda import KimiDeltaAttention
from formwright.mixers.lightning import LightningAttention
from formwright.mixers.mamba2 import Mamba2

LEAST_STEP = 0.4
LINEAR = {"num_hidden_layers": 1, "layer_types": ["linear_attention"]}


def bamba() -> nn.Module:
    from transformers.models.bamba.modeling_bamba import BambaConfig, BambaMixer

    config = BambaConfig(
        hidden_size=32, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=16, mamba_chunk_size=64,
        rms_norm_eps=1e-5, num_hidden_layers=1, attn_layer_indices=[],
    )  # fmt: skip
    return BambaMixer(config, 0)


def granite() -> nn.Module:
    from transformers.models.granitemoehybrid.modeling_granitemoehybrid import (
        GraniteMoeHybridConfig,
        GraniteMoeHybridMambaLayer,
    )

    config = GraniteMoeHybridConfig(
        hidden_size=32, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=16, mamba_chunk_size=64,
        rms_norm_eps=1e-5, num_hidden_layers=1, layer_types=["mamba"],
    )  # fmt: skip
    return GraniteMoeHybridMambaLayer(config, 0)


def nemotron_h() -> nn.Module:
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHConfig, NemotronHMamba2Mixer

    config = NemotronHConfig(
        hidden_size=32, mamba_num_heads=6, mamba_head_dim=8, n_groups=3, ssm_state_size=16, chunk_size=64,
        time_step_min=LEAST_STEP, layer_norm_epsilon=1e-5, use_bias=True, layers_block_type=["mamba"],
    )  # fmt: skip
    return NemotronHMamba2Mixer(config, 0)


def zamba2() -> nn.Module:
    from transformers.models.zamba2.modeling_zamba2 import Zamba2Config, Zamba2MambaMixer

    config = Zamba2Config(
        hidden_size=32, n_mamba_heads=8, mamba_headdim=8, mamba_ngroups=2, mamba_d_state=16, mamba_expand=2,
        chunk_size=64, time_step_min=LEAST_STEP, num_hidden_layers=1, layers_block_type=["mamba"],
    )  # fmt: skip
    return Zamba2MambaMixer(config, 0)


def qwen3_5(key_heads: int, value_heads: int) -> nn.Module:
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet, Qwen3_5TextConfig

    config = Qwen3_5TextConfig(
        hidden_size=32, linear_num_key_heads=key_heads, linear_num_value_heads=value_heads, linear_key_head_dim=8,
        linear_value_head_dim=12, rms_norm_eps=1e-5, **LINEAR,
    )  # fmt: skip
    return Qwen3_5GatedDeltaNet(config, 0)


def qwen4(key_heads: int, value_heads: int) -> nn.Module:
    from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpTextConfig, Qwen4ExpTextGatedDeltaNet

    config = Qwen4ExpTextConfig(
        hidden_size=32, linear_num_key_heads=key_heads, linear_num_value_heads=value_heads, linear_key_head_dim=8,
        linear_value_head_dim=12, rms_norm_eps=1e-5, output_gate_type="silu", **LINEAR,
    )  # fmt: skip
    return Qwen4ExpTextGatedDeltaNet(config, 0)


def qwen3_5_weights(m: nn.Module) -> dict[str, Tensor]:
    return {
        "inputs.weight": m.in_proj_qkv.weight,
        "conv_weight": m.conv1d.weight[:, 0],
        "alpha.weight": m.in_proj_a.weight,
        "beta.weight": m.in_proj_b.weight,
        "a_log": m.A_log,
        "dt_bias": m.dt_bias,
        "gate.weight": m.in_proj_z.weight,
        "norm.weight": m.norm.weight,
        "out.weight": m.out_proj.weight,
    }


def glm5_next(lower_bound: float | None) -> nn.Module:
    from transformers.models.glm5_next.modeling_glm5_next import Glm5NextTextConfig, Glm5NextTextLinearAttention

    config = Glm5NextTextConfig(
        hidden_size=32,
        linear_num_heads=3,
        linear_head_dim=8,
        linear_lower_bound=lower_bound,
        rms_norm_eps=1e-5,
        **LINEAR,
    )
    return Glm5NextTextLinearAttention(config, 0)


def bailing() -> nn.Module:
    from transformers.models.bailing_hybrid.modeling_bailing_hybrid import (
        BailingHybridConfig,
        BailingHybridDeltaAttention,
    )

    config = BailingHybridConfig(
        hidden_size=32, linear_num_heads=3, linear_head_dim=8, kda_safe_gate=True, kda_lower_bound=-5.0,
        rms_norm_eps=1e-5, **LINEAR,
    )  # fmt: skip
    return BailingHybridDeltaAttention(config, 0)


def bailing_weights(m: nn.Module) -> dict[str, Tensor]:
    return kimi_delta_weights(m) | {
        "forget.weight": m.forget_gate.f_proj.weight,
        "gate.weight": m.g_proj.weight,
        "gate.bias": torch.zeros(m.qkv_dim),
    }


def minimax() -> nn.Module:
    from transformers.models.minimax.modeling_minimax import MiniMaxConfig, MiniMaxLightningAttention

    config = MiniMaxConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=3, block_size=64, layer_types=["linear_attention"] * 3
    )
    return MiniMaxLightningAttention(config, 1)


def run_minimax(m: nn.Module, x: Tensor) -> Tensor:
    return m(x, position_embeddings=None, attention_mask=None)[0]


def minimax_weights(m: nn.Module) -> dict[str, Tensor]:
    """The norm's scale is part of our output map."""
    names = ("query", "key", "value")
    parts = m.qkv_proj.weight.unflatten(0, (m.num_attention_heads, 3, -1)).unbind(1)
    return {f"{name}.weight": part.flatten(0, 1) for name, part in zip(names, parts, strict=True)} | {
        "gate.weight": m.output_gate.weight,
        "out.weight": m.out_proj.weight * m.norm.weight,
    }


def grouped(heads: int, groups: int, **options) -> partial:
    return partial(Mamba2, 32, heads=heads, head_dim=8, state_dim=16, groups=groups, **options)


MINIMAX = {"lrpe": False, "silu_values": True, "gate": "sigmoid", "slope": 1 - 1 / (2 + 1e-5) + 1e-5}
KIMI = partial(KimiDeltaAttention, 32, heads=3, head_dim=8)
GATED = partial(GatedDeltaNet, 32, heads=4, head_dim=8, expansion=1.5)
HYBRIDS = {
    "bamba": Pair(bamba, grouped(8, 2), mamba2_weights),
    "granitemoehybrid": Pair(granite, grouped(8, 1), mamba2_weights),
    "nemotron_h": Pair(nemotron_h, grouped(6, 3, least_step=LEAST_STEP, bias=True), mamba2_weights),
    "zamba2": Pair(zamba2, grouped(8, 2, least_step=LEAST_STEP), mamba2_weights),
    "minimax": Pair(minimax, partial(LightningAttention, 32, heads=4, **MINIMAX), minimax_weights, run_minimax),
    "qwen3_5": Pair(partial(qwen3_5, 4, 4), GATED, qwen3_5_weights),
    "qwen3_5, shared keys": Pair(partial(qwen3_5, 2, 4), partial(GATED, key_heads=2), qwen3_5_weights),
    "qwen4_exp, shared keys": Pair(partial(qwen4, 2, 4), partial(GATED, key_heads=2), qwen3_5_weights),
    "glm5_next": Pair(partial(glm5_next, None), KIMI, kimi_linear_weights),
    "glm5_next, bounded below": Pair(partial(glm5_next, -5.0), partial(KIMI, lower_bound=-5.0), kimi_linear_weights),
    "bailing_hybrid": Pair(bailing, partial(KIMI, gate_rank="full", lower_bound=-5.0), bailing_weights),
}
