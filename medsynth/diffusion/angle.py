"""The noise angle, the one noise level of the house: x = cos(phi) x0 + sin(phi) noise.

`phi` runs from 0 (data) to pi/2 (noise). Every other convention is this one times a scalar that depends on `phi`:

    rectified flow         (1 - t) x0 + t noise                  tan(phi) = t / (1 - t)
    variance preserving    sqrt(a) x0 + sqrt(1 - a) noise        cos(phi)^2 = a     (a is alpha_bar)
    variance exploding     x0 + sigma noise                      tan(phi) = sigma

All functions take and return tensors of any shape and keep their floating type. They use two-argument arctangents, so that
neither end loses digits: the angle of `alpha_bar` near 1 and of `t` near 0 or 1 is exact to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""What a sampler calls: (x [B, ...], angle [B]) -> clean latent [B, ...]."""
NOISE = math.pi / 2
"""The angle of pure noise."""


def mix(x0: Tensor, noise: Tensor, angle: Tensor) -> Tensor:
    """x = cos(phi) x0 + sin(phi) noise. x0, noise: [B, ...]; angle: [B] radians."""
    angle = per_sample(angle, x0)
    return torch.cos(angle).to(x0.dtype) * x0 + torch.sin(angle).to(x0.dtype) * noise


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """`values` [B] shaped to multiply `like` [B, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like.device)


def everywhere(angle: float, x: Tensor) -> Tensor:
    """One angle for all of x [B, ...]: [B] float32."""
    return torch.full((len(x),), angle, dtype=torch.float32, device=x.device)


def from_flow_time(t: Tensor) -> Tensor:
    """Angle of rectified flow's time, t in [0, 1]."""
    return torch.atan2(t, 1 - t)


def to_flow_time(angle: Tensor) -> Tensor:
    """t = sin / (cos + sin)."""
    sin, cos = torch.sin(angle), torch.cos(angle)
    return sin / (cos + sin)


def from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """Angle of a variance-preserving process with signal power `alpha_bar` in [0, 1]."""
    return torch.atan2(torch.sqrt(1 - alpha_bar), torch.sqrt(alpha_bar))


def to_alpha_bar(angle: Tensor) -> Tensor:
    """alpha_bar = cos^2."""
    return torch.cos(angle) ** 2


def from_sigma(sigma: Tensor) -> Tensor:
    """Angle of a variance-exploding process with noise level `sigma` in [0, inf]."""
    return torch.atan(sigma)


def to_sigma(angle: Tensor) -> Tensor:
    """sigma = tan; very large but finite at pure noise."""
    return torch.tan(angle)


def shift(angle: Tensor, factor: float) -> Tensor:
    """The angle moved toward noise: tan(phi') = factor tan(phi), with both ends kept.

    In flow time this is t' = s t / (1 + (s - 1) t) (Esser 2024, eq. 23 with s = sqrt(m / n)).
    """
    return torch.atan2(factor * torch.sin(angle), torch.cos(angle))


def stretch(angle: Tensor, power: float) -> Tensor:
    """Even angles moved apart in the middle and together at both ends: tan(phi') = tan(phi)^power, with both ends kept."""
    return torch.atan2(torch.sin(angle) ** power, torch.cos(angle).clamp_min(0) ** power)
