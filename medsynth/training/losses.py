"""What a reconstruction is judged by, on volumes [B, C, X, Y, Z] in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

DATA_RANGE = 2.0
"""Values go from -1 to 1."""
WINDOW = 7
"""Edge of SSIM's window, in voxels; shorter along axes that are shorter."""
SPATIAL_AXES = (2, 3, 4)
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""What each scale counts for, the finest first (Wang 2003, sec. 3.2)."""
LOWEST_CONTRAST = 1e-3
"""A scale whose structures disagree more than this counts as this: a power of less than one has no slope at zero."""


def structural_similarity(a: Tensor, b: Tensor, *, stride: int = 1) -> Tensor:
    """Mean SSIM of each volume [B] (Wang 2004, eq. 13), with a uniform window that stays inside the volume.

    a, b: [B, C, X, Y, Z]. `stride` takes every so-manieth window along each axis: cheaper, the same in expectation.
    """
    luminance, structure = _similarities(a, b, stride)
    return (luminance * structure).flatten(1).mean(1)


def multi_scale_similarity(a: Tensor, b: Tensor, *, stride: int = 1) -> Tensor:
    """Multi-scale SSIM of each volume [B] (Wang 2003, eq. 7), on as many scales as the window fits into.

    a, b: [B, C, X, Y, Z]. Each scale halves the volume by averaging; contrast and structure count at every scale,
    luminance at the coarsest. Where the shortest axis has room for fewer than the paper's five scales, the weights of
    those that are left are scaled to a sum of one; with a single scale this is `structural_similarity`.
    """
    weights = SCALE_WEIGHTS[: scales(a.shape[2:])]
    similarity = a.new_ones(len(a), dtype=torch.promote_types(a.dtype, torch.float32))
    for scale, weight in enumerate(weights):
        if scale:
            a, b = F.avg_pool3d(a, 2), F.avg_pool3d(b, 2)
        luminance, structure = _similarities(a, b, stride)
        value = structure if scale < len(weights) - 1 else luminance * structure
        if len(weights) == 1:
            return value.flatten(1).mean(1)
        similarity = similarity * value.flatten(1).mean(1).clamp_min(LOWEST_CONTRAST) ** (weight / sum(weights))
    return similarity


def scales(shape: Sequence[int]) -> int:
    """Scales of `multi_scale_similarity` for volumes of this shape: each but the first has room for a whole window."""
    halvings = max(0, (min(shape) // WINDOW).bit_length() - 1)
    return min(1 + halvings, len(SCALE_WEIGHTS))


def _similarities(a: Tensor, b: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, of each window (Wang 2004, eqs. 6 and 13)."""
    window = [min(WINDOW, a.shape[axis]) for axis in SPATIAL_AXES]
    moments = _window_means(torch.cat([a, b, a * a, b * b, a * b], dim=1), window, stride)
    mean_a, mean_b, aa, bb, ab = moments.chunk(5, dim=1)
    variance_a, variance_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (variance_a + variance_b + c2)


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


def spectral_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean L1 distance between the amplitudes of two volumes' 3D spectra (Fuoli 2021, eq. 6), orthonormal transform.

    Fine texture cannot be told from a compressed latent voxel by voxel, and every other distance then prefers none at
    all; its strength per frequency can be. Phases are left to the other terms. In float32 or wider, because half
    precision has no such transform on most devices and little of the range that a spectrum spans.
    """
    with torch.autocast(a.device.type, enabled=False):
        return (_amplitudes(a) - _amplitudes(b)).abs().mean()


def _amplitudes(x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.fft.rfftn(wide, dim=SPATIAL_AXES, norm="ortho").abs()


def peak_signal_to_noise(a: Tensor, b: Tensor) -> Tensor:
    """PSNR of each volume in dB [B]; identical volumes count as 100 dB."""
    error = (a - b).square().flatten(1).mean(1).clamp_min(DATA_RANGE**2 * 1e-10)
    return 10 * torch.log10(DATA_RANGE**2 / error)
