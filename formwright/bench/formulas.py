"""Cost by formula beside cost measured, of one expression over lengths."""

from __future__ import annotations

from typing import Any

from formwright.bench.growth import exponent
from formwright.bench.measure import counted_macs, decode_cost, example_inputs, forward_cost
from formwright.build import build, default_stack, is_bare_mixer
from formwright.show import short


def cost_rows(expression: str, lengths: list[int], *, batch: int = 1, dim: int = 256) -> list[dict[str, Any]]:
    """For each length the formulas' figures (params, macs, state_bytes) and what was measured: counted_macs,
    milliseconds and peak_bytes of one forward, decode_milliseconds of one further token (None unless causal).

    Raises what `build` raises."""
    tree = default_stack(expression) if is_bare_mixer(expression) else expression
    rows = []
    for length in lengths:
        # Parts with a matrix over tokens are made for a length, and decoding goes a few tokens beyond it.
        model = build(tree, facts={"length": length + 64}, dim=dim).eval()
        if not hasattr(model.embed, "vocab"):
            raise ValueError(f"cost is measured over tokens; {model.embed.card.name} reads none")
        inputs = example_inputs(model, length, batch)
        cost = model.cost((length,), batch)
        measured = forward_cost(model, length, batch=batch, inputs=inputs)
        decode = decode_cost(model, length, batch=batch)["milliseconds"] if model.causal else None
        rows.append(
            {
                "length": length,
                "params": cost.params,
                "macs": cost.macs,
                "counted_macs": counted_macs(lambda m=model, x=inputs: m(x)),
                "state_bytes": cost.state_bytes if model.causal else None,
                "milliseconds": measured["milliseconds"],
                "peak_bytes": measured["peak_bytes"],
                "decode_milliseconds": decode,
                "load": measured["load"],
            }
        )
    return rows


def digits(value: float) -> str:
    """Three significant digits, never as a power of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cost_table(expression: str, lengths: list[int], *, batch: int = 1, dim: int = 256):
    """A Rich rendering of `cost_rows`, with the exponents that macs and milliseconds grow by."""
    import torch
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = cost_rows(expression, lengths, batch=batch, dim=dim)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("tokens", "macs", "counted", "ms", "tokens/s", "peak", "state", "ms/token"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        seconds = row["milliseconds"] / 1e3
        table.add_row(
            str(row["length"]),
            short(row["macs"]),
            "equal" if row["macs"] == row["counted_macs"] else short(row["counted_macs"]),
            digits(row["milliseconds"]),
            short(batch * row["length"] / seconds),
            short(row["peak_bytes"], "B") if row["peak_bytes"] is not None else "-",
            short(row["state_bytes"], "B") if row["state_bytes"] is not None else "-",
            digits(row["decode_milliseconds"]) if row["decode_milliseconds"] is not None else "-",
        )
    notes = [f"{short(rows[0]['params'])} parameters; batch {batch}; {torch.get_num_threads()} threads"]
    notes[0] += "; ms: one forward; ms/token: decoding after so many tokens"
    notes[0] += f"; load {rows[-1]['load']:.1f}" if rows[-1]["load"] is not None else ""
    by_macs = exponent(lengths, [row["macs"] for row in rows])
    if by_macs is not None:
        by_time = exponent(lengths, [row["milliseconds"] for row in rows])
        notes.append(f"growth with N: macs N^{by_macs:.2f}, time N^{by_time:.2f}")
    return Group(table, *(Text(note, style="dim") for note in notes))
