"""Swin's window attention beside timm's: same weights, same outputs, same gradients."""

from __future__ import annotations

import pytest
import torch
from agreement import agree, differences
from torch.func import functional_call

from formwright.contract import Layout
from formwright.mixers.shifted_window_attention import ShiftedWindowAttention

swin_transformer = pytest.importorskip(
    "timm.models.swin_transformer", reason="parity needs timm; run make parity", exc_type=ImportError
)


@pytest.mark.parametrize(
    ("grid", "window", "shift"), [((14, 21), 7, 0), ((14, 21), 7, 3), ((8, 12), 4, 2), ((12, 16), (3, 4), (1, 2))]
)
def test_swin(grid, window, shift):
    torch.manual_seed(0)
    theirs = swin_transformer.SwinTransformerBlock(
        24, grid, num_heads=3, window_size=window, shift_size=shift, dynamic_mask=False
    )
    ours = ShiftedWindowAttention(24, heads=3, window=window, shift=shift)
    with torch.no_grad():
        for p in theirs.attn.parameters():
            p.normal_(0, 0.3)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.attn.parameters())
    table = theirs.attn.relative_position_bias_table
    weights = {
        "query_key_value.weight": theirs.attn.qkv.weight,
        "query_key_value.bias": theirs.attn.qkv.bias,
        "out.weight": theirs.attn.proj.weight,
        "out.bias": theirs.attn.proj.bias,
        # theirs counts from key to query, ours from query to key
        "table": table.T.unflatten(1, [2 * w - 1 for w in ours.window]).flip(1, 2),
    }
    x = torch.randn(2, *grid, 24, requires_grad=True)
    found = functional_call(ours, weights, (x.flatten(1, 2), Layout(grid))).view_as(x)
    leaves = {"x": x, **dict(theirs.attn.named_parameters())}
    agree(differences({"y": theirs._attn(x)}, {"y": found}, leaves))
