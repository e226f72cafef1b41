"""The four patterns of attention, one small task each, and what of a mixer can be judged by each.

    self          noncausal self     masked_recall: hidden values restored from both sides
    causal        causal self        mqar: values recalled from what came before
    cross         noncausal cross    point_completion: values at places, from a set of points
    causal_cross  causal cross       string_to_string: one string written from another, letter by letter

CAB: Comprehensive Attention Benchmarking on Long Sequence Modeling, arXiv 2210.07661, 2022. As there, a mixer stands in
for every attention of the model that it can replace; a mixer without the pattern itself isn't judged by it, since what
was scored would be attention. CAB sums up by z-scores over all that were judged by a task, their mean over a pattern.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from formwright import lang, parts
from formwright.build import default_stack, is_bare_mixer
from formwright.lang import Expr, Part


@dataclass(frozen=True)
class Pattern:
    """One pattern (a word of contract.PATTERNS), what people call it, and the task that judges it."""

    name: str
    words: str
    data: str


PATTERNS = {
    pattern.name: pattern
    for pattern in (
        Pattern("self", "noncausal self", "masked_recall(pairs=8)"),
        Pattern("causal", "causal self", "mqar(pairs=8, length=64, vocab=64)"),
        Pattern("cross", "noncausal cross", "point_completion"),
        Pattern("causal_cross", "causal cross", "string_to_string"),
    )
}


def contender(mixer: str | Expr, pattern: str, source: object, depth: int = 4) -> tuple[Expr | None, str | None]:
    """(the stack that a bare mixer is judged with by a pattern's `source`, None), or (None, why it can't be).

    A mixer that reads forwards alone is judged by noncausal self as bidirectional(mixer). Expressions that are more
    than a mixer stand as they are, for the builder to refuse."""
    tree = lang.as_expression(mixer)
    if not is_bare_mixer(tree):
        return tree, None
    card = parts.get(tree.name).card
    if card.kind != "mixer":
        return default_stack(tree, depth, source), None
    if pattern == "self" and "self" not in card.patterns and "causal" in card.patterns:
        return default_stack(Part("bidirectional", {}, (tree,)), depth, source), None
    if pattern not in card.patterns:
        have = ", ".join(PATTERNS[name].words for name in card.patterns) or "none"
        return None, f"{card.name} has no {PATTERNS[pattern].words} pattern; it has {have}"
    return default_stack(tree, depth, source), None


def z_scores(scores: Mapping[str, float], *, lower_is_better: bool = False) -> dict[str, float]:
    """(score - mean) / deviation over all contenders, so that more is better; all 0 where none differs. Scores that are
    not finite are left out."""
    known = {name: score for name, score in scores.items() if math.isfinite(score)}
    if not known:
        return {}
    mean = sum(known.values()) / len(known)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in known.values()) / len(known))
    sign = -1 if lower_is_better else 1
    return {name: sign * (score - mean) / deviation if deviation else 0.0 for name, score in known.items()}
