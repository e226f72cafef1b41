"""Every kind of source feeds the model that is built for it, and reports the score that ranks it."""

import math

import numpy as np
import pandas as pd
import pytest

from formwright import data
from formwright.build import build


def table(path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=60), "t": rng.choice(list("xyz"), 60), "y": rng.choice(["p", "q"], 60)})
    frame.to_csv(path, index=False)
    return path


def arrays(path):
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.normal(size=(60, 20, 3)), y=np.arange(60) % 3)
    return path


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("python-source", {"length": 32}),
        ("mqar(pairs=4, length=32, vocab=64)", {}),
        ("digits", {}),
        ("macro", {}),
        ("wine", {}),
        ("diabetes", {}),
        (lambda folder: table(folder / "t.csv"), {"target": "y"}),
        (lambda folder: arrays(folder / "a.npz"), {}),
    ],
)
def test_sources_feed_models(tmp_path, spec, options):
    source = data.open(spec(tmp_path) if callable(spec) else spec, **options)
    model = build("activator", data=source, dim=16)
    batch = source.batch("train", 0, 4)
    loss = model.loss(batch)
    assert math.isfinite(float(loss.detach()))
    totals = {name: (float(total.detach()), int(n)) for name, (total, n) in model.scores(batch).items()}
    report = source.report(totals, "validation")
    assert math.isfinite(report[source.metric]) and report["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
