"""Facts about made-up people, to be acquired from sentences and extracted by questions (Xu and Chen, "Filtering with
Self-Attention and Storing with MLP", arXiv 2508.00901, 2025; the design of half the people asked about is that of
Allen-Zhu and Li, "Physics of Language Models: Part 3.1", arXiv 2309.14316, 2023).

Each of `people` has a name of two tokens and a value, one of `values`, for each attribute. A biography tells all
attributes of one person in random order, a sentence each: first name, last name, a phrase, the value. An attribute has
`phrases`, of which a fact is told in `multiplicity` (drawn once for each fact). A share `questions` of the training
rows are questions about one person, asked about a share `asked` of the people: the question mark, the names, the
attribute's question, whose answer is never shown. Values are wanted at phrases and questions.

tested   extract   questions about people who were never asked about: half of them validate, half test
         rephrase  sentences in phrases that the fact was never told in
         acquire   biographies as in training: what is known by heart

Everything but the drawing of rows follows from the options (and `sheet`, the number of the sheet of facts). Tokens: 0
the question mark, then first names, last names, phrases, questions, values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, draw_distinct, task


@task
def facts(
    *,
    people: int = 500,
    attributes: int = 4,
    values: int = 20,
    phrases: int = 5,
    multiplicity: int = 3,
    asked: float = 0.5,
    questions: float = 0.3,
    tested: str = "extract",
    sheet: int = 0,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """People's attributes, read in sentences, asked for in questions. inputs, targets (rows, 4 attributes); -100 but at
    phrases and questions."""
    name = "facts"
    at_least(name, people=(people, 4), attributes=(attributes, 1), values=(values, 2), phrases=(phrases, 1))
    at_least(name, multiplicity=(multiplicity, 1), sheet=(sheet, 0), examples=(examples, 1), tests=(tests, 1))
    if tested not in ("extract", "rephrase", "acquire"):
        raise DataError(f"{name}: tested is 'extract', 'rephrase' or 'acquire', not {tested!r}")
    if multiplicity > phrases or (tested == "rephrase" and multiplicity == phrases):
        raise DataError(f"{name}: {phrases} phrases leave none for multiplicity={multiplicity}, tested={tested!r}")
    for option, share in (("asked", asked), ("questions", questions)):
        if not 0 <= share < 1:
            raise DataError(f"{name}: {option} is {share!r}, but must be a share of at least 0 and below 1")
    world = drawn(people, attributes, values, phrases, sheet)
    some = round(asked * people)
    left = (people - some) // 2
    groups = {"train": (0, some), "validation": (some, some + left), "test": (some + left, people)}
    if some == 0 and questions > 0:
        raise DataError(f"{name}: questions={questions} need someone asked about, but asked={asked}")

    def rows_of(rng: np.random.Generator, rows: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        about = groups.get(kind, (0, people))
        who = rng.integers(*about, size=rows)[:, None] if about[0] < about[1] else np.zeros((rows, 1), dtype=np.int64)
        which = draw_distinct(rng, rows, attributes, attributes)
        if kind in groups:
            words = world.question + which
        else:
            told = (0, multiplicity) if kind == "sentences" else (multiplicity, phrases)
            number = world.told[who, which, rng.integers(*told, size=which.shape)]
            words = world.phrase + which * phrases + number
        value = world.value + world.sheet[who, which]
        names = np.broadcast_to(world.names[who], (rows, attributes, 2))
        parts = (np.zeros_like(value), names, words) if kind in groups else (names, words, value)
        tokens = np.concatenate([p if p.ndim == 3 else p[:, :, None] for p in parts], axis=2)
        targets = np.full(tokens.shape, -100, dtype=np.int64)
        targets[:, :, 3 if kind in groups else 2] = value
        return tokens.reshape(rows, -1), targets.reshape(rows, -1)

    def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        told, questioned = rows_of(rng, rows, "sentences"), rows_of(rng, rows, "train")
        ask = rng.random(rows)[:, None] < questions
        return tuple(np.where(ask, q, s) for q, s in zip(questioned, told, strict=True))

    def maker(kind: str):
        return lambda rng, rows: rows_of(rng, rows, kind)

    kinds = {"extract": ("validation", "test"), "rephrase": ("rephrased",) * 2, "acquire": ("sentences",) * 2}[tested]

    def baselines(x: np.ndarray, y: np.ndarray, tested_x: np.ndarray, tested_y: np.ndarray) -> dict[str, float]:
        told = [np.bincount(world.sheet[:, a], minlength=values).argmax() for a in range(attributes)]
        words, answers = tested_x[tested_y >= 0], tested_y[tested_y >= 0] - world.value
        about = np.where(words < world.question, (words - world.phrase) // phrases, words - world.question)
        return {"the attribute's commonest value": float((np.array(told)[about] == answers).mean())}

    return Task(
        make,
        {"vocab": world.value + values, "length": 4 * attributes},
        make_validation=maker(kinds[0]),
        make_test=maker(kinds[1]),
        harder="",
        chance=1 / values,
        baselines=baselines,
        examples=examples,
        tests=tests,
    )


@dataclass
class World:
    """names (P, 2) tokens; sheet (P, A) values from 0; told (P, A, phrases): the phrases of a fact in a random order,
    of which the first are told; the first token of phrases, questions and values."""

    names: np.ndarray
    sheet: np.ndarray
    told: np.ndarray
    phrase: int
    question: int
    value: int


def drawn(people: int, attributes: int, values: int, phrases: int, sheet: int) -> World:
    """Everyone's names, all different, and facts."""
    words = np.random.SeedSequence([people, attributes, values, phrases, sheet])
    rng = np.random.Generator(np.random.PCG64(words))
    sort = math.isqrt(2 * people - 1) + 1  # of first names, and of last names: neither alone names anyone
    first, last = np.divmod(rng.permutation(sort * sort)[:people], sort)
    phrase = 1 + 2 * sort
    question = phrase + attributes * phrases
    return World(
        names=np.stack((1 + first, 1 + sort + last), axis=1),
        sheet=rng.integers(0, values, size=(people, attributes)),
        told=draw_distinct(rng, people * attributes, phrases, phrases).reshape(people, attributes, phrases),
        phrase=phrase,
        question=question,
        value=question + attributes,
    )
