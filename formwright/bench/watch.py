"""A bench as it goes, on the terminal: one bar for the ability under way, a line for each that ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from formwright.bench.verdict import SIGNS

ENDED = ("done", "diverged", "failed")


@contextlib.contextmanager
def watch(console: Any, begun: list[str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A listener for `bench`'s events that draws on a Rich console while the context lasts, and puts the bench's id
    into `begun` once it has one."""
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[runs]}"),
        TextColumn("{task.fields[last]}"),
        console=console,
        transient=True,
    )
    names: list[str] = []
    at: dict[str, Any] = {}

    def say(text: str, style: str | None = None) -> None:
        progress.console.print(escape(text), style=style, highlight=False, soft_wrap=True)

    def close() -> None:
        if at:
            progress.remove_task(at["bar"])
            say(f"{at['place']}{at['verdicts']} [{time.monotonic() - at['began']:.0f} s]")
            at.clear()

    def listen(event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "bench":
            begun.append(event["bench"])
            names.extend(ability["name"] for ability in event["abilities"])
            say(f"bench {event['bench']}", "bold")
        elif kind == "ability":
            close()
            place = f"{names.index(event['ability']) + 1} of {len(names)} {event['ability']}"
            at.update(place=place, began=time.monotonic(), ended=0, runs=0, verdicts="")
            at["bar"] = progress.add_task(escape(place), total=None, runs="", last="")
        elif kind == "verdicts" and at:
            signs = [f"{SIGNS[word]} {mixer}" for mixer, word in event["verdicts"].items()]
            at["verdicts"] = f": {', '.join(signs)}"
        elif kind == "end" and "bench" in event:
            close()
        elif kind == "contender" and event.get("error"):
            say(f"  {event['contender']} is out: {event['error']}", "yellow")
        elif kind == "note" and "left out" in str(event.get("text")):
            say(f"  {event['text']}", "yellow")
        elif kind == "phase" and at:
            at["runs"] += event.get("runs") or 0
        elif kind in ENDED and event.get("trial") is not None and at:
            at["ended"] += 1
            what = f"lr {event['lr']:.2g}" if event.get("phase") == "sweep" else f"seed {event['seed']}"
            progress.update(at["bar"], last=escape(f"{event['contender']} {what} {kind}"))
        if at:
            progress.update(at["bar"], completed=at["ended"], total=at["runs"] or None)
            progress.update(at["bar"], runs=f"{at['ended']} of {at['runs']} runs" if at["runs"] else "sizing")

    with progress:
        yield listen
