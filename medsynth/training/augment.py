"""Classical augmentation of volumes: drawn as plain numbers, then applied to the whole batch at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ROTATION = math.radians(10)
"""Largest turn about each axis."""
SHIFT = 0.05
"""Largest shift along each axis, as a share of its length."""
SCALE = 0.1
"""Largest change of size."""
GAIN = 0.1
"""Largest change of contrast, about zero."""
OFFSET = 0.05
"""Largest change of brightness; volumes span -1 to 1."""
NOISE = 0.03
"""Largest standard deviation of the noise."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to each volume of a batch."""

    flips: Tensor
    """[B, 3] of -1 (mirrored along X, Y, Z) and 1."""
    turns: Tensor
    """[B, 3] radians about X, Y, Z."""
    shifts: Tensor
    """[B, 3] along X, Y, Z, as shares of the length."""
    scales: Tensor
    """[B]"""
    gains: Tensor
    """[B]"""
    offsets: Tensor
    """[B]"""
    noise: Tensor
    """[B, 1, X, Y, Z], already scaled."""


def draw_augmentation(shape: torch.Size, generator: torch.Generator, flip_axes: tuple[int, ...]) -> Augmentation:
    """Numbers for a batch of `shape` [B, 1, X, Y, Z]; mirrored along `flip_axes` (0, 1, 2 for X, Y, Z) half the time."""
    batch = shape[0]

    def uniform(*size: int) -> Tensor:
        return torch.rand(batch, *size, generator=generator) * 2 - 1

    flips = torch.ones(batch, 3)
    coins = torch.rand(batch, 3, generator=generator) < 0.5
    for axis in flip_axes:
        flips[coins[:, axis], axis] = -1
    spread = torch.rand(batch, generator=generator) * NOISE
    return Augmentation(
        flips=flips,
        turns=uniform(3) * ROTATION,
        shifts=uniform(3) * SHIFT,
        scales=1 + uniform() * SCALE,
        gains=1 + uniform() * GAIN,
        offsets=uniform() * OFFSET,
        noise=torch.randn(shape, generator=generator) * spread.view(-1, 1, 1, 1, 1),
    )


def apply_augmentation(volumes: Tensor, drawn: Augmentation) -> Tensor:
    """`volumes` [B, 1, X, Y, Z] in [-1, 1], moved and recoloured; the outermost voxels fill what comes into view."""
    grid = F.affine_grid(affine_matrices(drawn, volumes.shape[2:]), list(volumes.shape), align_corners=False)
    moved = F.grid_sample(volumes, grid.to(volumes.dtype), mode="bilinear", padding_mode="border", align_corners=False)
    gains, offsets = (value.view(-1, 1, 1, 1, 1) for value in (drawn.gains, drawn.offsets))
    return (moved * gains + offsets + drawn.noise).clamp(-1, 1)


def affine_matrices(drawn: Augmentation, size: torch.Size) -> Tensor:
    """[B, 3, 4] from output to input positions, in `affine_grid`'s coordinates: -1 to 1 along (Z, Y, X), in this order.

    Turns are about the centre and in voxels, so that a box with unequal edges is not sheared.
    """
    cos, sin = drawn.turns.cos(), drawn.turns.sin()
    turn = torch.eye(3).repeat(len(cos), 1, 1)
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        one = torch.eye(3).repeat(len(cos), 1, 1)
        one[:, i, i], one[:, j, j] = cos[:, axis], cos[:, axis]
        one[:, i, j], one[:, j, i] = -sin[:, axis], sin[:, axis]
        turn = turn @ one
    edges = torch.tensor([float(edge) for edge in size])
    linear = turn * drawn.flips[:, None, :] / drawn.scales[:, None, None]
    linear = linear * edges[None, None, :] / edges[None, :, None]  # voxels -> shares of each axis' length
    matrices = torch.cat([linear, 2 * drawn.shifts[:, :, None]], -1)  # rows and columns X, Y, Z
    order = [2, 1, 0]
    return torch.cat([matrices[:, order][:, :, order], matrices[:, order, 3:]], -1)
