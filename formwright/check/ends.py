"""The laws as embeddings and heads keep them: what raw inputs become tokens, and what tokens become predictions.

Raw inputs follow from the facts that a constructor asks for: vocab, image and channels, variates and input_length,
numeric and categories; variates alone are the numbers of each token. An embedding that asks for others can't be fed,
and is skipped.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from formwright.check.compare import amount, worst
from formwright.check.refusals import UNKNOWN, refuses
from formwright.check.repeat import check_weights
from formwright.check.subject import FACTS, Broken, Skipped, Subject, fresh, leaf, seeded
from formwright.contract import Embed, Layout, Unsupported, parameter_count
from formwright.ops.attention import SDPA_FLOPS

TOKENS = 16


def _raw(subject: Subject, batch: int, salt: int = 0) -> Tensor:
    """Raw inputs for an embedding, (batch, ...)."""
    asked = subject.parameters
    if "vocab" in asked:
        noise = subject.randn(batch, TOKENS, salt=salt)
        return (noise.abs() * 1000).long() % subject.arguments["vocab"]
    if "image" in asked:
        return subject.randn(batch, *subject.arguments["image"], subject.arguments["channels"], salt=salt)
    if "input_length" in asked:
        return subject.randn(batch, subject.arguments["input_length"], subject.arguments["variates"], salt=salt)
    if "variates" in asked:
        return subject.randn(batch, TOKENS, subject.arguments["variates"], salt=salt)
    if "numeric" in asked:
        numeric = subject.arguments["numeric"]
        numbers = subject.randn(batch, numeric if isinstance(numeric, int) else sum(numeric), salt=salt)
        codes = [(subject.randn(batch, 1, salt=salt + 3 + n).abs() * 100).floor() % n for n in _categories(subject)]
        return torch.cat([numbers, *codes], 1)
    raise Skipped(f"no raw inputs are known for an embedding that asks for {', '.join(asked)}")


def _categories(subject: Subject) -> tuple[int, ...]:
    default = subject.parameters["categories"].default if "categories" in subject.parameters else ()
    given = subject.arguments.get("categories", default)
    return () if given is inspect.Parameter.empty else tuple(given)


def _given(subject: Subject, batch: int = 3, salt: int = 0) -> tuple[Tensor, ...]:
    """(raw inputs,) for an embedding, (tokens, raw inputs) for a head."""
    if subject.kind == "embed":
        return (_raw(subject, batch, salt),)
    window = subject.randn(batch, FACTS["input_length"], FACTS["variates"], salt=salt + 1)
    return subject.randn(batch, TOKENS, subject.dim, salt=salt), window


def _call(subject: Subject, module: nn.Module, *given: Tensor) -> Tensor:
    if subject.kind == "embed":
        return module(given[0])[0]
    return module(given[0], Layout((given[0].shape[1],)), given[1])


def _run(subject: Subject, module: nn.Module, *given: Tensor) -> Tensor:
    with torch.no_grad(), seeded(subject.seed + 1):
        return _call(subject, fresh(module), *(t.clone() for t in given))


def _loss(subject: Subject, module: nn.Module, out: Tensor) -> Tensor:
    """A head's own loss for likely targets; a random weighting of an embedding's tokens."""
    if subject.kind == "embed":
        return (out * subject.randn(*out.shape, salt=4).to(out.dtype)).sum()
    return module.loss(out, _targets(subject, out))


def _targets(subject: Subject, out: Tensor) -> Tensor:
    if {"vocab", "classes"} & set(subject.parameters):
        return (subject.randn(*out.shape[:-1], salt=6).abs() * 1000).long() % out.shape[-1]
    return subject.randn(*out.shape, salt=6).to(out.dtype)


def shapes(subject: Subject) -> str:
    """Tokens fit their layout; a head's mean loss is the one its scores sum up to."""
    for dtype in (torch.float32, torch.float64):
        module = subject.module("", dtype)
        for batch in (1, 3):
            given = tuple(t.to(dtype) if t.is_floating_point() else t for t in _given(subject, batch))
            out = _run(subject, module, *given)
            if not out.isfinite().all():
                raise Broken(f"the output is not finite (batch {batch}, {dtype})")
            if out.dtype != dtype or out.shape[0] != batch:
                raise Broken(f"batch {batch} in {dtype} became {tuple(out.shape)} in {out.dtype}")
            if subject.kind == "embed":
                _check_layout(subject, module, given[0], out)
            else:
                _check_scores(subject, module, out)
    return (
        "tokens fit their layouts" if subject.kind == "embed" else "predictions are finite, scores sum up to the loss"
    )


def _check_layout(subject: Subject, module: nn.Module, raw: Tensor, out: Tensor) -> None:
    told = module(raw)[1]
    foretold = module.layout(tuple(raw.shape[1:]))
    wanted = (raw.shape[0], told.tokens, subject.dim)
    if tuple(out.shape) != wanted:
        raise Broken(f"the tokens are {tuple(out.shape)}, but their layout and the width say {wanted}")
    if (told.grid, told.prefix) != (foretold.grid, foretold.prefix):
        raise Broken(f"layout() says {foretold.prefix} + {foretold.grid}, but forward {told.prefix} + {told.grid}")


def _check_scores(subject: Subject, module: nn.Module, out: Tensor) -> None:
    targets = _targets(subject, out)
    loss, scores = module.loss(out, targets), module.scores(out, targets)
    if loss.ndim != 0 or "loss" not in scores:
        raise Broken(f"loss has {loss.ndim} axes instead of none, or scores lack 'loss': {sorted(scores)}")
    total, count = scores["loss"]
    if count < 1 or abs(float(total) / count - float(loss)) > 1e-4 * abs(float(loss)) + 1e-6:
        raise Broken(f"the loss is {float(loss):.6g}, but scores sum to {float(total):.6g} over {count}")


def extend(subject: Subject) -> str:
    """An embedding's tokens one after another are those of forward."""
    if subject.kind != "embed" or subject.cls.extend is Embed.extend:
        raise Skipped("it does not embed one token after another")
    module, (raw,) = subject.module(), _given(subject)
    whole = _run(subject, module, raw)
    try:
        for cut in (1, 5, TOKENS - 1):
            with torch.no_grad():
                pieces = torch.cat([module.extend(raw[:, :cut], 0), module.extend(raw[:, cut:], cut)], 1)
            if (gap := worst(pieces, whole)) > 1e-9:
                raise Broken(f"embedded as {cut} + {TOKENS - cut}, tokens differ {amount(gap)} from forward's")
    except Unsupported as error:
        raise Skipped(str(error)) from error
    return "forward = extend"


def isolation(subject: Subject) -> str:
    """Row 1 of 3 changed changes no other."""
    module, given, others = subject.module(), _given(subject), _given(subject, salt=9)
    changed = tuple(torch.cat([t[:1], o[1:2], t[2:]]) for t, o in zip(given, others, strict=True))
    batched = getattr(subject.cls, "batched", False)
    for mode in (module,) if batched else (module, fresh(module).train()):
        before, after = _run(subject, mode, *given), _run(subject, mode, *changed)
        for row in (0, 2):
            if (gap := worst(after[row], before[row])) > 1e-9:
                raise Broken(f"row {row} changed {amount(gap)} when only row 1 of the batch did")
    return "rows change nothing in one another" + ("; training takes statistics over the batch" if batched else "")


def gradients(subject: Subject) -> str:
    """Every parameter, and what a head reads, gets a finite gradient from the loss."""
    module = subject.module()
    given = tuple(leaf(t) if t.is_floating_point() and subject.kind == "head" else t for t in _given(subject, 32))
    with seeded(subject.seed + 1):
        _loss(subject, module, _call(subject, module, *given)).backward()
    read = {"what it reads": given[0]} if subject.kind == "head" else {}
    for name, p in {**read, **dict(module.named_parameters())}.items():
        if p.requires_grad and (p.grad is None or not (p.grad != 0).any()):
            raise Broken(f"no gradient reaches {name}")
        if p.requires_grad and not p.grad.isfinite().all():
            raise Broken(f"the gradient of {name} is not finite")
    return "every parameter learns"


def cost(subject: Subject) -> str:
    """Counted multiply-adds and parameters."""
    module = subject.module("", torch.float32)
    for batch in (1, 3):
        given = tuple(t.float() if t.is_floating_point() else t for t in _given(subject, batch))
        with FlopCounterMode(display=False, custom_mapping=SDPA_FLOPS) as counter:
            _run(subject, module, *given)
        layout = module.layout(tuple(given[0].shape[1:])) if subject.kind == "embed" else Layout((TOKENS,))
        stated, counted = module.cost(layout, batch), counter.get_total_flops() // 2
        if (stated.params, stated.macs) != (parameter_count(module), counted):
            raise Broken(
                f"cost() states {stated.params} parameters and {stated.macs} multiply-adds (batch {batch}), but "
                f"{parameter_count(module)} and {counted} are counted"
            )
    return "multiply-adds and parameters are those counted"


def determinism(subject: Subject) -> str:
    """One seed, one set of weights, one output."""
    check_weights(subject, "")
    module, given = subject.module(), _given(subject)
    outs = []
    for seed in (1, 1, 2):
        with torch.no_grad(), seeded(seed):
            outs.append(_call(subject, module, *given).clone())
    if max(worst(out, outs[0]) for out in outs) > 1e-12:
        raise Broken("called again with the same input, eval gives other outputs")
    return "one seed gives one set of weights, and eval gives one output"


def save_load(subject: Subject) -> str:
    """A state_dict loaded into weights of another seed computes the same."""
    module, other = subject.module(), subject.module(seed=subject.seed + 1)
    try:
        other.load_state_dict(module.state_dict(), strict=True)
    except RuntimeError as error:
        raise Broken(f"a fresh part can't load what another saved: {' '.join(str(error).split())}") from error
    if (gap := worst(_run(subject, other, *_given(subject)), _run(subject, module, *_given(subject)))) > 1e-12:
        raise Broken(f"after loading, outputs differ {amount(gap)} (relative)")
    return "saved and loaded into fresh weights, it computes the same"


def refusals(subject: Subject) -> str:
    """An unknown option."""
    refuses(lambda: subject.construct({**subject.arguments, UNKNOWN: 1}), f"the option {UNKNOWN}=1", UNKNOWN)
    return "an unknown option raises"


ENDS: dict[str, Callable[[Subject], str]] = {
    "shapes": shapes,
    "extend": extend,
    "isolation": isolation,
    "gradients": gradients,
    "cost": cost,
    "determinism": determinism,
    "save_load": save_load,
    "refusals": refusals,
}
