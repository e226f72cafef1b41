"""The law of symmetry: what the card declares holds, for the default options.

permutation   f(x in another order) = f(x) in that order
shift         a signal between zeros, moved along the sequence, gives outputs moved along
resolution    a smooth periodic signal sampled twice as finely gives the same function, to 2%
For positions, shift says that scores depend on differences of positions alone; for those that are added to tokens,
that the products of what is added do; for contextual ones, that what stands before all tokens changes no score.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from formwright.check.compare import amount, worst
from formwright.check.subject import Broken, Skipped, Subject
from formwright.contract import Layout


def symmetry(subject: Subject) -> str:
    """Each declared symmetry, on one-axis sequences."""
    declared = subject.card.symmetries
    if not declared:
        raise Skipped("the card declares no symmetry")
    subject.needs_repeatable()
    default = replace(subject, options={}) if subject.options else subject
    checks = {"permutation": permutation, "shift": shift, "resolution": resolution}
    for name in declared:
        if name not in checks:
            raise Broken(f"the card declares {name!r}; symmetries are among {', '.join(checks)}")
        if subject.kind == "position":
            position_shift(default, name)
        else:
            checks[name](default)
    return f"{', '.join(declared)}: as the card declares" + (" for default options" if subject.options else "")


def _pattern(subject: Subject) -> str:
    """Order matters to a causal part by its nature: the two-directional pattern is judged where there is one."""
    return "self" if "self" in subject.patterns else subject.patterns[0]


def permutation(subject: Subject) -> None:
    pattern = _pattern(subject)
    module = subject.module(pattern)
    for n in subject.sizes(2, 9, 70, 130):
        (x,) = subject.inputs("", n)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(subject.seed))
        orders = (order, torch.arange(n).flip(0), torch.arange(n).roll(1))
        for perm in orders:
            gap = worst(subject.run(module, x[:, perm]), subject.run(module, x)[:, perm])
            if gap > max(subject.precision, 1e-9):
                raise Broken(f"the card declares permutation, but reordered outputs differ {amount(gap)} (N={n})")


def shift(subject: Subject) -> None:
    pattern = "causal" if "causal" in subject.patterns and "self" not in subject.patterns else _pattern(subject)
    module = subject.module(pattern)
    for n, by in ((20, 1), (20, 7), (70, 1), (70, 64)):
        (x,) = subject.inputs("", n)
        margin = 100
        zeros = x.new_zeros(2, margin, subject.dim)
        before = torch.cat([zeros, x, zeros], 1)
        after = before.roll(by, 1)
        if before.shape[1] > subject.limit:
            continue
        found = subject.run(module, after)[:, margin + by : margin + by + n]
        gap = worst(found, subject.run(module, before)[:, margin : margin + n])
        if gap > max(subject.precision, 1e-9):
            raise Broken(
                f"the card declares shift, but {n} tokens between zeros, moved by {by}, give outputs that differ "
                f"{amount(gap)} ({pattern})"
            )


def resolution(subject: Subject) -> None:
    module = subject.module(_pattern(subject))
    coarse, fine = (_wave(subject, n) for n in subject.sizes(128, 256))
    gap = worst(subject.run(module, fine)[:, ::2], subject.run(module, coarse))
    if gap > 0.02:
        raise Broken(f"the card declares resolution, but sampled twice as finely outputs differ {amount(gap)}")


def _wave(subject: Subject, n: int) -> Tensor:
    """A smooth periodic signal of three frequencies, sampled at n places."""
    t = torch.arange(n, dtype=torch.float64) / n
    weights = subject.randn(3, 2, subject.dim, salt=60)
    waves = [(torch.cos(2 * math.pi * k * t), torch.sin(2 * math.pi * k * t)) for k in (1, 2, 3)]
    return sum(w[i, None] * waves[k][i][:, None] for k, w in enumerate(weights) for i in (0, 1)).unsqueeze(0)


def position_shift(subject: Subject, name: str) -> None:
    module = subject.module()
    if name != "shift":
        raise Broken(f"the card declares {name!r}, which says nothing of a {module.role} position")
    if module.role == "value":
        shift(subject)
        return
    at = Layout((20,)).positions()
    for by in (1, 37):
        if (gap := moved_scores(subject, module, at, by)) > 1e-9:
            raise Broken(f"the card declares shift, but scores differ {amount(gap)} when all positions move by {by}")


def moved_scores(subject: Subject, module: nn.Module, at: Tensor, by: int) -> float:
    """How far the scores of a position that is no "value" position differ when all places `at` (N, A) move by `by`."""
    n = len(at)
    if module.role == "bias":
        one, two = module.bias(at, at), module.bias(at + by, at + by)
    elif module.role == "embed":
        zeros = torch.zeros(1, n, subject.dim, dtype=torch.float64)
        one, two = (torch.einsum("bnd,bmd->bnm", *[module.embed(zeros, p)] * 2) for p in (at, at + by))
    else:
        places = at, at + by
        if module.contextual:
            x = subject.randn(1, by + n, subject.dim)
            places = module.coordinates(x[:, by:])[0], module.coordinates(x)[0][:, by:]
        q, k = (subject.randn(1, n, 2, subject.dim, salt=s) for s in (1, 2))
        one, two = (torch.einsum("bnhk,bmhk->bhnm", module.rotate(q, p), module.rotate(k, p)) for p in places)
    return worst(two.detach(), one.detach())
