"""A progress bar and a log, both listeners to the events of `fit`.

with bar("attention") as listen:
    fit(model, source, steps=200, on_event=listen)
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Listener = Callable[[dict[str, Any]], None]


def time_text(seconds: float) -> str:
    """12 s, 3:05 or 1:02:03."""
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minute:02d}:{second:02d}"
    return f"{minute}:{second:02d}" if minute else f"{second} s"


def rate_text(per_second: float) -> str:
    """870, 12.3k or 4.5M tokens a second."""
    for bound, unit in ((1e6, "M"), (1e3, "k")):
        if per_second >= bound:
            return f"{per_second / bound:.3g}{unit} tok/s"
    return f"{per_second:.3g} tok/s"


@contextlib.contextmanager
def bar(name: str = "training", console: Console | None = None) -> Iterator[Listener]:
    """A listener that shows steps, loss, rate and time left in one line of the terminal, and notes above it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[validation]}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as progress:
        short = name if len(name) <= 20 else name[:19] + "…"
        task = progress.add_task(short, total=None, loss="", validation="", rate="", left="")
        began_at: dict[str, float] = {}

        def listen(event: dict[str, Any]) -> None:
            match event["event"]:
                case "start":
                    progress.update(task, total=event["steps"], completed=event["step"])
                case "step":
                    began_at.setdefault("step", event["step"] - 1)
                    began_at.setdefault("seconds", event.get("seconds", 0.0))
                    progress.update(
                        task,
                        completed=event["step"],
                        total=event["steps"],
                        loss=f"loss {event['loss']:.3f}",
                        rate=rate_text(event["tokens_per_second"]),
                        left=f"{time_text(_seconds_left(event))} left",
                    )
                case "evaluation":
                    progress.update(task, validation=f"val {event['loss']:.3f}")
                case "note":
                    progress.console.print(f"{name}: {event['text']}", markup=False, highlight=False)
                case "failed":
                    progress.update(task, left="failed")
                    progress.console.print(f"{name}: {event['cause']}", markup=False, highlight=False)
                case "end":
                    progress.update(task, left="done")

        yield listen


def _seconds_left(event: dict[str, Any]) -> float:
    """The steps to come at the pace of those done."""
    return (event["steps"] - event["step"]) * event["seconds"] / event["step"]


@contextlib.contextmanager
def log(path: str | Path) -> Iterator[Listener]:
    """A listener that appends every event to a file, one JSON object a line. Where a run resumes, the lines of steps
    that it will do again are taken out first, so that the file reads as if the run had never stopped."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:

        def listen(event: dict[str, Any]) -> None:
            if event["event"] == "start":
                kept = [line for line in _lines(path) if line.get("step", 0) <= event["step"]]
                file.seek(0)
                file.truncate()
                for line in kept:
                    file.write(json.dumps(line) + "\n")
            file.write(json.dumps(event) + "\n")
            file.flush()

        yield listen


def _lines(path: Path) -> list[dict[str, Any]]:
    """The events in a log; a last line that a kill cut off is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


def both(*listeners: Listener) -> Listener:
    """One listener that hands each event to all of these."""

    def listen(event: dict[str, Any]) -> None:
        for listener in listeners:
            listener(event)

    return listen
