"""A program for test_ranks.py, run plainly or by torchrun: trains the tiny model and writes its losses.

python rank_training.py OUTPUT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from tiny_training import TinyModel, TinySource, weights

from formwright.train import evaluate, fit
from formwright.train.device import gather, start


def main() -> None:
    torch.set_num_threads(1)
    ranks, events = start("cpu"), []
    # Each process makes other weights: training must begin from the main process's.
    model = TinyModel(seed=ranks.rank, dropout=0.0)
    source = TinySource()
    folder = Path(sys.argv[1]).with_suffix(".run")
    options = {"steps": 30, "batch_size": 9, "accumulate": 2, "lr": 1e-2, "device": "cpu", "folder": folder}
    result = fit(model, source, **options, on_event=events.append)
    again = fit(TinyModel(seed=5 + ranks.rank), source, **options, resume=True)
    timed = fit(model, source, steps="0.2s", batch_size=8, device="cpu")
    test = evaluate(model, source, "test", 7, ranks=ranks)
    sums = gather([float(w.abs().double().sum()) for w in weights(model).values()], ranks)
    plans = gather(timed.steps, ranks)
    if ranks.main:
        losses = [(event["loss"], event["grad_norm"]) for event in events if event["event"] == "step"]
        world = int(os.environ.get("WORLD_SIZE", "1"))
        answer = {
            "world": world,
            "ranks": ranks.world,
            "losses": losses,
            "tokens": result.tokens,
            "scores": result.scores,
            "again": again.scores,
            "test": sorted(test),
            "equal": all(s == sums[0] for s in sums) and all(p == plans[0] for p in plans),
        }
        Path(sys.argv[1]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
    # The training is over and its answer written; torch's gloo threads now and then abort a process that is torn down.
    sys.stdout.flush()
    os._exit(0)
