"""The subject of a check: a part, how it is made, what it is fed and how it is called.

A law asks its subject for modules and inputs, so that one law holds parts of all kinds. Every call is on a copy of the
module with all generators seeded: what one call leaves behind (running statistics, counters, a drawn random number)
can't colour the next, and is found by the law whose business it is.
"""

from __future__ import annotations

import copy
import functools
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from formwright.contract import Card, Layout, Unsupported

FACTS: dict[str, Any] = {
    "vocab": 64,
    "length": 1024,
    "classes": 5,
    "outputs": 2,
    "channels": 3,
    "image": (8, 8),
    "variates": 3,
    "horizon": 4,
    "input_length": 32,
    "numeric": (3,),
    "categories": (4, 5),
}


class Broken(Exception):
    """A law does not hold; the message says what was found where."""


class Refused(Exception):
    """The part refuses what the law is about, and says so."""


class Skipped(Exception):
    """The law has no meaning for this part, or can't be judged; the message says why."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All generators (torch, numpy, Python) seeded within, and as they were afterwards."""
    python, array = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(array)


def fresh(module: nn.Module) -> nn.Module:
    """A copy of the module; the module itself where it holds tensors that can't be copied."""
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:
        if "deepcopy" not in str(error):
            raise
        return module


def leaf(t: Tensor) -> Tensor:
    """A tensor of its own with t's values, asking for a gradient where it can have one."""
    return t.detach().clone().requires_grad_(t.is_floating_point())


@dataclass(frozen=True, eq=False)
class Subject:
    """A part under check.

    cls       its class
    options   the options bound to it by the expression
    seed      of all weights and inputs
    """

    target: str
    cls: type
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    dim: int = 32
    compiler: str = "aot_eager"

    @property
    def card(self) -> Card:
        return self.cls.card

    @property
    def kind(self) -> str:
        return self.card.kind

    @functools.cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The constructor's parameters."""
        return {n: p for n, p in inspect.signature(self.cls.__init__).parameters.items() if n != "self"}

    @functools.cached_property
    def limit(self) -> int:
        """The longest N the part takes: its `length` where it has one."""
        if "length" not in self.parameters:
            return 1 << 30
        default = self.parameters["length"].default
        bound = self.options.get("length", default)
        return bound if isinstance(bound, int) else FACTS["length"]

    def sizes(self, *sizes: int) -> list[int]:
        """Those of the sizes that the part takes."""
        return [n for n in sizes if n <= self.limit]

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """The options every module of this check is made with: those bound, facts that have no default, and two heads,
        so that one head that reads another is seen."""
        facts = {
            n: FACTS[n]
            for n, p in self.parameters.items()
            if n in FACTS and p.default in (inspect.Parameter.empty, None) and n not in self.options
        }
        plain = {**facts, **self.options}
        if self.kind in ("mixer", "position") and "heads" in self.parameters and "heads" not in plain:
            try:
                with seeded(self.seed):  # whenever this is asked for first, it takes no number from anyone
                    self.construct({**plain, "heads": 2}, self.dim, self.first_pattern)
            except Exception:
                return plain
            return {**plain, "heads": 2}
        return plain

    @property
    def first_pattern(self) -> str:
        return self.card.patterns[0] if self.card.patterns else ""

    def construct(self, arguments: dict[str, Any], dim: int = 0, pattern: str = "") -> nn.Module:
        """The part with these arguments, as its constructor makes it."""
        causal = {"causal": pattern.startswith("causal")} if self.kind == "mixer" else {}
        width = {name: dim or self.dim for name in ("dim", "width") if name in self.parameters}
        return self.cls(**width, **causal, **arguments)

    def module(
        self, pattern: str = "", dtype: torch.dtype = torch.float64, *, seed: int | None = None, dim: int | None = None
    ) -> nn.Module:
        """The part for a pattern, in eval mode; two of one seed have the same weights."""
        with seeded(self.seed if seed is None else seed):
            return self.construct(self.arguments, dim or self.dim, pattern).to(dtype).eval()

    @functools.cached_property
    def patterns(self) -> list[str]:
        """The patterns the card claims and the constructor makes; [""] for parts that have none."""
        if self.kind != "mixer":
            return [""]
        made = []
        for pattern in self.card.patterns:
            try:
                module = self.module(pattern)
            except Exception:
                continue  # the law of shapes makes it again and tells what was raised
            if not self.options or self._runs(module, pattern):
                made.append(pattern)
        if not made:
            raise Skipped("the part can't be made in any pattern of its card (see shapes)")
        return made

    def _runs(self, module: nn.Module, pattern: str) -> bool:
        """Whether options leave this pattern: they may narrow what the card claims."""
        try:
            self.run(module, *self.inputs(pattern, 8))
        except Unsupported:
            return False
        except Exception:
            return True  # a law tells
        return True

    @property
    def causal_patterns(self) -> list[str]:
        return [p for p in self.patterns if p.startswith("causal")]

    def randn(self, *shape: int, dtype: torch.dtype = torch.float64, salt: int = 0) -> Tensor:
        """Normal numbers that depend on the seed, the shape and the salt alone."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + salt * 31 + sum(shape))
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    def inputs(
        self, pattern: str, n: int, batch: int = 2, dtype: torch.dtype = torch.float64, salt: int = 0, dim: int = 0
    ) -> tuple[Tensor, ...]:
        """What forward takes: (x,), or (x, context) for the cross patterns, the context three tokens longer."""
        x = self.randn(batch, n, dim or self.dim, dtype=dtype, salt=salt)
        if not pattern.endswith("cross"):
            return (x,)
        return x, self.randn(batch, n + 3, dim or self.dim, dtype=dtype, salt=salt + 7)

    def forward(
        self, module: nn.Module, *inputs: Tensor, layout: Layout | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """The part's output; layouts are plain sequences where none are given."""
        x, *rest = inputs
        layout = layout or Layout((x.shape[1],))
        if rest:
            return module(x, layout, context=rest[0], context_layout=context_layout or Layout((rest[0].shape[1],)))
        return CALLS[self.kind](self, module, x, layout)

    def run(self, module: nn.Module, *inputs: Tensor, seed: int | None = None, **layouts: Layout | None) -> Tensor:
        """forward without gradients, on copies of module and inputs, with all generators seeded."""
        with torch.no_grad(), seeded(self.seed + 1 if seed is None else seed):
            return self.forward(fresh(module), *(x.clone() for x in inputs), **layouts)

    @functools.cached_property
    def randomness(self) -> str:
        """What makes the output in eval random: "" nothing, "drawn" torch's, numpy's or Python's generators,
        "unseeded" something that no seed governs."""
        pattern = self.patterns[0]
        module, inputs = self.module(pattern), self.inputs(pattern, 8)
        first, again, other = (self.run(module, *inputs, seed=s) for s in (11, 11, 12))
        if not torch.equal(first.nan_to_num(), again.nan_to_num()):
            return "unseeded"
        return "" if torch.equal(first.nan_to_num(), other.nan_to_num()) else "drawn"

    def needs_repeatable(self, drawn: bool = False) -> None:
        """Raise Skipped where the output is random, so that a comparison would blame the wrong law; `drawn=True`
        where numbers drawn under the same seed do no harm."""
        if self.randomness == "unseeded" or (self.randomness and not drawn):
            raise Skipped("the output in eval is random, so nothing can be compared (see determinism)")

    @functools.cached_property
    def precision(self) -> float:
        """The relative precision float64 inputs are computed in: 1e-9 in float64, 1e-5 where something is cast to
        float32 inside, found by nudging the input by less than float32 resolves."""
        pattern = self.patterns[0]
        module, inputs = self.module(pattern), self.inputs(pattern, 16)
        before = self.run(module, *inputs)
        after = self.run(module, *(x * (1 + 1e-11) for x in inputs))
        moved = (before != after)[before != 0]
        return 1e-9 if moved.numel() == 0 or moved.double().mean() > 0.5 else 1e-5


def _call_position(subject: Subject, module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    if module.role == "value":
        return module.local(x.unflatten(2, (2, -1)), layout).flatten(2)
    if module.contextual:
        at, _ = module.coordinates(x)
        return module.rotate(x.unsqueeze(2).expand(-1, -1, module.heads, -1), at).mean(2)
    at = layout.positions(x.device)
    if module.role == "rotate":
        return module.rotate(x.unsqueeze(2), at.to(x.device)).squeeze(2)
    if module.role == "bias":
        bias = module.bias(at, at)
        return x + bias.to(x.dtype).mean(-3).sum(-1, keepdim=True)
    return module.embed(x, at)


CALLS: dict[str, Callable[[Subject, nn.Module, Tensor, Layout], Tensor]] = {
    "mixer": lambda subject, module, x, layout: module(x, layout),
    "channel": lambda subject, module, x, layout: module(x, layout),
    "norm": lambda subject, module, x, layout: module(x),
    "position": _call_position,
}
