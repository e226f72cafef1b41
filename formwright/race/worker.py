"""A worker process of a race on this machine: `python -m formwright.race.worker THREADS`.

Jobs come as lines of JSON on standard input, events go as lines of JSON to standard output; what parts print goes to
standard error. The line "stop" ends the job under way after a checkpoint. When standard input ends, the racing process
is gone, even by kill -9, and the worker ends at once, so that a resumed race never meets a run of its former self.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import Any


def main() -> None:
    """Work until standard input ends."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()

    import torch

    from formwright.race.trial import run_job

    torch.set_num_threads(int(sys.argv[1]))
    sources: dict[str, Any] = {}
    while True:
        try:
            job = jobs.get()
        except KeyboardInterrupt:
            continue  # a stop that came between two jobs

        def emit(event: dict[str, Any], job: dict[str, Any] = job) -> None:
            output.write(json.dumps({**event, "job": job["id"]}, default=_number) + "\n")
            output.flush()

        run_job(job, emit, sources)


def _listen(jobs: queue.Queue) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            jobs.put(json.loads(line))
    os._exit(0)


def _number(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's; anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


if __name__ == "__main__":
    main()
