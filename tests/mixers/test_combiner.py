import math

import pytest
import torch

from formwright.contract import Layout, Unsupported
from formwright.mixers.attention import Attention
from formwright.mixers.combiner import Combiner

PATTERNS = ["fixed", "logsparse", "axial"]


def make(causal=False, dim=16, **options):
    torch.manual_seed(0)
    return Combiner(dim, causal=causal, heads=2, **options).double()


def by_definition(mixer, x):
    """Outputs from p(j | i), token after token, with groups written out for each token."""
    q, k, v = mixer._heads(x)
    n, b = x.shape[1], mixer.block
    pool = (lambda t: t.amax(0)) if mixer.pooling == "max" else (lambda t: t.mean(0))
    o = torch.zeros_like(v)
    for row in range(x.shape[0]):
        for h in range(mixer.heads):
            for i in range(n):
                direct, groups = omega(mixer.pattern, i, n, b, mixer.causal)
                assert sorted(direct + [j for g in groups for j in g]) == list(range(i + 1 if mixer.causal else n))
                masses = [(q[row, h, i] @ k[row, h, j]).exp() for j in direct]
                values = [v[row, h, j] for j in direct]
                for g in groups:
                    masses.append((q[row, h, i] @ pool(k[row, h, g])).exp())
                    local = (k[row, h, g] @ pool(q[row, h, g])).softmax(0)
                    values.append(local @ v[row, h, g])
                o[row, h, i] = sum(m * y for m, y in zip(masses, values, strict=True)) / sum(masses)
    return mixer._join(o)


def omega(pattern, i, n, b, causal):
    """Omega_0(i) and the groups that i reads, as lists of tokens."""
    seen = range(i + 1 if causal else n)
    if pattern == "fixed":
        blocks = [[j for j in seen if j // b == r] for r in range(-(-n // b))]
        return blocks[i // b], [g for r, g in enumerate(blocks) if g and r != i // b]
    if pattern == "axial":
        direct = [j for j in seen if j // b == i // b or j % b == i % b]
        columns = [[j for j in seen if j % b == c and j // b != i // b] for c in range(b) if c != i % b]
        return direct, [g for g in columns if g]
    groups, size = [], 1
    while size < n:
        start = (i // size ^ 1) * size
        groups.append([j for j in range(start, start + size) if j in seen])
        size *= 2
    return [i], [g for g in groups if g]


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_is_the_factored_expectation_token_by_token(pattern, causal, pooling):
    mixer = make(causal, pattern=pattern, block=4, pooling=pooling)
    with torch.no_grad():
        for n in (1, 4, 6, 13):
            x = torch.randn(1, n, 16).double()
            assert (mixer(x, Layout((n,))) - by_definition(mixer, x)).abs().max() < 1e-12


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_full_support(pattern, causal):
    mixer, n = make(causal, pattern=pattern, block=8), 77
    weights = mixer.weights(torch.randn(2, n, 16).double())
    allowed = torch.ones(n, n).tril().bool() if causal else torch.ones(n, n).bool()
    assert (weights.sum(-1) - 1).abs().max() < 1e-12
    assert (weights[..., allowed] > 0).all()
    assert (weights[..., ~allowed] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", ["fixed", "axial"])
def test_one_block_is_plain_attention(pattern, causal):
    mixer, plain = make(causal, pattern=pattern, block=20), Attention(16, causal=causal, heads=2).double()
    plain.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 19, 16).double()
    assert (mixer(x, Layout((19,))) - plain(x, Layout((19,)))).abs().max() < 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_work_is_less_than_quadratic(causal):
    def products(n, **options):
        mixer = make(causal, **options)
        return mixer.cost(Layout((n,))).macs - 4 * n * 16 * 16

    for pattern in ("fixed", "axial"):
        small, large = (products(n, pattern=pattern, block=math.isqrt(n)) for n in (2**12, 2**16))
        assert large < 1.05 * 16**1.5 * small
    small, large = (products(n, pattern="logsparse") for n in (2**12, 2**16))
    assert 11 * large == 16 * 15 * small  # 2^k tokens have k - 1 levels of pooled blocks


@pytest.mark.parametrize("options", [{"pattern": "other"}, {"pooling": "min"}, {"block": 0}])
def test_refuses_what_it_does_not_know(options):
    with pytest.raises(Unsupported):
        make(**options)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_extend_from_any_point_in_any_pieces(pattern):
    mixer, x = make(True, pattern=pattern, block=5), torch.randn(2, 41, 16).double()
    with torch.no_grad():
        whole = mixer(x, Layout((41,)))
        for pieces in ([41], [1] * 41, [3, 2, 5, 1, 11, 4, 15], [16, 16, 9], [31, 10]):
            state, parts = mixer.empty(2), []
            for part in x.split(pieces, 1):
                y, state = mixer.extend(part, state)
                parts.append(y)
            assert (torch.cat(parts, 1) - whole).abs().max() < 1e-12
