from __future__ import annotations

import resource
import sys
import time

import pytest
import torch
from torch import Tensor, nn

from formwright.bench import measure, memory
from formwright.bench.formulas import cost_rows
from formwright.contract import Cost, Unsupported
from formwright.embeds.tokens import Tokens

MEGABYTE = 2**20


class TinyDecoder(nn.Module):
    """A running sum of embeddings and a cache of all of them, with what measuring uses of a real model."""

    def __init__(self, dim: int = 8):
        super().__init__()
        self.tokens, self.head = Tokens(dim, vocab=50), nn.Linear(dim, 50)
        self.dropout = nn.Dropout(0.5)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.head(self.tokens(inputs)[0].cumsum(1))

    def empty(self, batch: int, capacity: int | None = None):
        return torch.zeros(batch, capacity, 8), 0

    def extend(self, inputs: Tensor, state):
        cache, n = state
        self.modes.append((self.training, torch.is_grad_enabled()))
        cache[:, n : n + inputs.shape[1]] = self.tokens(inputs)[0]
        n += inputs.shape[1]
        return self.head(cache[:, :n].sum(1, keepdim=True)), (cache, n)

    def cost(self, shape, batch: int = 1) -> Cost:
        return Cost(macs=batch * shape[0] * 8 * 50, state_bytes=batch * shape[0] * 8 * 4)


COLUMNS = {
    "kind", "length", "batch", "milliseconds", "low", "high", "peak_bytes", "state_bytes", "macs", "load",
}  # fmt: skip


def test_forward_row():
    model = TinyDecoder()
    row = measure.forward_cost(model, 64, batch=3)
    assert set(row) == COLUMNS and (row["kind"], row["length"], row["batch"]) == ("forward", 64, 3)
    assert 0 < row["low"] <= row["milliseconds"] <= row["high"]
    assert row["macs"] == 3 * 64 * 8 * 50 == measure.counted_macs(lambda: model(torch.zeros(3, 64, dtype=torch.long)))
    assert row["state_bytes"] == 3 * 64 * 8 * 4
    assert set(model.modes[:-1]) == {(False, False)} and model.training
    assert len(model.modes) == 2 + 7 + 1 + 1  # warm-up, rounds, memory, this test's count


def test_a_model_is_measured_over_tokens_of_its_own_vocabulary():
    row = cost_rows("tokens(dim=8, vocab=5) >> pooling >> lm", [16])[0]
    assert row["macs"] == row["counted_macs"] > 0


def test_decode_and_prefill_rows():
    model = TinyDecoder()
    row = measure.decode_cost(model, 100, batch=2, tokens=5)
    assert set(row) == COLUMNS and (row["kind"], row["length"], row["batch"]) == ("decode", 100, 2)
    assert row["macs"] == 2 * 8 * 50 and row["state_bytes"] == 2 * (100 + 3 + 5 + 3) * 8 * 4
    assert 0 < row["low"] <= row["milliseconds"] <= row["high"]
    row = measure.prefill_cost(model, 100, batch=2)
    assert set(row) == COLUMNS and row["kind"] == "prefill"
    assert row["macs"] == 2 * 8 * 50 and row["state_bytes"] == 2 * 100 * 8 * 4
    assert set(model.modes) == {(False, False)} and model.training


def test_fused_attention_is_counted():
    q = torch.randn(1, 2, 32, 8)
    macs = measure.counted_macs(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True))
    assert macs == 2 * 2 * 32 * 32 * 8


def test_a_model_that_cannot_extend_says_so():
    model = TinyDecoder()

    def refuse(batch, capacity=None):
        raise Unsupported("dense", "extend", "it has no state to decode with")

    model.empty = refuse
    with pytest.raises(Unsupported, match="dense does not support extend"):
        measure.decode_cost(model, 10)
    assert model.training


def test_real_inputs_and_other_shapes():
    class Sum(nn.Linear):
        facts = {}

        def cost(self, shape, batch: int = 1) -> Cost:
            return Cost(macs=batch * shape[0] * 4 * 4)

    model = Sum(4, 4)
    assert measure.forward_cost(model, (7, 4), batch=2)["macs"] == 2 * 7 * 16
    row = measure.forward_cost(model, (1, 4), inputs=torch.randn(5, 3, 4))
    assert (row["length"], row["batch"], row["macs"]) == (3, 5, 5 * 3 * 16)
    assert measure.example_inputs(TinyDecoder(), 500).max() < 50


def test_calls_are_timed_in_turn_and_told_apart():
    order = []
    calls = {
        "fast": lambda: order.append("fast") or time.sleep(0.001),
        "slow": lambda: order.append("slow") or time.sleep(0.02),
    }
    times = measure.in_turn(calls, repeats=4)
    assert order == ["fast", "slow"] * (2 + 4) and [len(t) for t in times.values()] == [4, 4]
    assert measure.spread(times["slow"])["milliseconds"] >= 20 > measure.spread(times["fast"])["milliseconds"]
    assert len(measure.in_turn(calls, repeats=50, seconds=0.0)["slow"]) == 3
    assert measure.spread([0.001, 0.002, 0.003, 0.004, 0.005]) == {"milliseconds": 3, "low": 2, "high": 4}


@pytest.mark.skipif(sys.platform != "linux", reason="how glibc keeps freed memory")
def test_large_tensors_are_not_timed_by_the_clearing_of_pages():
    faults = []

    def large() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 * MEGABYTE)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    with memory._blocks_apart():
        large()
    if faults.pop() < 64 * MEGABYTE // resource.getpagesize():
        pytest.skip("the kernel gives larger pages than its usual ones, or the C library isn't glibc")
    measure.in_turn({"large": large}, repeats=30)
    assert max(faults[-10:]) < 1000  # the heap may have grown a few times before


def needs_high_water():
    return pytest.mark.skipif(not memory._reset_high_water(), reason="the kernel's high-water mark can't be set back")


@needs_high_water()
@pytest.mark.parametrize("megabytes", [4, 64])
def test_peak_memory_is_what_lives_at_once(megabytes):
    count = megabytes * MEGABYTE // 4
    one = memory.peak_memory(lambda: torch.ones(count).sum())
    two = memory.peak_memory(lambda: torch.ones(count).add(1).sum())
    then = memory.peak_memory(lambda: [torch.ones(count).sum() for _ in range(3)])
    assert one / MEGABYTE == pytest.approx(megabytes, abs=1.5)
    assert two / MEGABYTE == pytest.approx(2 * megabytes, abs=1.5)
    assert then / MEGABYTE == pytest.approx(megabytes, abs=1.5)


@needs_high_water()
def test_peak_memory_forgets_what_was_before_the_call():
    alive = torch.ones(32 * MEGABYTE // 4)
    torch.ones(256 * MEGABYTE // 4).sum()
    peak = memory.peak_memory(lambda: alive.mul(2).sum())
    assert peak / MEGABYTE == pytest.approx(32, abs=1.5)
    assert memory.peak_memory(lambda: None) < 1.5 * MEGABYTE


def test_without_the_high_water_mark_it_tells_only_new_peaks(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none" / "clear_refs")
    grown = 64 * MEGABYTE + max(0, memory._highest_ever() - memory._resident())
    peak = memory.peak_memory(lambda: torch.ones(grown // 4).sum(), warm_up=False)
    assert peak == pytest.approx(grown, abs=3 * MEGABYTE)
    assert memory.peak_memory(lambda: torch.ones(16 * MEGABYTE // 4).sum(), warm_up=False) is None
