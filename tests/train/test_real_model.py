from __future__ import annotations

import pytest
from tiny_training import same_bits, weights

from formwright import data
from formwright.bench import measure
from formwright.build import build
from formwright.train import evaluate, fit

EXPRESSION = "2*(attention(heads=2, position=rope) + swiglu)"


def test_a_built_model_learns_resumes_and_is_measured(tmp_path):
    source = data.open("mqar(pairs=2, length=16, vocab=32)")
    options = {"steps": 12, "batch_size": 16, "lr": 3e-3, "evaluation_items": 64}
    whole = build(EXPRESSION, source, dim=32)
    before = evaluate(whole, source, "validation", 64, 256)["loss"]
    expected = fit(whole, source, **options)
    assert expected.scores["loss"] < before

    def stop(event):
        if event["event"] == "step" and event["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(build(EXPRESSION, source, dim=32), source, **options, folder=tmp_path, on_event=stop)
    model = build(EXPRESSION, source, dim=32, seed=1)
    result = fit(model, source, **options, folder=tmp_path, resume=True)
    assert same_bits(weights(model), weights(whole)) and result.scores == expected.scores
    assert fit(model, source, steps="1e9macs", batch_size=16).steps == int(
        1e9 // (3 * model.cost((16,), batch=16).macs)
    )

    row = measure.forward_cost(model, 16, batch=2, repeats=3)
    assert row["macs"] == measure.counted_macs(lambda: model(measure.example_inputs(model, 16, 2)))
    assert measure.prefill_cost(model, 16, repeats=3)["macs"] <= measure.forward_cost(model, 16, repeats=3)["macs"]
    assert measure.decode_cost(model, 16, tokens=4)["state_bytes"] > 0
