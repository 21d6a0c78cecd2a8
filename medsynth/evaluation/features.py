"""Feature spaces that need no download, and the frame that the real training split gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsynth.evaluation.radiomics import lesion_features, scan_features
from medsynth.evaluation.volumes import LabelledVolumes
from medsynth.progress import Advance
from medsynth.seeding import torch_generator

Floats = NDArray[np.float64]

NETWORK_SEED = 20261
"""Fixed for all runs, so that figures of two runs are measured with the same instrument."""
NETWORKS = 3
WIDTHS = (8, 16, 32, 64)
CHUNK_VOXELS = 2**21
MAX_COMPONENTS = 64
SOFT_LIMIT = 5.0

SPACES = ("radiomics", "random networks")


def random_network_features(volumes: Tensor, device: torch.device, advance: Advance) -> Floats:
    """Statistics of feature maps of several untrained 3D networks, side by side: [N, D] of volumes [N, 1, X, Y, Z].

    A linear kernel on features laid side by side is the mean of the networks' kernels. Random embeddings judge data
    that pretrained ones were never made for (Naeem 2020).
    """
    networks = [_random_weights(number) for number in range(NETWORKS)]
    per_chunk = max(1, CHUNK_VOXELS // max(1, int(np.prod(volumes.shape[2:]))))
    rows: list[Tensor] = []
    for start in range(0, len(volumes), per_chunk):
        voxels = volumes[start : start + per_chunk].to(device)
        with torch.inference_mode():
            figures = [_statistics(voxels, [w.to(device) for w in weights]) for weights in networks]
        rows.append(torch.cat(figures, dim=1).double().cpu())
        advance(len(voxels))
    return np.asarray(torch.cat(rows).numpy()) if rows else np.zeros((0, 0))


def _random_weights(number: int) -> list[Tensor]:
    generator = torch_generator(NETWORK_SEED, "random network", number)
    weights, before = [], 1
    for width in WIDTHS:
        fan_in = before * 27
        weights.append(torch.randn(width, before, 3, 3, 3, generator=generator) * (2 / fan_in) ** 0.5)
        before = width
    # Brightness outweighs everything else in a random filter. Half of the first ones see only differences, so that edges
    # and texture get a say.
    edges = weights[0][::2]
    weights[0][::2] = edges - edges.mean(dim=(2, 3, 4), keepdim=True)
    return weights


def _statistics(voxels: Tensor, weights: list[Tensor]) -> Tensor:
    """Mean and standard deviation over space of every channel at every scale: [N, 2 * sum(WIDTHS)]."""
    figures, maps = [], voxels
    for weight in weights:
        # Two voxels on, three voxels wide: every voxel is seen, at an eighth of the cost.
        stride = [2 if size > 3 else 1 for size in maps.shape[2:]]
        maps = F.leaky_relu(F.conv3d(F.pad(maps, [1] * 6, mode="replicate"), weight, stride=stride), 0.2)
        flat = maps.flatten(2)
        figures += [flat.mean(2), flat.std(2, correction=0)]
    return torch.cat(figures, dim=1)


def extract(
    sets: dict[str, LabelledVolumes], device: torch.device, advance: Advance, with_lesions: bool
) -> dict[str, dict[str, Floats]]:
    """Raw features per space and set: `[space][set]` is [N, D].

    `with_lesions` adds the masked region's features to the radiomics; every set must then have masks.
    """
    out: dict[str, dict[str, Floats]] = {space: {} for space in SPACES}
    for name, volumes in sets.items():
        measured = scan_features(volumes, advance)
        lesions = lesion_features(volumes) if with_lesions else None
        out["radiomics"][name] = measured if lesions is None else np.concatenate([measured, lesions], axis=1)
        out["random networks"][name] = random_network_features(volumes.voxels, device, advance)
    return out


@dataclass(frozen=True)
class Frame:
    """Standardisation and PCA, fitted on real training features only.

    Values far outside the training range are drawn in logarithmically, so that one feature which hardly varies in
    training cannot drown all others: 5 asinh(z / 5) is z within 2 % up to |z| = 1.7.
    """

    mean: Floats
    std: Floats
    kept: NDArray[np.bool_]
    axes: Floats
    """[components, D], orthonormal rows."""

    @classmethod
    def fit(cls, training: Floats) -> Frame:
        """From training features [N, D]. Constant features are left out; components <= N / 10, at least one."""
        mean, std = training.mean(0), training.std(0)
        kept = std > 1e-6 * np.maximum(1.0, np.abs(mean))
        frame = cls(mean=mean, std=std, kept=kept, axes=np.zeros((0, int(kept.sum()))))
        scores = frame.standardise(training)
        components = max(1, min(len(training) // 10, int(kept.sum()), MAX_COMPONENTS))
        axes = np.linalg.svd(scores - scores.mean(0), full_matrices=False)[2][:components]
        return cls(mean=mean, std=std, kept=kept, axes=axes)

    def standardise(self, features: Floats) -> Floats:
        """[N, kept D]."""
        z = (features[:, self.kept] - self.mean[self.kept]) / self.std[self.kept]
        return np.asarray(SOFT_LIMIT * np.arcsinh(z / SOFT_LIMIT))

    def reduce(self, standardised: Floats) -> Floats:
        """[N, components] of standardised features."""
        return np.asarray(standardised @ self.axes.T)
