"""A program for test_checkpoint.py: one run uninterrupted, and one killed (SIGKILL) again and again and resumed.

    python kill_training.py FOLDER KILLS

Each run is a forked child, so that torch is imported once. Prints one JSON line: how many kills met a run at work, and
whether weights, evaluations and curves are equal to the bit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny_training import TinyModel, TinySource

from formwright.train import checkpoint, fit

STEPS = 80


def train(folder: Path) -> None:
    fit(
        TinyModel(),
        TinySource(),
        steps=STEPS,
        batch_size=8,
        lr=1e-2,
        evaluate_every=20,
        keep_best=True,
        checkpoint_every=0.01,
        folder=folder,
        resume=True,
    )


def child(folder: Path, seconds: float | None) -> bool:
    """Train in a child, killed `seconds` after its first checkpoint, however fast the machine is; True if the kill met
    it alive."""
    before = checkpoint.latest(folder)
    pid = os.fork()
    if pid == 0:
        train(folder)
        os._exit(0)
    status = None
    while seconds is not None and status is None and checkpoint.latest(folder) == before:
        time.sleep(0.001)
        ended, found = os.waitpid(pid, os.WNOHANG)
        status = found if ended else None
    if seconds is not None and status is None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1] if status is None else status
    killed = os.WIFSIGNALED(status)
    assert killed or os.waitstatus_to_exitcode(status) == 0, "a child failed"
    return killed


def outcome(folder: Path) -> tuple[dict, dict]:
    tensors, state = checkpoint.read(checkpoint.latest(folder))
    fitted = state["fit"]
    for row in [*fitted["curve"], *fitted["evaluations"]]:
        row.pop("seconds")
    fitted.pop("seconds")
    return tensors, fitted


def main() -> None:
    torch.set_num_threads(1)
    root, kills = Path(sys.argv[1]), int(sys.argv[2])
    fit(TinyModel(), TinySource(), steps=2, folder=root / "imports")  # what is imported late, imported once
    child(root / "whole", None)
    generator, killed, places = random.Random(0), 0, set()
    for _ in range(kills):
        killed += child(root / "killed", generator.uniform(0, 0.02))
        found = checkpoint.latest(root / "killed")
        if found is not None:
            places.add(checkpoint.read(found)[1]["fit"]["step"])
    child(root / "killed", None)
    (a, fit_a), (b, fit_b) = outcome(root / "whole"), outcome(root / "killed")
    same = a.keys() == b.keys() and all(torch.equal(a[f][n], b[f][n]) for f in a for n in a[f])
    left = [path.name for path in (root / "killed").iterdir()]
    print(json.dumps({"killed": killed, "places": len(places), "same": same, "fit": fit_a == fit_b, "left": len(left)}))


if __name__ == "__main__":
    main()
