"""The suites: abilities, each a question to a mixer, as a task, a stack around the mixer, a budget and a mark.

    data      a task's text (formwright/data/tasks)
    mark      the score on the test part from which an ability counts as solved; or ("least squares", 1.5): so many
              times what that baseline scores
    beside    the baselines that a mixer must leave behind; all that the task names where it is empty
    stack     what the mixer stands in, in the place of MIXER; pairs of inputs bring an encoder-decoder of their own
    size      parameters of each contender, embedding and head included
    steps     of each run, of batch_tokens tokens each, at every one of `rates`
    enough    a validation score at which a run may end early, beyond the mark; None where the test part is harder than
              what is trained on, since there training goes on paying
    recall    whether its score stands in the picture of quality against state size
    pattern   of contract.PATTERNS: mixers without it aren't judged

Sizes and steps are for CPUs: they tell mixers apart, they don't reproduce published figures, which took 10 to 1000
times the training (tasks' docstrings cite them).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ability:
    """One question of a suite; see this module's docstring."""

    name: str
    question: str
    data: str
    mark: float | tuple[str, float]
    beside: tuple[str, ...] = ()
    stack: str = "2*(MIXER + swiglu)"
    size: str | int = "100k"
    steps: int = 2000
    batch_tokens: int = 2048
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    enough: float | None = None
    recall: bool = False
    pattern: str | None = None


MIXERS_ALONE = "2*MIXER"
ONE_LAYER = "MIXER + swiglu"  # a state that is tracked is tracked in one layer

QUICK = (
    Ability(
        "recall", "Which value stood behind this key?", "mqar(pairs=4, length=16, vocab=16, tests=1000)", 0.95,
        stack=MIXERS_ALONE, size="32k", steps=300, batch_tokens=1024, enough=0.985, rates=(3e-3, 1e-2), recall=True,
    ),
    Ability(
        "selective copying", "Which tokens stood among the blanks, in order?",
        "copying(length=24, tokens=4, tests=1000)", 0.95,
        stack=MIXERS_ALONE, size="32k", steps=300, batch_tokens=1536, enough=0.985, rates=(3e-3, 1e-2), recall=True,
    ),
    Ability(
        "induction", "What followed this token before?", "induction(length=24, vocab=16, tests=1000)", 0.95,
        stack=MIXERS_ALONE, size="32k", steps=250, batch_tokens=1536, enough=0.985, rates=(3e-3, 1e-2), recall=True,
    ),
    Ability(
        "memorisation", "Can facts be kept in the weights?", "mad_memorization(length=16, vocab=64)", 0.95,
        size="30k", steps=200, batch_tokens=512, enough=0.985, rates=(3e-3, 1e-2),
    ),
    Ability(
        "compression", "Does one token hold a whole sequence?", "mad_compression(length=5, vocab=8)", 0.95,
        size="40k", steps=300, batch_tokens=320, enough=0.985, rates=(3e-3, 1e-2),
    ),
    Ability(
        "parity", "Odd or even, beyond the lengths seen?",
        "parity(lengths_seen=(1, 16), lengths_tested=(17, 48), running=True, tests=1000)", 0.9,
        stack=ONE_LAYER, size="20k", steps=300, batch_tokens=1024, rates=(3e-3, 1e-2),
    ),
    Ability(
        "word problem", "The running product in a group, beyond the lengths seen?",
        "word_problem(group='S3', length=4, length_tested=6, tests=1000)", 0.85,
        stack=ONE_LAYER, size="20k", steps=300, batch_tokens=768, rates=(3e-3, 1e-2),
    ),
    Ability(
        "brackets", "Which bracket closes here, in longer strings?",
        "dyck(types=4, depth=4, length=32, length_tested=64, tests=1000)", 0.95,
        size="30k", steps=200, batch_tokens=1024, rates=(3e-3, 1e-2),
    ),
    Ability(
        "regression", "A linear function learnt in the context?",
        "linear_regression(dim=2, points=8, apart=True, tests=1000)", ("least squares", 2.0),
        ("always zero", "averaging"), size="30k", steps=300, batch_tokens=1024, rates=(3e-3, 1e-2),
    ),
    Ability(
        "dynamics", "What will a chaotic system do next?",
        "lorenz96(variables=8, samples=20000, transient=5000, every=5, input_length=16, horizon=8)",
        ("a ridge regression", 1.25), ("the last value", "the mean of the window"),
        size="30k", steps=250, batch_tokens=1024, rates=(3e-3, 1e-2),
    ),
)  # fmt: skip

RECALL = (
    Ability("mqar 8", "Which value stood behind this key, of 8?", "mqar(pairs=8, length=64, vocab=256)", 0.95,
            stack=MIXERS_ALONE, steps=3000, batch_tokens=4096, enough=0.985, recall=True),
    Ability("mqar 16", "Of 16?", "mqar(pairs=16, length=128, vocab=512)", 0.95,
            stack=MIXERS_ALONE, steps=3000, batch_tokens=4096, enough=0.985, recall=True),
    Ability("mqar 32", "Of 32?", "mqar(pairs=32, length=256, vocab=512)", 0.95,
            stack=MIXERS_ALONE, steps=3000, batch_tokens=8192, enough=0.985, recall=True),
    Ability("in-context recall", "MAD: a key seen before, and its value?", "mad_recall(length=64)", 0.9,
            batch_tokens=4096, enough=0.97, recall=True),
    Ability("noisy recall", "MAD: the same, with noise between?", "mad_noisy_recall(length=64)", 0.9,
            batch_tokens=4096, enough=0.97, recall=True),
    Ability("fuzzy recall", "MAD: keys and values of several tokens?", "mad_fuzzy_recall(length=64)", 0.8,
            batch_tokens=4096, enough=0.9, recall=True),
    Ability("selective copying", "MAD: the tokens among the blanks, in order?",
            "mad_selective_copying(length=64, tokens=8)", 0.95, batch_tokens=4096, enough=0.985, recall=True),
    Ability("compression", "MAD: does one token hold a whole sequence?", "mad_compression(length=32)", 0.8,
            batch_tokens=4096, enough=0.9),
    Ability("memorisation", "MAD: can facts be kept in the weights?", "mad_memorization", 0.95,
            steps=1000, enough=0.985),
    Ability("string copying", "A string, repeated, longer than seen?",
            "string_copy(lengths_seen=(5, 20), lengths_tested=(20, 60), packed=128)", 0.9, batch_tokens=4096),
    Ability("n-gram look-up", "What followed these three letters?",
            "ngram_lookup(lengths_seen=(5, 20), lengths_tested=(20, 60), packed=128)", 0.9, batch_tokens=4096),
    Ability("phonebook", "This name's number, of a longer book than seen?",
            "phonebook(lines_seen=(3, 8), lines_tested=(8, 16))", 0.9, batch_tokens=8192),
    Ability("passkey", "A number hidden in a longer text than seen?",
            "passkey(length=128, length_tested=512)", 0.9, batch_tokens=4096),
    Ability("brackets", "Which bracket closes here, in longer strings?",
            "dyck(types=8, depth=8, length=128, length_tested=256)", 0.95, batch_tokens=4096),
)  # fmt: skip

STATE = (
    Ability("parity", "Odd or even, beyond the lengths seen?", "parity(running=True)", 0.9, batch_tokens=4096),
    Ability("modular arithmetic", "A value modulo 5, of longer terms?", "modular_arithmetic", 0.9, batch_tokens=4096),
    Ability("Z60", "Running products in a group: abelian?", "word_problem(group='Z60', length=16, length_tested=32)",
            0.9),
    Ability("A4xZ5", "Solvable?", "word_problem(group='A4xZ5', length=16, length_tested=32)", 0.9),
    Ability("A5", "Not solvable?", "word_problem(group='A5', length=16, length_tested=32)", 0.9),
    Ability("even pairs", "First and last letter alike?", "even_pairs", 0.9),
    Ability("cycle navigation", "Where after these steps round a ring?", "cycle_navigation", 0.9),
    Ability("stack manipulation", "A stack after pushes and pops?", "stack_manipulation", 0.9),
    Ability("reverse string", "A longer string backwards?", "reverse_string", 0.9),
    Ability("duplicate string", "A longer string twice?", "duplicate_string", 0.9),
    Ability("bucket sort", "A longer string sorted?", "bucket_sort", 0.9),
    Ability("counting", "How many of this letter?", "counting", 0.9),
    Ability("counting tokens", "The same, two letters a token?", "counting(tokenisation='pairs')", 0.9),
    Ability("working memory", "A list said again, in order?", "working_memory", 0.9, recall=True),
)  # fmt: skip

IN_CONTEXT = (
    Ability("linear regression", "A linear function from examples?", "linear_regression(dim=5, points=11)",
            ("least squares", 1.5), ("always zero", "averaging"), steps=4000),
    Ability("sparse regression", "One that depends on few inputs?",
            "linear_regression(dim=8, points=16, sparsity=2)", ("least squares", 1.0), ("always zero", "averaging"),
            steps=4000),
    Ability("covariate shift", "On inputs distributed otherwise?",
            "linear_regression(dim=5, points=11, skew_tested=1.0)", ("least squares", 2.0),
            ("always zero", "averaging"), steps=4000),
    Ability("conjunctions", "A Boolean function from examples?",
            "boolean_functions(family='conjunctions', dim=10, points=30)", ("Find-S", 1.0),
            ("guessing", "the commonest answer"), steps=3000),
    Ability("inverse permutation", "A permuted string put back in order?", "inverse_permutation(size=6)", 0.9,
            steps=3000),
    Ability("scratch tokens", "The same with tokens to work on?", "inverse_permutation(size=6, form='scratch')", 0.9,
            steps=3000),
    Ability("facts", "Facts learnt as sentences, asked for as questions?", "facts(people=100)", 0.9, steps=3000),
    Ability("Markov chain", "The statistics of a chain never seen?", "markov(order=1, symbols=4, law='dirichlet')",
            ("contexts counted so far", 1.02), ("one distribution of symbols",), batch_tokens=4096),
)  # fmt: skip

GUESSES = ("guessing", "the commonest answer", "the commonest class")

LONG_RANGE = (
    Ability("ListOps", "The value of nested lists?", "listops(shortest=50, longest=200)", 0.6, size="200k",
            steps=3000, batch_tokens=8192),
    Ability("pathfinder", "Are two discs joined by a path, seen pixel by pixel?", "pathfinder(size=32, sequence=True)",
            0.8, size="200k", steps=3000, batch_tokens=16384),
    Ability("topic", "Which package is this source code from?", "source_topic(length=512)", 0.75, size="200k",
            batch_tokens=8192),
    Ability("pairs", "Are two pieces of source code of one file?", "source_pairs(length=256)", 0.75, size="200k",
            batch_tokens=8192),
    Ability("digits", "Which digit, pixel by pixel?", "digits_sequence", 0.9, GUESSES),
    Ability("MNIST-1D", "Which digit, drawn as a signal?", "mnist1d", 0.9, steps=3000),
    Ability("MNIST-1D shuffled", "The same, neighbours torn apart?", "mnist1d(shuffled=True)", 0.7, steps=3000),
    Ability("arrow pointing", "Does the arrow point at the disc, on larger pictures too?",
            "arrow_pointing(size=64, tested_size=128)", 0.8, size="200k", steps=3000, batch_tokens=8192),
    Ability("passkey", "A number hidden in a long text?", "passkey(length=512, length_tested=2048)", 0.9,
            batch_tokens=8192),
    Ability("copying", "The tokens among many blanks?", "copying(length=512, tokens=16)", 0.95, batch_tokens=8192,
            enough=0.985, recall=True),
)  # fmt: skip

SERIES = (
    Ability("Lorenz-96", "What will a chaotic ring do next?",
            "lorenz96(samples=20000, transient=10000, every=5, input_length=32, horizon=16)",
            ("a ridge regression", 0.8), batch_tokens=4096),
    Ability("Kuramoto-Sivashinsky", "What will a chaotic flow do next?",
            "kuramoto_sivashinsky(grid=256, samples=20000, transient=4000, input_length=32, horizon=16)",
            ("a ridge regression", 0.8), batch_tokens=4096),
    Ability("weather", "The next day's weather, hour by hour?", "weather", ("a ridge regression", 0.95),
            batch_tokens=4096),
    Ability("economy", "The next two years of an economy?", "macro", ("a ridge regression", 0.9), batch_tokens=4096),
)  # fmt: skip

PATTERNS = (
    Ability("noncausal self", "Hidden values restored from both sides?", "masked_recall(pairs=8)", 0.95,
            stack=MIXERS_ALONE, enough=0.985, pattern="self"),
    Ability("causal self", "Values recalled from what came before?", "mqar(pairs=8, length=64, vocab=64)", 0.95,
            stack=MIXERS_ALONE, enough=0.985, pattern="causal", recall=True),
    Ability("noncausal cross", "Values at places, from a set of points?", "point_completion", 0.02,
            ("a circle", "the nearest point seen"), pattern="cross"),
    Ability("causal cross", "One string written from another?", "string_to_string", 0.95, enough=0.985,
            pattern="causal_cross"),
)  # fmt: skip

SUITES: dict[str, tuple[Ability, ...]] = {
    "quick": QUICK,
    "recall": RECALL,
    "state": STATE,
    "in-context": IN_CONTEXT,
    "long-range": LONG_RANGE,
    "series": SERIES,
    "patterns": PATTERNS,
}
SUITES["all"] = tuple(
    Ability(**{**vars(ability), "name": f"{suite} {ability.name}"})
    for suite, abilities in SUITES.items()
    if suite != "quick"
    for ability in abilities
)
