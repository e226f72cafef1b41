"""Linear recurrences measured: ops, scans, whole mixers and one-token steps, beside what else there is on this machine.

    python benchmarks/recurrence.py [--quick] [--rows ops mixer:kda ...] [--lengths 512 2048] [--threads 2] [--long]

How rows are compared and timed: driving.py. Writes a CSV of all times, one of the targets and a picture, and ends with
1 if a row failed.
"""

from __future__ import annotations

import sys

import layer_rows
import op_rows
import peers
import picture
import recurrence_targets
from comparing import BOTH
from driving import Record, Study, run
from op_rows import FLOOR, SIDE, VARIANTS, op_macs


def rates(records: list[Record], work: str) -> None:
    """GFLOP/s of the ops' forward products, three times those with a backward, and their share of the floor's."""
    for record in records:
        if record["status"] == "timed" and record["call"] in (FLOOR, *VARIANTS):
            flops = 2 * SIDE**3
            if record["call"] != FLOOR:
                flops = 2 * op_macs(record["call"], record["tokens"]) * (3 if work == BOTH else 1)
            record["gflops"] = flops / record["milliseconds"] / 1e6
    floor = next((r["gflops"] for r in records if r["call"] == FLOOR and r["status"] == "timed"), None)
    for record in records if floor else []:
        if "gflops" in record:
            record["share_of_matrix_product"] = record["gflops"] / floor


def main() -> int:
    return run(
        Study(
            name="recurrence",
            about=__doc__.partition("\n")[0],
            rows=(*layer_rows.rows(), *op_rows.rows()),
            verdicts=recurrence_targets.verdicts,
            rates=rates,
            picture=picture.write,
            quick=lambda name: not name.startswith("step:") or name.removeprefix("step:") in peers.LAYERS,
            packages=("transformers", "mambapy", "fla"),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
