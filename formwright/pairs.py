"""What a bare mixer stands for on data of pairs (source, target): an encoder-decoder, the mixer wherever it can stand.

    encoder_decoder(d*(S + swiglu), d*(T + cross(C) + swiglu))       d = depth / 2

S reads the source in both directions (a causal mixer stands there as bidirectional(mixer)), T the target as the head
asks, C the source's output. A place whose pattern the mixer doesn't compute is taken by attention, and a race says so.
Replacing attention by the mixer is how CAB compares: Comprehensive Attention Benchmarking, arXiv 2210.07661, 2022.
"""

from __future__ import annotations

from formwright import parts
from formwright.lang import Expr, Part

PLACES = {"source": "the source", "target": "the target", "cross": "the reading of the source"}


def standing(mixer: Part, causal: bool) -> dict[str, Expr | None]:
    """What of the mixer's stands in each of PLACES where the target is `causal` or not; None where it can't.

    A wiring around a mixer stands as it is in the self places, cross(mixer) in the cross place alone."""
    if mixer.name == "cross":
        return {"source": None, "target": None, "cross": mixer}
    card = parts.get(mixer.name).card
    if card.kind != "mixer":
        return {"source": mixer, "target": mixer, "cross": None}
    both_ways = mixer if "self" in card.patterns else None
    if both_ways is None and "causal" in card.patterns:
        both_ways = Part("bidirectional", {}, (mixer,))
    forward = mixer if "causal" in card.patterns else None
    reads = ("causal_cross" if causal else "cross") in card.patterns
    found = {"source": both_ways, "target": forward if causal else both_ways}
    found["cross"] = Part("cross", {}, (mixer,)) if reads else None
    if not any(found.values()):
        found["cross"] = Part("cross", {}, (mixer,))  # for the builder to refuse, with its reason
    return found


def pair_stack(mixer: Part, depth: int, causal: bool) -> Expr:
    """The encoder-decoder of a bare mixer (this module's docstring)."""
    attention, swiglu = Part("attention"), Part("swiglu")
    usual = {"source": _placed(attention), "target": _placed(attention), "cross": Part("cross", {}, (attention,))}
    own = standing(mixer, causal)
    place = {name: usual[name] if part is None else _placed(part) for name, part in own.items()}
    half = max(1, depth // 2)
    source = half * (place["source"] + swiglu)
    return Part("encoder_decoder", {}, (source, half * (place["target"] + place["cross"] + swiglu)))


def replaced(mixer: Part, causal: bool) -> str | None:
    """A sentence on the places that attention takes for the mixer; None where it takes none."""
    away = [PLACES[name] for name, part in standing(mixer, causal).items() if part is None]
    if not away:
        return None
    return f"{mixer} can't stand in {' and in '.join(away)}: attention stands there."


def _placed(part: Expr) -> Expr:
    """attention with rotary positions, where it says none."""
    bare = isinstance(part, Part) and part.name == "attention" and "position" not in part.options
    return part(position=Part("rope")) if bare else part
