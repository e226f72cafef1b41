"""A memory of P partitions, each a state with a matrix, of which a token writes and reads only a few.

With c_te the e-th partition that token t chose, e < E, its choices distinct:

    S_c = diag(exp(log_decay_t)) S_c + write_te k_t v_t^T     for c = c_te, e < W; other partitions stay as they are
    o_t = scale sum_{e < R} read_te S_c^T q_t                 for c = c_te

E = max(R, W). Three forms, all on ops.linear_recurrence:

"masked": P times as many heads, with zeros for what a token leaves alone; its cost grows with P.
"sorted": choices are brought into the order of their partitions, so that each partition's tokens follow one another,
and one recurrence runs over all E N of them; a decay of exactly 0 where a partition begins makes it forget the last.
All shapes are known before the choices are. A first state enters as K rows before a partition's tokens, writing row i
of it under the i-th unit vector; the last state is read out by K rows after them, one for every unit vector.
"step": one token; the states it chose are fetched, stepped and put back.

The row-sparse state of "Scaling Linear Attention with Sparse State Expansion", arXiv 2507.16577, 2025.
"""

from __future__ import annotations

import torch
from torch import Tensor

from formwright.ops import recurrence
from formwright.ops.recurrence import linear_recurrence

FORMS = ("auto", "step", "masked", "sorted")
BACKENDS = ("auto", "reference", "torch", "triton")


def sparse_state(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    choice: Tensor,
    read: Tensor,
    write: Tensor,
    *,
    partitions: int,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    last: bool = True,
    form: str = "auto",
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """The memory above: q, k (B,N,H,K), v (B,N,H,V) -> o (B,N,H,V) and the last state (B,P,H,K,V).

    choice     (B,N,E) integers in 0..P-1, those of one token distinct: its partitions, the most wanted first
    read       (B,N,R) weights of the first R choices, read from; write (B,N,W) likewise; E = max(R, W)
    log_decay  (B,N,H) or (B,N,H,K), <= 0; None: no decay
    scale      multiplies o; 1 where None
    state      (B,P,H,K,V) the state before the first token; zeros where None. Its dtype is that of the last state
    offsets    (S+1,) bounds of S sequences packed in one row (B = 1): the state starts anew, and states are (S,P,H,K,V)
    last       whether the last state is asked for; None is given in its place where not
    form       "step", "masked", "sorted", or "auto": the one with the fewest multiply-adds (see `explain`)
    backend    "reference" computes the masked form token by token; else as in linear_recurrence

    Differentiable in everything but the choices. Raises ValueError for what doesn't fit.
    """
    _check(q, v, choice, read, write, partitions, log_decay, state, offsets, form, backend)
    read, write = read.to(q.dtype) * (1.0 if scale is None else float(scale)), write.to(k.dtype)
    if backend == "reference":
        form = "masked"
    else:
        shape = *q.shape, v.shape[3]
        lengths = None if offsets is None else offsets.diff().tolist()
        form = _choose(*shape, partitions, choice.shape[2], _kind(log_decay), state is not None, last, form, lengths)
    compute = {"step": _step, "masked": _masked, "sorted": _sorted}[form]
    o, state = compute(q, k, v, choice, read, write, partitions, log_decay, state, offsets, last, backend)
    return o, state if last else None


def reference(q: Tensor, k: Tensor, v: Tensor, choice: Tensor, read: Tensor, write: Tensor, **options):
    """sparse_state by its definition, token by token; `options` are those of sparse_state."""
    return sparse_state(q, k, v, choice, read, write, backend="reference", **options)


def explain(
    batch: int,
    tokens: int,
    heads: int,
    key: int,
    value: int,
    *,
    partitions: int,
    chosen: int,
    log_decay: str | None = None,
    state: bool = False,
    last: bool = False,
    form: str = "auto",
    backend: str = "auto",
) -> str:
    """What sparse_state computes for such sizes and why; the options are those of `macs`."""
    if backend == "reference":
        return "masked, token after token: backend='reference' asks for the definition"
    sizes = batch, tokens, heads, key, value
    picked = _choose(*sizes, partitions, chosen, log_decay, state, last, form, None)
    if form != "auto":
        return f"{picked}: form={form!r} was asked for"
    if picked == "step":
        return "step: of a single token only the chosen states are touched"
    options = {"partitions": partitions, "chosen": chosen, "log_decay": log_decay, "state": state, "last": last}
    counts = {name: macs(*sizes, **options, form=name) for name in ("masked", "sorted")}
    other = "sorted" if picked == "masked" else "masked"
    return f"{picked}: {counts[picked]} multiply-adds, {other} would take {counts[other]}"


def macs(
    batch: int,
    tokens: int,
    heads: int,
    key: int,
    value: int,
    *,
    partitions: int,
    chosen: int,
    log_decay: str | None = None,
    state: bool = False,
    last: bool = False,
    form: str = "auto",
    lengths: list[int] | None = None,
) -> int:
    """Multiply-adds of one forward's matrix products, as torch's FlopCounterMode counts them.

    chosen is E; log_decay is None, "scalar" or "diagonal"; state, last: whether a first state is given, and the last
    asked for; lengths are those of packed sequences (batch 1), where packed.
    """
    form = _choose(batch, tokens, heads, key, value, partitions, chosen, log_decay, state, last, form, lengths)
    if form == "step":
        return recurrence.macs(batch * chosen, 1, heads, key, value, log_decay=log_decay)
    if form == "masked":
        return recurrence.macs(batch, tokens, heads * partitions, key, value, log_decay=log_decay, lengths=lengths)
    sequences = 1 if lengths is None else len(lengths)
    rows = tokens * chosen + (int(state) + int(last)) * sequences * partitions * key
    return recurrence.macs(batch, rows, heads, key, value, log_decay=log_decay or "scalar")


def _kind(log_decay: Tensor | None) -> str | None:
    return None if log_decay is None else "scalar" if log_decay.ndim == 3 else "diagonal"


def _choose(batch, tokens, heads, key, value, partitions, chosen, log_decay, state, last, form, lengths) -> str:
    if form != "auto":
        return form
    if tokens == 1 and state and lengths is None:
        return "step"
    options = {"partitions": partitions, "chosen": chosen, "log_decay": log_decay, "state": state, "last": last}
    cost = {
        name: macs(batch, tokens, heads, key, value, **options, lengths=lengths, form=name)
        for name in ("masked", "sorted")
    }
    return "masked" if cost["masked"] <= cost["sorted"] else "sorted"


def _per_choice(t: Tensor, chosen: int) -> Tensor:
    """(B,N,...) -> (B,N,E,...), the same for every choice."""
    return t.unsqueeze(2).expand(*t.shape[:2], chosen, *t.shape[2:])


def _weighted(t: Tensor, weights: Tensor, chosen: int) -> Tensor:
    """t (B,N,H,K) times the weights of each choice (B,N,E'), 0 for choices past E' -> (B,N,E,H,K)."""
    missing = chosen - weights.shape[2]
    weights = torch.nn.functional.pad(weights, (0, missing)) if missing else weights
    return t.unsqueeze(2) * weights[..., None, None]


def _choice_decay(log_decay: Tensor, writes: int, chosen: int) -> Tensor:
    """log_decay of each choice (B,N,E,...): 0 for those that are read alone."""
    decay = _per_choice(log_decay, chosen)
    if writes == chosen:
        return decay
    kept = torch.arange(chosen, device=decay.device) >= writes
    return decay.masked_fill(kept.view(-1, *(1,) * (decay.ndim - 3)), 0.0)


def _step(q, k, v, choice, read, write, partitions, log_decay, state, offsets, last, backend):
    batch, chosen = q.shape[0], choice.shape[2]
    rows = torch.arange(batch, device=q.device)[:, None]
    parts = [_weighted(q, read, chosen), _weighted(k, write, chosen), _per_choice(v, chosen)]
    if log_decay is not None:
        parts.append(_choice_decay(log_decay, write.shape[2], chosen))
    q, k, v, *decay = (t.transpose(1, 2).flatten(0, 1) for t in parts)
    mine = state[rows, choice[:, 0]].flatten(0, 1)
    o, mine = linear_recurrence(q, k, v, log_decay=decay[0] if decay else None, state=mine, backend=backend)
    state = state.index_put((rows, choice[:, 0]), mine.unflatten(0, (batch, chosen)))
    return o.unflatten(0, (batch, chosen)).sum(1), state


def _masked(q, k, v, choice, read, write, partitions, log_decay, state, offsets, last, backend):
    def everywhere(weights: Tensor) -> Tensor:
        """(B,N,E') -> (B,N,P), 0 for partitions not chosen."""
        blank = weights.new_zeros(*weights.shape[:2], partitions)
        return blank.scatter(2, choice[..., : weights.shape[2]], weights)

    q, k = (_weighted(t, everywhere(w), partitions).flatten(2, 3) for t, w in ((q, read), (k, write)))
    if log_decay is not None:
        idle = everywhere(torch.ones_like(write)) == 0
        idle = idle.view(*idle.shape, *(1,) * (log_decay.ndim - 2))
        log_decay = _per_choice(log_decay, partitions).masked_fill(idle, 0.0).flatten(2, 3)
    o, state = linear_recurrence(
        q,
        k,
        _per_choice(v, partitions).flatten(2, 3),
        log_decay=log_decay,
        state=None if state is None else state.flatten(1, 2),
        offsets=offsets,
        backend=backend,
    )
    return o.unflatten(2, (partitions, -1)).sum(2), state.unflatten(1, (partitions, -1))


class _Reorder(torch.autograd.Function):
    """rows[order], its gradient by the inverse order: fetching rows, where autograd's own would add into zeros."""

    @staticmethod
    def forward(ctx, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx, grad: Tensor):
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(grad.contiguous(), inverse, order), None, None


def _sorted(q, k, v, choice, read, write, partitions, log_decay, state, offsets, last, backend):
    batch, tokens, heads, key = q.shape
    chosen, sequences = choice.shape[2], 1 if offsets is None else offsets.shape[0] - 1
    state_dtype = v.dtype if state is None else state.dtype
    dtype = torch.promote_types(v.dtype, state_dtype)
    segment = choice
    if offsets is not None:
        steps = torch.arange(tokens, device=q.device)
        segment = choice + partitions * torch.bucketize(steps, offsets.to(q.device)[1:], right=True)[:, None]
    # One row for every row of every state: they stand before the tokens as writers, behind them as readers.
    around = torch.arange(sequences * partitions, device=q.device).repeat_interleave(key).expand(batch, -1)
    units = torch.eye(key, dtype=q.dtype, device=q.device).repeat(sequences * partitions, 1)
    units = units[None, :, None].expand(batch, -1, heads, -1)
    before = state is not None
    pieces = [around] * before + [segment.flatten(1)] + [around] * last
    segment = torch.cat(pieces, 1)
    size = segment.shape[1]
    segment, order = torch.sort(segment, dim=1, stable=True)
    steps = torch.arange(size, device=q.device).expand(batch, -1)
    inverse = torch.zeros_like(order).scatter(1, order, steps)
    begins = torch.cat([torch.ones_like(segment[:, :1], dtype=torch.bool), segment[:, 1:] != segment[:, :-1]], 1)
    base = size * torch.arange(batch, device=q.device)[:, None]
    order, inverse = (order + base).flatten(), (inverse + base).flatten()

    def arranged(t: Tensor, first: Tensor | None, behind: Tensor | None) -> Tensor:
        """(B,N,E,...) -> (B,L,...): rows before, tokens' choices, rows behind (zeros where None), in their order."""
        t = t.flatten(1, 2)
        blank = t.new_zeros(batch, around.shape[1], *t.shape[2:])
        parts = [blank if first is None else first] * before + [t] + [blank if behind is None else behind] * last
        t = torch.cat(parts, 1) if len(parts) > 1 else t
        return _Reorder.apply(t.flatten(0, 1), order, inverse).unflatten(0, (batch, size))

    held = None if state is None else state.to(dtype).transpose(2, 3).reshape(batch, -1, heads, v.shape[3])
    if log_decay is None:
        log_decay = q.new_zeros(q.shape[:3])
    decay = arranged(_choice_decay(log_decay, write.shape[2], chosen), None, None)
    o, _ = linear_recurrence(
        arranged(_weighted(q, read, chosen), None, units),
        arranged(_weighted(k, write, chosen), units, None),
        arranged(_per_choice(v, chosen).to(dtype), held, None),
        log_decay=decay.masked_fill(begins.view(*begins.shape, *(1,) * (decay.ndim - 2)), float("-inf")),
        backend=backend,
    )
    o = _Reorder.apply(o.flatten(0, 1), inverse, order).unflatten(0, (batch, size))
    o = o[:, around.shape[1] * before :]
    answers = o[:, : tokens * chosen].unflatten(1, (tokens, chosen)).sum(2).to(v.dtype)
    if not last:
        return answers, None
    state = o[:, tokens * chosen :].reshape(batch * sequences, partitions, key, heads, -1).transpose(2, 3)
    return answers, state.to(state_dtype)


def _check(q, v, choice, read, write, partitions, log_decay, state, offsets, form, backend) -> None:
    if form not in FORMS:
        raise ValueError(f"form is one of {', '.join(FORMS)}, not {form!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    place = tuple(q.shape[:2])
    if any(t.ndim != 3 or tuple(t.shape[:2]) != place for t in (choice, read, write)):
        shapes = ", ".join(str(tuple(t.shape)) for t in (choice, read, write))
        raise ValueError(f"choice, read and write must be (B,N,...) with (B,N)={place}, but are {shapes}")
    chosen = max(read.shape[2], write.shape[2])
    if choice.shape[2] != chosen or not 1 <= chosen <= partitions or min(read.shape[2], write.shape[2]) < 1:
        raise ValueError(
            f"the {choice.shape[2]} choices of a token must be as many as it reads ({read.shape[2]}) or writes "
            f"({write.shape[2]}), whichever are more, at least one of each and no more than partitions={partitions}"
        )
    rows = q.shape[0] if offsets is None else offsets.shape[0] - 1
    want = (rows, partitions, q.shape[2], q.shape[3], v.shape[3])
    if state is not None and tuple(state.shape) != want:
        raise ValueError(f"state must be {want}, but is {tuple(state.shape)}")
    if form == "step" and (q.shape[1] != 1 or state is None or offsets is not None):
        raise ValueError("form='step' takes one token and a state, and nothing packed; form='auto' takes any")
