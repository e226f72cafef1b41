"""Wrong mixers, each a right one with one mistake, and the law that must name it."""

from __future__ import annotations

from dataclasses import replace

import numpy
import torch
import torch.nn.functional as F
from right_mixers import CausalMean, Gated, LongFilter, RingConvolution, SmallAttention
from torch import nn

from formwright.contract import Card, Cost, TokenMixer, element_size, parameter_count


class Plain(Gated):
    """The gated recurrence without its reference, so that a mistake in forward has one law to answer to."""

    reference = None


class TwoPatterns(SmallAttention):
    card = replace(SmallAttention.card, name="two_patterns", patterns=("self", "causal"))

    def forward(self, x, layout, context=None, context_layout=None):
        if context is not None:
            self.refuse("context", "it mixes one sequence")
        return super().forward(x, layout)


class LeakAt63(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context).clone()
        y[:, 63:-1:64] += 1e-4 * x[:, 64::64]
        return y


class LeakPast256(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context)
        late = (torch.arange(x.shape[1], device=x.device) > 256)[:, None].to(x.dtype)
        return y + late * 1e-3 * F.pad(x[:, 1:], (0, 0, 0, 1))


class LeakAtTheEnd(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context).clone()
        y[:, -2:-1] += 1e-3 * x[:, -1:]
        return y


class LeakFromFar(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context)
        return y + 1e-4 * F.pad(x, (0, 0, 0, 100))[:, 100:]


class LeakTheMaximum(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        return super().forward(x, layout, context) + 1e-3 * x.amax(1, keepdim=True)


class LeakTheMean(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context)
        return y - 1e-3 * y.mean(1, keepdim=True)


class LeakInChunks(Plain):
    """The mask within a chunk is one token too wide."""

    def step_chunk(self, x, state):
        y, state = super().step_chunk(x, state)
        return y + 1e-3 * F.pad(x[:, 1:], (0, 0, 0, 1)), state


class LeakInTraining(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context)
        return y - y.mean(1, keepdim=True) if self.training else y


class LeakAThreshold(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context)
        return y + (x > 20).any(1, keepdim=True)


class ForgetsAfterPrefill(Plain):
    def empty(self, batch, capacity=None, like=None):
        return super().empty(batch, capacity, like), 0

    def forward(self, x, layout, context=None, context_layout=None):
        self.check_layout(layout, context)
        return super().extend(x, Gated.empty(self, x.shape[0], like=x))[0]

    def extend(self, x, state):
        memory, before = state
        if x.shape[1] == 1 and before > 64:
            memory = torch.zeros_like(memory)
        y, memory = super().extend(x, memory)
        return y, (memory, x.shape[1])


class ForgetsInPieces(ForgetsAfterPrefill):
    def extend(self, x, state):
        memory, before = state
        if x.shape[1] > 1 and before > 0:
            memory = torch.zeros_like(memory)
        y, memory = Gated.extend(self, x, memory)
        return y, (memory, x.shape[1])


class ForgetsAfter128(ForgetsAfterPrefill):
    def extend(self, x, state):
        memory, seen = state
        if seen >= 128 and x.shape[1] == 1:
            memory = torch.where(torch.tensor(seen == 200), 0 * memory, memory)
        y, memory = Gated.extend(self, x, memory)
        return y, (memory, seen + x.shape[1])


class SharesItsState(RingConvolution):
    card = replace(RingConvolution.card, name="shares_its_state")
    shared: dict = {}

    def empty(self, batch, capacity=None, like=None):
        state = super().empty(batch, capacity, like)
        key = (state["ring"].shape, state["ring"].dtype)
        state["ring"] = self.shared.setdefault(key, state["ring"]).zero_()
        return state


class StateInTheModule(RingConvolution):
    card = replace(RingConvolution.card, name="state_in_the_module")

    def empty(self, batch, capacity=None, like=None):
        self.kept = super().empty(batch, capacity, like)
        return self.kept["ring"].clone()

    def extend(self, x, state):
        y, self.kept = super().extend(x, self.kept)
        return y, state


class DividesByLength(CausalMean):
    def forward(self, x, layout, context=None, context_layout=None):
        if not self.causal or context is not None or not layout.plain:
            return super().forward(x, layout, context)
        return self.out(x.cumsum(1) / x.shape[1])


class ForgetsInFloat32(ForgetsAfterPrefill):
    def extend(self, x, state):
        memory, _ = state
        if x.dtype == torch.float32 and x.shape[1] == 1:
            memory = 0.9 * memory
        y, memory = Gated.extend(self, x, memory)
        return y, (memory, x.shape[1])


class MeanOverTheBatch(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context)
        return y - 1e-3 * y.mean(0, keepdim=True)


class BatchNormed(CausalMean):
    def __init__(self, dim, *, causal=False):
        super().__init__(dim, causal=causal)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x, layout, context=None, context_layout=None):
        if not layout.plain:
            return super().forward(x, layout, context)
        return super().forward(self.norm(x.transpose(1, 2)).transpose(1, 2), layout, context)

    def extend(self, x, state):
        return super().extend(self.norm(x.transpose(1, 2)).transpose(1, 2), state)


class StateOverTheBatch(Plain):
    def extend(self, x, state):
        y, state = super().extend(x, state)
        return y, state + 1e-3 * (state.mean(0, keepdim=True) - state)

    def forward(self, x, layout, context=None, context_layout=None):
        self.check_layout(layout, context)
        return Gated.extend(self, x, self.empty(x.shape[0], like=x))[0]


class IgnoresPadding(CausalMean):
    def forward(self, x, layout, context=None, context_layout=None):
        if layout.lengths is not None:
            layout = replace(layout, lengths=None)
        return super().forward(x, layout, context)


class IgnoresPacking(TwoPatterns):
    def forward(self, x, layout, context=None, context_layout=None):
        if layout.offsets is not None and context is None:
            layout = replace(layout, offsets=None)
        return super().forward(x, layout, context, context_layout)


class OtherThanItsReference(Gated):
    def forward(self, x, layout, context=None, context_layout=None):
        self.check_layout(layout, context)
        return self.extend(x, self.empty(x.shape[0], like=x))[0]

    def extend(self, x, state):
        y, state = super().extend(x, state)
        return y * (1 + 1e-7), state


class _WrongSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        wrong = 2 * x * grad
        wrong[:, -1] *= 0.9  # the last token's gradient is lost in part
        return wrong


class WrongBackward(RingConvolution):
    card = replace(RingConvolution.card, name="wrong_backward")

    def forward(self, x, layout, context=None, context_layout=None):
        return super().forward(_WrongSquare.apply(x), layout, context) if layout.plain else super().forward(x, layout)

    def extend(self, x, state):
        return super().extend(x * x, state)


class Unused(Plain):
    def __init__(self, dim, *, causal=True):
        super().__init__(dim, causal=causal)
        self.bias = nn.Parameter(torch.zeros(dim))


class DecayAboveOne(Plain):
    def log_decay(self, x):
        return 0.01 + 0.001 * torch.sigmoid(self.decay(x))


class OverflowsOnLarge(RingConvolution):
    card = replace(RingConvolution.card, name="overflows_on_large", symmetries=())

    def forward(self, x, layout, context=None, context_layout=None):
        if not layout.plain:
            return super().forward(x, layout, context)
        y = super().forward(x, layout, context)
        return y * y.exp() / (1 + y.exp())

    def extend(self, x, state):
        y, state = super().extend(x, state)
        return y * y.exp() / (1 + y.exp()), state


class CountsHalf(Plain):
    def cost(self, layout, batch=1):
        full = super().cost(layout, batch)
        return replace(full, macs=full.macs // 2)


class CountsOneRow(Plain):
    def cost(self, layout, batch=1):
        return replace(super().cost(layout, batch), state_bytes=self.dim**2 * element_size(self))


class CountsFloat32(TwoPatterns):
    def cost(self, layout, batch=1):
        full = super().cost(layout, batch)
        return replace(full, state_bytes=full.state_bytes // element_size(self) * 4)


class CountsNoBias(TwoPatterns):
    def cost(self, layout, batch=1):
        return replace(super().cost(layout, batch), params=parameter_count(self) - self.dim)


class GivesFloat32(RingConvolution):
    card = replace(RingConvolution.card, name="gives_float32")

    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context)
        return y.float() if y.dtype == torch.bfloat16 else y


class WantsWholeChunks(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        if x.shape[1] > 500 and x.shape[1] % 64 == 1:
            raise RuntimeError("the number of tokens is no multiple of 64")
        return super().forward(x, layout, context)


class LeavesMemoryUnwritten(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context)
        if x.shape[1] != 257:
            return y
        out = torch.empty_like(y)
        out[:, :256] = y[:, :256]
        return out


class DropsInEval(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        return F.dropout(super().forward(x, layout, context), 0.1)


class DrawsFromNumpy(RingConvolution):
    card = replace(RingConvolution.card, name="draws_from_numpy")

    def __init__(self, dim, *, causal=True, window=5):
        super().__init__(dim, causal=causal, window=window)
        self.weight = nn.Parameter(torch.tensor(numpy.random.randn(dim, 1, window), dtype=torch.float32))


class RemembersCalls(Plain):
    calls = 0

    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context)
        if not self.training and not torch.compiler.is_compiling():
            self.calls += 1
        return y * (1 + 1e-3 * max(0, self.calls - 1))


class WritesItsInput(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        y = super().forward(x, layout, context)
        if not x.requires_grad:
            x += 1
        return y


class LosesItsBuffer(RingConvolution):
    card = replace(RingConvolution.card, name="loses_its_buffer")

    def __init__(self, dim, *, causal=True, window=5):
        super().__init__(dim, causal=causal, window=window)
        self.register_buffer("signs", torch.randn(dim).sign(), persistent=False)

    def forward(self, x, layout, context=None, context_layout=None):
        return super().forward(x, layout, context) * (self.signs if layout.plain else 1)

    def extend(self, x, state):
        y, state = super().extend(x, state)
        return y * self.signs, state


class MakesWeightsLate(RingConvolution):
    card = replace(RingConvolution.card, name="makes_weights_late")

    def __init__(self, dim, *, causal=True, window=5):
        super().__init__(dim, causal=causal, window=window)
        self.late = None

    def _late(self, y):
        if self.late is None:
            self.late = nn.Parameter(torch.ones(self.dim, dtype=y.dtype, device=y.device))
        return y * self.late

    def forward(self, x, layout, context=None, context_layout=None):
        return self._late(super().forward(x, layout, context)) if layout.plain else super().forward(x, layout, context)


class LooksAtValues(Plain):
    def forward(self, x, layout, context=None, context_layout=None):
        if x.abs().max() > 1e6:
            x = x.clamp(-1e6, 1e6)
        return super().forward(x, layout, context)


class FalselyInvariant(RingConvolution):
    card = replace(RingConvolution.card, name="falsely_invariant", symmetries=("permutation",))


class FalselyShifted(CausalMean):
    card = replace(CausalMean.card, name="falsely_shifted", patterns=("causal",), symmetries=("shift",))


class TakesAnything(Plain):
    def __init__(self, dim, *, causal=True, **options):
        super().__init__(dim, causal=causal)


class CausalInNameOnly(TokenMixer):
    """causal=True is taken, and ignored."""

    card = Card("causal_in_name_only", patterns=("self",), state="0")

    def __init__(self, dim, *, causal=False):
        super().__init__(dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x, layout, context=None, context_layout=None):
        if context is not None or not layout.plain:
            self.refuse("context, padded or packed", "it mixes plain sequences")
        return self.out(x.mean(1, keepdim=True).expand_as(x))

    def cost(self, layout, batch=1):
        return Cost(parameter_count(self), batch * layout.tokens * self.dim**2)


class IgnoresContext(LongFilter):
    card = replace(LongFilter.card, name="ignores_context")

    def forward(self, x, layout, context=None, context_layout=None):
        return super().forward(x, layout)


class TakesAnyGrid(Plain):
    def check_layout(self, layout, context):
        if context is not None or layout.offsets is not None:
            self.refuse("context or packed", "it mixes one sequence")


# What these two take beyond their cards, the contract refuses before they see it.
CARELESS = [IgnoresContext, TakesAnyGrid]

WRONG = [
    (LeakAt63, "causality"),
    (LeakPast256, "causality"),
    (LeakAtTheEnd, "causality"),
    (LeakFromFar, "causality"),
    (LeakTheMaximum, "causality"),
    (LeakTheMean, "causality"),
    (LeakInChunks, "causality"),
    (LeakInTraining, "causality"),
    (LeakAThreshold, "causality"),
    (ForgetsAfterPrefill, "extend"),
    (ForgetsInPieces, "extend"),
    (ForgetsAfter128, "extend"),
    (SharesItsState, "extend"),
    (StateInTheModule, "extend"),
    (DividesByLength, "extend"),
    (ForgetsInFloat32, "extend"),
    (MeanOverTheBatch, "isolation"),
    (BatchNormed, "isolation"),
    (StateOverTheBatch, "isolation"),
    (IgnoresPadding, "isolation"),
    (IgnoresPacking, "isolation"),
    (OtherThanItsReference, "reference"),
    (WrongBackward, "gradients"),
    (Unused, "gradients"),
    (DecayAboveOne, "gradients"),
    (OverflowsOnLarge, "gradients"),
    (CountsHalf, "cost"),
    (CountsOneRow, "cost"),
    (CountsFloat32, "cost"),
    (CountsNoBias, "cost"),
    (GivesFloat32, "shapes"),
    (WantsWholeChunks, "shapes"),
    (LeavesMemoryUnwritten, "shapes"),
    (DropsInEval, "determinism"),
    (DrawsFromNumpy, "determinism"),
    (RemembersCalls, "determinism"),
    (WritesItsInput, "determinism"),
    (LosesItsBuffer, "save_load"),
    (MakesWeightsLate, "save_load and compile"),  # no compiler takes weights made on the way
    (LooksAtValues, "compile"),
    (FalselyInvariant, "symmetry"),
    (FalselyShifted, "symmetry"),
    (TakesAnything, "refusals"),
    (CausalInNameOnly, "refusals"),
]
