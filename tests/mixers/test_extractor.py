"""The Extractors: their sums written out, each a tied form of the one before, their sizes, and one step at a time."""

import pytest
import torch

from formwright import check
from formwright.contract import Layout, parameter_count
from formwright.mixers.extractor import KINDS, Extractor
from formwright.ops.matrix_convolution import last_output, matrix_convolution


def weights_of(mixer: Extractor) -> torch.Tensor:
    """The matrix of each lag, (L, D, D), that maps x to what it adds."""
    eye = torch.eye(mixer.dim, dtype=mixer.lags.dtype)
    if mixer.kind == "she":
        return mixer.lags
    values = eye if mixer.values is None else mixer.values.weight.T
    return values * mixer.lags[:, None, :]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_its_definition(kind):
    torch.manual_seed(0)
    mixer = Extractor(6, kind=kind, length=12, causal=True).double()
    x = torch.randn(2, 10, 6, dtype=torch.float64)
    matrices = weights_of(mixer)
    rows = []
    for t in range(10):
        extracted = sum(x[:, s] @ matrices[t - s] for s in range(t + 1))
        rows.append(mixer.adjust(x[:, t]) * extracted)
    torch.testing.assert_close(mixer(x, Layout((10,))), torch.stack(rows, 1), rtol=1e-10, atol=1e-10)


def test_sizes_fall_from_one_to_the_next():
    d, length = 16, 32
    sizes = [parameter_count(Extractor(d, kind=kind, length=length, causal=True)) - d for kind in KINDS]
    assert sizes == [(length + 1) * d * d, length * d + 2 * d * d, length + 2 * d * d, length + d * d]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_laws_of_the_other_kinds(kind):
    """The register checks she; what differs in the others is their sum."""
    report = check.run(f"extractor(kind='{kind}')", laws=["causality", "extend", "reference", "gradients", "cost"])
    assert all(law.status == "pass" for law in report.laws), [law.detail for law in report.laws]


@pytest.mark.parametrize(("n", "lags"), [(1, 1), (9, 9), (9, 4), (4, 9), (33, 20)])
def test_matrix_convolution_equals_its_definition_with_gradients(n, lags):
    torch.manual_seed(0)
    x = torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(lags, 3, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for backend in ("reference", "fft"):
        y = matrix_convolution(x, taps, backend=backend)
        results.append((y, *torch.autograd.grad(y.sin().sum(), [x, taps])))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(last_output(x, taps), results[0][0][:, -1:], rtol=1e-9, atol=1e-9)


def test_says_what_does_not_fit():
    with pytest.raises(ValueError, match="she, he, we, me"):
        Extractor(8, kind="it", causal=True)
    with pytest.raises(ValueError, match="length=5"):
        Extractor(8, length=4, causal=True)(torch.randn(1, 5, 8), Layout((5,)))
    with pytest.raises(ValueError, match="taps"):
        matrix_convolution(torch.randn(1, 5, 8), torch.randn(5, 4, 8))
