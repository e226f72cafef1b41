"""Stages of image models: strided convolutions, the global average, scaled residuals, norms over tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import formwright
from formwright.contract import Layout, Unsupported, parameter_count
from formwright.mixers.cross_covariance_attention import CrossCovarianceAttention
from formwright.mixers.local_patch_interaction import LocalPatchInteraction
from formwright.mixers.separable_convolution import SeparableConvolution
from formwright.norms.groupnorm import GroupNorm
from formwright.norms.layernorm import LayerNorm
from formwright.ops.attention import SDPA_FLOPS
from formwright.wiring.class_attention import ClassAttention
from formwright.wiring.global_average import GlobalAverage
from formwright.wiring.nested import Fold
from formwright.wiring.scaled import LayerScale, ResidualScale
from formwright.wiring.strided_convolution import StridedConvolution

STACKS = [
    "conv_patches(dim=8, size=5, stride=2) >> layer_scale(pooling + mlp >> strided_convolution >> mlp, norm=groupnorm)",
    "conv_patches(dim=16, size=3, stride=2) >> residual_scale(separable_convolution(size=3) + star_relu)",
    "patches(dim=16, size=3, position=None) >> layernorm >> token_mlp + mlp >> downsample(norm=layernorm) >> mlp",
    "patches(dim=16, size=3, cls=True, position='tokens') >> attention(heads=2) + mlp",
    "conv_patches(dim=8, size=3) >> layer_scale(local_patch_interaction + cross_covariance_attention(heads=2))",
    "conv_patches(dim=4, size=3, stride=1, within=3) >> nested(2*(attention + mlp) >> fold(3, width=8) >> 2*(mlp))",
]


@pytest.mark.parametrize("text", STACKS)
@pytest.mark.parametrize("end", ["", " >> global_average >> layernorm", " >> class_attention(heads=2)"])
@pytest.mark.parametrize("head", ["classify", "classify_mlp(expansion=2)"])
def test_image_models_learn_and_cost_what_they_say(text, end, head):
    if "class_attention" in end and ("cls=True" in text or "fold" in text):
        pytest.skip("it has a class token already")
    torch.manual_seed(0)
    model = formwright.build(f"{text}{end} >> {head}", facts={"image": (12, 9), "channels": 3, "classes": 4})
    images = torch.randn(2, 12, 9, 3)
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
        logits = model(images)
    cost = model.cost((12, 9, 3), batch=2)
    assert logits.shape == (2, 4)
    assert (2 * cost.macs, cost.params) == (counter.get_total_flops(), parameter_count(model))
    model.head.loss(logits, torch.tensor([1, 3])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("grid", "size", "stride"), [((9,), 3, 2), ((7, 6), 3, 2), ((8, 5), 2, 3), ((4, 5, 3), 3, 2)])
def test_strided_convolution_is_the_written_sum(grid, size, stride):
    stage = StridedConvolution(2, width=3, size=size, stride=stride, rank=len(grid)).double()
    x, layout = torch.randn(2, Layout(grid).tokens, 2, dtype=torch.float64), Layout(grid)
    y, after = stage(x, layout)
    after.check(y)
    assert stage.after(layout) == after
    image, out = x.unflatten(1, grid), y.unflatten(1, after.grid)
    for at in Layout(after.grid).positions().tolist():
        expected = stage.project.bias.expand(2, 3).clone()
        for offset in Layout((size,) * len(grid)).positions().tolist():
            place = [stride * g + o - size // 2 for g, o in zip(at, offset, strict=True)]
            if all(0 <= p < n for p, n in zip(place, grid, strict=True)):
                expected = expected + image[(slice(None), *place)] @ stage.project.weight[(..., *offset)].T
        torch.testing.assert_close(out[(slice(None), *at)], expected)


def test_a_global_average_leaves_class_tokens_and_padding_out():
    x, stage = torch.randn(2, 5, 3), GlobalAverage(3)
    y, after = stage(x, Layout((2, 2), prefix=1))
    assert after == Layout((1, 1))
    torch.testing.assert_close(y[:, 0], x[:, 1:].mean(1))
    y, _ = stage(x, Layout((5,), lengths=torch.tensor([2, 5])))
    torch.testing.assert_close(y[:, 0], torch.stack([x[0, :2].mean(0), x[1].mean(0)]))
    with pytest.raises(Unsupported, match="packed"):
        stage(x[:1], Layout((5,), offsets=torch.tensor([0, 2, 5])))


def test_scaled_residuals():
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert (LayerScale(4).join(x, y) - x).abs().max() < 1e-3
    layer, residual = LayerScale(4, init=0.5), ResidualScale(4)
    torch.testing.assert_close(residual.join(x, y), x + y)
    with torch.no_grad():
        residual.scale.copy_(torch.arange(4))
    torch.testing.assert_close(layer.join(x, y), x + y / 2)
    torch.testing.assert_close(residual.join(x, y), x * torch.arange(4) + y)


def test_groupnorm_takes_statistics_over_tokens_and_refuses_what_they_would_spoil():
    norm, x = GroupNorm(6, groups=2).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    grouped = x.unflatten(2, (2, 3))
    mean, variance = grouped.mean((1, 3), keepdim=True), grouped.var((1, 3), keepdim=True, unbiased=False)
    torch.testing.assert_close(norm(x), ((grouped - mean) / (variance + 1e-5).sqrt()).flatten(2))
    with pytest.raises(ValueError, match="groups=4"):
        GroupNorm(6, groups=4)
    text = "tokens(dim=8, vocab=5) >> prenorm(attention(heads=2) + mlp, norm=groupnorm)"
    with pytest.raises(Unsupported, match="groupnorm does not support causal=True"):
        formwright.build(f"{text} >> lm")
    model = formwright.build(f"{text} >> classify(classes=2)")
    with pytest.raises(Unsupported, match="padded or packed"):
        model(torch.randint(5, (2, 4)), Layout((4,), lengths=torch.tensor([4, 2])))


@pytest.mark.parametrize(
    "text", ["strided_convolution", "global_average", "class_attention", "fold", "nested(mlp >> fold >> mlp)"]
)
def test_stages_that_read_ahead_stand_in_no_causal_stack(text):
    with pytest.raises(ValueError, match="causal=True"):
        formwright.build(f"tokens(dim=8, vocab=5) >> mlp >> {text} >> lm")


def test_separable_convolution_on_a_plane():
    mixer = SeparableConvolution(4, size=3, bias=True, rank=2)
    x = torch.randn(2, 20, 4)
    h = mixer.activation(mixer.inner(x)).transpose(1, 2).unflatten(2, (4, 5))
    h = F.conv2d(h, mixer.kernel[:, None], mixer.shift, padding=1, groups=8)
    torch.testing.assert_close(mixer(x, Layout((4, 5))), mixer.out(h.flatten(2).transpose(1, 2)))
    with pytest.raises(Unsupported, match="a grid of 1 axes"):
        mixer(x, Layout((20,)))
    with pytest.raises(Unsupported, match="prefix"):
        mixer(x, Layout((19,), prefix=1))
    with pytest.raises(ValueError, match="has no middle"):
        SeparableConvolution(4, size=4)


def nested(text, **facts):
    facts = {"image": (6, 4), "channels": 2, "classes": 3, **facts}
    return formwright.build(f"patches(dim=4, size=1, position=None) >> {text} >> classify", facts=facts).double()


def test_nested_tokens_are_mixed_block_by_block_and_folded_in_at_every_stage():
    torch.manual_seed(0)
    model = nested("nested(2*(attention(heads=2) + mlp) >> fold(2, width=6) >> 2*(attention(heads=1) + mlp))")
    part = model.stack.stages[0] if hasattr(model.stack, "stages") else model.stack
    x = torch.randn(2, 24, 4, dtype=torch.float64)
    z, after = part(x, Layout((6, 4)))
    assert after == Layout((3, 2), prefix=1)
    for row in range(2):
        image = x[row].view(6, 4, 4)
        inner = [image[i : i + 2, j : j + 2].reshape(1, 4, 4) + part.places for i in (0, 2, 4) for j in (0, 2)]
        outer = torch.cat([part.fold.cls[None], *[part.fold.map(y.flatten(1)) for y in inner]]) + part.fold.places
        for stage in range(2):
            inner = [part.inner_stages[stage](y, Layout((2, 2)))[0] for y in inner]
            added = torch.cat([part.folds[stage](y.flatten(1)) for y in inner])
            outer = torch.cat([outer[:1], outer[1:] + added])
            outer = part.outer_stages[stage](outer[None], after)[0][0]
        torch.testing.assert_close(z[row], outer)


def test_a_fold_alone_makes_a_pyramid():
    model = nested("mlp >> fold(2, width=6, cls=False) >> attention(heads=2) + mlp")
    assert model(torch.randn(2, 6, 4, 2, dtype=torch.float64)).shape == (2, 3)
    with pytest.raises(ValueError, match="don't fit the grid"):
        model(torch.randn(2, 8, 4, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("nested(2*mlp)", "with one fold"),
        ("nested(mlp >> fold)", "with one fold"),
        ("nested(2*mlp >> fold >> 3*mlp)", "write as many"),
        ("nested(2*mlp >> fold >> 2*downsample)", "keep their widths"),
        ("nested(mlp >> fold(0) >> mlp)", "at least 1"),
    ],
)
def test_what_nested_can_not_be(text, hint):
    with pytest.raises(ValueError, match=hint):
        nested(text)
    with pytest.raises(Unsupported, match="prefix"):
        Fold(4, length=8)(torch.randn(1, 9, 4), Layout((8,), prefix=1))


def test_class_attention_is_read_by_the_class_token_alone():
    torch.manual_seed(0)
    part, layout = ClassAttention(8, depth=2, heads=2, norm=LayerNorm, init=0.5).double(), Layout((3, 2))
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    z, after = part(x, layout)
    assert after == Layout((3, 2), prefix=1)
    patches, token = x, part.cls.expand(2, 1, 8)
    for layer in part.layers:
        tokens = layer.norm(torch.cat([token, patches], 1))
        read = layer.attention(tokens, Layout((7,)))[:, :1]  # what any token of plain attention reads
        token = layer.norm_mlp(token + read / 2)
        token = token + layer.mlp(token, Layout((1,))) / 2
        patches = 2 * layer.norm_mlp(patches + layer.norm(patches) / 2)
    torch.testing.assert_close(z, torch.cat([token, patches], 1))
    changed = x.clone()
    changed[:, 4, 0] += 1
    moved = (part(changed, layout)[0] - z).abs().amax((0, 2)) > 1e-12
    assert moved.tolist() == [True, False, False, False, False, True, False]
    with pytest.raises(Unsupported, match="prefix"):
        part(x, Layout((5,), prefix=1))
    with pytest.raises(ValueError, match="depth=0"):
        ClassAttention(8, depth=0)


def test_local_patch_interaction_leaves_padding_out_of_its_statistics():
    torch.manual_seed(0)
    mixer, x = LocalPatchInteraction(4), torch.randn(2, 5, 4)
    layout = Layout((5,), lengths=torch.tensor([3, 5]))
    padded = torch.where(layout.valid()[..., None], x, 100.0)
    a, b = mixer.train()(x, layout), mixer(padded, layout)
    torch.testing.assert_close(a[0, :3], b[0, :3])
    torch.testing.assert_close(a[1], b[1])
    h = F.gelu(F.conv1d(x[1:].transpose(1, 2), mixer.first[:, None], mixer.first_bias, padding=1, groups=4))
    h = F.batch_norm(h, None, None, mixer.norm.weight, mixer.norm.bias, training=True)
    h = F.conv1d(h, mixer.second[:, None], mixer.second_bias, padding=1, groups=4)
    torch.testing.assert_close(mixer(x[1:], Layout((5,))), h.transpose(1, 2))
    with pytest.raises(Unsupported, match="a grid of 2 axes"):
        mixer(x[:, :4], Layout((2, 2)))


def test_cross_covariance_attention_is_attention_between_channels():
    torch.manual_seed(0)
    mixer, x = CrossCovarianceAttention(8, heads=2).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        mixer.temperature.copy_(torch.tensor([0.5, 2.0]))
    q, k, v = mixer.query_key_value(x).chunk(3, -1)
    heads = []
    for head in range(2):
        mine = [t[..., 4 * head : 4 * head + 4] for t in (q, k, v)]
        unit = [t / t.square().sum(1, keepdim=True).sqrt() for t in mine[:2]]
        weights = (mixer.temperature[head] * unit[0].transpose(1, 2) @ unit[1]).softmax(-1)
        heads.append(mine[2] @ weights.transpose(1, 2))
    torch.testing.assert_close(mixer(x, Layout((5,))), mixer.out(torch.cat(heads, -1)))
