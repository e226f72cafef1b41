"""Selective copying of MAD (Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844,
2024): the task `copying`, scored and sized as there."""

from __future__ import annotations

from dataclasses import replace

from formwright.data.tasks import Task, task
from formwright.data.tasks.copying import copying
from formwright.data.tasks.scoring import macro, per_class


@task
def mad_selective_copying(
    *, length: int = 256, tokens: int = 16, vocab: int = 16, examples: int = 12_800, tests: int = 1_280
) -> Task:
    """The tokens that stood among blanks, in order. inputs, targets (rows, length); -100 before the last `tokens`
    places."""
    asked = copying(length=length, tokens=tokens, vocab=vocab, examples=examples, tests=tests)
    return replace(asked, metric="macro_accuracy", score=per_class, derive=macro)
