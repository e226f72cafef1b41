"""Who is measured in the cost suite: mixers and expressions as models of equal size, attention first.

A bare mixer becomes `depth` blocks of itself alone, without channel mixers, over a vocabulary of 16, so that figures
are its own. One that can't look back alone is built to look both ways, and held against attention that does.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from formwright import lang, parts
from formwright.bench.work import ROOM
from formwright.build import build, complete, is_bare_mixer
from formwright.contract import parameter_count
from formwright.lang import Part
from formwright.race.contenders import Entry, check_words, read_contenders
from formwright.race.size import equalise, not_too_far, parse_size

BASELINE = "attention"
VOCAB = 16


def models(
    texts: list[str], *, longest: int, match: str, size: str | int | None, dim: int, depth: int,
    device: str | torch.device, dtype: torch.dtype,
) -> tuple[dict[str, nn.Module], list[dict[str, Any]], list[str]]:  # fmt: skip
    """(models by name, what `Costs.contenders` says of each, sentences on how well they were made equal). Raises
    SyntaxProblem for a part or an option that is misspelt."""
    made: dict[str, nn.Module] = {}
    contenders: list[dict[str, Any]] = []
    notes: list[str] = []
    for causal, side in _sides(texts, depth).items():
        if not side:
            continue
        source = _random_tokens(causal, longest)
        for entry in side:
            if not entry.error:
                check_words(entry, source)
        sized, said = _sized(side, source, match, size, dim)
        notes += said
        for entry in sized:
            about = _about(entry, causal, side[0].name)
            contenders.append(about)
            if entry.error:
                continue
            try:
                model = build(entry.expression or complete(entry.tree, source), source)
            except ValueError as problem:
                about["error"] = str(problem).split("\n")[0]
                continue
            made[entry.name] = model.to(device=device, dtype=dtype).eval()
            about |= {"expression": model.expression, "dim": model.dim, "params": parameter_count(model)}
    return made, contenders, notes


def _sides(texts: list[str], depth: int) -> dict[bool, list[Entry]]:
    """causal -> the contenders that are measured so, attention before them."""
    entries = read_contenders(list(dict.fromkeys([BASELINE, *texts])), depth=depth)
    sides: dict[bool, list[Entry]] = {True: [], False: []}
    for entry in entries:
        tree = lang.as_expression(entry.text)
        bare = is_bare_mixer(tree)
        causal = _causal(tree) if bare else not _both_ways(entry.tree)
        sides[causal].append(replace(entry, tree=depth * tree if bare else entry.tree))
    if sides[False]:
        both = replace(entries[0], name=f"{BASELINE} (both ways)", tree=depth * Part(BASELINE))
        sides[False].insert(0, both)
    return sides


def _random_tokens(causal: bool, longest: int) -> SimpleNamespace:
    """What building and sizing ask of a source, where tokens are drawn at random: single ones or, for an
    encoder-decoder, pairs."""
    facts = {"vocab": VOCAB, "length": longest + ROOM, "outputs": 1}
    head = "lm" if causal else "completion"
    more = {"shape": (longest,), "tokens_per_item": longest, "kind": "synthetic", "source_shape": ...}
    return SimpleNamespace(name="random tokens", embed="tokens", head=head, facts=facts, **more)


def _sized(
    side: list[Entry], source: Any, match: str, size: str | int | None, dim: int
) -> tuple[list[Entry], list[str]]:
    """The contenders at their widths, none far from attention's."""
    fixed = [_at(entry, source, dim) for entry in side]
    if match == "width":
        return fixed, []
    first = fixed[:1] if size is None else side[:1]
    size = None if size is None else parse_size(size)
    sized, notes = equalise([*first, *side[1:]], source, size=size, match=match)
    usual = sized[0].dim or dim
    return not_too_far(sized, notes, side, source, match, usual)


def _at(entry: Entry, source: Any, dim: int) -> Entry:
    """The contender with this width written down, unless it says one."""
    return replace(entry, tree=complete(entry.tree, source, dim=dim))


def _causal(tree: Part) -> bool:
    """Whether a bare mixer is measured looking back alone: wherever it can."""
    cls = parts.get(tree.name)
    return cls.card.kind != "mixer" or "causal" in cls.card.patterns


def _both_ways(tree: lang.Expr) -> bool:
    """Whether an expression that is more than a mixer holds one that can't be causal."""
    mixers = [parts.get(node.name).card for node in lang.walk(tree) if isinstance(node, Part)]
    return any(card.kind == "mixer" and "causal" not in card.patterns for card in mixers) or any(
        card.name in ("bidirectional", "latent") for card in mixers
    )


def _about(entry: Entry, causal: bool, baseline: str) -> dict[str, Any]:
    tree = lang.as_expression(entry.text)
    card = parts.get(tree.name).card if is_bare_mixer(tree) else None
    claimed = {} if card is None or card.kind != "mixer" else {"time": card.time, "state": card.state}
    names = {"name": entry.name, "text": entry.text, "causal": causal, "baseline": baseline, "claimed": claimed}
    return {**names, "expression": None, "dim": None, "params": None, "error": entry.error}
