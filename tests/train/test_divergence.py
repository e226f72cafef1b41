from __future__ import annotations

import math

import pytest
from tiny_training import TinyModel, TinySource, same_bits, weights

from formwright.train import Diverged, fit
from formwright.train.divergence import Guard


def feed(guard, losses, warm=0, steps=1000, norms=None, first=1):
    notes = []
    for i, loss in enumerate(losses):
        norm = 1.0 if norms is None else norms[i]
        notes.append(guard.check(first + i, steps, warm, loss, norm, 0.01))
    return [note for note in notes if note]


def test_falling_and_noisy_losses_pass():
    assert feed(Guard(), [5.0 - 0.004 * t + (9.0 if t % 37 == 5 else 0.0) for t in range(1000)]) == []


def test_a_high_loss_that_stays_ends_the_run():
    guard = Guard()
    with pytest.raises(Diverged, match=r"running loss is .* at step \d+ \(learning rate 0.01\), more than three times"):
        feed(guard, [2.0] * 30 + [2.0 + t for t in range(60)])


def test_a_bump_that_falls_again_is_reported_and_forgiven():
    notes = feed(Guard(), [2.0] * 30 + [12.0] * 15 + [2.0] * 100)
    assert len(notes) == 1 and "three times its start" in notes[0]


def test_a_high_loss_during_warm_up_is_left_alone():
    assert feed(Guard(), [2.0] * 10 + [50.0] * 50, warm=100) == []


def test_negative_losses_have_a_limit_too():
    with pytest.raises(Diverged):
        feed(Guard(), [-4.0] * 30 + [10.0 + t for t in range(60)])


def test_isolated_events_are_reported_and_three_in_a_row_end_the_run():
    guard = Guard()
    notes = feed(guard, [2.0, math.nan, 2.0, 2.0], norms=[1, 1, math.inf, 1])
    assert len(notes) == 2 and "loss is nan at step 2" in notes[0] and "gradient norm is inf at step 3" in notes[1]
    with pytest.raises(Diverged, match="at step 7") as raised:
        feed(guard, [math.inf] * 3, first=5)
    assert (raised.value.step, raised.value.value, raised.value.lr) == (7, math.inf, 0.01)


def test_too_many_isolated_events_end_the_run():
    with pytest.raises(Diverged, match="after 10 such steps"):
        feed(Guard(), [math.nan if t % 4 == 3 else 2.0 for t in range(100)], steps=100)


def test_fit_skips_a_bad_step_and_says_so():
    events = []
    model, source = TinyModel(), TinySource(poison={4})
    result = fit(model, source, steps=8, batch_size=8, on_event=events.append)
    assert next(e["text"] for e in events if e["event"] == "note").startswith("the loss is nan at step 5")
    assert result.step == 8 and all(w.isfinite().all() for w in weights(model).values())


def test_fit_ends_with_the_cause_and_finite_weights():
    events = []
    model, source = TinyModel(), TinySource(poison={4, 5, 6})
    with pytest.raises(Diverged, match=r"the loss is nan at step 7 \(learning rate .*lower learning rate"):
        fit(model, source, steps=20, batch_size=8, on_event=events.append)
    assert events[-1]["event"] == "failed" and "step 7" in events[-1]["cause"]
    healthy = TinyModel()
    fit(healthy, TinySource(), steps=20, batch_size=8)
    assert all(w.isfinite().all() for w in weights(model).values())
    assert not same_bits(weights(model), weights(healthy))


def test_fit_with_a_wild_learning_rate_diverges():
    with pytest.raises(Diverged):
        fit(TinyModel(), TinySource(), steps=200, batch_size=8, lr=30.0, clip=None, warmup=0.02)
