"""Measured features of a scan: intensities, edges, texture, spectrum, and the lesion where there is a mask.

In the spirit of the Image Biomarker Standardisation Initiative (Zwanenburg 2020), reduced to what small boxes allow.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsynth.evaluation.volumes import LabelledVolumes
from medsynth.progress import Advance

Floats = NDArray[np.float64]

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
HISTOGRAM_BINS = 32
GREY_LEVELS = 16
TEXTURE_DISTANCES = (1, 2)
EDGE_SCALES = (1, 2, 4)
SPECTRUM_BANDS = (0.125, 0.25, 0.5, 1.0)
"""Upper ends, as shares of the Nyquist frequency."""
TINY = 1e-6


def scan_features(volumes: LabelledVolumes, advance: Advance) -> Floats:
    """Features [N, D] of whole scans, computed from voxels alone."""
    rows = []
    for volume in volumes.voxels[:, 0]:
        rows.append(np.concatenate([_intensity(volume), _edges(volume), _texture(volume), _spectrum(volume)]))
        advance(1)
    return np.stack(rows) if rows else np.zeros((0, 0))


def lesion_features(volumes: LabelledVolumes) -> Floats | None:
    """Features [N, D] of the masked region: size, extent per axis, intensities inside, contrast to a shell around it.

    None where there are no masks. An empty mask has zeros throughout, which its log volume of zero tells apart.
    """
    foreground = volumes.foreground()
    if foreground is None:
        return None
    return np.stack(
        [_lesion(volume, mask) for volume, mask in zip(volumes.voxels[:, 0], foreground[:, 0], strict=True)]
    )


def lesion_volumes(volumes: LabelledVolumes) -> Floats | None:
    """Log of one plus the number of masked voxels, [N, 1]; None where there are no masks."""
    foreground = volumes.foreground()
    return None if foreground is None else np.log1p(foreground.flatten(1).sum(1).double().numpy())[:, None]


def _moments(values: Floats) -> list[float]:
    mean, std = float(values.mean()), float(values.std())
    centred = (values - mean) / max(std, TINY)
    square = centred * centred
    return [mean, std, float((square * centred).mean()), float(np.log((square * square).mean() + 1))]


def _intensity(volume: Tensor) -> Floats:
    values = volume.flatten().sort().values
    ranks = [round(percent / 100 * (len(values) - 1)) for percent in PERCENTILES]
    counts = torch.histc(values, bins=HISTOGRAM_BINS, min=-1.0, max=1.0).double().numpy() / len(values)
    return np.array([*_moments(values.double().numpy()), *values[ranks].tolist(), _entropy(counts)])


def _entropy(shares: Floats) -> float:
    present = shares[shares > 0]
    return float(-(present * np.log2(present)).sum())


def _edges(volume: Tensor) -> Floats:
    """Log mean, log std and log 95th percentile of the gradient magnitude, at several scales."""
    out: list[float] = []
    for scale in EDGE_SCALES:
        pooled = _pool(volume, scale)
        steps = [torch.diff(pooled, dim=axis)[tuple(slice(0, s - 1) for s in pooled.shape)] for axis in range(3)]
        magnitude = torch.stack(steps).square().sum(0).sqrt().flatten().double().numpy()
        figures = [magnitude.mean(), magnitude.std(), np.percentile(magnitude, 95)]
        out += [float(np.log(figure + 1e-3)) for figure in figures]
    return np.array(out)


def _pool(volume: Tensor, scale: int) -> Tensor:
    """Mean over blocks of `scale` voxels per axis, never leaving an axis with fewer than two voxels."""
    block = [min(scale, max(1, size // 2)) for size in volume.shape]
    return F.avg_pool3d(volume[None], block)[0] if max(block) > 1 else volume


def _texture(volume: Tensor) -> Floats:
    """Grey-level co-occurrence (Haralick 1973), averaged over the three axes, per distance.

    Contrast, homogeneity, energy, entropy and correlation of the joint histogram of a voxel and its neighbour.
    """
    grey = ((volume + 1) / 2 * GREY_LEVELS).long().clamp(0, GREY_LEVELS - 1).numpy()
    levels = np.arange(GREY_LEVELS)
    apart = np.abs(levels[:, None] - levels[None])
    out = []
    for distance in TEXTURE_DISTANCES:
        per_axis = []
        for axis in range(3):
            reach = min(distance, grey.shape[axis] - 1)
            here, there = np.delete(grey, np.s_[-reach:], axis), np.delete(grey, np.s_[:reach], axis)
            joint = np.bincount((here * GREY_LEVELS + there).ravel(), minlength=GREY_LEVELS**2)
            p = joint.reshape(GREY_LEVELS, GREY_LEVELS).astype(np.float64) / joint.sum()
            p = (p + p.T) / 2
            mean = (p.sum(1) * levels).sum()
            variance = (p.sum(1) * (levels - mean) ** 2).sum()
            covariance = (p * (levels - mean)[:, None] * (levels - mean)[None]).sum()
            per_axis.append(
                [
                    np.log1p((p * apart**2).sum()),
                    (p / (1 + apart)).sum(),
                    (p**2).sum(),
                    _entropy(p.ravel()),
                    covariance / max(variance, TINY),
                ]
            )
        out.append(np.mean(per_axis, axis=0))
    return np.concatenate(out)


def _spectrum(volume: Tensor) -> Floats:
    """Log power in frequency bands along each axis, averaged over the lines of that axis."""
    out: list[float] = []
    for axis in range(3):
        power = torch.fft.rfft(volume.double(), dim=axis, norm="ortho").abs().square()
        line = power.mean(dim=[a for a in range(3) if a != axis]).numpy()[1:]
        share = np.arange(1, len(line) + 1) / max(len(line), 1)
        low = 0.0
        for high in SPECTRUM_BANDS:
            band = line[(share > low) & (share <= high)]
            out.append(float(np.log(band.mean() + TINY)) if band.size else float(np.log(TINY)))
            low = high
    return np.array(out)


def _lesion(volume: Tensor, mask: Tensor) -> Floats:
    inside = volume[mask].double().numpy()
    if not inside.size:
        return np.zeros(13)
    extents = [int(mask.any(dim=tuple(a for a in range(3) if a != axis)).sum()) for axis in range(3)]
    grown = F.max_pool3d(mask[None, None].float(), kernel_size=5, stride=1, padding=2)[0, 0] > 0
    around = volume[grown & ~mask].double().numpy()
    contrast = inside.mean() - (around.mean() if around.size else inside.mean())
    filled = inside.size / float(np.prod(extents))
    percentiles = np.percentile(inside, (10, 50, 90))
    return np.array([np.log1p(inside.size), *np.log1p(extents), *_moments(inside), *percentiles, contrast, filled])
