"""Straight-through gradients: hard values, soft gradients, the surrogate about them, and the law of gradients, which
must still find wrong ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from formwright import check
from formwright.contract import Card, Cost, TokenMixer
from formwright.ops.straight_through import straight_through


def test_values_are_hard_and_gradients_soft():
    x = torch.tensor([-2.0, -0.3, 0.3, 2.0], requires_grad=True)
    y = straight_through(x.sign(), x.clamp(-1, 1))
    assert torch.equal(y, x.sign())
    y.sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 1.0, 1.0, 0.0]))


def test_what_is_held_is_kept_at_first_sight_and_moved_by_the_soft_part():
    x, held = torch.tensor([-0.5, 0.2]), {}
    assert torch.equal(straight_through(x.sign(), x, held, "a"), x.sign())
    moved = x + torch.tensor([0.1, -0.3])
    torch.testing.assert_close(straight_through(moved.sign(), moved, held, "a"), torch.tensor([-0.9, 0.7]))
    assert torch.equal(straight_through(moved.sign(), moved, held, "b"), moved.sign())


class Signs(TokenMixer):
    """The signs of x W, weighted by x: right as it stands."""

    card = Card(name="signs", patterns=("self",))
    held = None

    def __init__(self, dim: int, *, causal: bool = False):
        super().__init__(dim, causal=causal)
        self.weight = nn.Parameter(torch.randn(dim, dim) * dim**-0.5)

    def signs(self, g):
        return straight_through(g.sign(), torch.tanh(g), self.held)

    def forward(self, x, layout, context=None, context_layout=None):
        return x * self.signs(x @ self.weight)

    def cost(self, layout, batch=1):
        return Cost(self.weight.numel(), batch * layout.tokens * self.weight.numel())


class Doubled(Signs):
    """Its gradient is twice that of what stands beside its signs."""

    def signs(self, g):
        return super().signs(g) + (g - g.detach()).tanh()


class Undeclared(Signs):
    """It says nothing of its straight-through gradient."""

    def __getattribute__(self, name):
        if name == "held":
            raise AttributeError(name)
        return super().__getattribute__(name)

    def signs(self, g):
        return straight_through(g.sign(), torch.tanh(g))


class Elsewhere(Signs):
    """What it holds is right, and the gradient of what it multiplies is lost."""

    def forward(self, x, layout, context=None, context_layout=None):
        return x.detach() * self.signs(x @ self.weight)


def law(cls):
    return check.run(cls, laws=["gradients"]).laws[0]


def test_the_law_holds_a_straight_through_gradient_to_its_surrogate():
    assert law(Signs).status == "pass"


@pytest.mark.parametrize("wrong", [Doubled, Undeclared, Elsewhere])
def test_the_law_finds_a_wrong_one(wrong):
    found = law(wrong)
    assert found.status == "fail" and "forward's differences" in found.detail
