"""The phases of a race, each begun, gone on with, or skipped by what the plan and the store already hold: so the same
code starts a race and resumes one.

    calibrate  time a training step of each contender, with as many runs side by side as the race will have
    sweep      short runs at each learning rate; the lowest close to the best on validation is kept
    main       every contender at its rate, with every seed; the test part is scored once, at the end of each
    measure    costs, one contender after another, alone on the machine
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from formwright.race import plan, store
from formwright.race.contenders import Entry
from formwright.race.events import recorder
from formwright.race.local import RunJobs
from formwright.race.state import Race, drop, note, save_state

MEASURE_SECONDS = 10.0  # for each contender, where the budget is no time
START_SECONDS = 4.0  # that a fresh process takes before it measures
SAMPLE_SECONDS = 2.0  # that a main run takes to make its samples
NEAR = 0.01  # of the best score: what a sweep can hardly tell apart


def calibrate(race: Race, run_jobs: RunJobs) -> None:
    """Find the speed of each contender, where steps must be made of seconds."""
    state = race.state
    missing = [entry for entry in race.running if entry.name not in state.speeds]
    if race.budget.unit != "seconds" or not missing:
        return
    race.listen({"event": "phase", "phase": "calibrate", "runs": len(missing)})
    rounds = math.ceil(len(missing) / state.workers)
    allowed = min(3.0, max(0.5, 0.02 * race.budget.amount / rounds))
    outcomes = time_steps(race, run_jobs, missing, allowed)
    for entry, outcome in zip(missing, outcomes, strict=True):
        if outcome["event"] == "done":
            state.speeds[entry.name] = {"step": outcome["step_seconds"], "start": outcome["start_seconds"]}
        else:
            drop(race, entry.name, outcome.get("error", "its calibration was broken off"))
    save_state(race)


def time_steps(race: Race, run_jobs: RunJobs, entries: list[Entry], seconds: float) -> list[dict[str, Any]]:
    """The final events of calibrating these contenders, all workers busy meanwhile."""
    padding = -len(entries) % race.state.workers
    jobs = [
        {**_job(race, entry), "id": -1 - number, "kind": "calibrate", "seed": 0, "seconds": seconds}
        for number, entry in enumerate([*entries, *(entries[-1:] * padding)])
    ]
    outcomes = run_jobs(
        jobs, lambda job, event: race.listen({**event, "contender": job["contender"], "phase": "calibrate"})
    )
    return [outcomes[job["id"]] for job in jobs[: len(entries)]]


def sweep(race: Race, run_jobs: RunJobs) -> None:
    """Choose each contender's learning rate."""
    state = race.state
    waiting = [entry for entry in race.running if entry.name not in state.chosen]
    if len(state.rates) > 1 and waiting and not state.sweep:
        _plan_sweep(race)
    if len(state.rates) == 1:
        state.chosen = {entry.name: state.rates[0] for entry in race.running}
    elif waiting:
        name = {entry.name: entry for entry in race.running}
        wanted = [(n, "sweep", 0, lr, state.sweep[n]) for lr in state.rates for n in name]
        trials = _trials(race, wanted)
        count = race.source.counts["validation"]
        if state.whole_sweep:
            points, items = state.items["points"], state.items["curve"]
        else:
            points, items = 1, plan.items(state.sweep, state.batch_size, plan.SWEEP_VALIDATION, count, least=64)
        more = {"points": points, "items": {"curve": items}, "keep": False, "samples": False}
        race.listen({"event": "phase", "phase": "sweep", "runs": len(trials)})
        _train(race, run_jobs, trials, more)
        _choose(race)
        note(race, _sweep_words(race, items, count))
    save_state(race)


def _plan_sweep(race: Race) -> None:
    state = race.state
    if state.whole_sweep:
        _plan_main(race)
        state.sweep = dict(state.main)
    elif race.budget.unit == "seconds":
        for rates in (state.rates, state.rates[1:]):
            runs = len(race.running) * len(rates)
            seconds = plan.run_seconds(plan.SHARE * left(race), runs, state.workers)
            state.sweep = {n: plan.timed_steps(seconds, plan.Speed(**s)) for n, s in state.speeds.items()}
            state.rates = list(rates)
            if len(rates) <= 2 or min(state.sweep.values()) >= plan.FEW_STEPS:
                break
    else:
        state.sweep = plan.sweep_steps(_main_steps(race), len(state.rates), state.seeds)
    if min(state.sweep.values()) < plan.LEAST_STEPS:
        note(
            race,
            f"The budget is too small for a sweep of learning rates (its runs would have "
            f"{min(state.sweep.values())} steps): everyone trains at {plan.USUAL_RATE:g}.",
        )
        state.rates, state.sweep = [plan.USUAL_RATE], {}
    save_state(race)


def _choose(race: Race) -> None:
    """The rate with the best validation score of each contender; one without a score is taken out."""
    metric, sign = race.source.metric, 1 if race.source.lower_is_better else -1
    loaded = store.load_race(race.conn, race.id)
    for contender in loaded.contenders:
        if contender.error:
            continue
        done = [t for t in contender.trials if t.phase == "sweep" and t.status == "done"]
        scored = [t for t in done if t.scores.get("validation", {}).get(metric) is not None]
        if not scored:
            causes = "; ".join(dict.fromkeys(t.error or t.status for t in contender.trials if t.phase == "sweep"))
            drop(race, contender.name, f"no learning rate of its sweep gave a score: {causes}")
            continue
        best = _lowest_near_best(scored, metric, sign)
        race.state.chosen[contender.name] = best.lr
        race.listen({"event": "chosen", "contender": contender.name, "lr": best.lr})
        timed = [t for t in done if t.steps >= 5]
        if timed and contender.name in race.state.speeds:
            # The sweep's own steps tell better than calibration what a step of the main runs will take.
            race.state.speeds[contender.name]["step"] = sum(t.seconds for t in timed) / sum(t.steps for t in timed)


def _lowest_near_best(trials: list[store.Trial], metric: str, sign: int) -> store.Trial:
    """The run with the lowest rate among those within NEAR of the best: short runs flatter high rates."""
    scores = [sign * t.scores["validation"][metric] for t in trials]
    allowed = min(scores) + NEAR * abs(min(scores))
    return min((t for t, score in zip(trials, scores, strict=True) if score <= allowed), key=lambda t: t.lr)


def _sweep_words(race: Race, items: int, count: int) -> str:
    state = race.state
    rates = ", ".join(f"{lr:g}" for lr in state.rates)
    low, high = min(state.sweep.values()), max(state.sweep.values())
    steps = f"{low}" if low == high else f"{low} to {high}"
    chosen = ", ".join(f"{name} {lr:g}" for name, lr in state.chosen.items())
    edge = [name for name, lr in state.chosen.items() if lr in (min(state.rates), max(state.rates))]
    at_edge = f" The rate of {', '.join(edge)} lies at the end of those tried." if edge and len(state.rates) > 1 else ""
    share = f"a short run of {steps} steps, {plan.SHARE:.0%} of its training in all"
    after = f"a whole run of {steps} steps with seed 0, which stands for that seed" if state.whole_sweep else share
    return (
        f"Each contender's learning rate was the lowest within {NEAR:.0%} of the best of {rates}, on {items:,} of "
        f"{count:,} validation items after {after}: {chosen}.{at_edge}"
    )


def main_runs(race: Race, run_jobs: RunJobs) -> None:
    """Train every contender with every seed, and score the test part."""
    state = race.state
    if not race.running:
        return
    if not state.main:
        _plan_main(race)
    wanted = [
        (entry.name, "main", seed, state.chosen[entry.name], state.main[entry.name])
        for seed in range(state.seeds)
        for entry in race.running
    ]
    trials = _trials(race, wanted)
    points, items = state.items["points"], {k: v for k, v in state.items.items() if k != "points"}
    race.listen({"event": "phase", "phase": "main", "runs": len(trials)})
    _train(race, run_jobs, trials, {"points": points, "items": items, "keep": True, "samples": state.samples})
    count = race.source.counts
    for split in ("validation", "test"):
        if items[split] < count[split]:
            part = f"{items[split]:,} of its {count[split]:,} items, spread evenly, the same for all"
            note(race, f"Scores on {split} are over {part}.")
    save_state(race)


def _plan_main(race: Race) -> None:
    state = race.state
    state.main = _main_steps(race)
    state.items = plan.scored_items(state.main, state.batch_size, race.source, state.points)
    save_state(race)


def _main_steps(race: Race) -> dict[str, int]:
    state, seconds = race.state, 0.0
    if race.budget.unit == "seconds":
        runs = len(race.running) * state.seeds
        samples = SAMPLE_SECONDS if race.source.head == "lm" else 0.0
        seconds = plan.run_seconds(left(race), runs, state.workers) - samples
    speeds = {name: plan.Speed(**speed) for name, speed in state.speeds.items()}
    return plan.main_steps(
        race.budget, race.running, speeds, seconds=seconds, batch=state.batch_size, source=race.source
    )


def left(race: Race) -> float:
    """Seconds that a time budget leaves for training."""
    return race.budget.amount - race.spent - measuring_seconds(race)


def measuring_seconds(race: Race) -> float:
    """What a time budget keeps for measuring the costs of all contenders."""
    if not race.state.measure or race.budget.unit != "seconds":
        return 0.0
    wanted = min(20.0 * len(race.running), max(6.0 * len(race.running), plan.MEASURING * race.budget.amount))
    return min(wanted, 0.25 * race.budget.amount)


def measure(race: Race, engine: Callable[[], AbstractContextManager[RunJobs]], threads: int) -> None:
    """Measure each contender's costs in a fresh process of its own, of so many threads."""
    if not race.state.measure:
        return
    loaded = store.load_race(race.conn, race.id)
    ended = {t.contender for c in loaded.contenders for t in c.trials if t.phase == "main" and t.status == "done"}
    waiting = [e for e in race.running if e.name in ended and e.name not in race.state.measured]
    race.listen({"event": "phase", "phase": "measure", "runs": len(waiting)})
    if waiting:
        note(race, f"Costs were measured with {threads} thread{'s' if threads > 1 else ''}.")
    for number, entry in enumerate(waiting):
        seconds = MEASURE_SECONDS
        if race.budget.unit == "seconds":
            left = race.budget.amount - race.spent
            seconds = max(1.0, left / (len(waiting) - number) - START_SECONDS)
        job = {**_job(race, entry), "id": -1, "kind": "measure", "seed": 0, "seconds": seconds}
        race.listen({"event": "measuring", "contender": entry.name})
        with engine() as run_jobs:
            outcome = run_jobs([job], lambda job, event: None)[-1]
        if outcome["event"] != "done":
            note(race, f"The costs of {entry.name} could not be measured: {outcome.get('error')}.")
            continue
        for row in outcome["rows"]:
            store.add_cost(race.conn, race.id, entry.name, **row)
        for text in outcome["notes"]:
            note(race, f"{entry.name}: {text}.")
        race.state.measured.append(entry.name)
        race.listen({"event": "measured", "contender": entry.name, "rows": outcome["rows"]})
        save_state(race)


def _trials(race: Race, wanted: list[tuple[str, str, int, float, int]]) -> list[dict[str, Any]]:
    """The store's trials (contender, phase, seed, lr, steps) that are still to be run, written there if they aren't."""
    loaded = store.load_race(race.conn, race.id)
    there = {(t.contender, t.phase, t.seed, t.lr): t for c in loaded.contenders for t in c.trials}
    folders = {entry.name: entry.folder for entry in race.entries}
    jobs = []
    for name, phase, seed, lr, steps in wanted:
        old = there.get((name, phase, seed, lr))
        if old is not None and old.status in ("done", "diverged", "failed"):
            continue
        swept = phase == "sweep" or (race.state.whole_sweep and len(race.state.rates) > 1 and seed == 0)
        part = f"sweep-{lr:g}" if swept else f"seed{seed}"
        folder = race.folder / folders[name] / part
        batch = race.state.batch_size
        trial = old.id if old else store.add_trial(
            race.conn, race.id, name, phase=phase, seed=seed, lr=lr, steps=steps, batch_size=batch, folder=str(folder)
        )  # fmt: skip
        attempts = old.attempts if old else 0
        job = {"id": trial, "contender": name, "phase": phase, "seed": seed, "lr": lr, "steps": steps}
        jobs.append({**job, "folder": str(folder), "attempts": attempts})
    return jobs


def _train(race: Race, run_jobs: RunJobs, trials: list[dict[str, Any]], more: dict[str, Any]) -> None:
    by_name = {entry.name: entry for entry in race.entries}
    jobs = [{**_job(race, by_name[t["contender"]]), "kind": "train", **more, **t} for t in trials]
    for job in jobs:
        job["samples"] = job["samples"] and job["seed"] == 0
    report = recorder(race.conn, race.id, race.listen)

    def report_and_save(job: dict[str, Any], event: dict[str, Any]) -> None:
        report(job, event)
        if event["event"] in ("done", "diverged", "failed"):
            save_state(race)  # the time spent so far

    if jobs:
        run_jobs(jobs, report_and_save)


def _job(race: Race, entry: Entry) -> dict[str, Any]:
    """What every job of a contender says."""
    return {
        "contender": entry.name,
        "source": race.state.source,
        "expression": entry.expression,
        "files": sorted(entry.files.values()),
        "batch_size": race.state.batch_size,
        "device": race.state.device,
        "checkpoint_every": race.state.checkpoint_every,
        "enough": race.state.enough,
    }
