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

    As many voxels carry each label as before, so that what was measured on a label's volume stays true: together those
    farthest inside where they came from, of them for one label after another, the rarest first, those that came from
    farther inside it than any other. The centre stays where it was; what reaches beyond the box goes on as at its edge.
    It is meant for one body, whose size is the measure of how far it is bent: parts far smaller than the whole may break.
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

    def depths(places: NDArray[np.intp], body: NDArray[np.bool_]) -> NDArray[np.float32]:
        """How deep in `body` what comes to these places of the region was, in mm, [N]."""
        depth, found = _depth(body, spacing), np.empty(len(places), np.float32)
        for start in range(0, len(places), SLAB_VOXELS):
            chosen = slice(start, start + SLAB_VOXELS)
            voxels = np.stack(np.unravel_index(places[chosen], depth.shape), 1)
            sources = variation.sources((voxels + low - centre) * spacing / radius) - drift
            sources = (sources * radius / spacing + centre - low).T
            found[chosen] = map_coordinates(depth, sources, order=1, mode="nearest")
        return found

    cut = mask[region]
    candidates = np.flatnonzero(_depth(cut > 0, spacing) > -farthest_mm)
    deepest = np.sort(candidates[np.argsort(-depths(candidates, cut > 0), kind="stable")[: len(inside)]])
    labels, counts = np.unique(mask[mask > 0], return_counts=True)
    shares = np.zeros(len(deepest), int)
    if len(labels) > 1:
        shares = _shared_out(np.stack([depths(deepest, cut == label) for label in labels]), counts)
    found = np.zeros(cut.shape, mask.dtype)
    found.flat[deepest] = labels[shares]
    result = np.zeros_like(mask)
    result[region] = found
    return result


def _depth(body: NDArray[np.bool_], spacing_mm: Floats) -> NDArray[np.float32]:
    """Distance to the body's surface in mm, negative outside."""
    outward = distance_transform_edt(~body, sampling=spacing_mm)
    return (distance_transform_edt(body, sampling=spacing_mm) - outward).astype(np.float32)


def _shared_out(depths: NDArray[np.float32], counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which of L bodies each of N voxels goes to, by its depths in them [L, N]: to body l as many as counts[l]."""
    *rare, last = np.argsort(counts, kind="stable")
    found = np.full(depths.shape[1], last)
    left = np.arange(depths.shape[1])
    for place, body in enumerate(rare):
        others = [*rare[place + 1 :], last]
        margin = depths[body, left] - depths[others][:, left].max(0)
        order = np.argsort(-margin, kind="stable")
        found[left[order[: counts[body]]]] = body
        left = np.sort(left[order[counts[body] :]])
    return found
