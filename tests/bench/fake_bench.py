"""Benches written into a store by hand, for tests of what is made of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from formwright.bench.suites import Ability
from formwright.race import store

RECALL = Ability("recall", "Which value?", "mqar(pairs=4)", 0.9, recall=True)
STATE = Ability("parity", "Odd or even?", "parity", 0.9)
FIT = Ability("regression", "A line?", "linear_regression", ("least squares", 2.0), ("always zero",))
SOURCES = {
    "recall": ("accuracy", False, {"guessing": 0.25, "the commonest answer": 0.1}),
    "parity": ("accuracy", False, {"guessing": 0.5}),
    "regression": ("normalised_error", True, {"always zero": 1.0, "least squares": 0.2}),
}
MACHINE = {"cpu": "A <processor>", "cores": 2, "memory_bytes": 8e9, "versions": {"torch": "2.13"}}


def fake_bench(runs: Path, scores: dict[str, dict[str, tuple]], *, name: str = "mine", seeds: int = 3) -> str:
    """A finished bench; scores: ability -> mixer -> test scores of its seeds, None for a seed that diverged, or a text
    for the reason why it can't run."""
    conn = store.open_store(runs / "races.sqlite")
    abilities = [a for a in (RECALL, STATE, FIT) if a.name in scores]
    mixers = list(dict.fromkeys(mixer for found in scores.values() for mixer in found))
    options = {"mixers": mixers, "seeds": seeds, "match": "params", "workers": 1, "threads": 1, "device": None}
    options |= {"command": ["formwright", "bench", "quick"], "abilities": [asdict(a) for a in abilities]}
    bench = store.create_bench(conn, "quick", options=options, machine=MACHINE, id=name)
    for ability in abilities:
        metric, lower, baselines = SOURCES[ability.name]
        source = {"name": ability.data, "metric": metric, "lower_is_better": lower, "unit": "", "baselines": baselines}
        race = store.create_race(
            conn, ability.data, options={}, machine=MACHINE, source=source, id=f"{bench}/{ability.name}", bench=bench,
            ability=ability.name, status="done",
        )  # fmt: skip
        for i, (mixer, values) in enumerate(scores[ability.name].items()):
            error = values if isinstance(values, str) else None
            state = None if error else 1000 * 4**i
            store.add_contender(conn, race, mixer, text=mixer, params=1000, error=error, state_bytes=state)
            for seed, value in enumerate(() if error else values):
                trial = store.add_trial(conn, race, mixer, phase="main", seed=seed, lr=1e-3)
                if value is None:
                    store.update_trial(conn, trial, status="diverged", error="the loss was not finite")
                else:
                    store.update_trial(conn, trial, status="done", scores={"test": {metric: value}})
        store.update_race(conn, race, finished=store.now())
    store.update_bench(conn, bench, status="done", finished=store.now())
    conn.close()
    return bench
