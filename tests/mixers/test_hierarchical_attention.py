import pytest
import torch

from formwright.contract import Layout, Unsupported
from formwright.mixers.attention import Attention
from formwright.mixers.hierarchical_attention import HierarchicalAttention, dense_weights


def make(dim=16, **options):
    torch.manual_seed(0)
    return HierarchicalAttention(dim, heads=2, **options).double()


def divergence(weights, scores):
    return (weights * (weights.log() - scores.log_softmax(-1))).sum()


@pytest.mark.parametrize("branching", [2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 7, 16, 29])
def test_dynamic_programming_is_the_matrix_of_weights(n, branching):
    mixer, x = make(branching=branching), torch.randn(2, n, 16).double()
    assert (mixer(x, Layout((n,))) - mixer.reference(x, Layout((n,)))).abs().max() < 1e-12
    weights = mixer.weights(x)
    assert (weights.sum(-1) - 1).abs().max() < 1e-12
    assert (weights > 0).all()


def test_weights_between_siblings_are_tied():
    weights = make(branching=3).weights(torch.randn(1, 27, 16).double())
    for size in (3, 9):
        blocks = weights.unflatten(3, (-1, size)).unflatten(2, (-1, size)).transpose(3, 4)  # (1, H, C, C', size, size)
        spread = blocks.amax((-2, -1)) - blocks.amin((-2, -1))
        between = ~torch.eye(27 // size, dtype=torch.bool)
        assert spread[..., between].max() < 1e-15
        assert spread[..., ~between].min() > 1e-6


@pytest.mark.parametrize(("n", "branching"), [(4, 2), (7, 2), (8, 3)])
def test_no_tied_weights_are_nearer_to_softmax(n, branching):
    """All tied weights are those of some scores: the nearest, found from random ones by descent, are its own."""
    torch.manual_seed(n)
    scores = torch.randn(n, n).double()
    best = dense_weights(scores, branching)
    others = torch.randn(n, n).double().requires_grad_()
    assert divergence(best, scores) < divergence(dense_weights(others, branching), scores)
    descent = torch.optim.LBFGS([others], max_iter=400, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        loss = divergence(dense_weights(others, branching), scores)
        loss.backward()
        return loss

    descent.step(closure)
    assert (dense_weights(others, branching) - best).abs().max() < 1e-5
    assert divergence(best, scores) > 0.1  # the ties do cost something


def test_one_level_is_plain_attention_with_its_weights():
    mixer, plain = make(branching=20), Attention(16, heads=2).double()
    mixer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 20, 16).double()
    assert (mixer(x, Layout((20,))) - plain(x, Layout((20,)))).abs().max() < 1e-12
    x = torch.randn(2, 21, 16).double()
    assert (mixer(x, Layout((21,))) - plain(x, Layout((21,)))).abs().max() > 1e-3


def test_is_plain_attention_where_scores_are_tied_already():
    """Tokens alike within their blocks lose nothing by the ties."""
    mixer, plain = make(branching=4), Attention(16, heads=2).double()
    plain.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 4, 16).double().repeat_interleave(4, 1)
    assert (mixer(x, Layout((16,))) - plain(x, Layout((16,)))).abs().max() < 1e-12


def test_work_grows_with_tokens_times_branching():
    def products(n, branching):
        return make(branching=branching).cost(Layout((n,))).macs - 4 * n * 16 * 16

    assert products(2**14, 4) < 2.001 * products(2**13, 4)
    assert products(2**12, 4) <= 2 * 16 * 4 * 2**12 * 4 / 3


def test_refuses_trees_without_branches_and_causal_models():
    with pytest.raises(Unsupported, match="branching"):
        make(branching=1)
    with pytest.raises(Unsupported, match="causal"):
        make(causal=True)
