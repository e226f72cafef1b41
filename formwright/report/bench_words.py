"""What a bench says in words: figures of its cells, its verdict in sentences, its notes."""

from __future__ import annotations

from datetime import datetime

from formwright.bench.verdict import WORDS, Bar, Results, Verdict
from formwright.report.figures import METRICS

MATCHED = {"params": "parameters", "macs": "multiply-adds", "state": "bytes of decode state", "time": "time of a step"}


def title(results: Results) -> str:
    """'quick: 7 mixers, 10 abilities'."""
    mixers, abilities = len(results.mixers), len(results.abilities)
    return (
        f"{results.bench.suite}: {mixers} mixer{'' if mixers == 1 else 's'}, "
        f"{abilities} abilit{'y' if abilities == 1 else 'ies'}"
    )


def when(results: Results) -> str:
    """The day and hour the bench began."""
    moment = datetime.fromisoformat(results.bench.created)
    return f"{moment.day} {moment:%B %Y, %H:%M}"


def figure(value: float | None, bar: Bar) -> str:
    """A score: accuracies in percent without the sign, others with two decimals, or two digits where that says less."""
    if value is None:
        return "–"
    if bar.metric.endswith("accuracy"):
        return f"{100 * value:.0f}"
    return f"{value:.2f}" if 0.0095 <= abs(value) < 99.5 else f"{value:.2g}"


def cell(verdict: Verdict, bar: Bar | None) -> str:
    """Median and spread of a verdict's scores, or why there are none, in a word."""
    if not verdict.scores or bar is None:
        return WORDS[verdict.word]
    middle, spread = figure(verdict.median, bar), verdict.spread
    if spread is None:
        return middle
    decimals = len(middle.partition(".")[2]) if "e" not in middle else 0
    scale = 100 if bar.metric.endswith("accuracy") else 1
    return f"{middle} ± {scale * spread:.{decimals}f}"


def unit(bar: Bar | None) -> str:
    """What an ability's figures are."""
    if bar is None:
        return ""
    return "% right" if bar.metric.endswith("accuracy") else METRICS.get(bar.metric, bar.metric.replace("_", " "))


def summary(results: Results) -> list[str]:
    """Sentences: who solves how many, what nobody solves, what everybody does."""
    bench, total = results.bench, len(results.abilities)
    sentences = []
    if bench.status != "done":
        sentences.append(f"This bench is not finished (status: {bench.status}).")
    solved = sorted(results.mixers, key=lambda mixer: -results.count(mixer, "solved"))
    counts = [f"{mixer} {results.count(mixer, 'solved')}" for mixer in solved]
    sentences.append(f"Solved, of {total}: {', '.join(counts)}.")
    words = {a["name"]: [results.verdicts[m, a["name"]].word for m in results.mixers] for a in results.abilities}
    judged = {name: [w for w in found if w not in ("cannot", "waiting")] for name, found in words.items()}
    nobody = [name for name, found in judged.items() if found and "solved" not in found]
    everybody = [name for name, found in judged.items() if len(found) > 1 and set(found) == {"solved"}]
    sentences += [f"Solved by nobody: {', '.join(nobody)}."] if nobody else []
    sentences += [f"Solved by all: {', '.join(everybody)}."] if everybody else []
    return sentences


def rule(results: Results) -> str:
    """How verdicts are made, in one sentence."""
    options = results.bench.options
    seeds = options["seeds"]
    few = " Fewer than three seeds make no verdict worth quoting." if seeds < 3 else ""
    return (
        f"Test scores: median of {seeds} seed{'' if seeds == 1 else 's'} ± half their range. ● solved: two seeds in "
        "three reach the mark. ◐ partly: one does, or the median is clearly above the best baseline. ○ no better than "
        f"that baseline. – cannot run. Equal {MATCHED[options['match']]}; learning rates swept, chosen on validation."
        + few
    )


def notes(results: Results) -> list[str]:
    """What a reader must know beside the figures: refusals, lost seeds, marks reached by some seeds alone."""
    found = []
    for mixer in results.mixers:
        for ability in results.abilities:
            verdict = results.verdicts[mixer, ability["name"]]
            where = f"{mixer}, {ability['name']}"
            if verdict.word in ("cannot", "failed"):
                found.append(f"{where}: {WORDS[verdict.word]}: {verdict.reason}")
            elif verdict.reason:
                found.append(f"{where}: {verdict.seeds - len(verdict.scores)} of {verdict.seeds} seeds gave no score: "
                             f"{verdict.reason}")  # fmt: skip
            if 0 < verdict.passed < verdict.seeds:
                found.append(f"{where}: {verdict.passed} of {verdict.seeds} seeds reached the mark.")
    for race in results.bench.races:
        at_edge = [str(note) for note in race.options.get("notes") or [] if "comes no nearer" in str(note)]
        found += [f"{race.ability}: {note}" for note in at_edge]
    return found
