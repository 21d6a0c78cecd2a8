"""Structural similarity of volumes of any size, for diversity."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents per scale (Wang 2003), renormalised over the scales that fit."""
LONGEST_AXIS = 64
K1, K2 = 0.01, 0.03


def window_and_scales(shape: tuple[int, ...]) -> tuple[int, int]:
    """Window in voxels and number of scales that fit the shortest axis.

    The window is 7 voxels, or 5 or 3 on short axes; each further scale halves the volume and must still hold a window.
    """
    shortest = min(shape)
    window = 7 if shortest >= 24 else 5 if shortest >= 8 else 3
    scales = 1 if shortest < 2 * window else 1 + int(np.log2(shortest / window))
    return min(window, shortest), min(scales, len(WEIGHTS))


def multiscale_ssim(first: Tensor, second: Tensor) -> Tensor:
    """MS-SSIM of pairs [N, 1, X, Y, Z] in [-1, 1]: [N] from 0 to 1, 1 for equal volumes (Wang 2003, eq. 7).

    Negative structure terms count as zero, as they have no real power.
    """
    window, scales = window_and_scales(tuple(first.shape[2:]))
    exponents = torch.tensor(WEIGHTS[:scales], dtype=first.dtype, device=first.device)
    exponents = exponents / exponents.sum()
    result = torch.ones(len(first), dtype=first.dtype, device=first.device)
    for scale in range(scales):
        whole, structure = _ssim(first, second, window)
        term = whole if scale == scales - 1 else structure
        result = result * term.clamp_min(0) ** exponents[scale]
        if scale < scales - 1:
            first, second = F.avg_pool3d(first, 2), F.avg_pool3d(second, 2)
    return result


def _gaussian(window: int) -> Tensor:
    at = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    kernel = torch.exp(-(at**2) / (2 * 1.5**2))
    return kernel / kernel.sum()


def _blur(volume: Tensor, window: int) -> Tensor:
    """Gaussian means over all windows that lie inside the volume; along each axis a product with a banded matrix,
    which for axes this short is many times faster than a convolution with one channel."""
    kernel = _gaussian(window)
    for axis in (2, 3, 4):
        size = volume.shape[axis]
        band = torch.zeros(size - window + 1, size, dtype=torch.float64)
        for row in range(len(band)):
            band[row, row : row + window] = kernel
        volume = (volume.movedim(axis, -1) @ band.to(volume).T).movedim(-1, axis)
    return volume


def _ssim(first: Tensor, second: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean of the full index and of its contrast-and-structure part, [N] each; the data range is 2."""
    c1, c2 = (K1 * 2) ** 2, (K2 * 2) ** 2
    mean_a, mean_b = _blur(first, window), _blur(second, window)
    variance_a = _blur(first * first, window) - mean_a**2
    variance_b = _blur(second * second, window) - mean_b**2
    covariance = _blur(first * second, window) - mean_a * mean_b
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * structure).flatten(1).mean(1), structure.flatten(1).mean(1)


def shrink(voxels: Tensor, longest: int = LONGEST_AXIS) -> Tensor:
    """Volumes pooled by whole factors until no axis is longer than `longest` voxels."""
    factors = [-(-size // longest) for size in voxels.shape[2:]]
    return F.avg_pool3d(voxels, factors) if max(factors) > 1 else voxels
