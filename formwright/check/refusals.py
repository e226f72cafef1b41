"""The law of refusals: each pattern or option not supported raises, naming part and option.

An unknown option, a pattern or a grid that the card doesn't claim: computing something else in silence is the worst
answer. `Unsupported` is the right one; a TypeError or ValueError that names the option is one too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from formwright.check.shapes import GRIDS
from formwright.check.subject import Broken, Subject
from formwright.contract import Layout, Unsupported

UNKNOWN = "no_such_option"


def refusals(subject: Subject) -> str:
    """An unknown option; patterns and grid ranks beyond the card."""
    arguments = subject.arguments
    first = subject.first_pattern
    refuses(lambda: subject.construct({**arguments, UNKNOWN: 1}, pattern=first), f"the option {UNKNOWN}=1", UNKNOWN)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in subject.parameters.values()):
        raise Broken("its constructor takes any number of arguments without names (*args); spell its options out")
    if subject.kind == "mixer":
        for pattern in ("self", "causal", "cross", "causal_cross"):
            if pattern not in subject.card.patterns:
                _refuses_pattern(subject, pattern)
        _refuses_ranks(subject)
    return "unknown options, and patterns and grids beyond the card, raise"


def refuses(call: Callable[[], Any], what: str, word: str) -> None:
    """Raise Broken unless the call raises an error that names the option."""
    try:
        call()
    except Unsupported:
        return
    except (TypeError, ValueError, NotImplementedError) as error:
        if word.lower() in str(error).lower():
            return
        raise Broken(f"{what} raised {type(error).__name__}, which doesn't name {word!r}: {error}") from error
    except Exception as error:
        raise Broken(f"{what} raised {type(error).__name__} instead of Unsupported: {error}") from error
    raise Broken(f"{what} was accepted, though the part doesn't support it; raise Unsupported")


def _refuses_pattern(subject: Subject, pattern: str) -> None:
    """The pattern raises when the part is made or, at the latest, in forward."""
    causal = "causal" if pattern.startswith("causal") else "self"
    word = "context" if pattern.endswith("cross") else "causal"
    if pattern.endswith("cross") and causal not in subject.card.patterns:
        return  # the constructor's answer is asked for already

    def call() -> None:
        module = subject.module(pattern)
        inputs = subject.inputs(pattern, 12, 2)
        subject.run(module, *inputs)

    refuses(call, f"the pattern {pattern!r}, which is not on the card,", word)


def _refuses_ranks(subject: Subject) -> None:
    claimed = subject.card.grid_ranks
    if not claimed:
        return
    for pattern in subject.patterns:
        if pattern.endswith("cross"):
            continue
        module = subject.module(pattern)
        for rank, grid in GRIDS.items():
            if rank not in claimed:
                (x,) = subject.inputs("", math.prod(grid))
                refuses(
                    lambda module=module, x=x, grid=grid: subject.run(module, x, layout=Layout(grid)),
                    f"the grid {grid} of {rank} axes ({pattern}), which is not on the card,",
                    "grid",
                )
