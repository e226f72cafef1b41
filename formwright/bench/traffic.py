"""What a call executes: multiply-adds, and bytes that its operations read and write.

    bytes = sum over operations of the bytes of their inputs and outputs,   intensity = 2 macs / bytes

Each tensor counts once for every operation that touches it, views and empty memory not at all, what is spread over
others without being copied by what lies in memory. So this is the traffic of operations that keep nothing between them:
data that stay in a cache move less, and a fused kernel's intermediate results never were tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from formwright.ops.attention import SDPA_FLOPS

UNWRITTEN = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided")
OVERWRITTEN = ("aten::copy_", "aten::fill_", "aten::zero_")  # their first argument is written without being read


@dataclass(frozen=True)
class Counts:
    """macs: multiply-adds of matrix products and convolutions; bytes: read and written by all operations."""

    macs: int
    bytes: int

    @property
    def intensity(self) -> float:
        """FLOP a byte."""
        return 2 * self.macs / self.bytes if self.bytes else 0.0


def counts(call: Callable[[], object]) -> Counts:
    """What one run of `call` executes."""
    with Traffic() as traffic, FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as flops:
        call()
    return Counts(flops.get_total_flops() // 2, traffic.bytes)


class Traffic(TorchDispatchMode):
    """Sums `bytes` while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name
        given, made = _tensors((args, kwargs)), _tensors(out)
        places = {t.untyped_storage().data_ptr() for t in given}
        mutable = func._schema.is_mutable
        view = not mutable and bool(made) and all(t.untyped_storage().data_ptr() in places for t in made)
        if view or name in UNWRITTEN:
            return out
        read = given[1:] if name in OVERWRITTEN else given
        self.bytes += sum(_bytes(t) for t in read) + sum(_bytes(t) for t in made)
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in _pytree.tree_leaves(tree) if isinstance(t, Tensor) and t.layout == torch.strided]


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
