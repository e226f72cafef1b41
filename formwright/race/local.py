"""The local engine: worker processes on this machine, the cores divided among them.

A worker that dies, or whose job raises, is replaced, and the job is tried once more in a new process, going on from its
checkpoint; the second time it is reported with its cause. On Ctrl-C the workers write a checkpoint and stop.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from formwright.race.trial import FINAL

Job = dict[str, Any]
Event = dict[str, Any]
Report = Callable[[Job, Event], None]
RunJobs = Callable[[list[Job], Report], dict[int, Event]]

ATTEMPTS = 2
STOP_SECONDS = 60.0  # how long workers may take to write their checkpoints


@dataclass(eq=False)
class Worker:
    """A process, the job it is at, and the last lines it wrote to standard error."""

    process: subprocess.Popen
    job: Job | None = None
    tail: collections.deque = field(default_factory=lambda: collections.deque(maxlen=20))
    listener: threading.Thread | None = None


@contextlib.contextmanager
def local_engine(workers: int, threads: int, *, gpus: int = 0) -> Iterator[RunJobs]:
    """A function (jobs, report) -> final event of each job by its id, which works on `workers` jobs at a time and calls
    report(job, event) for each event, in this thread. Leaving the context ends the processes.

    The function raises KeyboardInterrupt after Ctrl-C, once the workers have written their checkpoints."""
    inbox: queue.Queue[tuple[Worker, Event | None]] = queue.Queue()
    slots: list[Worker | None] = [None] * workers

    def run_jobs(jobs: list[Job], report: Report) -> dict[int, Event]:
        waiting, attempts = collections.deque(jobs), collections.Counter()
        outcomes: dict[int, Event] = {}
        with ctrl_c() as stop:
            deadline = None
            while len(outcomes) < len(jobs):
                if stop.is_set() and deadline is None:
                    deadline = time.monotonic() + STOP_SECONDS
                    waiting.clear()
                    for worker in filter(None, slots):
                        if worker.job is not None:
                            _send(worker, "stop")
                busy = [w for w in slots if w is not None and w.job is not None]
                if deadline is not None and (not busy or time.monotonic() > deadline):
                    raise KeyboardInterrupt
                for number, worker in enumerate(slots):
                    if waiting and (worker is None or worker.job is None):
                        slots[number] = worker = worker or _start(threads, inbox, number % gpus if gpus else None)
                        job = waiting.popleft()
                        attempts[job["id"]] += 1
                        worker.job = job
                        _send(worker, json.dumps(job))
                        pid, attempt = worker.process.pid, attempts[job["id"]]
                        report(job, {"event": "started", "pid": pid, "attempt": attempt})
                try:
                    worker, event = inbox.get(timeout=0.2)
                except queue.Empty:
                    continue
                job = worker.job
                if event is None:
                    slots[:] = [None if w is worker else w for w in slots]
                    if job is None:
                        continue
                    event = {"event": "failed", "error": _cause(worker)}
                elif job is None or event.get("job") != job["id"]:
                    continue
                if event["event"] in FINAL:
                    worker.job = None
                    if event["event"] == "failed":
                        slots[:] = [None if w is worker else w for w in slots]
                        _end(worker)
                        if attempts[job["id"]] < ATTEMPTS and not stop.is_set():
                            report(job, {"event": "retry", "error": event["error"]})
                            waiting.appendleft(job)
                            continue
                    outcomes[job["id"]] = event
                report(job, event)
            if stop.is_set():
                raise KeyboardInterrupt
        return outcomes

    try:
        yield run_jobs
    finally:
        for worker in filter(None, slots):
            _end(worker)


def _start(threads: int, inbox: queue.Queue, gpu: int | None) -> Worker:
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = {**os.environ, **counts}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    process = subprocess.Popen(
        [sys.executable, "-m", "formwright.race.worker", str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        start_new_session=True,  # a Ctrl-C in the terminal is for the racing process alone
    )
    worker = Worker(process)
    worker.listener = threading.Thread(target=lambda: worker.tail.extend(process.stderr), daemon=True)
    worker.listener.start()
    threading.Thread(target=_listen, args=(worker, inbox), daemon=True).start()
    return worker


def _listen(worker: Worker, inbox: queue.Queue) -> None:
    for line in worker.process.stdout:
        inbox.put((worker, json.loads(line)))
    inbox.put((worker, None))


def _send(worker: Worker, line: str) -> None:
    # A worker that has died is noticed by the end of its output.
    with contextlib.suppress(BrokenPipeError):
        worker.process.stdin.write(line + "\n")
        worker.process.stdin.flush()


def _cause(worker: Worker) -> str:
    """Why a worker has ended, in words."""
    code = worker.process.wait()
    worker.listener.join(timeout=2)
    last = next((line.strip() for line in reversed(worker.tail) if line.strip()), "")
    said = f"; its last words: {last}" if last else ""
    if code < 0:
        name = signal.Signals(-code).name
        memory = "; the system does so when memory runs out (fewer --workers need less)" if name == "SIGKILL" else ""
        return f"the worker was ended by {name}{memory}{said}"
    return f"the worker ended with exit code {code}{said}"


def _end(worker: Worker) -> None:
    with contextlib.suppress(BrokenPipeError):
        worker.process.stdin.close()
    try:
        worker.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()


@contextlib.contextmanager
def ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; a second Ctrl-C raises KeyboardInterrupt. A caller's own handler is left in charge."""
    stop = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield stop
        return

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
