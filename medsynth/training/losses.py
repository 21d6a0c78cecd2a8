"""What a reconstruction is judged by, on volumes [B, C, X, Y, Z] in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DATA_RANGE = 2.0
"""Values go from -1 to 1."""
WINDOW = 7
"""Edge of SSIM's window, in voxels; shorter along axes that are shorter."""
SPATIAL_AXES = (2, 3, 4)


def structural_similarity(a: Tensor, b: Tensor, *, stride: int = 1) -> Tensor:
    """Mean SSIM of each volume [B] (Wang 2004, eq. 13), with a uniform window that stays inside the volume.

    a, b: [B, C, X, Y, Z]. `stride` takes every so-manieth window along each axis: cheaper, the same in expectation.
    """
    window = [min(WINDOW, a.shape[axis]) for axis in SPATIAL_AXES]
    moments = _window_means(torch.cat([a, b, a * a, b * b, a * b], dim=1), window, stride)
    mean_a, mean_b, aa, bb, ab = moments.chunk(5, dim=1)
    variance_a, variance_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).flatten(1).mean(1)


def _window_means(x: Tensor, window: list[int], stride: int) -> Tensor:
    """Mean over each window, one axis after the other: 3 n additions per voxel instead of n cubed."""
    for i, size in enumerate(window):
        kernel, steps = [1, 1, 1], [1, 1, 1]
        kernel[i], steps[i] = size, stride
        x = F.avg_pool3d(x, kernel, steps)
    return x


def gradient_difference(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance between the first differences of two volumes, mean over voxels and the three axes (Mathieu 2016)."""
    difference = a - b  # the difference of the differences is the difference of this
    return torch.stack([difference.diff(dim=axis).abs().mean() for axis in SPATIAL_AXES]).mean()


def peak_signal_to_noise(a: Tensor, b: Tensor) -> Tensor:
    """PSNR of each volume in dB [B]; identical volumes count as 100 dB."""
    error = (a - b).square().flatten(1).mean(1).clamp_min(DATA_RANGE**2 * 1e-10)
    return 10 * torch.log10(DATA_RANGE**2 / error)
