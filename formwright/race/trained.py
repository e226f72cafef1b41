"""A trained model of a past race, with its data: what generating and predicting begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from formwright.race import store
from formwright.race.contenders import RaceProblem
from formwright.race.records import Contender, Race, Trial


def trained(
    run: str = "latest", *, contender: str | None = None, seed: int | None = None, runs: str | Path = "runs"
) -> tuple[Any, Any, str]:
    """(model, source, "contender, seed k") of a race named by its id, a start of it, "latest", or a path in its folder.

    contender  its name, or the unique start of one; without it the folder that `run` points into says it, else the one
               with the best validation score is taken
    seed       without it, the seed with the best validation score

    Raises RaceNotFound, RaceProblem or FileNotFoundError with what to do."""
    from formwright import data
    from formwright.model import load

    conn = store.open_store(store.store_path(run, Path(runs) / "races.sqlite"), create=False)
    race = store.load_race(conn, store.find_race(conn, run))
    conn.close()
    trial = best_trial(race, _pointed(race, run) if contender is None else contender, seed)
    plan = json.loads((race.folder / "plan.json").read_text(encoding="utf-8"))
    model = load(Path(trial.folder) / "model.safetensors")
    return model, data.open(**plan["source"]), f"{trial.contender}, seed {trial.seed}"


def best_trial(race: Race, contender: str | None = None, seed: int | None = None) -> Trial:
    """The finished main run with the best validation score among those asked for. Raises RaceProblem."""
    entries = [_named(race, contender)] if contender is not None else race.contenders
    found = [t for c in entries for t in c.trials if t.phase == "main" and t.status == "done"]
    if seed is not None:
        found = [t for t in found if t.seed == seed]
    if not found:
        what = "".join([f" of {contender}" if contender else "", f" with seed {seed}" if seed is not None else ""])
        raise RaceProblem(
            f"race {race.id} has no finished run{what}: finish it by formwright race --resume {race.id}"
            if race.status != "done"
            else f"race {race.id} has no finished run{what}"
        )
    metric, sign = race.source["metric"], 1 if race.source["lower_is_better"] else -1

    def rank(trial: Trial) -> float:
        value = trial.scores.get("validation", {}).get(metric)
        return float("inf") if value is None else sign * value

    return min(found, key=rank)


def _named(race: Race, name: str) -> Contender:
    exact = [c for c in race.contenders if c.name == name]
    starting = exact or [c for c in race.contenders if c.name.startswith(name)]
    if len(starting) == 1:
        return starting[0]
    names = ", ".join(repr(c.name) for c in race.contenders)
    raise RaceProblem(f"{name!r} names {len(starting)} contenders of race {race.id}; they are {names}")


def _pointed(race: Race, run: str) -> str | None:
    """The contender in whose folder the path `run` lies."""
    path = Path(run)
    if not path.exists():
        return None
    inside = {path.resolve(), *path.resolve().parents}
    return next((c.name for c in race.contenders if c.folder and Path(c.folder).resolve() in inside), None)
