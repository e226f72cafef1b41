from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.channels.geglu import GEGLU
from formwright.channels.mlp import MLP
from formwright.channels.relu2 import ReLU2
from formwright.channels.swiglu import SwiGLU
from formwright.contract import Layout, parameter_count


@pytest.mark.parametrize("cls", [MLP, ReLU2, SwiGLU, GEGLU])
@pytest.mark.parametrize("options", [{}, {"expansion": 1.37}, {"bias": True}])
def test_cost_is_exact(cls, options):
    channel, x, layout = cls(12, **options), torch.randn(2, 7, 12), Layout((7,))
    with FlopCounterMode(display=False) as counter:
        assert channel(x, layout).shape == x.shape
    cost = channel.cost(layout, 2)
    assert (2 * cost.macs, cost.params) == (counter.get_total_flops(), parameter_count(channel))


def test_what_they_compute():
    torch.manual_seed(0)
    x, layout = torch.randn(2, 3, 12), Layout((3,))
    mlp, relu2, swiglu = MLP(12), ReLU2(12), SwiGLU(12)
    torch.testing.assert_close(mlp(x, layout), mlp.out(F.gelu(mlp.inner(x))))
    torch.testing.assert_close(relu2(x, layout), relu2.inner(x).clamp(min=0) ** 2 @ relu2.out.weight.T)
    gate = swiglu.gate(x)
    torch.testing.assert_close(swiglu(x, layout), swiglu.out(gate * gate.sigmoid() * swiglu.value(x)))


def test_activations():
    torch.manual_seed(0)
    x, layout = torch.randn(2, 3, 12), Layout((3,))
    mlp, geglu, exact = MLP(12, activation="relu", bias=False), GEGLU(12, bias=True), GEGLU(12, activation="gelu")
    torch.testing.assert_close(mlp(x, layout), mlp.inner(x).clamp(min=0) @ mlp.out.weight.T)
    gate = geglu.gate(x)
    tanh = 0.5 * gate * (1 + ((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)).tanh())
    torch.testing.assert_close(geglu(x, layout), geglu.out(tanh * geglu.value(x)))
    torch.testing.assert_close(exact(x, layout), exact.out(F.gelu(exact.gate(x)) * exact.value(x)))
    for cls in (MLP, GEGLU):
        with pytest.raises(ValueError, match="activation is one of gelu, gelu_tanh"):
            cls(12, activation="tanh")


def test_hidden_widths():
    assert [SwiGLU(d).hidden for d in (12, 64, 256, 384)] == [32, 176, 688, 1024]
    assert [SwiGLU(100, expansion=e).hidden for e in (1.0, 1.01, 2.666)] == [100, 101, 267]
    assert [MLP(100).hidden, MLP(100, expansion=0.001).hidden] == [400, 1]
