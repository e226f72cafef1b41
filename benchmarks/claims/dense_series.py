"""A learned matrix over the tokens, the same for every input, forecasts series as well as attention does.

Two ways of making tokens of a window, pieces of time (as PatchTST) and whole variates (as iTransformer), on the weather
at an airport and on Lorenz's 40 equations.
"""

from __future__ import annotations

from collections.abc import Mapping

from trials import Trial

from claims import Condition, Finding, Result, at_most

DATA = {"weather": ("weather", ()), "lorenz96": ("lorenz96", ())}
TOKENS = {"patches": "series(dim=32, patch=8)", "variates": "series(dim=32, tokens='variate')"}
MIXERS = {"attention": "attention(heads=4)", "dense": "dense(project=True, heads=4)"}


def trial(data: str, tokens: str, mixer: str) -> Trial:
    spec, options = DATA[data]
    stack = f"{TOKENS[tokens]} >> 2*({MIXERS[mixer]} + mlp)"
    return Trial(stack, spec, steps=500, options=options, limit=2000)


def name(data: str, tokens: str, mixer: str) -> str:
    return f"{mixer}, {tokens}, {data}"


def judge(found: Mapping[str, Result]) -> list[Condition]:
    conditions = []
    for data in DATA:
        for tokens in TOKENS:
            attention, dense = (found[name(data, tokens, mixer)].mean for mixer in ("attention", "dense"))
            text = f"{data}, {tokens}: error of dense beside attention's"
            conditions.append(at_most(text, dense / attention, 1.05))
    return conditions


FINDING = Finding(
    claim="Dense matrices over the tokens forecast series as well as attention",
    source="JustDense: Just using Dense instead of Sequence Mixer for Time Series analysis, arXiv 2508.09153, 2025",
    published="replacing sequence mixers by dense layers gives comparable or better performance in 29 benchmarks",
    contenders={
        name(data, tokens, mixer): trial(data, tokens, mixer) for data in DATA for tokens in TOKENS for mixer in MIXERS
    },
    rates=(1e-3, 3e-3),
    metric="mse",
    lower_is_better=True,
    judge=judge,
)
