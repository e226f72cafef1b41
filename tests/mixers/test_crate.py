"""CRATE: its equations, the official block's parameters, and that its step compresses."""

from itertools import pairwise

import torch
import torch.nn.functional as F

import formwright
from formwright.channels.ista import ISTA
from formwright.contract import Layout, parameter_count, state_bytes
from formwright.mixers.attention import Attention
from formwright.mixers.crate import Crate


def test_subspace_attention_is_its_definition():
    torch.manual_seed(0)
    mixer = Crate(12, heads=3, head_dim=5, causal=True).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    w = (x @ mixer.subspaces.weight.T).view(2, 9, 3, 5).transpose(1, 2)
    scores = w @ w.mT / 5**0.5
    scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    o = (scores.softmax(-1) @ w).transpose(1, 2).flatten(2)
    expected = o @ mixer.out.weight.T + mixer.out.bias
    torch.testing.assert_close(mixer(x, Layout((9,))), expected, rtol=1e-10, atol=1e-10)


def test_ista_is_one_proximal_step():
    """The gradient step of 1/2 |x - D z|^2 at z = x by autograd, then the threshold."""
    torch.manual_seed(0)
    part = ISTA(7, step=0.2, sparsity=0.3).double()
    x = torch.randn(2, 4, 7, dtype=torch.float64)
    z = x.clone().requires_grad_()
    (0.5 * (x - z @ part.dictionary.detach().T).square().sum()).backward()
    expected = F.relu(x - 0.2 * z.grad - 0.2 * 0.3)
    torch.testing.assert_close(part(x, Layout((4,))), expected, rtol=1e-10, atol=1e-10)


def test_official_sizes():
    """CRATE-Tiny (width 384, 12 blocks, 6 heads): 6.09 million parameters, 444,288 in a block with norms."""
    block = parameter_count(Crate(384, heads=6)) + parameter_count(ISTA(384)) + 2 * 2 * 384
    assert block == 3 * 384**2 + 384 + 4 * 384
    around = (2 * 768 + 768 * 384 + 384 + 2 * 384) + 198 * 384 + (2 * 384 + 384 * 1000 + 1000)  # patches, places, head
    assert round((12 * block + around) / 1e6, 2) == 6.09


def test_as_an_expression_the_code_replaces_the_stream():
    model = formwright.build(
        "tokens(dim=16) >> prenorm(crate(heads=2), norm=layernorm) + plain(layernorm >> ista) >> lm"
    )
    seen = {}
    ista = next(m for m in model.modules() if isinstance(m, ISTA))
    ista.register_forward_hook(lambda module, args, out: seen.update(out=out))
    stack_out = model.stack(torch.randn(1, 5, 16), Layout((5,)))[0]
    assert torch.equal(stack_out, seen["out"])
    assert (stack_out >= 0).all()


def test_a_step_along_it_lowers_the_coding_rate():
    torch.manual_seed(0)
    heads, width, n, eps = 4, 8, 64, 0.5
    dim = heads * width
    bases = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]
    mixer = Crate(dim, heads=heads, bias=False).double()
    with torch.no_grad():
        mixer.subspaces.weight.copy_(bases.T)
        mixer.out.weight.copy_(bases)
    x = torch.randn(1, n, dim, dtype=torch.float64)

    def rate(x):
        w = (x @ bases).view(n, heads, width).transpose(0, 1)
        grams = torch.eye(width, dtype=torch.float64) + width / (n * eps**2) * w.mT @ w
        return float(0.5 * torch.logdet(grams).sum())

    rates = [rate(x)]
    with torch.no_grad():
        for _ in range(6):
            x = 0.7 * x + 0.3 * mixer(x, Layout((n,)))
            rates.append(rate(x))
    assert all(after < 0.99 * before for before, after in pairwise(rates))


def test_decoding_keeps_half_of_what_attention_keeps():
    x = torch.randn(1, 10, 32)
    sizes = []
    for cls in (Crate, Attention):
        mixer = cls(32, heads=2, causal=True)
        sizes.append(state_bytes(mixer.extend(x, mixer.empty(1, 10))[1]))
    assert 2 * sizes[0] == sizes[1]
