"""What every part agrees to: tokens, their geometry, costs, cards and base classes.

Tokens travel as x: (B, N, D). Their geometry travels beside them in a `Layout`, made once per forward. A token mixer
maps (B, N, D) to (B, N, D); a causal one can also `extend` a state by further tokens, and forward(x) equals extend over
any split of x. A part that can't do something raises `Unsupported`, naming itself and the option; it never computes
something else.

Shapes by letters: B batch, N tokens, D width, H heads, K key width per head, V value width per head, C chunk,
M context tokens, A axes, S packed sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from formwright.layout import Layout

PATTERNS = ("self", "causal", "cross", "causal_cross")
KINDS = ("mixer", "channel", "position", "norm", "wiring", "embed", "head")


class Unsupported(ValueError):
    """A part was asked for something it can't do. The message names part, option and reason."""

    def __init__(self, part: str, option: str, reason: str):
        super().__init__(f"{part} does not support {option}: {reason}")
        self.part, self.option, self.reason = part, option, reason


@dataclass(frozen=True)
class Cost:
    """What one forward costs.

    params       parameters
    macs         multiply-adds of matrix products and convolutions, as torch's FlopCounterMode counts (half its FLOPs)
    state_bytes  bytes of extend's state after the layout's N tokens, in the parameters' dtype
    other_flops  FFTs and element-wise scans: stated, not counted
    """

    params: int = 0
    macs: int = 0
    state_bytes: int = 0
    other_flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.params + other.params,
            self.macs + other.macs,
            self.state_bytes + other.state_bytes,
            self.other_flops + other.other_flops,
        )


@dataclass(frozen=True)
class Card:
    """What a part is and what it claims; the laws hold it to this.

    name        its name in expressions
    kind        one of KINDS
    summary     one line in our own words
    source      title, arXiv id, year
    patterns    which of "self", "causal", "cross", "causal_cross" a mixer computes
    grid_ranks  how many token axes it takes; (1,) for sequences alone, () for any
    time        how multiply-adds grow with N: "1", "N", "N log N", "N^2"
    state       how the bytes of extend's state grow with N: "0", "1", "N"
    symmetries  of "permutation" (of tokens), "shift" (along the sequence), "resolution"
    extrapolates  for what tells tokens their place: whether it is made for longer inputs than those trained on
    tolerances  dtype name -> relative tolerance of fast against reference, where it differs from the laws' own
    """

    name: str
    kind: str = "mixer"
    summary: str = ""
    source: str = ""
    patterns: tuple[str, ...] = ()
    grid_ranks: tuple[int, ...] = ()
    time: str = "N"
    state: str = "1"
    symmetries: tuple[str, ...] = ()
    extrapolates: bool | None = None
    tolerances: dict[str, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"card {self.name!r}: kind is one of {', '.join(KINDS)}, not {self.kind!r}")
        for attribute in ("patterns", "grid_ranks", "symmetries"):
            value = getattr(self, attribute)
            object.__setattr__(self, attribute, (value,) if isinstance(value, (str, int)) else tuple(value))
        unknown = set(self.patterns) - set(PATTERNS)
        if unknown:
            raise ValueError(f"card {self.name!r}: patterns are among {', '.join(PATTERNS)}, not {sorted(unknown)}")


class TokenMixer(nn.Module):
    """Mixes tokens: (B, N, D) -> (B, N, D). Subclasses set `card` and write forward and cost; a causal one also writes
    empty and extend. Patterns and grids that the card leaves out are refused here, before forward sees them.

    They may write `reference`, with forward's signature: the slow, obvious definition that the laws compare forward
    with (a mixer whose ops take a backend may instead pass on `self.backend`, which the laws set to "reference")."""

    card: Card
    backend: str = "auto"
    batched: bool = False  # as a norm's

    def __init__(self, dim: int, *, causal: bool = False):
        super().__init__()
        self.dim, self.causal = dim, causal
        pattern = "causal" if causal else "self"
        supported = self.card.patterns
        if pattern not in supported and not any(p.endswith("cross") for p in supported):
            have = " and ".join(supported) or "nothing"
            reason = f"it computes the {have} pattern alone"
            if "causal" in supported:
                reason += f"; write bidirectional({self.card.name}) to read tokens from both ends"
            raise Unsupported(self.card.name, f"causal={causal}", reason)
        self.register_forward_pre_hook(_within_card, with_kwargs=True)

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> Tensor:
        """x (B, N, D), context (B, M, D) for the cross patterns -> (B, N, D)."""
        raise NotImplementedError

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        """The state before the first token: a pytree of tensors, in `like`'s dtype and device (the parameters'
        without it), with room for `capacity` tokens where the state grows."""
        raise Unsupported(self.card.name, "extend", "it has no state to decode with")

    def extend(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x (B, T, D), T >= 1 further tokens -> their outputs (B, T, D) and the new state."""
        raise Unsupported(self.card.name, "extend", "it has no state to decode with")

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """The closed form of one forward's cost. A mixer with a cross pattern may take `context_layout` as well; one
        that doesn't is costed as if the context were as long as x."""
        raise NotImplementedError

    def refuse(self, option: str, reason: str) -> None:
        """Raise Unsupported in this part's name."""
        raise Unsupported(self.card.name, option, reason)


def _within_card(mixer: TokenMixer, args: tuple, kwargs: dict[str, Any]) -> None:
    """Refuse a grid or a context that the mixer's card leaves out, before its forward sees it."""
    layout = args[1] if len(args) > 1 else kwargs["layout"]
    context = args[2] if len(args) > 2 else kwargs.get("context")
    card = mixer.card
    if card.grid_ranks and len(layout.grid) not in card.grid_ranks:
        allowed = " or ".join(map(str, card.grid_ranks))
        raise Unsupported(card.name, f"a grid of {len(layout.grid)} axes", f"it mixes tokens along {allowed}")
    pattern = ("causal" if mixer.causal else "self") if context is None else "causal_cross" if mixer.causal else "cross"
    if pattern not in card.patterns:
        have = " and ".join(card.patterns) or "nothing"
        asked = "tokens without a context" if context is None else "a context"
        raise Unsupported(card.name, asked, f"that is the {pattern} pattern, and it computes {have} alone")


class ChannelMixer(nn.Module):
    """Mixes the channels of each token by itself: (B, N, D) -> (B, N, D), a feed-forward part."""

    card: Card

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        raise NotImplementedError

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        raise NotImplementedError


class Norm(nn.Module):
    """Normalises each token's channels: (..., D) -> (..., D).

    batched  True where training takes statistics over all tokens of a batch: rows then influence one another, and
             tokens see later ones in these statistics; evaluation treats every token by itself all the same
    across_tokens  True where statistics of a row (B, N, D) go over its tokens, always: models that are causal, padded
             or packed refuse such a norm"""

    card: Card
    batched: bool = False
    across_tokens: bool = False

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Position(nn.Module):
    """Tells tokens where they stand. `role` says how: an "embed" position is made with `dim` and adds to embedded
    tokens by `embed`; a "rotate" position is made with `dim` = head_dim and turns queries and keys by `rotate`; a
    "bias" position is made with `heads` and gives a score bias by `bias`; a "value" position is made with `dim`, the
    width of all heads' values, and `rank`, the axes of the grid, and gives by `local` what is added to the outputs.

    A "rotate" position may be `contextual`: where a token stands then depends on what the tokens are. It is made with
    `heads` (of the keys) and `width` (of the tokens) besides, and a mixer asks it for `coordinates`, which stand for
    positions in `rotate`; when decoding they go on from `start`."""

    card: Card
    role: str  # "embed" | "rotate" | "bias" | "value"
    contextual: bool = False

    def start(self, batch: int, like: Tensor) -> Tensor:
        """Where the first token begins (B, F), on `like`'s device and at least as exact."""
        raise Unsupported(self.card.name, "start", "its places depend on positions alone")

    def coordinates(self, x: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens x (B, N, D), where those before them ended (B, F), None at the start -> what `rotate` takes as their
        positions, (B, N, ...), and where they end (B, F)."""
        raise Unsupported(self.card.name, "coordinates", "its places depend on positions alone")

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, D), positions (N, A) or (B, N, A) -> x with positions added."""
        raise Unsupported(self.card.name, "embed", f"it is a {self.role} position")

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, H, K), positions (N, A) or (B, N, A) -> x turned by its positions."""
        raise Unsupported(self.card.name, "rotate", f"it is a {self.role} position")

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions (..., N, A) of queries, (..., M, A) of keys -> (..., H, N, M) added to the scores."""
        raise Unsupported(self.card.name, "bias", f"it is a {self.role} position")

    def local(self, v: Tensor, layout: Layout) -> Tensor:
        """Values v (B, N, H, V) -> (B, N, H, V) added to the outputs of the heads."""
        raise Unsupported(self.card.name, "local", f"it is a {self.role} position")


class Embed(nn.Module):
    """Turns raw inputs into tokens and their layout. `batched` as a norm's."""

    card: Card
    dim: int
    batched: bool = False

    def forward(self, inputs: Tensor, layout: Layout | None = None) -> tuple[Tensor, Layout]:
        """Raw inputs -> x (B, N, D) and its layout. `layout` carries lengths or offsets that the data know."""
        raise NotImplementedError

    def layout(self, inputs: tuple[int, ...]) -> Layout:
        """The layout of tokens that inputs of this shape (without the batch) give."""
        raise NotImplementedError

    def extend(self, inputs: Tensor, start: int) -> Tensor:
        """Further raw inputs, the first at position `start` -> (B, T, D); embeds of causal models write it."""
        raise Unsupported(self.card.name, "extend", "it does not embed one token after another")

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        raise NotImplementedError


class Head(nn.Module):
    """Turns the stack's tokens into predictions, and knows its loss and its scores. `causal` says whether the head
    makes the stack before it causal."""

    card: Card
    causal: bool = False

    def forward(self, x: Tensor, layout: Layout, inputs: Tensor | None = None) -> Tensor:
        """x (B, N, D) after the last norm, the raw inputs beside it -> predictions."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean training loss, a scalar."""
        raise NotImplementedError

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        """name -> (sum over scored items, number of them); "loss" always among them. Means of many batches add up."""
        raise NotImplementedError

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        raise NotImplementedError


class Wiring(nn.Module):
    """A part that joins others: stacks, residuals, loops, pyramids. Takes and returns tokens with their layout, which
    it may change, as it may the width (`dim` in, `dim_out` out).

    stacks    names of the constructor's arguments that are expressions; the builder gives the modules in their place
    copies    how many modules the builder makes of each, with weights of their own: a tuple where more than one
    branch    True where it stands as one residual branch, with a norm of its own, like a mixer
    normed    True where its output is normalised already
    """

    card: Card
    stacks: tuple[str, ...] = ("stack",)
    copies: int = 1
    branch: bool = False
    normed: bool = False
    dim: int
    dim_out: int

    @classmethod
    def inside(cls, stack: str, flow: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """What flows into the argument `stack`: causal, length, and other facts, changed where need be. Raises
        Unsupported where this wiring can't stand in such a flow."""
        return flow

    def forward(
        self, x: Tensor, layout: Layout, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Layout]:
        """x (B, N, D), context (B, M, D) for cross parts inside -> tokens and their layout."""
        raise NotImplementedError

    def empty(self, batch: int, capacity: int | None = None, like: Tensor | None = None) -> Any:
        """The state before the first token."""
        raise Unsupported(self.card.name, "extend", "it has no state to decode with")

    def extend(
        self, x: Tensor, state: Any, context: Tensor | None = None, context_layout: Layout | None = None
    ) -> tuple[Tensor, Any]:
        """T further tokens -> the further tokens they give (their number may differ where the grid changes), state."""
        raise Unsupported(self.card.name, "extend", "it has no state to decode with")

    def after(self, layout: Layout) -> Layout:
        """The layout that forward gives back for this one."""
        return layout

    def inner(self, layout: Layout) -> list[tuple[str, nn.Module, Layout]]:
        """(what it is for, part, the layout it gets) of the parts inside, in order of their work; a part that works
        twice stands there twice. cost and show are read off this."""
        return []

    def cost(self, layout: Layout, batch: int = 1) -> Cost:
        """The parts' costs, parameters of shared parts counted once."""
        works = Cost()
        for _, part, place in self.inner(layout):
            works = works + part_cost(part, place, batch)
        return replace(works, params=parameter_count(self))


class ResidualStyle(nn.Module):
    """How a branch joins the stream: it gets before(x), and join(x, y) takes its output y in. A wiring written around
    a stack, it holds for all branches inside.

    normed  True where join's output is normalised already
    """

    card: Card
    normed: bool = False

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def before(self, x: Tensor) -> Tensor:
        return x

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def inner(self) -> list[tuple[str, nn.Module]]:
        """(what for, part) of the norms and gates of this style."""
        return []


def part_cost(part: nn.Module, layout: Layout, batch: int = 1) -> Cost:
    """The cost of a part inside a wiring; norms have parameters and no multiply-adds."""
    return Cost(params=parameter_count(part)) if isinstance(part, Norm) else part.cost(layout, batch)


def parameter_count(module: nn.Module) -> int:
    """How many parameters `module` has, each counted once."""
    return sum(p.numel() for p in module.parameters())


def state_bytes(state: Any) -> int:
    """The bytes of all tensors in a state, whatever pytree it is."""
    return sum(t.numel() * t.element_size() for t in _pytree.tree_leaves(state) if isinstance(t, Tensor))


def element_size(module: nn.Module) -> int:
    """Bytes of one element in the dtype of the module's parameters (float32 where it has none)."""
    return next((p.element_size() for p in module.parameters()), 4)


def split_heads(part: str, dim: int, heads: int | None = None, head_dim: int | None = None) -> tuple[int, int]:
    """(heads, head_dim) that a mixer of width dim uses: those given; with one given the other follows from dim; with
    neither, heads of about 64, and a head_dim that is a multiple of 8.

    Raises ValueError where dim is no multiple of the heads given and head_dim is left open."""
    if heads is not None and heads < 1:
        raise ValueError(f"{part}: heads is {heads}, but must be at least 1")
    if heads is None and head_dim is None:
        heads = max(1, round(dim / 64))
        return heads, max(8, math.ceil(dim / heads / 8) * 8)
    if head_dim is None:
        if dim % heads:
            raise ValueError(
                f"{part}: the width {dim} is no multiple of heads={heads}; choose heads that divide it, or set head_dim"
            )
        return heads, dim // heads
    if heads is None:
        heads = max(1, dim // head_dim)
    return heads, head_dim


def per_sequence(mixer: TokenMixer, x: Tensor, layout: Layout) -> Tensor:
    """forward of every padded or packed sequence by itself, exact for any mixer and free of padding work; padded
    places of the output are zero. For mixers that have no faster form for such a layout."""
    out = torch.zeros_like(x)
    for row, where, alone in layout.sequences():
        out[row : row + 1, where] = mixer(x[row : row + 1, where], alone)
    return out
