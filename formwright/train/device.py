"""Where a run computes: one device, or several processes that share each batch.

Accelerate finds the device and joins the processes (torchrun with gloo on CPU, NCCL on CUDA). The processes hold equal
weights; each computes the gradient of its rows of the global batch, weighted by its share of the scored targets, so
that the sum over processes is the gradient that one process would have computed:

    g = sum_r (n_r / n) grad mean_loss_r      n_r scored targets of rank r, n of all
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree


@dataclass(frozen=True)
class Ranks:
    """This process's device, its number among the processes of the run, and how many there are."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """True in the one process that writes and reports."""
        return self.rank == 0


def start(device: str | torch.device | None = None) -> Ranks:
    """Join the run's processes (as torchrun started them; else there is one) on `device`, or on the best there is."""
    from accelerate import PartialState

    on_cpu = device is not None and torch.device(device).type == "cpu"
    state = PartialState(cpu=on_cpu)
    if state.num_processes > 1:
        atexit.register(_leave)
    return Ranks(torch.device(device) if device is not None else state.device, state.process_index, state.num_processes)


def _leave() -> None:
    """Part from the other processes before this one ends: one that ends while its group lives may be aborted by gloo's
    threads, and with it a run that has succeeded."""
    if not torch.distributed.is_initialized():
        return
    if torch.distributed.get_backend() == "gloo":
        with contextlib.suppress(RuntimeError):  # the others may have gone already
            torch.distributed.monitored_barrier(timeout=timedelta(seconds=20))
    torch.distributed.destroy_process_group()


def choose_precision(precision: str, device: torch.device) -> str:
    """ "float32" or "bfloat16"; "auto" is bfloat16 where the device computes in it, float32 on CPU.

    Raises ValueError for other names."""
    if precision in ("float32", "bfloat16"):
        return precision
    if precision != "auto":
        raise ValueError(f'precision is "auto", "float32" or "bfloat16", not {precision!r}')
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if device.type == "xpu" else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context that a forward runs in."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def move(batch: Any, device: torch.device) -> Any:
    """The batch with inputs, targets and the layout's tensors on `device`."""

    def to(tree: Any) -> Any:
        return _pytree.tree_map(lambda t: t.to(device, non_blocking=True) if isinstance(t, Tensor) else t, tree)

    layouts = [
        layout and replace(layout, lengths=to(layout.lengths), offsets=to(layout.offsets), coords=to(layout.coords))
        for layout in _layouts(batch)
    ]
    return replace(batch, inputs=to(batch.inputs), targets=to(batch.targets), layout=_as_in(batch, layouts))


def _layouts(batch: Any) -> tuple:
    """The layouts of a pair's source and target, or of the single inputs."""
    return batch.layout if isinstance(batch.layout, tuple) else (batch.layout,)


def _as_in(batch: Any, layouts: list) -> Any:
    """The layouts as the batch holds them, a pair or one alone."""
    return tuple(layouts) if isinstance(batch.layout, tuple) else layouts[0]


def shard(batch: Any, ranks: Ranks) -> Any | None:
    """This rank's rows of the global batch; None where there are fewer rows than ranks and it got none.

    Raises ValueError for packed batches, which are one row."""
    if ranks.world == 1:
        return batch
    rows = _pytree.tree_leaves(batch.inputs)[0].shape[0]
    first, last = (rows * r // ranks.world for r in (ranks.rank, ranks.rank + 1))
    layouts = _layouts(batch)
    if any(layout is not None and layout.offsets is not None for layout in layouts):
        raise ValueError(
            f"a packed batch is one row and cannot be split among {ranks.world} processes: train in one process"
        )
    if first == last:
        return None
    layouts = [layout and _rows(layout, first, last, rows) for layout in layouts]
    inputs, targets = (_pytree.tree_map(lambda t: t[first:last], tree) for tree in (batch.inputs, batch.targets))
    tokens = batch.tokens * (last - first) // rows
    layout = _as_in(batch, layouts)
    return replace(batch, inputs=inputs, targets=targets, layout=layout, items=last - first, tokens=tokens)


def _rows(layout: Any, first: int, last: int, rows: int) -> Any:
    """The layout of some of the rows."""
    coords = layout.coords
    return replace(
        layout,
        lengths=None if layout.lengths is None else layout.lengths[first:last],
        coords=coords if coords is None or coords.shape[0] != rows else coords[first:last],
    )


def scored(batch: Any) -> int:
    """How many targets the loss is a mean over: those that are neither -100 nor NaN."""
    total = 0
    for targets in _pytree.tree_leaves(batch.targets):
        counted = ~targets.isnan() if targets.is_floating_point() else targets != -100
        total += int(counted.sum())
    return total


def agree(value: Any, ranks: Ranks) -> Any:
    """The main process's value, in every process."""
    if ranks.world == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def gather(value: Any, ranks: Ranks) -> list[Any]:
    """Every process's value, in the order of ranks, in every process."""
    if ranks.world == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def share_weights(model: nn.Module, ranks: Ranks) -> None:
    """Give every process the main process's parameters and buffers."""
    if ranks.world == 1:
        return
    from accelerate.utils import broadcast

    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.copy_(broadcast(tensor.detach().clone()))


def sum_gradients(parameters: Iterable[Tensor], loss: Tensor, ranks: Ranks) -> Tensor:
    """Sum gradients and the loss over the processes, in place; the summed loss. A parameter that got no gradient in
    any process keeps none, as in one process."""
    if ranks.world == 1:
        return loss
    from accelerate.utils import reduce

    parameters = list(parameters)
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=loss.device)
    totals = reduce(torch.cat([loss.detach().float().reshape(1), present]), "sum")
    used = [p for p, count in zip(parameters, totals[1:].tolist(), strict=True) if count]
    for dtype in sorted({p.dtype for p in used}, key=str):
        group = [p for p in used if p.dtype == dtype]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        flat = torch.cat([g.reshape(-1) for g in grads])
        real = torch.view_as_real(flat) if flat.is_complex() else flat
        total = reduce(real, "sum")
        total = torch.view_as_complex(total) if flat.is_complex() else total
        for p, piece in zip(group, total.split([p.numel() for p in group]), strict=True):
            p.grad = piece.reshape(p.shape).clone()
    return totals[0]
