"""A needle in a haystack: a sentence with a number, hidden in a text that says nothing of it, and asked for at its end.

needle   Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", arXiv 2404.06654,
         2024: "one of the special magic numbers for {adjective} {noun} is : {digits} ." among repeated sentences, or
         among other needles (haystack="needles"); of `needles` the one of the key in the question is meant.
passkey  Mohtashami and Jaggi, "Landmark Attention: Random-Access Infinite Context Length for Transformers", arXiv
         2305.16300, 2023: "the pass key is {digits} . remember it . {digits} is the pass key ."

Tokens are words, marks and digits. The number lies before one of the haystack's sentences, or after the last, uniform
among those whose place is between the bounds of `depth`, shares of the haystack; a row has as many sentences as fit in
`length` tokens. The test has longer rows. The score that ranks is string_accuracy: numbers without a mistake, each
digit said after the right ones; it is told by the depth that the number lies at, too, in tenths of the haystack.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from formwright.data.source import DataError
from formwright.data.tasks import Task, at_least, draw_distinct, task
from formwright.data.tasks.scoring import both, grouped, whole_rows

if TYPE_CHECKING:
    from torch import Tensor


def _words(text: str) -> list[str]:
    return text.split()


HAYSTACK = _words("the grass is green . the sky is blue . the sun is yellow . here we go . there and back again .")
NEEDLE = "one of the special magic numbers for KEY KEY is : VALUE ."
QUESTION = (
    "what is the special magic number for KEY KEY mentioned in the provided text ? "
    "the special magic number for KEY KEY mentioned in the provided text is VALUE"
)
PASSKEY = "the pass key is VALUE . remember it . VALUE is the pass key ."
PASSKEY_QUESTION = "what is the pass key ? the pass key is VALUE"
DIGITS = [str(digit) for digit in range(10)]
ADJECTIVES = _words(
    "brave calm clever cold curious dark eager fancy gentle happy heavy honest jolly kind lazy lively loud lucky mild "
    "neat noisy odd pale plain polite proud quick quiet rare rough round sharp shy silent silly slow small smooth soft "
    "solid sour spicy steep still strange strong sweet tall tame tidy tiny vast warm wary weak wet wide wild wise young"
)
NOUNS = _words(
    "acorn anchor apple arrow badge basket beach bell boat bottle branch bridge bucket button cabin candle castle "
    "chair cloud coin comet corner cradle crown desert dragon drum eagle engine falcon feather fence forest fountain "
    "garden glacier guitar hammer harbor island jacket kettle ladder lantern lemon marble meadow mirror mountain "
    "needle ocean orchard pebble pillow planet pocket rabbit river saddle shadow"
)
WORDS = sorted({w for s in (NEEDLE, QUESTION, PASSKEY, PASSKEY_QUESTION) for w in s.split()} - {"KEY", "VALUE"})
VOCABULARY = list(dict.fromkeys([*DIGITS, *HAYSTACK, *WORDS, *ADJECTIVES, *NOUNS]))
NUMBER = {word: i for i, word in enumerate(VOCABULARY)}
Depth = tuple[float, float]


@task
def needle(
    *,
    length: int = 256,
    length_tested: int = 1024,
    needles: int = 1,
    digits: int = 7,
    haystack: str = "sentences",
    depth: Depth = (0, 1),
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """The number of a key, hidden in a long text. inputs, targets (rows, N); -100 but at the number's digits."""
    if haystack not in ("sentences", "needles"):
        raise DataError(f"needle: haystack is 'sentences' or 'needles', not {haystack!r}")
    at_least("needle", needles=(needles, 1))
    hidden = None if haystack == "needles" else needles
    return _hidden("needle", NEEDLE, QUESTION, hidden, length, length_tested, digits, depth, examples, tests)


@task
def passkey(
    *,
    length: int = 256,
    length_tested: int = 1024,
    digits: int = 5,
    depth: Depth = (0, 1),
    examples: int = 100_000,
    tests: int = 3_000,
) -> Task:
    """The pass key, hidden in a long text. inputs, targets (rows, N); -100 but at its digits."""
    return _hidden("passkey", PASSKEY, PASSKEY_QUESTION, 1, length, length_tested, digits, depth, examples, tests)


def _hidden(
    name: str,
    sentence: str,
    question: str,
    needles: int | None,
    length: int,
    length_tested: int,
    digits: int,
    depth: Depth,
    examples: int,
    tests: int,
) -> Task:
    """A task of `needles` sentences hidden, or (None) of a haystack of such sentences alone."""
    at_least(name, length=(length, 1), length_tested=(length_tested, 1), digits=(digits, 1))
    at_least(name, examples=(examples, 1), tests=(tests, 1))
    shares = isinstance(depth, tuple) and len(depth) == 2 and all(isinstance(d, (int, float)) for d in depth)
    if not (shares and 0 <= depth[0] <= depth[1] <= 1):
        raise DataError(f"{name}: depth is two shares of the haystack, such as (0, 1) or (0.4, 0.6), not {depth!r}")
    hide, ask = _form(sentence, digits), _form(question, digits)
    keys = len(ADJECTIVES) * len(NOUNS)

    def maker(width: int) -> tuple[Callable, int, int]:
        """What makes rows of at most `width` tokens, how many they have, and how many numbers are in them."""
        room = max(0, width + 1 - len(ask) - (needles or 0) * len(hide))
        sentences = _sentences(room) if needles else np.arange(room // len(hide)).repeat(len(hide))
        held = sentences[-1] + 1 if len(sentences) else 0
        places = held + 1 if needles else held
        number = needles or held
        low, high = np.ceil(depth[0] * (places - 1)), np.floor(depth[1] * (places - 1))
        if held < 1 or places < number or high < low:
            besides = "the question and the needles" if needles else "the question"
            raise DataError(
                f"{name}: {width} tokens hold {held} sentences besides {besides}, too few for {number} numbers, or for "
                f"one between {depth[0]} and {depth[1]} of them; take longer rows"
            )
        if number > keys:
            raise DataError(f"{name}: {width} tokens hold {number} needles for {keys} keys; take shorter rows")

        def make(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
            key = draw_distinct(rng, rows, number, keys)
            value = rng.integers(0, 10, size=(rows, number, digits))
            value[..., 0] = rng.integers(1, 10, size=(rows, number))
            made = _filled(hide, key, value)
            asked = rng.integers(int(low), int(high) + 1, size=rows)
            body = made.reshape(rows, -1)
            if needles:
                # the needle asked for is the first drawn; the others lie at other places
                rank = rng.random((rows, places))
                rank[np.arange(rows), asked] = -1
                body = _inserted(sentences, made, np.argsort(rank, axis=1)[:, :number])
                asked[:] = 0
            one = np.arange(rows)[:, None], asked[:, None]
            tokens = np.concatenate([body, _filled(ask, key[one], value[one])[:, 0]], axis=1)
            targets = np.full((rows, tokens.shape[1] - 1), -100)
            targets[:, -digits:] = tokens[:, -digits:]
            return tokens[:, :-1], targets

        return make, len(sentences) + (needles or 0) * len(hide) + len(ask) - 1, number

    make, width, _ = maker(length)
    make_test, width_tested, number = maker(length_tested)
    return Task(
        make,
        {"vocab": len(VOCABULARY), "length": max(width, width_tested)},
        metric="string_accuracy",
        examples=examples,
        tests=tests,
        make_test=make_test,
        chance=10.0 ** (1 - digits) / 9,
        baselines=partial(_first_number, digits) if number > 1 else None,
        score=both(whole_rows, grouped("string_accuracy at depth 0.{}", partial(_depth, ask, sentence), rows=True)),
    )


def _form(text: str, digits: int) -> np.ndarray:
    """Word by word its token; -1 for the key's adjective, -2 for its noun, -3 - i for the number's i-th digit."""
    out: list[int] = []
    for word in text.split():
        if word == "KEY":
            out.append(-2 if out[-1] == -1 else -1)
        else:
            out += [-3 - i for i in range(digits)] if word == "VALUE" else [NUMBER[word]]
    return np.array(out)


def _filled(form: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """form (W,), keys (rows, n), values (rows, n, digits) -> (rows, n, W) tokens."""
    adjective, noun = np.array([NUMBER[w] for w in ADJECTIVES]), np.array([NUMBER[w] for w in NOUNS])
    words = [adjective[key // len(NOUNS)][..., None], noun[key % len(NOUNS)][..., None], value]
    told = np.concatenate(words, axis=2)  # digits are their own tokens
    return np.where(form >= 0, form, told[..., np.maximum(-1 - form, 0)])


def _sentences(room: int) -> np.ndarray:
    """(T,) the number of the sentence that each token of the haystack belongs to: the sentences that `room` holds."""
    ends = np.array([word == "." for word in HAYSTACK])
    number = np.tile(ends, max(0, room) // len(ends) + 1)
    sentence = np.cumsum(number) - number
    whole = np.flatnonzero(number[: max(0, room)])
    return sentence[: whole[-1] + 1] if len(whole) else sentence[:0]


def _inserted(sentences: np.ndarray, needles: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """The haystack of these sentences (T,), with needles (rows, n, W) before the sentences spots (rows, n)."""
    rows, number, width = needles.shape
    hay = np.tile([NUMBER[w] for w in HAYSTACK], len(sentences) // len(HAYSTACK) + 1)[: len(sentences)]
    begins = np.searchsorted(sentences, np.arange(sentences[-1] + 2))
    earlier = (spots[:, None, :] < spots[:, :, None]).sum(2)
    before = (spots[:, :, None] <= np.arange(sentences[-1] + 1)).sum(1)
    out = np.empty((rows, len(sentences) + number * width), dtype=np.int64)
    np.put_along_axis(out, np.arange(len(sentences)) + width * before[:, sentences], np.tile(hay, (rows, 1)), axis=1)
    place = (begins[spots] + width * earlier)[..., None] + np.arange(width)
    np.put_along_axis(out, place.reshape(rows, -1), needles.reshape(rows, -1), axis=1)
    return out


def _depth(ask: np.ndarray, sentence: str, inputs: Tensor, targets: Tensor) -> Tensor:
    """(B,) in tenths of the haystack, where the sentence with the number that is asked for stands."""
    end = inputs.shape[1] + 1 - len(ask)  # of the haystack
    if "KEY" in sentence:
        place = [end + int(np.flatnonzero(ask == part)[0]) for part in (-1, -2)]
        found = (inputs[:, : end - 1] == inputs[:, place[0], None]) & (inputs[:, 1:end] == inputs[:, place[1], None])
    else:
        found = inputs[:, :end] == NUMBER["remember"]
    return (found.int().argmax(1) * 10 // end).clamp(max=9)


def _first_number(
    digits: int, inputs: np.ndarray, targets: np.ndarray, inputs_tested: np.ndarray, targets_tested: np.ndarray
) -> dict[str, float]:
    """The share of rows that are answered by the first number in the text."""
    place = (inputs_tested < len(DIGITS)).argmax(1)[:, None] + np.arange(digits)
    right = np.take_along_axis(inputs_tested, place, axis=1) == targets_tested[:, -digits:]
    return {"the first number of the text": float(right.all(1).mean())}
