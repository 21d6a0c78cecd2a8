"""Masks that nobody has: a mask turned and bent at random, with as many voxels as before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]

WAVES = 32
"""Waves that a field of displacements is summed from."""
LENGTH = 1.5
"""Over which displacements agree, in radii of a ball of the mask's volume."""
FARTHEST = 4.0
"""Standard deviations of displacement that a voxel may have come from; what lies farther from the mask stays background."""
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
        """Where what comes to `places` [N, 3] was: about the mask's centre, before the field's mean over it is taken off."""
        return places @ self.rotation.T + self.displacements(places)

    def displacements(self, places: Floats) -> Floats:
        """[N, 3] at `places` [N, 3]: a Gaussian field by random Fourier features (Rahimi 2007, algorithm 1)."""
        waves = np.cos(places @ self.waves.T + self.phases)
        return self.bend * math.sqrt(2 / len(self.waves)) * waves @ self.amplitudes


def draw_variation(generator: np.random.Generator, rotate_degrees: float, bend: float) -> Variation:
    """`rotate_degrees`: standard deviation of the angle about each axis.  `bend`: that of displacements."""
    angles = np.deg2rad(rotate_degrees) * generator.standard_normal(3)
    return Variation(
        rotation=_rotation(angles),
        bend=bend,
        waves=generator.standard_normal((WAVES, 3)) / LENGTH,
        phases=generator.uniform(0, 2 * np.pi, WAVES),
        amplitudes=generator.standard_normal((WAVES, 3)),
    )


def _rotation(angles: Floats) -> Floats:
    """Exponential of the antisymmetric matrix of a rotation vector in radians (Rodrigues)."""
    angle = float(np.linalg.norm(angles))
    if angle == 0:
        return np.eye(3)
    x, y, z = angles / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)


def varied(mask: Labels, spacing_mm: tuple[float, ...], variation: Variation) -> Labels:
    """The mask [X, Y, Z] turned about its centre and bent, with labels 1 and up.

    As many voxels carry a label as before, so that what was measured on the mask's volume stays true: the likeliest
    ones do, each that label of which most has come to it. The centre stays where it was; what reaches beyond the box goes on
    as at its edge.
    """
    inside = np.argwhere(mask > 0)
    if not len(inside):
        return mask.copy()
    spacing = np.asarray(spacing_mm, np.float64)
    radius = float((3 * len(inside) * spacing.prod() / (4 * math.pi)) ** (1 / 3))
    centre = inside.mean(0)
    own = (inside - centre) * spacing / radius
    mean = variation.displacements(own).mean(0)
    reach = np.linalg.norm(own, axis=1).max() + FARTHEST * variation.bend
    low = np.maximum(0, np.floor(centre - reach * radius / spacing)).astype(int)
    high = np.minimum(mask.shape, np.ceil(centre + reach * radius / spacing).astype(int) + 1)
    region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    shape = tuple(high - low)
    labels = [int(label) for label in np.unique(mask) if label > 0]
    parts = [(mask == label).astype(np.float32) for label in labels]
    shares = np.zeros((len(labels), math.prod(shape)), np.float32)
    for start in range(0, shares.shape[1], SLAB_VOXELS):
        chosen = slice(start, start + SLAB_VOXELS)
        voxels = np.stack(np.unravel_index(np.arange(shares.shape[1])[chosen], shape), 1) + low
        places = (voxels - centre) * spacing / radius
        sources = (variation.sources(places) - mean) * radius / spacing + centre
        for row, part in enumerate(parts):
            shares[row, chosen] = map_coordinates(part, sources.T, order=1, mode="nearest")
    likeliest = np.argsort(-shares.sum(0), kind="stable")[: len(inside)]
    found = np.zeros(math.prod(shape), mask.dtype)
    found[likeliest] = np.asarray(labels, mask.dtype)[shares[:, likeliest].argmax(0)]
    result = np.zeros_like(mask)
    result[region] = found.reshape(shape)
    return result
