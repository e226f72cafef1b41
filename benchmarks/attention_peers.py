"""Other libraries' attention layers with our weights: (our layer, theirs, the weights of each), as functions of x."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comparing import DIM, HEADS, WIDTH
from torch import Tensor, nn

from formwright import parts
from formwright.contract import Layout

SWIN, GRID = 96, (56, 56)
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
    return _pair(ours, theirs, theirs)


def timm() -> Pair:
    """timm's attention of vision transformers: two-directional."""
    from timm.models.vision_transformer import Attention

    theirs, ours = Attention(DIM, num_heads=HEADS).eval(), _mixer("attention", heads=HEADS)
    with torch.no_grad():
        theirs.qkv.weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.proj.weight.copy_(ours.out.weight)
        theirs.proj.bias.zero_()
    return _pair(ours, theirs, theirs)


def swin() -> Pair:
    """timm's shifted windows of 7 x 7 on the first stage's grid, tokens in a row as ours."""
    from timm.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(SWIN, GRID, num_heads=3, window_size=7, shift_size=3, dynamic_mask=False).eval()
    ours = parts.get("shifted_window_attention", "mixer")(SWIN, heads=3, window=7, shift=3).eval()
    theirs = block.attn
    with torch.no_grad():
        for mine, other in ((ours.query_key_value, theirs.qkv), (ours.out, theirs.proj)):
            mine.weight.copy_(other.weight)
            mine.bias.copy_(other.bias)
        # Theirs counts from key to query, ours from query to key.
        ours.table.copy_(theirs.relative_position_bias_table.T.unflatten(1, (13, 13)).flip(1, 2))
    return (
        lambda x: ours(x, Layout(GRID)),
        lambda x: block._attn(x.unflatten(1, GRID)).flatten(1, 2),
        [list(ours.parameters()), list(theirs.parameters())],
    )


@dataclass(frozen=True)
class Peer:
    """make() -> the pair; inputs are `dim` wide and as long as asked for, or `tokens` long."""

    package: str
    make: Callable[[], Pair]
    ours: str = "attention"
    dim: int = DIM
    tokens: int | None = None


PEERS = {
    "hf: llama": Peer("transformers", llama),
    "x-transformers: flash": Peer("x_transformers", lambda: x_transformers(True)),
    "x-transformers: plain": Peer("x_transformers", lambda: x_transformers(False)),
    "timm: vision transformer": Peer("timm", timm),
    "timm: swin": Peer("timm", swin, "shifted_window_attention", SWIN, GRID[0] * GRID[1]),
}
