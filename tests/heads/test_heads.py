from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from formwright.contract import Layout, parameter_count
from formwright.heads.classify import Classify
from formwright.heads.forecast import Forecast
from formwright.heads.lm import LM
from formwright.heads.masked_lm import MaskedLM
from formwright.heads.pool import Pool
from formwright.heads.regress import Regress
from formwright.heads.values import Values

WINDOW = torch.randn(2, 12, 3)
CASES = [
    (LM(6, vocab=11), Layout((7,)), (2, 7, 11)),
    (LM(6, vocab=11, scaled=True, cap=3.0), Layout((7,)), (2, 7, 11)),
    (MaskedLM(6, vocab=11), Layout((7,)), (2, 7, 11)),
    (Pool(6), Layout((2, 3), prefix=1), (2, 6)),
    (Classify(6, classes=4), Layout((2, 3), prefix=1), (2, 4)),
    (Classify(6, classes=4, pool="mean"), Layout((7,)), (2, 4)),
    (Classify(6, classes=4, causal=True), Layout((7,)), (2, 4)),
    (Regress(6, outputs=2), Layout((7,)), (2, 2)),
    (Values(6, outputs=2), Layout((7,)), (2, 7, 2)),
    (Forecast(6, horizon=5, variates=3), Layout((7,)), (2, 5, 3)),
    (Forecast(6, horizon=5, variates=3, tokens="variate"), Layout((3,)), (2, 5, 3)),
    (Forecast(6, horizon=5, variates=3, pool="mean", normalise=False), Layout((7,)), (2, 5, 3)),
]


@pytest.mark.parametrize(("head", "layout", "shape"), CASES)
def test_shapes_and_costs(head, layout, shape):
    x = torch.randn(2, layout.tokens, 6)
    with FlopCounterMode(display=False) as counter:
        y = head(x, layout, WINDOW)
    cost = head.cost(layout, 2)
    assert y.shape == shape
    assert (2 * cost.macs, cost.params) == (counter.get_total_flops(), parameter_count(head))


def test_only_lm_and_values_make_a_stack_causal():
    assert LM.causal and Values.causal
    assert not any(h.causal for h in (Classify, Regress, Forecast))


def test_lm_scores_only_what_it_should():
    head, logits = LM(6, vocab=5), torch.randn(2, 4, 5)
    targets = torch.randint(5, (2, 4))
    targets[0, :3] = -100
    kept = targets != -100
    expected = F.cross_entropy(logits[kept], targets[kept])
    torch.testing.assert_close(head.loss(logits, targets), expected)
    scores = head.scores(logits, targets)
    assert set(scores) == {"loss", "accuracy"}
    assert scores["loss"][1] == scores["accuracy"][1] == 5
    torch.testing.assert_close(scores["loss"][0] / 5, expected)
    assert scores["accuracy"][0] == (logits.argmax(-1) == targets)[kept].sum()
    nothing = torch.full((2, 4), -100)
    assert head.loss(logits, nothing) == 0
    assert head.scores(logits, nothing)["loss"] == (0, 0)


def test_scores_of_batches_add_up():
    head, logits, targets = Classify(6, classes=4), torch.randn(7, 4), torch.randint(4, (7,))
    whole = head.scores(logits, targets)
    pieces = [head.scores(a, b) for a, b in zip(logits.split(3), targets.split(3), strict=True)]
    for name, (total, count) in whole.items():
        torch.testing.assert_close(sum(p[name][0] for p in pieces), total)
        assert sum(p[name][1] for p in pieces) == count


@pytest.mark.parametrize(("pool", "expected"), [("mean", [1.5, 3.0]), ("last", [2.0, 5.0]), ("cls", [0.0, 0.0])])
def test_classify_reads_valid_tokens_alone(pool, expected):
    head = Classify(1, classes=1, pool=pool)
    torch.nn.init.ones_(head.project.weight)
    torch.nn.init.zeros_(head.project.bias)
    x = torch.arange(6.0).expand(2, 6)[..., None].clone()
    x[0, 3:] = 1e6
    y = head(x, Layout((5,), prefix=1, lengths=torch.tensor([3, 6])))
    torch.testing.assert_close(y[:, 0], torch.tensor(expected))


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_classify_gives_a_row_for_each_packed_sequence(pool):
    head, x = Classify(6, classes=4, pool=pool), torch.randn(1, 9, 6)
    packed = head(x, Layout((9,), offsets=torch.tensor([0, 2, 3, 9])))
    alone = [head(x[:, a:b], Layout((b - a,))) for a, b in ((0, 2), (2, 3), (3, 9))]
    torch.testing.assert_close(packed, torch.cat(alone))


def test_classify_chooses_what_to_read():
    x = torch.randn(2, 5, 6)
    for options, layout, read in (
        ({}, Layout((5,)), x.mean(1)),
        ({}, Layout((4,), prefix=1), x[:, 0]),
        ({"causal": True}, Layout((4,), prefix=1), x[:, -1]),
    ):
        head = Classify(6, classes=4, **options)
        torch.testing.assert_close(head(x, layout), head.project(read))


def test_unknown_targets_are_not_scored():
    head, outputs = Regress(6, outputs=2), torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    targets = torch.tensor([[0.0, math.nan], [3.0, 6.0]])
    scores = head.scores(outputs, targets)
    assert {k: (v.item(), n) for k, (v, n) in scores.items()} == {"loss": (5, 3), "mse": (5, 3), "mae": (3, 3)}
    loss = head.loss(outputs, targets)
    torch.testing.assert_close(loss, torch.tensor(5 / 3))
    loss.backward()
    assert torch.isfinite(outputs.grad).all()
    assert outputs.grad[0, 1] == 0
    assert head.loss(outputs, torch.full((2, 2), math.nan)) == 0


@pytest.mark.parametrize("tokens", ["time", "variate"])
def test_forecasts_move_with_their_window(tokens):
    head = Forecast(6, horizon=5, variates=3, tokens=tokens)
    layout = Layout((3,))
    x = torch.randn(2, 3, 6)
    y = head(x, layout, WINDOW)
    torch.testing.assert_close(head(x, layout, 3 * WINDOW + 10), 3 * y + 10, rtol=1e-3, atol=1e-3)
    torch.nn.init.zeros_(head.project.weight)
    torch.nn.init.zeros_(head.project.bias)
    torch.testing.assert_close(head(x, layout, WINDOW), WINDOW.mean(1, keepdim=True).expand(2, 5, 3))


def test_refusals_say_what_to_do():
    x = torch.randn(2, 5, 6)
    with pytest.raises(ValueError, match="cls=True"):
        Classify(6, classes=4, pool="cls")(x, Layout((5,)))
    with pytest.raises(ValueError, match="pool is one of"):
        Regress(6, pool="max")
    with pytest.raises(ValueError, match=r"series\(tokens='variate'\)"):
        Forecast(6, horizon=5, variates=3, tokens="variate")(x, Layout((5,)), WINDOW)
    with pytest.raises(ValueError, match="normalise=False"):
        Forecast(6, horizon=5, variates=3)(x, Layout((5,)))
    with pytest.raises(ValueError, match="but targets"):
        Regress(6).loss(torch.zeros(2, 1), torch.zeros(2))


def test_lm_scaled_and_capped():
    x, layout = 10 * torch.randn(2, 7, 16), Layout((7,))
    plain, scaled, capped = LM(16, vocab=11), LM(16, vocab=11, scaled=True), LM(16, vocab=11, cap=2.0)
    scaled.weight = capped.weight = plain.weight
    torch.testing.assert_close(scaled(x, layout), plain(x, layout) / 4)
    torch.testing.assert_close(capped(x, layout), 2 * (plain(x, layout) / 2).tanh())
    with pytest.raises(ValueError, match="cap is 0"):
        LM(16, vocab=11, cap=0.0)


def test_masked_lm_scores_what_is_hidden_alone():
    assert not MaskedLM.causal
    head, x = MaskedLM(6, vocab=11), torch.randn(2, 4, 6)
    targets = torch.full((2, 4), -100)
    targets[0, 2] = 5
    logits = head(x, Layout((4,)))
    expected = F.layer_norm(F.gelu(head.inner(x)), (6,), eps=1e-12) @ head.weight.T + head.bias
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(head.loss(logits, targets), F.cross_entropy(logits[0, 2], torch.tensor(5)))


def test_pool_is_the_mean_of_valid_tokens_at_length_one():
    x = torch.randn(2, 5, 6)
    vectors = Pool(6)(x, Layout((5,), lengths=torch.tensor([5, 2])))
    torch.testing.assert_close(vectors[1], F.normalize(x[1, :2].mean(0), dim=0))
    packed = Pool(6, normalise=False)(x[:1], Layout((5,), offsets=torch.tensor([0, 2, 5])))
    torch.testing.assert_close(packed, torch.stack([x[0, :2].mean(0), x[0, 2:].mean(0)]))
    targets = torch.randn(2, 6)
    torch.testing.assert_close(Pool(6).loss(vectors, targets), F.mse_loss(vectors, targets))
