"""The Ray engine: the same jobs as tasks of a Ray cluster, the same events back through a queue.

Every node must see the runs folder and the data under the same paths (a shared file system), and have formwright
installed. A task that dies or raises is tried once more, going on from its checkpoint; then it is reported.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

from formwright.race.contenders import RaceProblem
from formwright.race.local import ATTEMPTS, STOP_SECONDS, Event, Job, Report, RunJobs, ctrl_c
from formwright.race.trial import FINAL


@contextlib.contextmanager
def ray_engine(workers: int, threads: int, *, address: str | None = None, gpus: int = 0) -> Iterator[RunJobs]:
    """A function like that of `local.local_engine`, on the Ray cluster at `address`, or on a Ray started here.

    Raises RaceProblem where Ray is not installed or can't be reached."""
    try:
        import ray
        from ray.util.queue import Queue
    except ImportError:
        raise RaceProblem("the ray engine needs Ray: pip install 'formwright[ray]'") from None
    # Ray tells a task's number of threads to OpenMP by its num_cpus; our own count is set in the task.
    mine = not ray.is_initialized()
    if mine:
        _check_address(address)
        local = {} if address else {"num_cpus": workers * threads, "include_dashboard": False}
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="error", **local)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise RaceProblem(f"no Ray at {address or 'this machine'}: {error}") from error
    events = Queue(actor_options={"num_cpus": 0})
    task = ray.remote(num_cpus=threads, num_gpus=1 if gpus else 0, max_retries=0)(_work)

    def run_jobs(jobs: list[Job], report: Report) -> dict[int, Event]:
        waiting, attempts = collections.deque(jobs), collections.Counter()
        by_id = {job["id"]: job for job in jobs}
        running: dict[int, Any] = {}
        outcomes: dict[int, Event] = {}

        def end(job: Job, event: Event) -> None:
            running.pop(job["id"], None)
            if event["event"] == "failed" and attempts[job["id"]] < ATTEMPTS:
                report(job, {"event": "retry", "error": event["error"]})
                waiting.appendleft(job)
            else:
                outcomes[job["id"]] = event
                report(job, event)

        def drain(seconds: float) -> None:
            """Take in the events there are, after at most so long."""
            for event in _batch(events, seconds):
                job = by_id.get(event["job"])
                if job is None or event["attempt"] != attempts[job["id"]] or job["id"] not in running:
                    continue
                if event["event"] in FINAL:
                    end(job, event)
                else:
                    report(job, event)

        with ctrl_c() as stop:
            while len(outcomes) < len(jobs):
                if stop.is_set():
                    waiting.clear()
                    for reference in running.values():
                        ray.cancel(reference, force=False)
                    ray.wait(
                        list(running.values()), num_returns=len(running), timeout=STOP_SECONDS
                    ) if running else None
                    drain(0.5)
                    raise KeyboardInterrupt
                while waiting and len(running) < workers:
                    job = waiting.popleft()
                    attempts[job["id"]] += 1
                    attempt = attempts[job["id"]]
                    running[job["id"]] = task.remote(job, attempt, threads, events)
                    report(job, {"event": "started", "pid": None, "attempt": attempt})
                drain(0.3)
                ended, _ = ray.wait(list(running.values()), timeout=0) if running else ([], [])
                if not ended:
                    continue
                drain(0.3)
                for number, reference in list(running.items()):
                    if reference in ended:
                        end(by_id[number], {"event": "failed", "error": _cause(ray, reference)})
            if stop.is_set():
                raise KeyboardInterrupt
        return outcomes

    try:
        yield run_jobs
    finally:
        events.shutdown(force=True)
        if mine:
            ray.shutdown()


def _check_address(address: str | None) -> None:
    """Raise RaceProblem where nobody answers at host:port; Ray itself would try for minutes."""
    match = re.fullmatch(r"(?:ray://)?([\w.-]+):(\d+)", address or "")
    if match is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise RaceProblem(f"no Ray at {address}: {error}; start one there (ray start --head)") from None


def _work(job: Job, attempt: int, threads: int, events: Any) -> None:
    import torch

    from formwright.race.trial import run_job

    torch.set_num_threads(threads)
    run_job(job, lambda event: events.put({**_plain(event), "job": job["id"], "attempt": attempt}), {})


def _plain(value: Any) -> Any:
    """Python's own numbers, so that the driver needs no torch to read them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def _batch(events: Any, seconds: float) -> list[Event]:
    from ray.util.queue import Empty

    try:
        first = events.get(timeout=seconds)
    except Empty:
        return []
    return [first, *events.get_nowait_batch(events.qsize())]


def _cause(ray: Any, reference: Any) -> str:
    """Why a task ended without a last event, in words."""
    try:
        ray.get(reference, timeout=5)
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"the Ray task died: {type(error).__name__}: {lines[0] if lines else ''}"
    return "the Ray task ended without a result"
