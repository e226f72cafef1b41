"""A race as it goes, on the terminal: a bar for each run under way with loss, rate and time left, a line for each that
ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

PHASES = {
    "size": "fitting widths to equal time",
    "calibrate": "timing steps",
    "sweep": "learning rates",
    "main": "training",
    "measure": "measuring cost",
}


@contextlib.contextmanager
def watch(console: Any, begun: list[str] | None = None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A listener for `race`'s events that draws on a Rich console while the context lasts, and puts the race's id into
    `begun` once it has one."""
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[figures]}"),
        console=console,
        transient=True,
    )
    bars: dict[Any, Any] = {}

    def say(text: str, style: str | None = None) -> None:
        progress.console.print(escape(text), style=style, highlight=False, soft_wrap=True)

    def run_name(event: dict[str, Any]) -> str:
        name = str(event["contender"])
        name = name if len(name) <= 36 else name[:35] + "…"
        what = f"lr {event['lr']:.2g}" if event.get("phase") == "sweep" else f"seed {event.get('seed')}"
        return f"{name} {what}"

    def listen(event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "race":
            say(f"race {event['race']}", "bold")
            if begun is not None:
                begun.append(event["race"])
        elif kind == "contender":
            if event.get("error"):
                say(f"{event['contender']} is out: {event['error']}", "red")
            elif event.get("dim"):
                say(f"{event['contender']}: width {event['dim']}, {event['params']:,} parameters")
        elif kind in ("note", "retry", "chosen") and (event.get("text") or kind == "chosen"):
            if kind == "chosen":
                say(f"{event['contender']}: learning rate {event['lr']:.2g}", "dim")
            else:
                say(str(event["text"]), "dim")
        elif kind == "phase":
            runs = f", {event['runs']} runs" if event.get("runs") else ""
            say(f"{PHASES.get(event['phase'], event['phase'])}{runs}", "bold")
        elif kind == "measuring":
            say(f"measuring {event['contender']}", "dim")
        elif kind == "started" and event.get("trial") is not None:
            bars[event["trial"]] = progress.add_task(escape(run_name(event)), total=event.get("steps"), figures="")
        elif kind == "step" and event.get("trial") in bars:
            rate = event.get("tokens_per_second")
            figures = f"loss {event['loss']:.3f}" + (f", {rate:,.0f} tokens/s" if rate else "")
            progress.update(bars[event["trial"]], completed=event["step"], total=event["steps"], figures=figures)
        elif kind in ("done", "diverged", "failed", "interrupted") and event.get("trial") is not None:
            bar = bars.pop(event["trial"], None)
            if bar is not None:
                progress.remove_task(bar)
            if kind == "done":
                if event.get("phase") == "main":
                    say(f"{run_name(event)} done", "green")
            else:
                reason = event.get("error") or event.get("cause")
                say(f"{run_name(event)} {kind}" + (f": {reason}" if reason else ""), "red")

    with progress:
        yield listen
