"""The Model: embedding, stack, last norm, head; forward, loss, decoding, cost, save and load.

An expression and a safetensors file are a whole checkpoint: the file's header holds the canonical expression and the
facts of the data it was built for.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from formwright import parts
from formwright.contract import Cost, Embed, Head, Layout, Norm, Unsupported, Wiring, parameter_count, part_cost
from formwright.lang import Part, parse, walk


class Model(nn.Module):
    """What an expression builds. `expression` is its canonical text, `facts` what the data told, `dim` its width."""

    def __init__(
        self,
        embed: Embed,
        stack: Wiring,
        norm: nn.Module,
        head: Head,
        expression: str,
        facts: dict[str, Any],
        causal: bool = False,
    ):
        super().__init__()
        self.embed, self.stack, self.norm, self.head = embed, stack, norm, head
        self.expression, self.facts, self.dim, self.causal = expression, facts, stack.dim, causal
        if getattr(head, "tied", False):
            weight = getattr(embed, "weight", None)
            if weight is None or weight.shape != head.weight.shape:
                raise ValueError(
                    f"{head.card.name}: tied=True shares the embedding's weight, but {embed.card.name} has none of its"
                    f" shape {tuple(head.weight.shape)}; leave tied out"
                )
            head.weight = weight
        across = [m for m in self.modules() if isinstance(m, Norm) and m.across_tokens]
        self.across = across[0].card.name if across else None
        if causal and across:
            raise Unsupported(self.across, "causal=True", "its statistics go over tokens that come after")

    def forward(
        self,
        inputs: Tensor | tuple[Tensor, Tensor],
        layout: Layout | tuple[Layout | None, Layout | None] | None = None,
    ) -> Tensor:
        """Raw inputs, (source, target) for an encoder-decoder -> the head's predictions. `layout` says lengths or
        offsets of the inputs where they have some; of a pair, one layout is the target's."""
        source, source_layout = None, None
        if isinstance(inputs, (tuple, list)):
            source, inputs = inputs
        if isinstance(layout, tuple):
            source_layout, layout = layout
        x, layout = self.tokens(inputs, layout, source, source_layout)
        return self.head(x, layout, inputs)

    def tokens(
        self,
        inputs: Tensor,
        layout: Layout | None = None,
        source: Tensor | None = None,
        source_layout: Layout | None = None,
    ) -> tuple[Tensor, Layout]:
        """Raw inputs -> the stack's normalised output tokens (B, N, D) and their layout."""
        context, context_layout = (None, None) if source is None else self.embed(source, source_layout)
        x, layout = self.embed(inputs, layout)
        if not torch.compiler.is_compiling():
            layout.check(x)
            if context is not None:
                context_layout.check(context)
        if self.across and not (layout.plain and (context_layout is None or context_layout.plain)):
            raise Unsupported(self.across, "padded or packed tokens", "its statistics go over all tokens of a row")
        x, layout = self.stack(x, layout, context, context_layout)
        return self.norm(x), layout

    def loss(self, batch: Any) -> Tensor:
        """The mean training loss of a batch (data.Batch), a scalar."""
        return self.head.loss(self(batch.inputs, batch.layout), batch.targets)

    def scores(self, batch: Any) -> dict[str, tuple[Tensor, int]]:
        """The head's scores of a batch, and those that the data add: name -> (sum, number of items)."""
        outputs = self(batch.inputs, batch.layout)
        scores, more = self.head.scores(outputs, batch.targets), getattr(batch, "score", None)
        return scores if more is None else {**scores, **more(outputs, batch.inputs, batch.targets)}

    def empty(self, batch: int, capacity: int | None = None, source: Tensor | None = None) -> dict[str, Any]:
        """The state before the first token, with room for `capacity` tokens; `source` for an encoder-decoder.

        Raises Unsupported unless the model is causal."""
        if not self.causal:
            raise Unsupported("the model", "extend", f"its head {self.head.card.name!r} makes it two-directional")
        state = {"tokens": 0, "stack": self.stack.empty(batch, capacity), "context": None}
        if source is not None:
            state["context"] = self.embed(source)
        return state

    def extend(self, inputs: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Further raw inputs (B, T) -> their predictions and the new state; forward over any split of the inputs."""
        x = self.embed.extend(inputs, state["tokens"])
        context, context_layout = state["context"] or (None, None)
        x, stack = self.stack.extend(x, state["stack"], context, context_layout)
        x = self.norm(x)
        out = self.head(x, Layout((x.shape[1],)), inputs)
        return out, {**state, "tokens": state["tokens"] + inputs.shape[1], "stack": stack}

    def cost(self, shape: tuple[int, ...], batch: int = 1) -> Cost:
        """The cost of one forward of inputs of this shape (without the batch), in closed form."""
        layout = self.embed.layout(tuple(shape))
        total = Cost()
        for part, place in ((self.embed, layout), (self.stack, layout), (self.head, self.stack.after(layout))):
            total = total + part_cost(part, place, batch)
        return replace(total, params=parameter_count(self))


def save(model: Model, path: str | os.PathLike) -> None:
    """Write the model as one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to save {target.name} in")
    used = {node.name for node in walk(parse(model.expression)) if isinstance(node, Part)}
    files = {name: parts.origin(name) for name in sorted(used) if parts.origin(name)}
    header = {"expression": model.expression, "facts": json.dumps(model.facts), "files": json.dumps(files)}
    header |= {"causal": json.dumps(model.causal), "format": "formwright 1"}
    tensors, shared = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in shared and tensor.numel():
            continue
        shared.add(tensor.data_ptr())
        tensors[name] = tensor.detach().contiguous().cpu()
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    save_file(tensors, scratch, metadata=header)
    os.replace(scratch, target)


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> Model:
    """The model that `save` wrote, in evaluation mode.

    Raises FileNotFoundError where there is no such file, ValueError where it is no formwright model."""
    from safetensors import SafetensorError, safe_open

    from formwright.build import build

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or a broken one: {error}") from None
    if "expression" not in header:
        raise ValueError(f"{path} holds no architecture; only files that formwright saved can be loaded so")
    for file_part in json.loads(header["files"]).values():
        file, _, class_name = file_part.rpartition(":")
        beside = Path(path).parent / Path(file).name
        parts.load(f"{beside if beside.is_file() else file}:{class_name}")
    facts = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(header["facts"]).items()}
    model = build(header["expression"], facts=facts, causal=json.loads(header["causal"]))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    own = model.state_dict()
    missing = [name for name in missing if own[name].data_ptr() not in {own[n].data_ptr() for n in tensors if n in own}]
    if missing or unexpected:
        raise ValueError(f"{path} doesn't fit its expression: missing {missing[:3]}, unexpected {unexpected[:3]}")
    return model.to(device).eval()
