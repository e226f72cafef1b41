"""The one block and the one stack of every model.

block:  x <- join(x, branch(before(x)))        the residual style gives before and join
stack:  x <- block_L(... block_1(x))
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from formwright.contract import Card, ChannelMixer, Layout, Norm, ResidualStyle, TokenMixer, Wiring
from formwright.norms.rmsnorm import RMSNorm

STRUCTURE = Card(name="stack", kind="wiring", summary="parts one after another")


class Plain(Wiring):
    """One mixer, channel mixer or norm, as it is: no norm before it, no residual around it.

    A mixer that reads a source may keep what it makes of it: remember(context, its layout) -> memory, recall(x, memory,
    the layout) -> what forward gives, and remembered(the layout, batch) -> the bytes of it. When decoding the source is
    then worked through once; by other mixers for every piece of tokens."""

    card = STRUCTURE

    def __init__(self, part: TokenMixer | ChannelMixer | Norm, dim: int, cross: bool = False):
        super().__init__()
        self.part, self.cross = part, cross
        self.dim = self.dim_out = dim
        self.normed = isinstance(part, Norm)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        if isinstance(self.part, Norm):
            return self.part(x), layout
        if not self.cross:
            return self.part(x, layout), layout
        if context is None:
            self.part.refuse("cross", "the model was given no source to read; its inputs are a pair (source, target)")
        return self.part(x, layout, context, context_layout), layout

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        if isinstance(self.part, TokenMixer) and not self.cross:
            return self.part.empty(batch, capacity, like)
        return ()

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        if x.shape[1] == 0:
            return x, state
        if isinstance(self.part, TokenMixer) and not self.cross:
            return self.part.extend(x, state)
        if self.cross and context is not None and hasattr(self.part, "remember"):
            memory = state if state else self.part.remember(context, context_layout)
            return self.part.recall(x, memory, context_layout), memory
        return self.forward(x, Layout((x.shape[1],)), context, context_layout)[0], state

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        return [("cross" if self.cross else "", self.part, layout)]


class Residual(Wiring):
    """A branch with a residual connection around it, in one of the styles of `wiring/residual.py`."""

    card = STRUCTURE

    def __init__(self, branch: Wiring, style: ResidualStyle):
        super().__init__()
        self.branch_part, self.style = branch, style
        self.dim = self.dim_out = branch.dim
        self.normed = style.normed

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        y, _ = self.branch_part(self.style.before(x), layout, context, context_layout)
        return self.style.join(x, y), layout

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        return self.branch_part.empty(batch, capacity, like)

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        if x.shape[1] == 0:
            return x, state
        y, state = self.branch_part.extend(self.style.before(x), state, context, context_layout)
        return self.style.join(x, y), state

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        return [("", self.branch_part, layout), *((name, part, layout) for name, part in self.style.inner())]


class Stack(Wiring):
    """Stages one after another."""

    card = STRUCTURE

    def __init__(self, stages: list[Wiring], dim: int):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.dim = dim
        self.dim_out = stages[-1].dim_out if stages else dim
        self.normed = bool(stages) and stages[-1].normed

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        for stage in self.stages:
            x, layout = stage(x, layout, context, context_layout)
        return x, layout

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        return [stage.empty(batch, capacity, like) for stage in self.stages]

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        states = []
        for stage, before in zip(self.stages, state, strict=True):
            x, after = stage.extend(x, before, context, context_layout)
            states.append(after)
        return x, states

    def after(self, layout: Layout) -> Layout:
        for stage in self.stages:
            layout = stage.after(layout)
        return layout

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        rows = []
        for stage in self.stages:
            rows.append(("", stage, layout))
            layout = stage.after(layout)
        return rows


def norm_after(stack: Wiring) -> nn.Module:
    """The norm at a stack's end: none where its output is normalised, else one more of its last residual style's."""
    if stack.normed:
        return nn.Identity()
    styles = [m for m in stack.modules() if isinstance(m, ResidualStyle) and isinstance(getattr(m, "norm", 0), Norm)]
    make = getattr(styles[-1], "make_norm", type(styles[-1].norm)) if styles else RMSNorm
    return make(stack.dim_out)


class Parallel(Wiring):
    """(a | b): branches on the same input, their outputs added (hybrid heads).

    Falcon-H1 (arXiv 2507.22448, 2025) runs attention and state-space heads so."""

    card = Card(name="parallel", kind="wiring", summary="branches on the same input, outputs added")

    def __init__(self, branches: list[Wiring], dim: int):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.dim = self.dim_out = dim

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        return sum(branch(x, layout, context, context_layout)[0] for branch in self.branches), layout

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        return [branch.empty(batch, capacity, like) for branch in self.branches]

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        pairs = [b.extend(x, s, context, context_layout) for b, s in zip(self.branches, state, strict=True)]
        return sum(y for y, _ in pairs), [s for _, s in pairs]

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        return [("parallel", branch, layout) for branch in self.branches]
