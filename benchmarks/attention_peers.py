"""Other libraries' attention layers with our weights: (our layer, theirs, the weights of each), as functions of x."""

from __future__ import annotations

from collections.abc import Callable

import torch
from comparing import DIM, HEADS, WIDTH
from torch import Tensor, nn

from formwright import parts
from formwright.contract import Layout

Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], list[list[Tensor]]]


def _pair(ours: nn.Module, theirs: nn.Module, run: Callable[[Tensor], Tensor]) -> Pair:
    return (
        lambda x: ours(x, Layout((x.shape[1],))),
        run,
        [list(ours.parameters()), [p for p in theirs.parameters() if p.requires_grad]],
    )


def _mixer(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return parts.get(name, "mixer")(DIM, **options).eval()


def llama() -> Pair:
    """Hugging Face's Llama, its rotation by an angle of 0."""
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig

    config = LlamaConfig(hidden_size=DIM, num_attention_heads=HEADS, num_hidden_layers=1, attn_implementation="sdpa")
    theirs, ours = LlamaAttention(config, 0).eval(), _mixer("attention", causal=True, heads=HEADS)
    with torch.no_grad():
        for name, part in zip(("query", "key", "value", "out"), "qkvo", strict=True):
            getattr(theirs, f"{part}_proj").weight.copy_(getattr(ours, name).weight)

    def run(x: Tensor) -> Tensor:
        angles = torch.ones(1, x.shape[1], WIDTH), torch.zeros(1, x.shape[1], WIDTH)
        return theirs(x, angles)[0]

    return _pair(ours, theirs, run)


def x_transformers(flash: bool) -> Pair:
    """x-transformers' causal attention, with SDPA (flash) or without."""
    from x_transformers.x_transformers import Attention

    theirs, ours = (
        Attention(DIM, heads=HEADS, causal=True, flash=flash).eval(),
        _mixer("attention", causal=True, heads=HEADS),
    )
    with torch.no_grad():
        for name, part in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("out", "to_out")):
            getattr(theirs, part).weight.copy_(getattr(ours, name).weight)
    return _pair(ours, theirs, lambda x: theirs(x)[0] if isinstance(theirs(x[:, :1]), tuple) else theirs(x))


def timm() -> Pair:
    """timm's attention of vision transformers: two-directional."""
    from timm.models.vision_transformer import Attention

    theirs, ours = Attention(DIM, num_heads=HEADS).eval(), _mixer("attention", heads=HEADS)
    with torch.no_grad():
        theirs.qkv.weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.proj.weight.copy_(ours.out.weight)
        theirs.proj.bias.zero_()
    return _pair(ours, theirs, theirs)


PEERS = {
    "hf: llama": ("transformers", llama),
    "x-transformers: flash": ("x_transformers", lambda: x_transformers(True)),
    "x-transformers": ("x_transformers", lambda: x_transformers(False)),
    "timm: vision transformer": ("timm", timm),
}
