"""Transformer-XL's attention: equal to a dense definition with its memory, in outputs and gradients."""

import torch

import formwright
from formwright import check
from formwright.contract import Layout, state_bytes
from formwright.data.source import Batch
from formwright.mixers.memory_attention import MemoryAttention


def dense(mixer: MemoryAttention, x: torch.Tensor) -> torch.Tensor:
    """Pair by pair: the token's own segment with gradient, the segment before without."""
    n, length, heads, width = x.shape[1], mixer.segment, mixer.heads, mixer.head_dim
    step = torch.arange(0, mixer.dim, 2, dtype=x.dtype)
    rows = []
    for i in range(n):
        begin = i // length * length
        memory = x[:, max(0, begin - length) : begin].detach()
        seen = torch.cat([memory, x[:, begin : i + 1]], 1)
        keys, values = (each.unflatten(-1, (heads, width)) for each in mixer.key_value(seen).chunk(2, -1))
        q = mixer.query(x[:, i]).unflatten(-1, (heads, width))
        angles = torch.arange(seen.shape[1] - 1, -1, -1, dtype=x.dtype)[:, None] / 10000 ** (step / mixer.dim)
        places = mixer.places(torch.cat([angles.sin(), angles.cos()], -1)).unflatten(-1, (heads, width))
        scores = torch.einsum("bhk,bmhk->bhm", q + mixer.content_bias, keys)
        scores = scores + torch.einsum("bhk,mhk->bhm", q + mixer.place_bias, places)
        weights = (scores / width**0.5).softmax(-1)
        rows.append(mixer.out(torch.einsum("bhm,bmhk->bhk", weights, values).flatten(1)))
    return torch.stack(rows, 1)


def test_equals_its_definition_with_gradients_at_every_length():
    torch.manual_seed(0)
    mixer = MemoryAttention(12, heads=2, segment=5, causal=True).double()
    for n in (1, 4, 5, 6, 10, 11, 23):
        x = torch.randn(2, n, 12, dtype=torch.float64, requires_grad=True)
        wanted = dense(mixer, x)
        weights = torch.randn_like(wanted)
        tensors = [x, *mixer.parameters()]
        expected = torch.autograd.grad((wanted * weights).sum(), tensors)
        out = mixer(x, Layout((n,)))
        found = torch.autograd.grad((out * weights).sum(), tensors)
        torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_no_gradient_passes_from_one_segment_to_the_one_before():
    torch.manual_seed(0)
    mixer = MemoryAttention(8, heads=1, segment=4, causal=True)
    x = torch.randn(1, 12, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(mixer(x, Layout((12,)))[:, 8:].sum(), x)
    assert (grad[:, :8] == 0).all() and (grad[:, 8:] != 0).all()
    moved = x.detach().clone()
    moved[:, 4:8] += 1
    changed = (mixer(moved, Layout((12,))) - mixer(x, Layout((12,)))).abs().amax(-1)[0]
    assert (changed[8:] > 1e-4).all() and (changed[:4] == 0).all()
    moved = x.detach().clone()
    moved[:, :4] += 1
    assert (mixer(moved, Layout((12,)))[:, 8:] - mixer(x, Layout((12,)))[:, 8:]).abs().max() == 0


def test_laws_of_short_segments():
    """With gradients through the memory nothing else stands between backward and forward's derivative."""
    laws = ["reference", "gradients", "cost"]
    report = check.run("memory_attention(segment=16, stop_gradient=False)", laws=laws)
    assert all(law.status == "pass" for law in report.laws), [law.detail for law in report.laws]


def test_decodes_across_segments_in_two_segments_of_memory():
    torch.manual_seed(0)
    mixer = MemoryAttention(8, heads=2, segment=4, causal=True).double()
    x = torch.randn(2, 30, 8, dtype=torch.float64)
    with torch.no_grad():
        whole = mixer(x, Layout((30,)))
        for sizes in ([1] * 30, [7, 1, 13, 9], [4, 4, 8, 14], [3, 27], [29, 1]):
            state, pieces = mixer.empty(2, 30), []
            for piece in x.split(sizes, 1):
                y, state = mixer.extend(piece, state)
                pieces.append(y)
            torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-10)
            assert state_bytes(state) == 2 * 2 * 8 * 8 * 8


def test_gtrxl_is_an_expression():
    model = formwright.build("tokens(dim=16) >> gated(2*(memory_attention(segment=8, heads=2) + mlp)) >> lm")
    tokens = torch.randint(0, 256, (2, 21))
    model.loss(Batch(tokens[:, :-1], tokens[:, 1:], None, 2, 40)).backward()
    assert all(p.grad is not None for p in model.parameters())
