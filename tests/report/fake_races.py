"""Made-up races, as full of life as real ones, written through the store, to test reports and to look at them."""

from __future__ import annotations

import base64
import io
import math
import random
from pathlib import Path

from PIL import Image

from formwright.race import store

MACHINE = {
    "cpu": "Example CPU 2.4 GHz", "cores": 2, "memory_bytes": 8_200_000_000, "device": "cpu", "os": "Linux 6.1",
    "versions": {"formwright": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
}  # fmt: skip
LONG = [
    "attention", "attention(heads=8, window=256, position=rope)", "mamba2", "gated_deltanet", "gla", "retention",
    "linear_attention", "3*(gated_deltanet + swiglu) >> attention + swiglu",
    "2*(hyena + mlp) >> (attention | gla) + mlp",
    "based(feature_dim=16, window=64)", "activator", "./mine.py:A_Mixer_With_Quite_A_Long_Name",
]  # fmt: skip


def _race(conn, data, source, *, options=None, status="done", created="2026-05-09T14:35:12+02:00"):
    options = {
        "budget": "10m", "size": "2M", "match": "params", "seeds": 3, "lr": "auto", "sweep_share": 0.2,
        "engine": "local",
        **(options or {}),
    }  # fmt: skip
    race = store.create_race(conn, data, options=options, machine=MACHINE, source=source, created=created)
    if status == "done":
        store.update_race(conn, race, finished="2026-05-09T15:35:12+02:00")
    store.update_race(conn, race, status=status)
    return race


def _train(
    conn, race, name, text, *, params, floor, start, rate, metric, seeds, rng, trials="done", better=-1, steps=400
):
    store.add_contender(
        conn, race, name, text=text, expression=f"tokens(dim=192) >> 4*({text} + swiglu) >> lm", dim=192, params=params,
        macs=params * 2, folder=f"runs/{race}/{name}",
    )  # fmt: skip
    for lr in (3e-4, 1e-3, 3e-3):
        trial = store.add_trial(conn, race, name, phase="sweep", seed=0, lr=lr, steps=40, batch_size=16, status="done")
        store.update_trial(conn, trial, scores={"validation": {metric: floor + 0.2 + abs(math.log10(lr / 1e-3))}})
    for seed in range(seeds):
        trial = store.add_trial(conn, race, name, phase="main", seed=seed, lr=1e-3, steps=steps, batch_size=16)
        luck, rows = rng.gauss(0, 0.006), []
        for step in range(1, steps + 1, 4):
            tokens, level = step * 16 * 256, floor + (start - floor) * math.exp(-4.5 * step / steps)
            loss = level * 0.69 if metric == "bits_per_byte" else 2.4 * math.exp(-4.5 * step / steps) + 0.2
            rows.append((step, tokens, tokens / rate, "train", "loss", loss + rng.gauss(0, 0.05)))
            if step % 20 == 1 and step > 1:
                value = level + luck + rng.gauss(0, 0.004)
                rows.append((step, tokens, tokens / rate, "validation", metric, value))
        store.add_points(conn, trial, rows)
        final = floor + luck + (start - floor) * 0.011
        scores = {"validation": {metric: final}}
        if trials == "done":
            scores["test"] = {metric: final + rng.gauss(0.004, 0.004), "loss": 0.69 * abs(final)}
        tokens = steps * 16 * 256
        store.update_trial(
            conn, trial, status=trials if trials == "done" or seed else "running", attempts=1, scores=scores,
            seconds=tokens / rate, tokens=tokens, tokens_per_second=rate,
        )  # fmt: skip


def _costs(conn, race, name, *, quadratic, scale, state=None, grows=False, lengths=(512, 2048, 8192), rng):
    for length in lengths:
        ms = scale * (length / 512) ** (1.75 if quadratic else 1.02) * 9
        peak = int(3e6 * scale * length / 512 * (length / 700 if quadratic else 1.2))
        store.add_cost(
            conn, race, name, kind="forward", length=length, batch=2, milliseconds=ms, low=ms * 0.94, high=ms * 1.1,
            peak_bytes=peak, macs=int(ms * 1e6), load=0.7,
        )  # fmt: skip
        if state:
            size = state * length if grows else state
            store.add_cost(
                conn, race, name, kind="decode", length=length, batch=1, state_bytes=size, peak_bytes=size * 2,
                milliseconds=scale * (0.8 + size / 4e6) * rng.uniform(0.95, 1.05), load=0.7,
            )  # fmt: skip


TEXT = {
    "name": "notes.txt", "kind": "text", "metric": "bits_per_byte", "lower_is_better": True, "unit": "bits per byte",
    "notes": ["1 file of 3.2 MB read as bytes; 12 bytes that are no UTF-8 were kept as they are.",
              "Split by place: the first 90% train, then 5% validation, the last 5% test."],
    "sizes": {"train": 2_880_000, "validation": 160_000, "test": 160_000}, "facts": {"vocab": 256, "length": 256},
}  # fmt: skip

WRITTEN = '''    """Read the <b>file</b> & return its lines."""
    with open(path) as file:
        return [line.strip() for line in file if line]


def write(path, lines):
    for line in lines:
        self.assertEqual(line, "the second of the same")
'''


def text_race(conn):
    """Four contenders with three seeds, and a fifth that diverged."""
    rng = random.Random(1)
    race = _race(
        conn,
        "data/notes.txt",
        TEXT,
        options={
            "command": 'formwright race attention mamba2 gated_deltanet "3*(gla + swiglu) >> attention + swiglu" '
            "--data notes.txt --budget 10m --size 2M --seeds 3"
        },
    )
    for name, text, floor, rate, quadratic, scale, state in [
        ("attention", "attention(heads=4, position=rope)", 1.93, 21_000, True, 1.0, 6144),
        ("mamba2", "mamba2", 1.88, 14_500, False, 1.5, 410_000),
        ("gated_deltanet", "gated_deltanet", 1.82, 11_200, False, 2.1, 620_000),
        (
            "3*(gla + swiglu) >> attention + swiglu",
            "3*(gla + swiglu) >> attention + swiglu",
            1.835,
            16_900,
            True,
            0.8,
            1800,
        ),
    ]:
        _train(
            conn,
            race,
            name,
            text,
            params=2_010_000 + len(name) * 700,
            floor=floor,
            start=5.2,
            rate=rate,
            metric="bits_per_byte",
            seeds=3,
            rng=rng,
        )
        _costs(conn, race, name, quadratic=quadratic, scale=scale, state=state, grows=quadratic, rng=rng)
        store.add_sample(
            conn, race, name, seed=0, kind="text",
            content={"prompt": "def read(path):\n", "generated": WRITTEN},
        )  # fmt: skip
    store.add_contender(
        conn, race, "random", text="random", expression="4*(random + swiglu)", dim=200, params=2_000_300
    )
    for seed in range(3):
        trial = store.add_trial(conn, race, "random", phase="main", seed=seed, lr=1e-2, steps=400, batch_size=16)
        store.add_points(
            conn, trial, [(s, s * 4096, s / 4, "train", "loss", math.nan if s > 8 else 3.0 + s) for s in range(1, 12)]
        )
        store.update_trial(conn, trial, status="diverged", error="the loss became NaN at step 9 <lr 0.01>")
    return race


def forecast_race(conn):
    """Three contenders, two of them equal within the seeds; long forecasts of two variates with a missing value."""
    rng = random.Random(2)
    source = {"name": "macro", "kind": "series", "metric": "mse", "lower_is_better": True, "unit": "",
              "notes": ["3 missing values in 'tbilrate' were filled with the last value before them."],
              "sizes": {"train": 140, "validation": 20, "test": 24},
              "facts": {"variates": 2, "horizon": 24}}  # fmt: skip
    race = _race(conn, "macro", source, created="2026-05-10T09:01:00+02:00")
    times = range(96 + 24)
    truth = [[math.sin(t / 7) + t / 60, 4 * math.cos(t / 11) + rng.gauss(0, 0.2)] for t in times]
    truth[110][1] = math.nan
    for name, floor, rate in [("attention", 0.412, 52_000), ("dense", 0.409, 90_000), ("mamba2", 0.52, 31_000)]:
        _train(
            conn, race, name, name, params=150_000, floor=floor, start=1.4, rate=rate, metric="mse", seeds=3, rng=rng
        )
        _costs(
            conn,
            race,
            name,
            quadratic=name == "attention",
            scale=0.2 if name == "dense" else 0.4,
            rng=rng,
            lengths=(96, 192, 384),
        )
        for start in (0, 10):
            forecast = [[v + rng.gauss(0, 0.15 + floor / 4) if v == v else 0.5 for v in row] for row in truth[96:]]
            content = {
                "history": [[v + start for v in row] for row in truth[:96]],
                "truth": truth[96:],
                "forecast": forecast,
                "names": ["realgdp", "unemp <rate>"],
            }
            store.add_sample(conn, race, name, seed=0, kind="forecast", content=content)
    return race


def _digit(rng):
    image = Image.new("L", (8, 8))
    image.putdata([min(255, max(0, int(rng.gauss(128, 90)))) for _ in range(64)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def image_race(conn, seeds=1):
    """Accuracy, one seed, no decode."""
    rng = random.Random(3)
    source = {"name": "digits", "kind": "images", "metric": "accuracy", "lower_is_better": False,
              "unit": "accuracy",
              "notes": [], "sizes": {"train": 1437, "validation": 180, "test": 180},
              "facts": {"classes": 10}}  # fmt: skip
    race = _race(conn, "digits", source, options={"seeds": seeds}, created="2026-05-11T09:01:00+02:00")
    for name, floor, rate in [("attention", 0.961, 9_000), ("pooling", 0.93, 22_000), ("identity", 0.71, 30_000)]:
        _train(
            conn,
            race,
            name,
            name,
            params=120_000,
            floor=floor,
            start=0.1,
            rate=rate,
            metric="accuracy",
            seeds=seeds,
            rng=rng,
        )
        _costs(conn, race, name, quadratic=name == "attention", scale=0.3, rng=rng, lengths=(16, 64, 256))
        for i in range(8):
            content = {"png": _digit(rng), "truth": str(i), "predicted": str((i + 3) % 10), "confidence": 0.5 + i / 20}
            store.add_sample(conn, race, name, seed=0, kind="image", content=content)
    return race


def table_race(conn):
    """A regression on a table."""
    rng = random.Random(4)
    source = {
        "name": "houses.csv",
        "kind": "table",
        "metric": "mae",
        "lower_is_better": True,
        "unit": "kEUR",
        "notes": [],
    }
    race = _race(conn, "houses.csv", source, created="2026-05-12T09:01:00+02:00")
    for name, floor in [("attention", 41.0), ("activator", 38.5)]:
        _train(conn, race, name, name, params=90_000, floor=floor, start=160, rate=9000, metric="mae", seeds=2, rng=rng)
        truth = [rng.uniform(100, 900) for _ in range(150)]
        content = {"truth": truth, "predicted": [t + rng.gauss(0, floor) for t in truth]}
        store.add_sample(conn, race, name, seed=0, kind="table", content=content)
    return race


def unfinished_race(conn):
    """Running: no test scores, one contender still waiting, no costs measured."""
    rng = random.Random(5)
    race = _race(conn, "notes.txt", TEXT, status="running", created="2026-05-13T09:01:00+02:00")
    for name, floor in [("attention", 1.93), ("gla", 1.9)]:
        _train(
            conn,
            race,
            name,
            name,
            params=2_000_000,
            floor=floor,
            start=5.2,
            rate=15_000,
            metric="bits_per_byte",
            seeds=2,
            rng=rng,
            trials="interrupted",
        )
    store.add_contender(conn, race, "mamba2", text="mamba2", params=2_010_000)
    store.add_trial(conn, race, "mamba2", phase="main", seed=0)
    return race


def crowded_race(conn):
    """Twelve contenders with long names, close together."""
    rng = random.Random(6)
    race = _race(conn, "data/a-rather-long-name-of-a-file-of-notes.txt", TEXT, created="2026-05-14T09:01:00+02:00")
    for i, name in enumerate(LONG):
        quadratic = "attention" in name
        _train(
            conn,
            race,
            name,
            name,
            params=2_000_000 + 3000 * i,
            floor=1.8 + 0.012 * ((i * 5) % 12),
            start=5.2,
            rate=9_000 + 1500 * ((i * 7) % 12),
            metric="bits_per_byte",
            seeds=2,
            rng=rng,
        )
        _costs(
            conn,
            race,
            name,
            quadratic=quadratic,
            scale=0.7 + 0.12 * ((i * 3) % 12),
            state=6144 if quadratic else 150_000 * (i + 1),
            grows=quadratic,
            rng=rng,
        )
        store.add_sample(
            conn, race, name, seed=0, kind="text", content={"prompt": "The ", "generated": "race of the many, " * 12}
        )
    return race


RACES = [text_race, forecast_race, image_race, table_race, unfinished_race, crowded_race]


def empty_race(conn):
    """Begun and stopped before any contender was written."""
    return store.create_race(conn, "none.txt", options={}, machine={}, source={}, status="interrupted")


def load(make, folder: Path) -> store.Race:
    """The loaded race that one of the functions above writes into a fresh store under `folder`."""
    conn = store.open_store(folder / f"{make.__name__}.sqlite")
    race = store.load_race(conn, make(conn))
    conn.close()
    return race
