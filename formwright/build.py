"""Expression tree -> Model. Width, causality and facts of the data flow along the tree; what a part can't do is
collected and answered in one list.

What an expression leaves open is filled from the data: a missing embedding or head, and every constructor argument
that bears the name of a fact (vocab, length, classes, horizon ...).
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from formwright import lang, pairs, parts, zoo
from formwright.binding import bound, check_names
from formwright.contract import (
    ChannelMixer,
    Layout,
    Norm,
    ResidualStyle,
    TokenMixer,
    Wiring,
)
from formwright.lang import Chain, Expr, Parallel, Part, Repeat, Sum, SyntaxProblem
from formwright.model import Model

WIDTH = 256
BYTES = 256


class BuildProblem(ValueError):
    """Why an expression can't be built: one reason a line, each with its place in the text."""

    def __init__(self, reasons: list[str]):
        self.reasons = reasons
        super().__init__("\n".join(reasons))


def build(
    expression: str | Expr,
    data: Any = None,
    *,
    facts: dict[str, Any] | None = None,
    dim: int | None = None,
    causal: bool | None = None,
    seed: int = 0,
) -> Model:
    """The model that `expression` says, or the zoo entry that it names, its weights drawn from `seed`.

    data    a source (formwright.data.open): gives embedding, head and facts where the expression leaves them open
    facts   further facts by name, such as {"vocab": 4096, "length": 512}; they win over the data's
    dim     the width, where the embedding doesn't say it
    causal  whether mixers look back alone; without it the head decides

    Raises SyntaxProblem or BuildProblem, which say where and why."""
    tree = lang.as_expression(expression)
    published = zoo.find(expression)
    alone = {"vocab": BYTES} if published is None else published.facts
    known = {**(data.facts if data is not None else alone), **(facts or {})}
    text = expression if published is None else published.expression
    builder = _Builder(text if isinstance(text, str) else "")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = builder.model(tree, data, known, dim, causal)
    if builder.problems:
        raise BuildProblem(builder.problems)
    return model


def complete(expression: str | Expr, data: Any = None, *, dim: int | None = None) -> Expr:
    """The expression with the embedding and head that the data imply, and the width written at the embedding."""
    tree = lang.as_expression(expression)
    items = list(tree.items) if isinstance(tree, Chain) else [tree]
    embed, head = (data.embed, data.head) if data is not None else ("tokens", "lm")
    if _kind(items[0]) != "embed":
        items.insert(0, lang.as_expression(embed))
    if _kind(items[-1]) != "head":
        items.append(Part(head))
    first = items[0]
    if dim is not None and "dim" not in first.options:
        items[0] = Part(first.name, {"dim": dim, **first.options}, first.arguments, first.place)
    return Chain(tuple(items))


def default_stack(mixer: str | Expr, depth: int = 4, data: Any = None) -> Expr:
    """The stack that a bare mixer stands for: depth*(mixer + swiglu); attention with rotary positions. On data of pairs
    (source, target) it is the encoder-decoder of pairs.py."""
    part = lang.as_expression(mixer)
    if getattr(data, "source_shape", None) not in (None, ...):
        return pairs.pair_stack(part, depth, parts.get(data.head).causal)
    return depth * (positioned(part) + Part("swiglu"))


def positioned(mixer: Expr) -> Expr:
    """A bare mixer as it stands in a stack: attention, which sees no order by itself, with rotary positions."""
    if isinstance(mixer, Part) and mixer.name == "attention" and "position" not in mixer.options:
        return mixer(position=Part("rope"))
    return mixer


def is_bare_mixer(expression: str | Expr) -> bool:
    """True where the expression is one token mixer and nothing else, or a wiring around one that stands as it does."""
    tree = lang.as_expression(expression)
    if not isinstance(tree, Part) or tree.name not in parts.names():
        return False
    cls = parts.get(tree.name)
    return cls.card.kind == "mixer" or (issubclass(cls, Wiring) and cls.branch)


def _kind(tree: Expr) -> str | None:
    return parts.get(tree.name).card.kind if isinstance(tree, Part) and tree.name in parts.names() else None


class _Builder:
    """Builds one tree; `problems` gathers what parts refuse."""

    def __init__(self, text: str):
        self.text = text
        self.problems: list[str] = []

    def model(self, tree: Expr, data: Any, facts: dict[str, Any], dim: int | None, causal: bool | None) -> Model:
        from formwright.wiring.stack import norm_after

        for node in lang.walk(tree):
            if isinstance(node, Part):
                check_names(node, self.text)
        full = complete(tree, data, dim=dim)
        first, *body, last = full.items
        for node in body:
            if _kind(node) in ("embed", "head"):
                what = "first" if _kind(node) == "embed" else "last"
                self.fail(f"{node.name} is the {_kind(node)}, which stands {what}", node)
        if not body:
            raise SyntaxProblem("between the embedding and the head stands a stack, but here is none", self.text, None)
        embed_options = bound(first, {**facts, "dim": WIDTH}, self.text, extra=("dim",))
        width = embed_options.pop("dim")
        embed = self.construct(first, parts.get(first.name), (width,), embed_options)
        head_class = parts.get(last.name)
        if data is not None and parts.get(data.head).causal and not head_class.causal:
            reason = f"the head {last.name} lets tokens see those after them, and these data ask for the next one"
            self.fail(f"{reason}; end with {data.head}", last)
        source_shape = getattr(data, "source_shape", None)
        if data is not None and source_shape is not ...:  # ...: single inputs and pairs, as the expression reads
            self.check_pairs(full, source_shape is not None)
        flow = {**facts, "causal": head_class.causal if causal is None else causal}
        flow["rank"] = getattr(embed, "rank", 1)
        flow["length"] = getattr(embed, "length", None) or facts.get("length", 1024)
        stack = self.stage(Chain(tuple(body)) if len(body) > 1 else body[0], width, flow, parts.get("prenorm"))
        if not isinstance(stack, Wiring):
            raise BuildProblem(self.problems)
        vocab = getattr(embed, "vocab", None)
        known = {**flow, **({"vocab": vocab} if vocab else {}), "tokens": getattr(embed, "tokens", None)}
        head_options = bound(last, known, self.text, extra=("tokens",))
        head = self.construct(last, head_class, (stack.dim_out,), head_options)
        if self.problems:
            raise BuildProblem(self.problems)
        norm = norm_after(stack)
        width_text = Part(first.name, {"dim": width, **{k: v for k, v in first.options.items() if k != "dim"}})
        canonical = str(Chain((Part(width_text.name, width_text.options, first.arguments), *body, last)))
        return Model(embed, stack, norm, head, canonical, facts, causal=flow["causal"])

    def check_pairs(self, tree: Expr, given: bool) -> None:
        """Data that give pairs (source, target) want a part that reads them, and others none."""
        readers = [n for n in lang.walk(tree) if isinstance(n, Part) and getattr(parts.get(n.name), "reads_pairs", 0)]
        if given and not readers:
            how = "encoder_decoder(2*(attention + swiglu), 2*(attention + cross(attention) + swiglu))"
            self.fail(
                f"these data give pairs (source, target), read by an encoder-decoder; write for example {how}", tree
            )
        for node in () if given else readers:
            self.fail(f"{node.name} reads pairs (source, target), and these data give single inputs", node)

    def stage(self, tree: Expr, dim: int, flow: dict[str, Any], style: Callable) -> Wiring | None:
        """A stage of the stack: mixers and channel mixers get the residual style around them."""
        from formwright.wiring.stack import Residual

        if isinstance(tree, (Chain, Repeat)):
            items = tree.items if isinstance(tree, Chain) else (tree.body,) * tree.times
            return self.chain(items, dim, flow, lambda item, d, f: self.stage(item, d, f, style))
        if isinstance(tree, Sum):
            return self.chain(tree.items, dim, flow, lambda item, d, f: self.summand(item, d, f, style))
        if isinstance(tree, Part):
            cls = parts.get(tree.name)
            if issubclass(cls, ResidualStyle):
                return self.styled(tree, cls, dim, flow)
            if issubclass(cls, Norm):
                return self.branch(tree, dim, flow, style)
            if issubclass(cls, Wiring) and not cls.branch:
                return self.wiring(tree, cls, dim, flow, style)
        inner = self.branch(tree, dim, flow, style)
        if inner is None:
            return None
        if inner.dim_out != inner.dim:
            return self.fail("a residual branch must keep the width", tree)
        return Residual(inner, style(dim))

    def summand(self, item: Expr, dim: int, flow: dict[str, Any], style: Callable) -> Wiring | None:
        """One item of a + b: a chain or a wiring in brackets is one branch."""
        from formwright.wiring.stack import Residual

        wiring = isinstance(item, Part) and issubclass(parts.get(item.name), Wiring)
        if isinstance(item, Chain) or wiring:
            inner = self.branch(item, dim, flow, style)
            if inner is not None and inner.dim_out != dim:
                return self.fail("a residual branch must keep the width", item)
            return inner and Residual(inner, style(dim))
        return self.stage(item, dim, flow, style)

    def branch(self, tree: Expr, dim: int, flow: dict[str, Any], style: Callable) -> Wiring | None:
        """What stands inside a residual: parts as they are, without norm or residual of their own."""
        from formwright.wiring.stack import Parallel as ParallelStage
        from formwright.wiring.stack import Plain

        if isinstance(tree, (Chain, Repeat)):
            items = tree.items if isinstance(tree, Chain) else (tree.body,) * tree.times
            return self.chain(items, dim, flow, lambda item, d, f: self.branch(item, d, f, style))
        if isinstance(tree, Sum):
            return self.stage(tree, dim, flow, style)
        if isinstance(tree, Parallel):
            branches = [self.branch(item, dim, flow, style) for item in tree.items]
            if None in branches:
                return None
            if any(b.dim_out != dim for b in branches):
                return self.fail("branches in parallel must keep the width", tree)
            return ParallelStage(branches, dim)
        cls = parts.get(tree.name)
        if issubclass(cls, (TokenMixer, ChannelMixer, Norm)):
            part = self.construct(tree, cls, (dim,), bound(tree, flow, self.text))
            return part and Plain(part, dim)
        if issubclass(cls, ResidualStyle):
            return self.styled(tree, cls, dim, flow)
        if issubclass(cls, Wiring):
            return self.wiring(tree, cls, dim, flow, style)
        return self.fail(
            f"{tree.name} is a {cls.card.kind}; here stands a mixer, a channel mixer, a norm or a wiring", tree
        )

    def chain(self, items: tuple[Expr, ...], dim: int, flow: dict[str, Any], make: Callable) -> Wiring | None:
        from formwright.wiring.stack import Stack

        stages, width, failed = [], dim, False
        for item in items:
            stage = make(item, width, flow)
            if stage is None:
                failed = True
                continue
            stages.append(stage)
            width = stage.dim_out
            length = stage.after(Layout((flow["length"],) + (1,) * (flow["rank"] - 1))).grid[0]
            flow = {**flow, "length": length}
        return None if failed else Stack(stages, dim)

    def wiring(self, tree: Part, cls: type, dim: int, flow: dict[str, Any], style: Callable) -> Wiring | None:
        given = bound(tree, flow, self.text, stacks=cls.stacks)
        stacks, failed = [], False
        for name in cls.stacks:
            inside = given.pop(name, None)
            if not isinstance(inside, Expr):
                return self.fail(f"{tree.name} takes {' and '.join(cls.stacks)}, an expression of parts", tree)
            try:
                flow_inside = cls.inside(name, flow, given)
            except ValueError as error:
                return self.fail(str(error), tree)
            make = self.branch if cls.branch else self.stage
            made = tuple(make(inside, dim, flow_inside, style) for _ in range(cls.copies))
            failed |= None in made
            stacks.append(made if cls.copies > 1 else made[0])
        return None if failed else self.construct(tree, cls, (dim, *stacks), given)

    def styled(self, tree: Part, cls: type, dim: int, flow: dict[str, Any]) -> Wiring | None:
        given = bound(tree, flow, self.text, stacks=("stack",))
        inside = given.pop("stack", None)
        if not isinstance(inside, Expr):
            return self.fail(f"{tree.name} is written around a stack: {tree.name}(2*(attention + swiglu))", tree)
        if self.construct(tree, cls, (dim,), given) is None:
            return None
        return self.stage(inside, dim, flow, functools.partial(cls, **given))

    def construct(self, part: Part, cls: type, arguments: tuple, given: dict[str, Any]) -> nn.Module | None:
        try:
            module = cls(*arguments, **given)
            module.written = str(part)
            return module
        except ValueError as error:
            return self.fail(str(error), part)

    def fail(self, reason: str, tree: Expr) -> None:
        message = str(SyntaxProblem(reason, self.text, tree.place))
        if message not in self.problems:
            self.problems.append(message)


class _Callable(types.ModuleType):
    """Lets `formwright.build` be the function, though it is this module's name too."""

    __call__ = staticmethod(build)


sys.modules[__name__].__class__ = _Callable
