"""What every denoising network is told beside the latent: the noise angle, and where in the box each place is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.models.blocks import fourier_features

ANGLE_FREQUENCIES = 32
HIGHEST_ANGLE_FREQUENCY = 512.0

PLACE_WAVES = (1.0, 2.0, 4.0)
"""Half waves over the box: the coarsest tells left from right, the finest about an eighth of the box."""


class AngleEncoder(nn.Module):
    """The noise angle as a vector: an MLP of its Fourier features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * ANGLE_FREQUENCIES, width)
        self.second = nn.Linear(width, width)

    def forward(self, angle: Tensor) -> Tensor:
        """[B] in radians -> [B, width]."""
        features = fourier_features(angle, ANGLE_FREQUENCIES, HIGHEST_ANGLE_FREQUENCY)
        return self.second(F.silu(self.first(features.to(self.first.weight.dtype))))


def grid_waves(grid: Sequence[int], device: torch.device) -> Tensor:
    """Sines and cosines [X, Y, Z, 6 * len(PLACE_WAVES)] of each axis' coordinate, which runs from -1 to 1 over the box."""
    axes = [torch.linspace(-1, 1, size, device=device) if size > 1 else torch.zeros(1, device=device) for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) * (math.pi / 2)  # [X, Y, Z, 3]
    phases = torch.stack([places * wave for wave in PLACE_WAVES], -1)
    return torch.cat([phases.sin(), phases.cos()], -1).flatten(-2)
