"""Rotary frequencies and T5's bias beside Hugging Face transformers."""

from __future__ import annotations

import pytest
import torch

from formwright.positions.rope import Rope
from formwright.positions.rope_scaling import FAST, frequencies
from formwright.positions.t5_bias import T5Bias

transformers = pytest.importorskip("transformers", reason="parity needs transformers; run make parity")

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb  # noqa: E402
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402

# The scalings of Llama 3.1 and Qwen2.5, and position interpolation.
SCALINGS = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, {"factor": 4.0}),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {"factor": 4.0, "trained": 32768},
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {"factor": 8.0, "trained": 8192},
    ),
}


def llama(base: float, scaling: dict | None = None) -> transformers.LlamaConfig:
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, intermediate_size=8, num_hidden_layers=1, max_position_embeddings=131072
    )
    rope = {"rope_theta": base, "rope_type": "default", **(scaling or {})}
    config.rope_parameters = rope
    config.rope_theta, config.rope_scaling = base, rope
    return config


@pytest.mark.parametrize("base", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_frequencies(scaling, base):
    theirs, ours = SCALINGS[scaling]
    config = llama(base, theirs)
    expected, magnitude = ROPE_INIT_FUNCTIONS[scaling](config, "cpu")
    like, fast = torch.ones(1), FAST.get(scaling, 0.0)
    found, factor = frequencies(128, base, scaling, ours["factor"], ours.get("trained", 8192), fast, 1.0, like)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert factor == pytest.approx(magnitude)


@pytest.mark.parametrize("scaling", [None, *SCALINGS])
def test_rotation(scaling):
    theirs, ours = SCALINGS[scaling] if scaling else (None, {})
    q, k, places = torch.randn(2, 9, 4, 128), torch.randn(2, 9, 2, 128), torch.arange(100, 109)[None]
    cos, sin = LlamaRotaryEmbedding(llama(5e5, theirs))(q, places)
    expected = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    rope = Rope(128, base=5e5, scaling=scaling, **ours)
    for x, other in zip((q, k), expected, strict=True):
        torch.testing.assert_close(rope.rotate(x, places[0, :, None]), other.transpose(1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 40)])
def test_t5_bias(buckets, distance, decoder):
    config = transformers.T5Config(
        d_model=32,
        num_heads=4,
        d_kv=8,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=distance,
        is_decoder=decoder,
    )
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    ours = T5Bias(heads=4, buckets=buckets, distance=distance, both_ways=not decoder)
    ours.table.data[0] = theirs.relative_attention_bias.weight.data
    places = torch.arange(300)[:, None]
    torch.testing.assert_close(ours.bias(places, places)[None], theirs.compute_bias(300, 300))
