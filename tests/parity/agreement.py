"""What agreement of two functions means here: outputs, and gradients under random cotangents of all outputs."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-4
# Numbers below it are compared beside it: gates that matter by nothing but an eps have gradients made of rounding.
SMALL = 1e-3


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, beside the largest number of theirs."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=SMALL)).item()


def differences(
    theirs: dict[str, Tensor], ours: dict[str, Tensor], leaves: dict[str, Tensor], idle: bool = False
) -> dict[str, float]:
    """The differences of outputs by name, and of gradients by `leaves`. Raises AssertionError for shapes that differ,
    and for a leaf of no influence where idle leaves are not expected."""
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape, f"{name} is {tuple(ours[name].shape)}, theirs {tuple(tensor.shape)}"
    found = {name: difference(ours[name], theirs[name]) for name in theirs}
    cotangents = [torch.randn_like(t) for t in theirs.values()]
    gradients = [
        torch.autograd.grad(list(y.values()), leaves.values(), cotangents, materialize_grads=True)
        for y in (ours, theirs)
    ]
    for name, a, b in zip(leaves, *gradients, strict=True):
        assert idle or b.abs().max() > SMALL, f"{name} has no part in the outputs"
        found[f"gradient of {name}"] = difference(a, b)
    return found


def agree(found: dict[str, float], tolerance: float = TOLERANCE) -> None:
    """Raises AssertionError naming what differs by more than `tolerance`."""
    apart = {name: value for name, value in found.items() if not value <= tolerance}
    assert not apart, f"they differ in {apart}"
