"""ops.linear_scan: all forms against the definition, forward and backward."""

from __future__ import annotations

import pytest
import torch

from formwright.ops import scan
from formwright.ops.scan import explain, linear_scan


def make(tokens, dtype=torch.float64):
    g = torch.Generator().manual_seed(tokens)
    a, b = (torch.randn(2, tokens, 3, generator=g, dtype=dtype) for _ in range(2))
    a[:, tokens // 2] = 0
    return 0.8 * a, b, torch.randn(2, 3, generator=g, dtype=dtype)


def run(a, b, state, **options):
    a, b, state = (t.clone().requires_grad_() for t in (a, b, state))
    h, last = linear_scan(a, b, state=state, **options)
    ((h * h.conj()).real.sum() + (last**3).real.sum()).backward()
    return [h.detach(), last.detach(), a.grad, b.grad, state.grad]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 19, 20, 21, 64, 101])
def test_forms_equal_the_definition(monkeypatch, dtype, tokens):
    monkeypatch.setattr(scan, "BLOCK", 3)
    inputs = make(tokens, dtype)
    expected = run(*inputs, backend="reference")
    for form in ("auto", "chunked", "parallel", "recurrent"):
        for found, wanted in zip(run(*inputs, form=form), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradcheck(dtype):
    inputs = [t.requires_grad_() for t in make(9, dtype)]
    assert torch.autograd.gradcheck(lambda a, b, s: linear_scan(a, b, state=s, form="chunked"), inputs)


def test_a_broadcasts_and_pieces_join():
    a, b, state = make(50)
    a = a[:1, :1].tanh().requires_grad_()
    h, last = linear_scan(a, b, state=state)
    wanted = linear_scan(a.expand(b.shape), b, state=state, backend="reference")[0]
    torch.testing.assert_close(h, wanted)
    found, expected = (torch.autograd.grad(t.sin().sum(), a)[0] for t in (h, wanted))
    torch.testing.assert_close(found, expected)
    first, middle = linear_scan(a, b[:, :17], state=state)
    second, end = linear_scan(a, b[:, 17:], state=middle)
    torch.testing.assert_close(torch.cat([first, second], 1), h)
    torch.testing.assert_close(end, last)


def test_real_decay_of_complex_inputs_and_half_precision():
    a, b, _ = make(30)
    h, _ = linear_scan(a, torch.complex(b, -b))
    torch.testing.assert_close(h, torch.complex(*(linear_scan(a, t)[0] for t in (b, -b))))
    h, last = linear_scan(a.bfloat16(), b.bfloat16())
    assert h.dtype == last.dtype == torch.bfloat16
    torch.testing.assert_close(
        h.double(), linear_scan(a.bfloat16().double(), b.bfloat16().double())[0], rtol=1e-2, atol=1e-2
    )


def test_compile_and_export():
    a, b, _ = make(70)
    a.requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(linear_scan, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(a, b)[0].sin().sum(), a)[0] for f in (compiled, linear_scan))
    torch.testing.assert_close(found, expected)

    class Module(torch.nn.Module):
        def forward(self, a, b):
            return linear_scan(a, b)[0]

    exported = torch.export.export(Module(), (a.detach(), b)).module()
    torch.testing.assert_close(exported(a, b), linear_scan(a, b)[0])


def test_words_and_mistakes():
    assert explain(1).startswith("recurrent")
    assert explain(900).startswith("chunked")
    a, b, _ = make(5)
    for options, word in (({"form": "x"}, "form"), ({"backend": "x"}, "backend"), ({"state": b}, "state")):
        with pytest.raises(ValueError, match=word):
            linear_scan(a, b, **options)
    with pytest.raises(ValueError, match="broadcast"):
        linear_scan(torch.cat([a, a]), b)
