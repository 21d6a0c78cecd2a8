"""How close a kernel comes to its twin."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOSE = {torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""Of the norm of what is compared: one rounding to the type, towards zero in the interpreter."""


def distance(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference, as a share of the norm of what was expected."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm())


def check(fused: Tensor, truth: Tensor, inputs: tuple[Tensor, ...], upstream: Tensor) -> None:
    """Value and gradients are those of float64, rounded to the type of each."""
    assert fused.is_contiguous()
    assert distance(fused, truth) < CLOSE[fused.dtype]
    got = torch.autograd.grad(fused, inputs, upstream.to(fused))
    expected = torch.autograd.grad(truth, inputs, upstream.to(fused).double())
    for leaf, ours, theirs in zip(inputs, got, expected, strict=True):
        assert ours.dtype == leaf.dtype
        assert distance(ours, theirs) < CLOSE[leaf.dtype]
