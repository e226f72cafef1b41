"""encoder_decoder(source, target): the source stack reads its tokens in both directions; the target's cross mixers
read its output.

    memory = norm(source(s)),   y = target(x, memory)

Vaswani et al., Attention Is All You Need, 1706.03762, 2017. The model's inputs are a pair (source, target).
source_length, the tokens of a source, is told by the data: costs and parts with a matrix over tokens go by it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from formwright.contract import Card, Cost, Layout, Unsupported, Wiring, parameter_count
from formwright.parts import register
from formwright.wiring.stack import norm_after


@register
class EncoderDecoder(Wiring):
    card = Card(
        name="encoder_decoder",
        kind="wiring",
        summary="a source stack read by the cross mixers of a target stack",
        source="Attention Is All You Need, 1706.03762, 2017",
    )
    stacks = ("source", "target")
    reads_pairs = True

    @classmethod
    def inside(cls, stack: str, flow: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        if stack == "target":
            return flow
        tokens = options.get("source_length") or flow.get("source_length") or flow["length"]
        return {**flow, "causal": False, "length": tokens}

    def __init__(self, dim: int, source: Wiring, target: Wiring, *, source_length: int | None = None):
        super().__init__()
        if source.dim_out != dim or target.dim_out != dim:
            raise ValueError("encoder_decoder: source and target must keep the width they are given")
        self.dim = self.dim_out = dim
        self.source, self.target, self.source_length = source, target, source_length
        self.norm = norm_after(source)
        self.normed = target.normed

    def encode(self, context: Tensor | None, layout: Layout | None) -> tuple[Tensor, Layout]:
        """Embedded source tokens (B, M, D) -> what the target's cross mixers read."""
        if context is None:
            raise Unsupported("encoder_decoder", "inputs without a source", "give the model a pair (source, target)")
        memory, layout = self.source(context, layout)
        return self.norm(memory), layout

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        memory, memory_layout = self.encode(context, context_layout)
        return self.target(x, layout, memory, memory_layout)

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        return {"target": self.target.empty(batch, capacity, like), "memory": None, "layout": None}

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        memory, layout = state["memory"], state["layout"]
        if memory is None:
            memory, layout = self.encode(context, context_layout)
        y, target = self.target.extend(x, state["target"], memory, layout)
        return y, {"target": target, "memory": memory, "layout": layout}

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        return [("source", self.source, self.place(layout)), ("target", self.target, layout)]

    def place(self, layout: Layout) -> Layout:
        """The layout of a source beside a target of this one."""
        return Layout((self.source_length,)) if self.source_length else layout

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """Of a target of this layout and a source of `source_length` tokens, without it as long as the target; the
        state is the target's, with the memory."""
        place = self.place(layout)
        source, target = self.source.cost(place, batch), self.target.cost(layout, batch)
        size = next(self.parameters()).element_size()
        memory = batch * self.source.after(place).tokens * self.dim * size
        return Cost(
            parameter_count(self),
            source.macs + target.macs,
            target.state_bytes + memory,
            source.other_flops + target.other_flops,
        )
