"""Working memory: lists to keep and recall, scored by where in the list an item stood (after Sikarwar and Zhang,
"Decoding the Enigma: Benchmarking Humans and AIs on the Many Facets of Working Memory", arXiv 2307.10768, 2023).

A list of distinct items, then a mark, then what `recall` names:

serial  slots: the items in order
probed  numbers of places in the list, in random order: the item of each
free    every item there is, in random order: was it in the list (1 yes, 2 no)? The paper asks for a set likewise

`distractors` tokens follow each item, `delay` of them stand before the mark: of kinds of their own, or (alike=True)
items that are not in the list, told apart by their place alone. People recall the first items (primacy) and the last
(recency) best: accuracy_first, accuracy_between and accuracy_last show both, bench/curves.py every place.

Tokens: 0 is a slot, items 1..V, distractors V+1..V+8, the mark V+9, the number of the i-th place V+9+i.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, draw_distinct, task
from formwright.data.tasks.slots import Lengths, lengths, span

if TYPE_CHECKING:
    from torch import Tensor

KINDS = 8
YES, NO = 1, 2


@task
def working_memory(
    *,
    recall: str = "serial",
    lengths_seen: Lengths = (3, 12),
    lengths_tested: Lengths = (3, 12),
    items: int = 25,
    distractors: int = 0,
    delay: int = 0,
    alike: bool = False,
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """The items of a list, recalled. inputs, targets (rows, N), where N holds the longest list, its distractors and
    what is asked."""
    name = "working_memory"
    seen, tested = span(name, "lengths_seen", lengths_seen), span(name, "lengths_tested", lengths_tested)
    longest = max(seen[1], tested[1])
    at_least(name, items=(items, longest), distractors=(distractors, 0), delay=(delay, 0))
    at_least(name, examples=(examples, 1), tests=(tests, 1))
    if recall not in ("serial", "probed", "free"):
        raise DataError(f"{name}: recall is 'serial', 'probed' or 'free', not {recall!r}")
    if not isinstance(alike, bool):
        raise DataError(f"{name}: alike is True or False, not {alike!r}")
    if items == longest and (alike or recall == "free"):
        raise DataError(f"{name}: a list of {longest} leaves no item out; give items of at least {longest + 1}")
    step, mark = distractors + 1, items + KINDS + 1

    def maker(bounds: Lengths):
        width = step * bounds[1] + delay + 1 + (items if recall == "free" else bounds[1])

        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            sizes = lengths(rng, rows, bounds)[:, None]
            order = 1 + draw_distinct(rng, rows, items, items)  # a list is its first `sizes`
            marks = step * sizes + delay
            place = np.arange(width)
            filler = items + 1 + rng.integers(0, KINDS, size=(rows, width))
            if alike:
                filler = np.take_along_axis(order, rng.integers(sizes, items, size=(rows, width)), axis=1)
            held = np.take_along_axis(order, np.minimum(place // step, items - 1)[None], axis=1)
            listed = (place < step * sizes) & (place % step == 0)
            inputs = np.where(listed, held, np.where(place < marks, filler, np.where(place == marks, mark, 0)))
            asked, answers, count = questions(rng, order, sizes, bounds[1])
            targets = np.full((rows, width), -100, dtype=np.int64)
            row, number = np.nonzero(np.arange(asked.shape[1]) < count)
            where = marks[row, 0] + 1 + number
            inputs[row, where], targets[row, where] = asked[row, number], answers[row, number]
            return inputs, targets

        return make

    def questions(rng: np.random.Generator, order: np.ndarray, sizes: np.ndarray, most: int):
        """What is asked (rows, Q), the answers, and how many of them count (rows, 1)."""
        if recall == "serial":
            return np.zeros((len(order), most), dtype=np.int64), order[:, :most], sizes
        if recall == "probed":
            key = np.where(np.arange(most) < sizes, rng.random((len(order), most)), 2.0)
            which = np.argsort(key, axis=1, kind="stable")
            return mark + 1 + which, np.take_along_axis(order, which, axis=1), sizes
        which = draw_distinct(rng, len(order), items, items)
        answers = np.where(which < sizes, YES, NO)
        return np.take_along_axis(order, which, axis=1), answers, np.full_like(sizes, items)

    return Task(
        maker(seen),
        {
            "vocab": mark + 1 + (longest if recall == "probed" else 0),
            "length": step * longest + delay + 1 + (items if recall == "free" else longest),
        },
        make_test=maker(tested) if tested != seen else None,
        ragged=True,
        chance=0.5 if recall == "free" else 1 / items,
        score=partial(ends_and_middle, recognised=recall == "free"),
        examples=examples,
        tests=tests,
    )


def ends_and_middle(
    outputs: Tensor, inputs: Tensor, targets: Tensor, *, recognised: bool = False
) -> dict[str, tuple[int, int]]:
    """The accuracy on items that stood first in their list, last, and between."""
    place, count = serial_places(inputs, targets, recognised=recognised)
    right = outputs.argmax(-1) == targets
    last = place == count[:, None]
    groups = {"first": place == 1, "last": last & (place > 0), "between": (place > 1) & ~last}
    return {f"accuracy_{name}": (int((right & g).sum()), int(g.sum())) for name, g in groups.items() if g.any()}


def serial_places(inputs: Tensor, targets: Tensor, *, recognised: bool = False) -> tuple[Tensor, Tensor]:
    """inputs, targets (B, N) -> for each target (B, N) the place of its item among those asked for, from 1 in the order
    shown (0: nothing is asked, or the item was not shown), and how many were shown and asked for (B,).

    The item is the answer; with recognised=True it is the token asked about, where the answer is YES. It was shown
    where it first stands in the row, so any rows will do that show distinct things and ask for each once."""
    asked = targets >= 0
    wanted, counted = (inputs, asked & (targets == YES)) if recognised else (targets, asked)
    before = asked.new_ones(asked.shape[1], asked.shape[1]).tril(-1)
    match = (inputs[:, None, :] == wanted[:, :, None]) & before & counted[:, :, None]
    found, first = match.any(-1), match.int().argmax(-1)
    marks = first.new_zeros(first.shape).scatter_add(1, first, found.to(first.dtype)).clamp(max=1)
    return marks.cumsum(1).gather(1, first) * found, marks.sum(1)
