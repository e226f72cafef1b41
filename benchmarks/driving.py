"""What the benchmarks share: rows compared, timed in turn, printed, and written as CSV and targets.

Each row is first compared with the definition (or its peer with ours) on a small size; what disagrees is not timed and
counts as failed. What is left is timed in turn in one process: one round of warm-up, then round after round, a call
taking part until it has had its time, three times at least; a call too slow for that has fewer timings, down to that of
its warm-up, and the table's column `timings` says so. Forward + backward takes the gradients of all inputs and weights.
Where a row asks for it, the C library keeps what is freed meanwhile (`keep_freed_memory`), for all calls alike; else
calls are timed as their users run them.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
import targets
import torch
from comparing import BOTH, STEP, TOLERANCE, Row

from formwright.bench.measure import LEAST, spread
from formwright.bench.memory import keep_freed_memory, peak_memory
from formwright.race import machine

COLUMNS = (
    "row", "work", "call", "tokens", "batch", "status", "milliseconds", "low", "high", "timings", "gflops",
    "share_of_matrix_product", "peak_bytes", "difference", "load", "reason",
)  # fmt: skip
Record = dict[str, Any]
STEPS, SETTLED = 40, 4  # rounds of one-token steps, which are short, and untimed ones before each


@dataclass(frozen=True)
class Study:
    """One benchmark: its rows, what its records say, and what is drawn of them.

    verdicts  the records -> targets beside what was found (targets.verdicts makes them)
    rates     adds GFLOP/s and the share of the floor's to one build's records of one work
    picture   draws the records to a path
    quick     whether a row is measured with --quick
    packages  whose versions the stamp names, where they are installed"""

    name: str
    about: str
    rows: tuple[Row, ...]
    verdicts: Callable[[list[Record]], list[Record]]
    rates: Callable[[list[Record], str], None] | None = None
    picture: Callable[[Path, list[Record], Record], None] | None = None
    quick: Callable[[str], bool] = lambda name: True
    packages: tuple[str, ...] = ()


def in_rounds(calls: dict[str, Callable], repeats: int, seconds: float, settled: int = 0) -> dict[str, list[float]]:
    """Seconds of each call, in turn: `repeats` rounds after one of warm-up, fewer (but three) for a call that has had
    `seconds`. A call whose warm-up alone took more than three times that has this one timing. settled: each is called
    so often before it is timed, or short calls would be told apart by what the call before left in the caches."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    warm = {name: _clock(call) for name, call in calls.items()}
    for done in range(max(repeats, LEAST)):
        for name, call in calls.items():
            if warm[name] > 3 * seconds or (done >= LEAST and sum(times[name]) > seconds):
                continue
            for _ in range(settled):
                call()
            times[name].append(_clock(call))
    return {name: found or [warm[name]] for name, found in times.items()}


def _clock(call: Callable) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(row: Row, options: argparse.Namespace, rates: Callable | None) -> Iterator[list[Record]]:
    """The records of one row, some at a time: compared, then timed at every length, and what was left out and why."""
    absent = {call: why for call, package in row.needs.items() if (why := peers.missing(package))}
    yield [_left_out(row, "", call, None, why) for call, why in absent.items()]
    if row.whole and absent:
        return
    gaps = row.gate()
    failed = {call for call, gap in gaps.items() if not gap <= TOLERANCE}
    for call in failed:
        why = f"it differs by {gaps[call]:.1e} from what it should be, allowed are {TOLERANCE:.0e}"
        yield [_left_out(row, "", call, None, why, status="failed", difference=gaps[call])]
    for work in row.works:
        lengths = _lengths(row, work, options)
        before: dict[str, tuple[int, float]] = {}
        for tokens in [lengths] if row.joint else lengths:
            built = {n: call for n, call in row.build(tokens, work).items() if _plain(n) not in failed}
            out = {n: why for n in built if (why := _too_long(row, work, n, tokens, before, options))}
            calls = {n: call for n, call in built.items() if n not in out}
            records = [_left_out(row, work, n, tokens, why) for n, why in out.items()]
            load = os.getloadavg()[0]
            steps = work == STEP
            keep_freed_memory(row.keep)
            times = in_rounds(calls, STEPS if steps else options.repeats, options.seconds, SETTLED if steps else 0)
            for name, found in times.items():
                before[name] = (_tokens(name, tokens), min(found))
                peak = peak_memory(calls[name], warm_up=False) if row.memory else None
                about = {"row": row.name, "work": work, "call": _plain(name), "tokens": _tokens(name, tokens)}
                about |= {"batch": row.batch, "status": "timed", "difference": gaps.get(_plain(name)), "load": load}
                records.append(about | _spread(found) | {"timings": len(found), "peak_bytes": peak})
            if rates:
                rates(records, work)
            yield records


def _spread(times: list[float]) -> dict[str, float]:
    """Median and quartiles; a single timing is all three."""
    return spread(times if len(times) > 1 else times * 2)


def _lengths(row: Row, work: str, options: argparse.Namespace) -> tuple[int, ...]:
    if not row.joint:
        return row.lengths or (*options.lengths, *(row.longer if options.long and work != BOTH else ()))
    if options.quick or (work == BOTH and not options.long and not row.memory):
        return tuple(n for n in row.joint if n <= 8192) or row.joint
    return row.joint


def _plain(call: str) -> str:
    return call.partition(" @")[0]


def _tokens(call: str, tokens: int | tuple[int, ...]) -> int:
    _, _, own = call.partition(" @")
    return int(own) if own else tokens


def _too_long(row: Row, work: str, call: str, tokens: Any, before: dict, options: argparse.Namespace) -> str | None:
    most = row.most.get((call, work))
    if most is not None and tokens > most:
        return f"not timed above {most} tokens: too slow or too much memory"
    if options.quick and (call, work) in row.slow:
        return "not timed with --quick: it takes minutes"
    if call in before and call not in row.floors:
        length, took = before[call]
        expected = took * tokens / length
        if expected > options.patience:
            return f"not timed: {took:.1f} s at {length} tokens, and --patience is {options.patience:g} s"
    return None


def _left_out(row: Row, work: str, call: str, tokens: Any, reason: str, status: str = "skipped", **more) -> Record:
    return {"row": row.name, "work": work, "call": call, "tokens": tokens, "status": status, "reason": reason, **more}


def show(records: list[Record]) -> None:
    """One line a record."""
    for r in records:
        where = f"{r['row']:22} {r['work']:17} {r['call']:24} {r['tokens'] if r['tokens'] else '':>6}"
        if r["status"] != "timed":
            print(f"{where} {r['status'].upper() if r['status'] == 'failed' else r['status']}: {r['reason']}")
            continue
        share = r.get("share_of_matrix_product")
        extra = f"  {share:4.0%} of a matrix product's rate" if share else ""
        extra += f"  {r['peak_bytes'] / 2**20:7.1f} MiB" if r.get("peak_bytes") is not None else ""
        print(f"{where} {r['milliseconds']:10.3f} ms  [{r['low']:.3f}, {r['high']:.3f}] of {r['timings']}{extra}")
    sys.stdout.flush()


def stamp(threads: int, packages: Iterable[str]) -> Record:
    """Machine, versions, time and load: the same on every line of the CSV."""
    about = machine.describe()
    rest = peers.versions(*packages)
    named = [f"{name} {about['versions'][name]}" for name in ("formwright", "python", "torch")]
    return {
        "machine": f"{about['cores']} cores of an {about['cpu']}",
        "threads": threads,
        "versions": ", ".join([*named, *([rest] if rest else [])]),
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def write_csv(path: Path, records: list[Record], columns: tuple[str, ...]) -> None:
    """The records as a table, in one move."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for record in records:
            table.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in record.items()})
    os.replace(part, path)


def run(study: Study) -> int:
    """The command line of a benchmark; 1 if a row failed, else 0."""
    rows = {row.name: row for row in study.rows}
    parser = argparse.ArgumentParser(description=study.about)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help=f"of {', '.join(rows)}, or a name's part before ':'")
    parser.add_argument("--lengths", nargs="+", type=int, help="tokens of the rows that take lengths")
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice if left out")
    parser.add_argument("--quick", action="store_true", help="a few minutes: shorter, fewer, less patient")
    parser.add_argument("--long", action="store_true", help="the longest inputs too")
    parser.add_argument("--patience", type=float, help="seconds a single call may be expected to take")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.lengths = sorted(options.lengths or ((512, 2048) if options.quick else (512, 2048, 8192)))
    options.patience = options.patience or (3.0 if options.quick else 60.0)
    options.seconds, options.repeats = (0.3, 5) if options.quick else (1.0, 7)
    if options.threads:
        torch.set_num_threads(options.threads)
    names = [n for n in rows if not options.rows or n in options.rows or n.partition(":")[0] in options.rows]
    unknown = set(options.rows or ()) - set(rows) - {n.partition(":")[0] for n in rows}
    if unknown or not names:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; the rows are {', '.join(rows)}")
    if options.quick and not options.rows:
        names = [n for n in names if study.quick(n)]
    marks = stamp(torch.get_num_threads(), study.packages)
    print(
        f"{marks['machine']}, {marks['threads']} threads; {marks['versions']}; load {os.getloadavg()[0]:.2f}",
        flush=True,
    )
    began, records = time.perf_counter(), []
    options.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        for found in measure(rows[name], options, study.rates):
            show(found)
            records += found
        # After every row: a run that is stopped leaves what it has.
        verdicts = study.verdicts(records)
        write_csv(options.out / f"{study.name}.csv", [r | marks for r in records], (*COLUMNS, *marks))
        write_csv(options.out / f"{study.name}-targets.csv", [v | marks for v in verdicts], (*targets.COLUMNS, *marks))
    if study.picture:
        study.picture(options.out / f"{study.name}.png", records, marks)
    print(f"\n{time.perf_counter() - began:.0f} s in all")
    targets.show(verdicts)
    failed = [r for r in records if r["status"] == "failed"]
    for r in failed:
        print(f"FAILED {r['row']}, {r['call']}: {r['reason']}")
    return 1 if failed else 0
