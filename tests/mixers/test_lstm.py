"""Mixers that can follow a state: the LSTM, and Mamba-2 whose decays may be negative. Its equations step by step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from formwright.contract import Layout
from formwright.mixers.lstm import LSTM
from formwright.mixers.mamba2 import Mamba2, signed_decay

N, D = 21, 16


@pytest.fixture
def x():
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_lstm_is_torchs_own(x):
    m = LSTM(D, causal=True, expansion=1.5).double()
    torchs = torch.nn.LSTM(D, m.inner, batch_first=True).double()
    with torch.no_grad():
        torchs.weight_ih_l0.copy_(m.inputs.weight)
        torchs.weight_hh_l0.copy_(m.recurrent.weight)
        torchs.bias_ih_l0.copy_(m.inputs.bias)
        torchs.bias_hh_l0.zero_()
    torch.testing.assert_close(m(x, Layout((N,))), m.out(torchs(x)[0]), rtol=1e-9, atol=1e-9)
    assert (m.inputs.bias[m.inner : 2 * m.inner] == 1).all()


def test_lstm_needs_a_width():
    with pytest.raises(ValueError, match="leaves no width"):
        LSTM(D, causal=True, expansion=0.01)


def signed(x):
    torch.manual_seed(0)
    m = Mamba2(D, causal=True, heads=4, state_dim=8, negative_eigenvalues=True).double()
    with torch.no_grad():
        m.dt_bias += torch.tensor([-1.0, 3.0, 1.0, 0.0])  # decays from near 0 to near 1 in one model
    return m


def test_mamba2_with_negative_eigenvalues_step_by_step(x):
    m = signed(x)
    z, mixed, dt = m.inputs(x).split([m.inner, m.convolved, m.heads], -1)
    mixed = F.conv1d(F.pad(mixed.mT, (3, 0)), m.conv_weight[:, None], m.conv_bias, groups=m.convolved).mT
    u, b, c = F.silu(mixed).split([m.inner, 8, 8], -1)
    u, step = u.unflatten(-1, (4, -1)), F.softplus(dt + m.dt_bias)
    decay = 2 * torch.exp(-m.a_log.exp() * step) - 1
    assert decay.min() < -0.3 and decay.max() > 0.3
    state, outputs = torch.zeros(2, 4, 8, m.head_dim, dtype=x.dtype), []
    for t in range(N):
        write = torch.einsum("bk,bhv->bhkv", b[:, t], step[:, t, :, None] * u[:, t])
        state = decay[:, t, :, None, None] * state + write
        outputs.append(torch.einsum("bk,bhkv->bhv", c[:, t], state) + m.skip[:, None] * u[:, t])
    y = torch.stack(outputs, 1).flatten(2) * F.silu(z)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + m.eps) * m.norm_weight
    torch.testing.assert_close(m(x, Layout((N,))), m.out(y), rtol=1e-9, atol=1e-9)


def test_signs_begin_anew_with_every_packed_sequence(x):
    m, row = signed(x), x[:1]
    offsets = torch.tensor([0, 5, 5, 13, N])
    packed = m(row, Layout((N,), offsets=offsets))
    for a, b in ((0, 5), (5, 13), (13, N)):
        torch.testing.assert_close(packed[:, a:b], m(row[:, a:b], Layout((b - a,))), rtol=1e-9, atol=1e-9)
    _, signs, last = signed_decay(torch.full((1, 5, 1), -3.0), torch.tensor([0, 3, 3, 5]))
    assert signs.flatten().tolist() == [-1, 1, -1, -1, 1]
    assert last.flatten().tolist() == [-1, 1, 1]
