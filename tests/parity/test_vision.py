"""Image models from zoo entries beside timm's: equal counts of parameters; with timm's random weights, its logits."""

from __future__ import annotations

import pytest
import torch
from agreement import agree, difference
from torch import Tensor, nn
from vision import both, drawn, hand_over, heads, ours, patches, plain

from formwright import build
from formwright.contract import parameter_count
from formwright.norms.batchnorm import BatchNorm

timm = pytest.importorskip("timm", reason="parity needs timm; run make parity", exc_type=ImportError)

PAIRS = {
    "vit-s16": "vit_small_patch16_224",
    "deit-s": "deit_small_patch16_224",
    "poolformer-s12": "poolformer_s12",
    "convformer-s18": "convformer_s18",
    "caformer-s18": "caformer_s18",
    "mlp-mixer-s16": "mixer_s16_224",
    "swin-t": "swin_tiny_patch4_window7_224",
    "tnt-s": "tnt_s_patch16_224",
    "xcit-s12": "xcit_small_12_p16_224",
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_whole_model_has_as_many_parameters(name):
    with torch.device("meta"):
        assert parameter_count(build(name)) == parameter_count(timm.create_model(PAIRS[name]))


def compare(model: nn.Module, theirs: nn.Module, given: list[Tensor], image: tuple[int, int]) -> None:
    assert parameter_count(model) == parameter_count(theirs)
    hand_over(model, given)
    a, b = both(model, theirs, image)
    assert a.shape == b.shape and b.std() > 0.01
    agree({"logits": difference(a, b)})


@pytest.mark.parametrize("name", ["vit-s16", "deit-s"])
def test_vit(name):
    image = (64, 48)
    theirs = drawn(timm.create_model(PAIRS[name], img_size=image, depth=3, num_classes=10))
    model = ours(name, {"12*(": "3*("}, image=image, classes=10)
    given = [theirs.cls_token[0, 0], theirs.pos_embed[0], *patches(theirs.patch_embed.proj)]
    for block in theirs.blocks:
        given += [*heads(block.attn), *plain(block.norm1, block.mlp.fc1, block.mlp.fc2, block.norm2)]
    compare(model, theirs, given + plain(theirs.norm, theirs.head), image)


def metaformer(theirs: nn.Module) -> list[Tensor]:
    """Weights of timm's MetaFormers, blocks and mixers of all kinds."""

    def activation(act: nn.Module) -> list[Tensor]:
        return [act.scale, act.bias] if hasattr(act, "bias") else []

    def mixer(part: nn.Module) -> list[Tensor]:
        if hasattr(part, "dwconv"):
            kernel = part.dwconv.weight.squeeze(1)
            return [kernel, *plain(part.pwconv1), *activation(part.act1), *plain(part.pwconv2)]
        return heads(part) if hasattr(part, "qkv") else []

    def scale(block: nn.Module, which: int) -> list[Tensor]:
        scales = [getattr(block, f"{kind}_scale{which}") for kind in ("layer", "res")]
        return [s.scale for s in scales if hasattr(s, "scale")]

    def norm(module: nn.Module) -> list[Tensor]:
        return plain(module) if hasattr(module, "weight") else []

    given = [*plain(theirs.stem.conv), *norm(theirs.stem.norm)]
    for stage in theirs.stages:
        if hasattr(stage.downsample, "conv"):
            given += [*norm(stage.downsample.norm), *plain(stage.downsample.conv)]
        for block in stage.blocks:
            given += [*mixer(block.token_mixer), *scale(block, 1), *norm(block.norm1)]
            given += [*plain(block.mlp.fc1), *activation(block.mlp.act), *plain(block.mlp.fc2)]
            given += [*scale(block, 2), *norm(block.norm2)]
    last = theirs.head.fc
    return given + plain(theirs.head.norm, *((last.fc1, last.norm, last.fc2) if hasattr(last, "fc1") else (last,)))


@pytest.mark.parametrize("name", ["poolformer-s12", "convformer-s18", "caformer-s18"])
def test_metaformers(name):
    image = (64, 96)
    theirs = drawn(timm.create_model(PAIRS[name], num_classes=10))
    compare(ours(name, {}, image=image, classes=10), theirs, metaformer(theirs), image)


def test_mlp_mixer():
    image = (64, 48)
    theirs = drawn(timm.create_model("mixer_s16_224", img_size=image, num_classes=10))
    given = patches(theirs.stem.proj)
    for block in theirs.blocks:
        for part, norm in ((block.mlp_tokens, block.norm1), (block.mlp_channels, block.norm2)):
            given += plain(part.fc1, part.fc2, norm)
    model = ours("mlp-mixer-s16", {}, image=image, classes=10)
    compare(model, theirs, given + plain(theirs.norm, theirs.head), image)


def test_swin():
    def merged(merging: nn.Module) -> list[Tensor]:
        """Their four neighbours come column by column, ours row by row."""
        tensors = (merging.norm.weight, merging.norm.bias, merging.reduction.weight)
        return [t.unflatten(-1, (2, 2, -1)).transpose(-3, -2).flatten(-3) for t in tensors]

    image = (224, 224)
    theirs = drawn(timm.create_model(PAIRS["swin-t"], depths=(2, 2, 2, 2), num_classes=10))
    given = [*patches(theirs.patch_embed.proj), *plain(theirs.patch_embed.norm)]
    for layer in theirs.layers:
        given += merged(layer.downsample) if hasattr(layer.downsample, "reduction") else []
        for block in layer.blocks:
            # theirs counts from key to query, ours from query to key
            table = block.attn.relative_position_bias_table.T.unflatten(1, (13, 13)).flip(1, 2)
            given += [table, *plain(block.attn.qkv, block.attn.proj, block.norm1)]
            given += plain(block.mlp.fc1, block.mlp.fc2, block.norm2)
    model = ours("swin-t", {"3*(": "1*("}, classes=10)
    compare(model, theirs, given + plain(theirs.norm, theirs.head.fc), image)


def test_tnt():
    def attention(part: nn.Module) -> list[Tensor]:
        return [*part.qk.weight.chunk(2), part.v.weight, *plain(part.proj)]

    def block(part: nn.Module, side: str) -> list[Tensor]:
        """Inner or outer attention and MLP."""
        mixer, mlp = (part.attn_in, part.mlp_in) if side == "in" else (part.attn_out, part.mlp)
        norms = (part.norm_in, part.norm_mlp_in) if side == "in" else (part.norm_out, part.norm_mlp)
        return [*attention(mixer), *plain(norms[0], mlp.fc1, mlp.fc2, norms[1])]

    image = (64, 48)
    theirs = drawn(timm.create_model(PAIRS["tnt-s"], img_size=image, depth=3, num_classes=10))
    given = [*plain(theirs.pixel_embed.proj), theirs.pixel_pos[0].flatten(1).T]
    given += [theirs.cls_token[0, 0], theirs.patch_pos[0]]
    given += plain(theirs.norm1_proj, theirs.proj, theirs.norm2_proj)
    for part in theirs.blocks:
        given += block(part, "in")
    for part in theirs.blocks:
        given += block(part, "out")
    for part in theirs.blocks:
        given += plain(part.norm1_proj, part.proj, part.norm2_proj)
    model = ours("tnt-s", {"12*(": "3*("}, image=image, classes=10)
    compare(model, theirs, given + plain(theirs.norm, theirs.head), image)


def test_xcit():
    def normed(norm: nn.Module) -> list[Tensor]:
        return [norm.weight, norm.bias]

    image = (64, 48)
    theirs = drawn(timm.create_model(PAIRS["xcit-s12"], img_size=image, depth=3, num_classes=10))
    stem = theirs.patch_embed.proj[::2]
    given = [step[0].weight for step in stem] + [t for step in stem for t in normed(step[1])]
    given += plain(theirs.pos_embed.token_projection)
    batch_norms = [step[1] for step in stem]
    for block in theirs.blocks:
        local = block.local_mp
        given += [block.attn.temperature.flatten(), *plain(block.attn.qkv, block.attn.proj)]
        given += [block.gamma1, *normed(block.norm1)]
        given += [t for conv in (local.conv1, local.conv2) for t in (conv.weight.squeeze(1), conv.bias)]
        given += [*normed(local.bn), block.gamma3, *normed(block.norm3)]
        given += [*plain(block.mlp.fc1, block.mlp.fc2), block.gamma2, *normed(block.norm2)]
        batch_norms.append(local.bn)
    given.append(theirs.cls_token[0, 0])
    for block in theirs.cls_attn_blocks:
        attention = block.attn
        given += [block.gamma1, block.gamma2, *normed(block.norm1), *normed(block.norm2)]
        given += plain(attention.q, attention.k, attention.v, attention.proj, block.mlp.fc1, block.mlp.fc2)
    model = ours("xcit-s12", {"12*(": "3*("}, image=image, classes=10)
    for own, other in zip((m for m in model.modules() if isinstance(m, BatchNorm)), batch_norms, strict=True):
        own.mean.copy_(other.running_mean)
        own.variance.copy_(other.running_var)
    compare(model, theirs, given + plain(theirs.norm, theirs.head), image)
