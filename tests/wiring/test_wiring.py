"""Whole models under the laws that wirings could break: causality, extend, cost, save and load, gradients."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import formwright
from formwright.build import BuildProblem
from formwright.contract import Unsupported, state_bytes
from formwright.mixers.attention import Attention
from formwright.model import load, save
from formwright.norms.layernorm import LayerNorm
from formwright.norms.rmsnorm import RMSNorm
from formwright.ops.attention import SDPA_FLOPS

CAUSAL = [
    "2*(attention(heads=2, position=rope) + swiglu)",
    "(attention(heads=2) | gla(heads=2)) + mlp",
    "loop(attention(heads=2) + swiglu, times=3)",
    "skip(2*(gla(heads=2) + swiglu))",
    "skip(attention(heads=2) + mlp >> downsample(2) >> 2*(gla(heads=2) + swiglu) >> upsample(2) >> attention + mlp)",
    "skip(downsample(3) >> attention(heads=2) + mlp >> skip(downsample(2) >> mlp >> upsample(2)) >> upsample(3))",
    "postnorm(2*(attention(heads=2) + mlp), norm=layernorm)",
    "sandwich(attention(heads=2) + mlp)",
    "gated(attention(heads=2) + mlp)",
    "plain(attention(heads=2)) >> mlp",
    "(attention(heads=2) >> mlp) + swiglu",
    "2*attention(heads=2)",
    "prenorm(attention(heads=2) + mlp, norm=layernorm) >> layernorm >> mlp",
    "share_positions(2*(attention(heads=2, position=t5_bias) + mlp))",
    "attention(heads=2) >> of_input(2*(static_attention(heads=2) + swiglu))",
]
SELF = [
    *CAUSAL,
    "latent(2*(attention(heads=2) + swiglu), tokens=5) >> mlp",
    "skip(downsample(2) >> latent(attention(heads=2), tokens=3) >> upsample(2))",
]


def make(text, *, head="lm", **facts):
    model = formwright.build(f"tokens(dim=24, vocab=17) >> {text} >> {head}", facts={"length": 64, **facts}, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return model.double().eval()


def tokens(rows, count, seed=0):
    return torch.randint(0, 17, (rows, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("text", CAUSAL)
def test_a_causal_model_never_looks_ahead(text):
    model, x = make(text), tokens(1, 23)
    before = model(x)
    for t in range(23):
        changed = x.clone()
        changed[:, t:] = (changed[:, t:] + 5) % 17
        torch.testing.assert_close(model(changed)[:, :t], before[:, :t], rtol=0, atol=1e-12)
    assert not torch.allclose(model(changed)[:, 22:], before[:, 22:])


@pytest.mark.parametrize("text", CAUSAL)
@pytest.mark.parametrize("split", [[1] * 13, [13], [1, 4, 2, 6], [12, 1]])
def test_extend_over_any_split_is_forward(text, split):
    model, x = make(text), tokens(2, 13)
    state, pieces = model.empty(2, capacity=13), []
    for piece in x.split(split, 1):
        out, state = model.extend(piece, state)
        assert out.shape[1] == piece.shape[1]
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", SELF)
def test_the_cost_formula_is_what_is_counted(text):
    for head in ("lm",) if text in CAUSAL else ("classify(classes=3)",):
        model = make(text, head=head).float()
        for count in (1, 13, 24):
            with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter, torch.no_grad():
                model(tokens(2, count))
            cost = model.cost((count,), batch=2)
            assert cost.macs * 2 == counter.get_total_flops(), (text, count)
            assert cost.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("text", CAUSAL)
def test_the_state_is_as_large_as_the_formula_says(text):
    model, x = make(text).float(), tokens(2, 12)
    _, state = model.extend(x, model.empty(2, capacity=12))
    if "upsample" not in text:
        assert state_bytes(state["stack"]) == model.cost((12,), batch=2).state_bytes


@pytest.mark.parametrize("text", SELF)
def test_every_parameter_gets_a_gradient(text):
    model = make(text, head="lm" if text in CAUSAL else "classify(classes=3)")
    model(tokens(2, 13)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("text", SELF)
def test_saved_and_loaded_it_computes_the_same(text, tmp_path):
    model = make(text, head="lm" if text in CAUSAL else "classify(classes=3)")
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors").double()
    assert again.expression == model.expression
    torch.testing.assert_close(again(tokens(2, 13)), model(tokens(2, 13)), rtol=1e-5, atol=1e-5)


def test_encoder_decoder_reads_the_source_and_decodes():
    side = "2*(attention(heads=2) + mlp)"
    target = "2*(attention(heads=2) + cross(attention(heads=2)) + mlp)"
    model = make(f"encoder_decoder({side}, {target})")
    source, x = tokens(2, 9, seed=1), tokens(2, 13)
    out = model((source, x))
    assert not torch.allclose(out, model((tokens(2, 9, seed=2), x)))
    changed = x.clone()
    changed[:, 7:] = 0
    torch.testing.assert_close(model((source, changed))[:, :7], out[:, :7])
    state, pieces = model.empty(2, source=source), []
    for piece in x.split([4, 1, 8], 1):
        y, state = model.extend(piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), out)
    with pytest.raises(Unsupported, match="source"):
        model(x)


@pytest.mark.parametrize("mixer", ["attention(heads=2)", "linear_attention(heads=2)"])
def test_an_encoder_decoder_costs_what_is_counted(mixer):
    model = make(f"encoder_decoder({mixer} + mlp, {mixer} + cross({mixer}) + mlp)").float()
    source, x = tokens(2, 12, seed=1), tokens(2, 12)
    with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter, torch.no_grad():
        model((source, x))
    assert model.cost((12,), batch=2).macs * 2 == counter.get_total_flops()
    state = model.empty(2, capacity=12, source=source)
    _, state = model.extend(x, state)
    assert state_bytes(state["stack"]) == model.cost((12,), batch=2).state_bytes


def test_skip_cuts_a_grid_that_the_factor_does_not_divide():
    model = formwright.build(
        "patches(dim=16, size=1) >> skip(downsample(2) >> attention + mlp >> upsample(2)) >> classify",
        facts={"classes": 4, "channels": 3, "image": (5, 7)},
    )
    assert model(torch.randn(2, 5, 7, 3)).shape == (2, 4)


def test_loop_shares_weights_and_repeat_does_not():
    assert make("loop(mlp, times=4)").cost((8,)).params < make("4*mlp").cost((8,)).params


def test_a_pyramid_stack_refuses_what_its_blocks_cannot_hold():
    model = make("downsample(2) >> mlp", head="classify(classes=3)")
    from formwright.contract import Layout

    with pytest.raises(Unsupported, match="downsample"):
        model(tokens(2, 8), Layout((8,), lengths=torch.tensor([8, 5])))


def test_positions_are_shared_where_they_are_alike():
    text = "3*(attention(heads=2, position=t5_bias) + attention(heads=3, position=t5_bias) + mlp)"
    shared, own = make(f"share_positions({text})"), make(text)
    table = 32
    assert shared.cost((9,)).params == own.cost((9,)).params - 2 * table * (2 + 3)
    tables = {m.position.table.data_ptr() for m in shared.modules() if isinstance(m, Attention)}
    assert len(tables) == 2
    with pytest.raises(BuildProblem, match="no mixer inside has a position with weights"):
        make("share_positions(attention(heads=2, position=rope) + mlp)")


def test_the_last_norm_has_the_options_of_the_others():
    model = make("encoder_decoder(prenorm(mlp, norm=layernorm(eps=0.5)), prenorm(mlp, norm=rmsnorm(eps=0.25)))")
    assert isinstance(model.norm, RMSNorm) and model.norm.eps == 0.25
    source = model.stack.stages[0].norm if hasattr(model.stack, "stages") else model.stack.norm
    assert isinstance(source, LayerNorm) and source.eps == 0.5


def test_the_source_is_worked_through_once_when_decoding():
    text = "encoder_decoder(attention(heads=2), 2*cross(attention(heads=2, kv_heads=1)))"
    model = make(text, source_length=9)
    source, x = tokens(2, 9, seed=1), tokens(2, 5)
    state, pieces, counts = model.empty(2, source=source), [], []
    for piece in x.split([1, 1, 3], 1):
        with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter, torch.no_grad():
            y, state = model.extend(piece, state)
        pieces.append(y)
        counts.append(counter.get_total_flops() / piece.shape[1])
    torch.testing.assert_close(torch.cat(pieces, 1), model((source, x)))
    assert counts[1] == counts[2] < counts[0] / 4
    kept = 2 * 2 * 2 * 9 * 12 * 8  # layers, k and v, rows, tokens, one head of 12, in float64
    assert state_bytes(state["stack"]["target"]) == kept
    assert model.cost((5,), batch=2).state_bytes == kept + 2 * 9 * 24 * 8


def test_static_attention_weighs_by_what_came_in():
    model, x = make("of_input(mlp >> static_attention(heads=2))").double(), tokens(1, 9)
    (static,) = [m for m in model.modules() if type(m).__name__ == "StaticAttention"]
    seen = []
    static.query.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    static.value.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(x)
    came_in = model.embed(x)
    torch.testing.assert_close(seen[0], static.norm(came_in[0] if isinstance(came_in, tuple) else came_in))
    assert not torch.allclose(seen[1], seen[0])


def test_static_attention_says_what_it_wants():
    with pytest.raises(ValueError, match=r"write for example of_input\("):
        make("static_attention(heads=2)")(tokens(1, 5))
    with pytest.raises(ValueError, match="let nothing in between change them"):
        make("of_input(skip(downsample(2) >> static_attention(heads=2) >> upsample(2)))")(tokens(1, 6))
    with pytest.raises(BuildProblem, match="in the place of a source"):
        make("encoder_decoder(attention + mlp, of_input(attention + cross(attention) + mlp))")
