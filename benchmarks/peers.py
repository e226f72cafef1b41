"""What other libraries have for the same work, imported where they are installed and never copied.

Hugging Face transformers: the delta rules' chunked forms, Mamba's scan, whole layers of width 512 with their weights
carried over by tests/parity/pairs.py; RecurrentGemma's RG-LRU. mambapy: Mamba's parallel scan.
flash-linear-attention: the naive forms that the package fla-core has beside its kernels, which are for GPUs. A layer is
one of the four calls that `Layer` names; its state lives in their own cache.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formwright.contract import TokenMixer
from formwright.mixers.attention import Attention
from formwright.mixers.gated_deltanet import GatedDeltaNet
from formwright.mixers.kda import KimiDeltaAttention
from formwright.mixers.mamba import Mamba
from formwright.mixers.mamba2 import Mamba2
from formwright.mixers.rg_lru import RGLRU

# Nothing is fetched: layers have random weights, and kernels from elsewhere would be another library.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("USE_HUB_KERNELS", "NO")
# It warns that it falls back to PyTorch, which is what is compared here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
PARITY = Path(__file__).parent.parent / "tests" / "parity"
DIM, HEADS, WIDTH = 512, 8, 64


# What other packages are called where they are installed from, if not as where they are imported.
DISTRIBUTIONS = {"fla": "fla-core"}


def missing(package: str) -> str | None:
    """Why a package's calls can't be timed, None where they can."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def versions(*packages: str) -> str:
    """The versions of those packages that are installed, in words."""
    have = [name for name in packages if importlib.util.find_spec(name)]
    named = [DISTRIBUTIONS.get(name, name) for name in have]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in named)


def _parity(module: str) -> Any:
    """A module of tests/parity: `pairs` has our weights as functions of theirs, `others` other libraries' imports."""
    if str(PARITY) not in sys.path:
        sys.path.append(str(PARITY))
    return importlib.import_module(module)


if importlib.util.find_spec("torchvision"):
    _parity("others").declare_vision_operators()


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """Hugging Face's chunked gated delta rule; it scales by 1 / sqrt(K)."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    return torch_chunk_gated_delta_rule(q, k, v, g=log_decay, beta=beta)[0]


def kimi_delta_rule(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """Hugging Face's chunked Kimi delta attention; it scales by 1 / sqrt(K)."""
    from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention

    return chunk_kimi_delta_attention(q, k, v, g=log_decay, beta=beta)[0]


def fla_naive(op: str, function: str, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *beta: Tensor) -> Tensor:
    """A naive form of flash-linear-attention; all of them scale by 1 / sqrt(K). Kimi's chunks are of 64 tokens."""
    rest = {"gk" if op == "gla" else "g": log_decay} | ({"beta": beta[0]} if beta else {})
    return getattr(_parity("others").naive(op), function)(q, k, v, **rest)[0]


def mamba_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Hugging Face's scan of Mamba, one token after another; it takes channels before tokens."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    return mamba_selective_scan(u.mT, delta.mT, a, b.mT, c.mT).mT


def rg_lru(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor, param: Tensor) -> Tensor:
    """Hugging Face's RG-LRU, one token after another, between the gates that ops.gated_scan computes too."""
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaConfig, RecurrentGemmaRglru

    heads, width = weight.shape[:2]
    config = RecurrentGemmaConfig(num_attention_heads=heads, lru_width=heads * width)
    with torch.device("meta"):
        unit = RecurrentGemmaRglru(config)
    (w_i, w_r), (b_i, b_r) = weight.chunk(2, -1), bias.squeeze(1).chunk(2, -1)
    given = {"input_gate_weight": w_i, "recurrent_gate_weight": w_r, "input_gate_bias": b_i, "recurrent_gate_bias": b_r}
    places = torch.arange(x.shape[1]).expand(len(x), -1)
    h = torch.func.functional_call(unit, given | {"recurrent_param": param}, (x, places))
    return F.gelu(z, approximate="tanh") * h


def mambapy_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """mambapy's parallel scan, which needs all decays and inputs (B, N, D, S) in memory."""
    from mambapy.pscan import pscan

    step = delta[..., None]
    states = pscan(torch.exp(step * a), step * u[..., None] * b[:, :, None])
    return (states @ c[..., None]).squeeze(3)


@dataclass(frozen=True)
class Layer:
    """A layer of theirs beside a mixer of ours with the same weights.

    cache() makes their state, a number of tokens long where it grows; run(x, cache) calls the layer on further tokens,
    or on all of them where the cache is None."""

    ours: TokenMixer
    theirs: nn.Module
    cache: Callable[[], Any]
    run: Callable[[Tensor, Any], Tensor]


def _filled(module: nn.Module) -> nn.Module:
    """Random weights of a size that keeps every gate open."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name or name.endswith("D"):
                p.copy_(1 + 0.3 * noise)
            elif p.ndim == 1 or "log" in name or "bias" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(p.shape[-1] ** -0.5 * noise)
    return module


def _paired(theirs: nn.Module, ours: TokenMixer, weights: Callable, config: Any, run: Callable | None = None) -> Layer:
    from transformers import DynamicCache

    theirs, own = _filled(theirs).eval(), dict(ours.named_parameters())
    with torch.no_grad():
        carried = weights(theirs)
        if carried.keys() != own.keys():
            raise ValueError(f"these weights have no partner: {sorted(carried.keys() ^ own.keys())}")
        for name, value in carried.items():
            own[name].copy_(value)
    plain = run or (lambda x, cache: theirs(x, cache_params=cache))
    return Layer(ours.eval(), theirs, partial(DynamicCache, config=config), plain)


def _mamba() -> Layer:
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    config = MambaConfig(hidden_size=DIM, state_size=16, num_hidden_layers=1)
    return _paired(MambaMixer(config, 0), Mamba(DIM, causal=True), _parity("pairs").mamba_weights, config)


def _mamba2() -> Layer:
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    config = Mamba2Config(
        hidden_size=DIM, num_heads=2 * HEADS, head_dim=WIDTH, state_size=128, n_groups=1, num_hidden_layers=1
    )
    ours = Mamba2(DIM, causal=True, heads=2 * HEADS, state_dim=128)
    return _paired(Mamba2Mixer(config, 0), ours, _parity("pairs").mamba2_weights, config)


def _gated_deltanet() -> Layer:
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextConfig, Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=DIM, linear_num_key_heads=HEADS, linear_num_value_heads=HEADS, linear_key_head_dim=WIDTH,
        linear_value_head_dim=WIDTH, rms_norm_eps=1e-5, num_hidden_layers=1, layer_types=["linear_attention"],
    )  # fmt: skip
    ours = GatedDeltaNet(DIM, causal=True, heads=HEADS, head_dim=WIDTH, expansion=1.0)
    return _paired(Qwen3NextGatedDeltaNet(config, 0), ours, _parity("pairs").qwen3_next_weights, config)


def _kda() -> Layer:
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearConfig, KimiLinearDeltaAttention

    config = KimiLinearConfig(
        hidden_size=DIM, linear_num_heads=HEADS, linear_head_dim=WIDTH, num_hidden_layers=1,
        layer_types=["linear_attention"],
    )  # fmt: skip
    ours = KimiDeltaAttention(DIM, causal=True, heads=HEADS, head_dim=WIDTH)
    return _paired(KimiLinearDeltaAttention(config, 0), ours, _parity("pairs").kimi_linear_weights, config)


def _rg_lru() -> Layer:
    """Their block keeps its state in itself: the cache only counts tokens."""
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
        RecurrentGemmaConfig,
        RecurrentGemmaRecurrentBlock,
    )

    config = RecurrentGemmaConfig(hidden_size=DIM, num_attention_heads=HEADS, lru_width=DIM, num_hidden_layers=1)
    theirs = RecurrentGemmaRecurrentBlock(config, 0)

    def run(x: Tensor, seen: list[int] | None) -> Tensor:
        first = 0 if seen is None else seen[0]
        if seen is not None:
            if first == 0:
                theirs.conv1d_state = None
            seen[0] += x.shape[1]
        places = torch.arange(first, first + x.shape[1]).expand(len(x), -1)
        return theirs(x, places, attention_mask=None, use_cache=seen is not None)[0]

    ours = RGLRU(DIM, causal=True, expansion=1.0, heads=HEADS)
    layer = _paired(theirs, ours, _parity("pairs").recurrent_gemma_weights, config, run)
    return Layer(layer.ours, theirs, lambda: [0], run)


def _attention() -> Layer:
    """Llama's attention, its rotation by an angle of 0: ours has no position here."""
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig

    config = LlamaConfig(hidden_size=DIM, num_attention_heads=HEADS, num_hidden_layers=1, attn_implementation="sdpa")
    theirs, ours = LlamaAttention(config, 0), Attention(DIM, causal=True, heads=HEADS)

    def run(x: Tensor, cache: Any) -> Tensor:
        angles = torch.ones(1, x.shape[1], WIDTH), torch.zeros(1, x.shape[1], WIDTH)
        return theirs(x, angles, past_key_values=cache)[0]

    def weights(m: nn.Module) -> dict[str, Tensor]:
        parts = {"query": m.q_proj, "key": m.k_proj, "value": m.v_proj, "out": m.o_proj}
        return {f"{name}.weight": part.weight for name, part in parts.items()}

    return _paired(theirs, ours, weights, config, run)


LAYERS = {
    "gated_deltanet": _gated_deltanet, "kda": _kda, "mamba": _mamba, "mamba2": _mamba2, "rg_lru": _rg_lru,
    "attention": _attention,
}  # fmt: skip
