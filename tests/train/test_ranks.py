from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import LENGTH, VOCAB, TinySource

from formwright.contract import Layout
from formwright.train.device import Ranks, choose_precision, scored, shard

HERE = Path(__file__).parent


def launch(output: Path, *launcher: str) -> dict:
    paths = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(HERE / "rank_training.py"), str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


def test_two_processes_train_to_the_loss_curve_of_one(tmp_path):
    one = launch(tmp_path / "one.json")
    two = launch(tmp_path / "two.json", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert (one["world"], one["ranks"], two["world"], two["ranks"]) == (1, 1, 2, 2)
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), rtol=2e-4, atol=1e-5)
    assert one["losses"][0][0] > 2 * one["losses"][-1][0]
    assert two["tokens"] == one["tokens"] and two["equal"] and one["equal"]
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-3)
    assert two["again"] == two["scores"] and two["test"] == one["test"] == ["accuracy", "loss"]


def test_shards_are_the_batch():
    batch = TinySource().batch("train", 0, 7)
    batch = replace(batch, layout=Layout((LENGTH,), lengths=torch.arange(1, 8)))
    parts = [shard(batch, Ranks(torch.device("cpu"), rank, 3)) for rank in range(3)]
    assert torch.equal(torch.cat([p.inputs for p in parts]), batch.inputs)
    assert torch.equal(torch.cat([p.layout.lengths for p in parts]), batch.layout.lengths)
    assert [p.items for p in parts] == [2, 2, 3] and sum(p.tokens for p in parts) == batch.tokens
    assert sum(scored(p) for p in parts) == scored(batch) == int((batch.targets != -100).sum())
    assert shard(TinySource().batch("train", 0, 2), Ranks(torch.device("cpu"), 0, 3)) is None


def test_packed_batches_are_refused_among_processes():
    batch = TinySource().batch("train", 0, 1)
    packed = replace(batch, layout=Layout((LENGTH,), offsets=torch.tensor([0, 5, LENGTH])))
    assert shard(packed, Ranks(torch.device("cpu"))) is packed
    with pytest.raises(ValueError, match="packed batch"):
        shard(packed, Ranks(torch.device("cpu"), 0, 2))


def test_scored_counts_reals_too():
    batch = TinySource().batch("train", 0, 3)
    assert scored(replace(batch, targets=torch.tensor([[1.0, torch.nan], [2.0, 3.0]]))) == 3
    assert VOCAB > 3 and choose_precision("auto", torch.device("cpu")) == "float32"
