"""The cost of mixers side by side: time, throughput, memory, multiply-adds, bytes, state, over lengths and batches; how
they grow; from which length on they are cheaper than attention.

A bare mixer is measured alone (cost_contenders.py), an expression as it is; all are as wide as makes them equal to
attention in parameters (`match`). The baseline is attention with its fused kernel. Of one kind of work, length and
batch all contenders are timed in turn in this process; every row says on what machine, with which versions, under which
load.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from formwright.bench.cost_contenders import models
from formwright.bench.growth import crossing, growth
from formwright.bench.measure import LEAST, WARM_UP, in_turn, spread
from formwright.bench.memory import peak_memory
from formwright.bench.traffic import counts
from formwright.bench.work import KINDS, ROOM, ready, work
from formwright.contract import parameter_count, state_bytes
from formwright.race.contenders import RaceProblem
from formwright.race.machine import describe

LENGTHS = (256, 512, 1024, 2048, 4096)
MATCHES = ("params", "state", "macs", "width")
SEEN = 2**20  # bytes below which a peak of memory means nothing: the kernel counts in batches
CALLS = WARM_UP + LEAST + 3  # of one work: warm-up, rounds, memory, counting


@dataclass
class Costs:
    """What was measured.

    contenders  {name, text, expression, dim, params, causal, baseline, claimed, error}: `baseline` is the name of the
                attention that it is held against, `claimed` {"time", "state"} as its card says
    rows        {contender, kind, length, batch, milliseconds, low, high, tokens_per_second, peak_bytes, state_bytes,
                macs, bytes, intensity, params, dim, load} and the machine's stamp
    grown       {contender, kind, batch, milliseconds, peak_bytes, macs, state_bytes}: fitted exponents in N, or None
    efficiency  {contender, kind, batch, of ("milliseconds" or "peak_bytes"), length, earliest, latest}: Crossings, the
                last two by the quartiles
    """

    contenders: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    grown: list[dict[str, Any]] = field(default_factory=list)
    efficiency: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def cost_suite(
    mixers: Sequence[str],
    *,
    lengths: Sequence[int] = LENGTHS,
    batches: Sequence[int] = (1,),
    kinds: Sequence[str] = KINDS,
    match: str = "params",
    size: str | int | None = None,
    dim: int = 128,
    depth: int = 2,
    repeats: int = 7,
    seconds: float = 240.0,
    longest_call: float = 4.0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> Costs:
    """Measure `mixers` (bare ones, expressions, file.py:Class) beside attention.

    match    "params", "state" (decode state after the longest length), "macs", or "width": all at `dim`
    size     parameters of all; without it what attention of width `dim` has
    seconds  about how long it may take: longer lengths are left out, with a note, once they have passed;
             `longest_call` is the longest that one call may be expected to take
    on_row   is given each row as soon as it is measured

    A contender that can't be built, or can't do a kind of work, is told of in `contenders` or `notes`. Raises
    RaceProblem or ValueError for options that make no sense."""
    lengths, batches = _whole("lengths", lengths), _whole("batches", batches)
    if match not in MATCHES:
        raise RaceProblem(f"match is one of {', '.join(MATCHES)}, not {match!r}")
    for kind in kinds:
        if kind not in KINDS:
            raise RaceProblem(f"kinds are among {', '.join(KINDS)}, not {kind!r}")
    options = {"lengths": lengths, "batches": batches, "kinds": list(kinds), "match": match, "size": size, "dim": dim}
    costs = Costs(machine=describe(), options={**options, "depth": depth, "dtype": str(dtype).removeprefix("torch.")})
    made, costs.contenders, costs.notes = models(
        list(mixers), longest=max(lengths), match=match, size=size, dim=dim, depth=depth, device=device, dtype=dtype
    )
    stamp = _stamp(costs.machine, device, dtype)
    began = time.perf_counter()
    gone = {(n, kind, b) for n, m in made.items() if not m.causal for kind in ("prefill", "decode") for b in batches}
    for number, (length, kind, batch) in enumerate(todo := list(itertools.product(lengths, kinds, batches))):
        left = seconds - (time.perf_counter() - began)
        if left < 0:
            costs.notes.append(f"The time was up at {length} tokens ({kind}, batch {batch}): what follows is left out.")
            break
        late = _too_long(costs, [n for n in made if (n, kind, batch) not in gone], kind, length, batch, longest_call)
        gone |= {(name, kind, batch) for name in late}
        here = {n: m for n, m in made.items() if (n, kind, batch) not in gone}
        for row in _measured(costs, here, kind, length, batch, repeats, left / (len(todo) - number), gone):
            costs.rows.append({**row, **stamp})
            if on_row is not None:
                on_row(costs.rows[-1])
    costs.grown, costs.efficiency = _grown(costs), _efficiency(costs)
    busiest = max((row["load"] or 0.0 for row in costs.rows), default=0.0)
    if busiest > costs.machine["cores"] + 1:
        costs.notes.append(
            f"The machine had other work (load {busiest:.1f} on {costs.machine['cores']} cores): counts are right, but "
            "times say little; measure again when it has none."
        )
    return costs


def _whole(name: str, values: Sequence[int]) -> list[int]:
    found = sorted(set(values))
    if not found or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in found):
        raise RaceProblem(f"{name} are whole numbers of at least 1, not {list(values)!r}")
    return found


def _stamp(machine: dict[str, Any], device: str | torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What each row says of the machine."""
    versions = {name: machine["versions"][name] for name in ("formwright", "torch", "python")}
    kind = torch.device(device).type
    place = machine["cpu"] if kind == "cpu" else machine["device"]
    return {
        "device": place, "threads": torch.get_num_threads(), "dtype": str(dtype).removeprefix("torch."),
        "os": machine["os"], **versions,
    }  # fmt: skip


def _too_long(costs: Costs, names: list[str], kind: str, length: int, batch: int, longest_call: float) -> list[str]:
    """The contenders whose next call would take too long, or too much memory, if it grew with the square."""
    late = []
    for name in names:
        before = [
            row
            for row in costs.rows
            if (row["contender"], row["kind"], row["batch"]) == (name, kind, batch) and row["length"] < length
        ]
        if not before or kind == "decode":
            continue
        last = before[-1]
        times = (length / last["length"]) ** 2
        if last["milliseconds"] * times > 1e3 * longest_call:
            late.append(name)
            costs.notes.append(f"{name}: {kind} at batch {batch} was measured up to {last['length']} tokens: time.")
        elif (last["peak_bytes"] or 0) * times > 0.6 * _free():
            late.append(name)
            costs.notes.append(f"{name}: {kind} at batch {batch} was measured up to {last['length']} tokens: memory.")
    return late


def _free() -> float:
    """Bytes of memory that are free."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _measured(
    costs: Costs, models: dict[str, nn.Module], kind: str, length: int, batch: int, repeats: int, seconds: float,
    gone: set,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of one kind of work, length and batch, all contenders timed in turn."""
    rows = []
    with ready(list(models.values()), kind):
        works = {}
        for name, model in models.items():
            try:
                works[name] = work(model, kind, length, batch)
                works[name].call()  # what can't be done is told now
            except (ValueError, NotImplementedError) as reason:
                gone.add((name, kind, batch))
                costs.notes.append(
                    f"{name}: no {kind} from {length} tokens on: {str(reason).strip().split(chr(10))[0]}"
                )
                works.pop(name, None)
        if not works:
            return []
        device = next(next(iter(models.values())).parameters()).device
        calls = {name: w.call for name, w in works.items()}
        before = {name: w.before for name, w in works.items() if w.before}
        rounds = min(repeats, ROOM - CALLS)
        times = in_turn(calls, device=device, repeats=rounds, seconds=seconds / 2, before=before)
        for name, w in works.items():
            first = w.before or (lambda: None)
            first()
            peak = peak_memory(w.call, device, warm_up=False)
            first()
            done = counts(w.call)
            # A state that is decoded with has room for the tokens of measuring: the formula leaves it out.
            held = models[name].cost((length,), batch).state_bytes if kind == "decode" else None
            held = state_bytes(w.state()) if kind == "prefill" else held
            figures = spread(times[name])
            tokens = batch * (1 if kind == "decode" else length)
            row = {"contender": name, "kind": kind, "length": length, "batch": batch, **figures}
            row |= {
                "tokens_per_second": 1e3 * tokens / figures["milliseconds"],
                "peak_bytes": peak,
                "state_bytes": held,
            }
            row |= {"macs": done.macs, "bytes": done.bytes, "intensity": done.intensity}
            row |= {"params": parameter_count(models[name]), "dim": models[name].dim}
            rows.append({**row, "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None})
            works[name] = w = None  # its state is given up
    return rows


def curve(costs: Costs, contender: str, kind: str, batch: int, figure: str) -> dict[int, float]:
    """length -> a figure of the rows of a contender. Peaks of memory too small to mean something are left out."""
    least = SEEN if figure == "peak_bytes" else 0
    return {
        row["length"]: row[figure]
        for row in costs.rows
        if (row["contender"], row["kind"], row["batch"]) == (contender, kind, batch) and (row[figure] or 0) > least
    }


def _groups(costs: Costs) -> list[tuple[str, str, int]]:
    return list(dict.fromkeys((row["contender"], row["kind"], row["batch"]) for row in costs.rows))


def _grown(costs: Costs) -> list[dict[str, Any]]:
    figures = ("milliseconds", "peak_bytes", "macs", "state_bytes")
    return [
        {
            "contender": name,
            "kind": kind,
            "batch": batch,
            **{figure: growth(c) if (c := curve(costs, name, kind, batch, figure)) else None for figure in figures},
        }
        for name, kind, batch in _groups(costs)
    ]


def _efficiency(costs: Costs) -> list[dict[str, Any]]:
    baseline = {c["name"]: c["baseline"] for c in costs.contenders}
    rows = []
    for name, kind, batch in _groups(costs):
        other = baseline[name]
        if name == other or kind == "decode":
            continue
        for figure, low, high in (("milliseconds", "low", "high"), ("peak_bytes", "peak_bytes", "peak_bytes")):
            sides = {"length": (figure, figure), "earliest": (low, high), "latest": (high, low)}
            found = {
                word: crossing(curve(costs, name, kind, batch, mine), curve(costs, other, kind, batch, its))
                for word, (mine, its) in sides.items()
            }
            if found["length"] is not None:
                rows.append({"contender": name, "kind": kind, "batch": batch, "of": figure, **found})
    return rows
