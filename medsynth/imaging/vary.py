"""Masks that nobody has: a mask turned and bent at random, with as many voxels as before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial.transform import Rotation

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]

WAVES = 24
"""Waves that a field of displacements is summed from."""
LENGTH = 1.5
"""Over which displacements agree, in radii of a ball of the mask's volume."""
SLACK = 1.5
"""How much farther than the mask's own voxels one beside it may have come, at the most."""
SLAB_VOXELS = 2**18


@dataclass(frozen=True)
class Variation:
    """A rotation and a smooth field of displacements. Lengths are in radii of a ball of the mask's volume."""

    rotation: Floats
    """[3, 3]."""
    bend: float
    """Standard deviation of displacements."""
    waves: Floats
    """[K, 3] wave vectors."""
    phases: Floats
    """[K]."""
    amplitudes: Floats
    """[K, 3]."""

    def sources(self, places: Floats) -> Floats:
        """Where what comes to `places` [N, 3] was: about the mask's centre, before the mask's drift is taken off."""
        return places @ self.rotation.T + self.displacements(places)

    def displacements(self, places: Floats) -> Floats:
        """[N, 3] at `places` [N, 3]: a Gaussian field by random Fourier features (Rahimi 2007, algorithm 1)."""
        angles = places.astype(np.float32) @ self.waves.T.astype(np.float32) + self.phases.astype(np.float32)
        return np.asarray(self.bend * math.sqrt(2 / len(self.waves)) * np.cos(angles) @ self.amplitudes)


def draw_variation(generator: np.random.Generator, rotate_degrees: float, bend: float) -> Variation:
    """`rotate_degrees`: standard deviation of the angle about each axis.  `bend`: that of displacements."""
    return Variation(
        rotation=Rotation.from_rotvec(np.deg2rad(rotate_degrees) * generator.standard_normal(3)).as_matrix(),
        bend=bend,
        waves=generator.standard_normal((WAVES, 3)) / LENGTH,
        phases=generator.uniform(0, 2 * np.pi, WAVES),
        amplitudes=generator.standard_normal((WAVES, 3)),
    )


def varied(mask: Labels, spacing_mm: tuple[float, ...], variation: Variation) -> Labels:
    """The mask [X, Y, Z] turned about its centre and bent, with labels 1 and up.

    As many voxels carry a label as before, so that what was measured on the mask's volume stays true: those farthest inside
    where they came from. Each takes the label that was nearest there. The centre stays where it was; what reaches beyond the
    box goes on as at its edge.
    """
    inside = np.argwhere(mask > 0)
    if not len(inside):
        return mask.copy()
    spacing = np.asarray(spacing_mm, np.float64)
    radius = float((3 * len(inside) * spacing.prod() / (4 * math.pi)) ** (1 / 3))
    centre = inside.mean(0)
    own = (inside - centre) * spacing / radius
    sources = variation.sources(own)
    drift = sources.mean(0)
    moved = np.linalg.norm(sources - drift - own, axis=1).max()
    farthest_mm = SLACK * moved * radius + 2 * np.linalg.norm(spacing)
    margin = np.ceil(farthest_mm / spacing)
    low = np.maximum(0, inside.min(0) - margin).astype(int)
    high = np.minimum(mask.shape, inside.max(0) + margin + 1).astype(int)
    region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    depth, nearest = _depth_and_nearest(mask[region], spacing)
    candidates = np.flatnonzero(depth > -farthest_mm)
    found_depth, label = np.empty(len(candidates), np.float32), np.empty(len(candidates), mask.dtype)
    for start in range(0, len(candidates), SLAB_VOXELS):
        chosen = slice(start, start + SLAB_VOXELS)
        voxels = np.stack(np.unravel_index(candidates[chosen], depth.shape), 1)
        sources = variation.sources((voxels + low - centre) * spacing / radius) - drift
        sources = (sources * radius / spacing + centre - low).T
        found_depth[chosen] = map_coordinates(depth, sources, order=1, mode="nearest")
        label[chosen] = map_coordinates(nearest, sources, order=0, mode="nearest")
    deepest = np.argsort(-found_depth, kind="stable")[: len(inside)]
    found = np.zeros(depth.shape, mask.dtype)
    found.flat[candidates[deepest]] = label[deepest]
    result = np.zeros_like(mask)
    result[region] = found
    return result


def _depth_and_nearest(mask: Labels, spacing_mm: Floats) -> tuple[NDArray[np.float32], Labels]:
    """Distance to the mask's surface in mm, negative outside, and everywhere the label of the nearest labelled voxel."""
    outward, places = distance_transform_edt(mask == 0, sampling=spacing_mm, return_indices=True)
    depth = distance_transform_edt(mask > 0, sampling=spacing_mm) - outward
    return depth.astype(np.float32), mask[tuple(places)]
