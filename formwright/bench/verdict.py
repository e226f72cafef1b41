"""What a race of a bench says of each mixer: solved, partly, no better than what needs no model, or can't.

With b the best score of the baselines that count and m the ability's mark, a seed that scores s on the test part has
come the share p = (s - b) / (m - b) of the way, whichever direction is better. Over the seeds, half the distance from
the lowest to the highest being the spread:

    solved    at least two seeds in three have p >= 1
    partly    some seed has, or the median p is above a fifth and above the spread of p
    none      otherwise: no better than the baseline
    failed    no seed gave a score (diverged, crashed)
    cannot    the mixer can't be built for the ability; the reason says why
    waiting   runs are still to come
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from formwright.race.records import Bench, Contender, Race
from formwright.report.figures import score_of

SOLVED_SHARE = 2 / 3
LEAST_SHARE = 0.2
SIGNS = {"solved": "●", "partly": "◐", "none": "○", "failed": "✗", "cannot": "–", "waiting": "…"}
WORDS = {
    "solved": "solved",
    "partly": "partly",
    "none": "no better than a baseline",
    "failed": "no result",
    "cannot": "cannot",
    "waiting": "not yet",
}


@dataclass(frozen=True)
class Bar:
    """What scores of an ability are held against: the best baseline by name, the mark, which direction is better."""

    metric: str
    lower: bool
    baseline: str
    base: float
    mark: float

    def share(self, score: float) -> float:
        """How far from the baseline to the mark a score has come."""
        return (score - self.base) / (self.mark - self.base)


@dataclass(frozen=True)
class Verdict:
    """One mixer's verdict on one ability; `scores` are those of its seeds on the test part, `share` their median's."""

    mixer: str
    ability: str
    word: str
    scores: tuple[float, ...] = ()
    share: float | None = None
    seeds: int = 0
    passed: int = 0
    reason: str = ""
    state_bytes: int | None = None
    params: int | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Half the distance from the lowest seed to the highest; None for one seed."""
        return (max(self.scores) - min(self.scores)) / 2 if len(self.scores) > 1 else None


@dataclass
class Results:
    """A whole bench: abilities in order, each with its bar (None before its race began), and the verdicts."""

    bench: Bench
    abilities: list[dict[str, Any]]
    mixers: list[str]
    bars: dict[str, Bar | None] = field(default_factory=dict)
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)

    def count(self, mixer: str, word: str) -> int:
        """On how many abilities the mixer has this verdict."""
        return sum(self.verdicts[mixer, ability["name"]].word == word for ability in self.abilities)


def results(bench: Bench) -> Results:
    """All verdicts of a loaded bench, finished or not."""
    abilities = bench.options["abilities"]
    races = {race.ability: race for race in bench.races}
    names = list(dict.fromkeys(c.name for race in bench.races for c in race.contenders)) or bench.options["mixers"]
    found = Results(bench, abilities, names)
    missing = bench.options.get("missing") or {}
    for ability in abilities:
        race = races.get(ability["name"])
        found.bars[ability["name"]] = bar(ability, race.source) if race else None
        contenders = {c.name: c for c in race.contenders} if race else {}
        for name in names:
            if name in contenders:
                verdict = judge(contenders[name], race, ability["name"], found.bars[ability["name"]])
            elif ability["name"] in missing:
                verdict = Verdict(name, ability["name"], "cannot", reason=missing[ability["name"]])
            else:
                verdict = Verdict(name, ability["name"], "waiting")
            found.verdicts[name, ability["name"]] = verdict
    return found


def bar(ability: dict[str, Any], source: dict[str, Any]) -> Bar:
    """What an ability's scores on this source are held against."""
    lower, baselines = source["lower_is_better"], source.get("baselines") or {}
    counted = {name: score for name, score in baselines.items() if name in ability["beside"]} or baselines
    best = min if lower else max
    name = best(counted, key=counted.get)
    mark = ability["mark"]
    if not isinstance(mark, int | float):
        of, factor = mark
        mark = factor * baselines[of]
    return Bar(source["metric"], lower, name, counted[name], mark)


def judge(contender: Contender, race: Race, ability: str, bar: Bar) -> Verdict:
    """The verdict on one contender of an ability's race."""
    about = {"mixer": contender.name, "ability": ability, "state_bytes": contender.state_bytes}
    about |= {"params": contender.params}
    main = [trial for trial in contender.trials if trial.phase == "main"]
    if contender.error:
        return Verdict(**about, word="failed" if contender.trials else "cannot", reason=contender.error)
    ended = [trial for trial in main if trial.status in ("done", "diverged", "failed")]
    if not main or len(ended) < len(main):
        return Verdict(**about, word="waiting", seeds=len(main))
    scores = tuple(s for trial in main if (s := score_of(trial, bar.metric, "test")) is not None)
    lost = "; ".join(dict.fromkeys(trial.error or trial.status for trial in main if trial.status != "done"))
    if not scores:
        return Verdict(**about, word="failed", seeds=len(main), reason=lost)
    shares = [bar.share(score) for score in scores]
    passed, middle = sum(share >= 1 for share in shares), statistics.median(shares)
    if passed >= SOLVED_SHARE * len(main):
        word = "solved"
    elif passed or middle > max(LEAST_SHARE, (max(shares) - min(shares)) / 2):
        word = "partly"
    else:
        word = "none"
    return Verdict(**about, word=word, scores=scores, share=middle, seeds=len(main), passed=passed, reason=lost)
