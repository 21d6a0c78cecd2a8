"""The nodule of a phantom patient: drawn as a handful of numbers, then rendered.

One hidden number, the *suspicion*, decides how rough, spiky and mixed in density a nodule looks. It is drawn around
+SEPARATION / 2 for malignant and -SEPARATION / 2 for benign nodules with a spread of one, so the two diagnoses overlap:
no classifier can reach an AUC above Phi(SEPARATION / sqrt(2)) = 0.95. The diameter is drawn without looking at the
diagnosis and every shape is scaled to the volume of the sphere of that diameter, so size tells nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SEPARATION = 2.3
DIAMETER_MM = (5.0, 20.0)
SOLID_HU = 35.0
GROUND_GLASS_HU = -420.0
CALCIUM_HU = 620.0
_DIRECTIONS = 800


@dataclass(frozen=True)
class Nodule:
    """What a nodule is made of. Directions are unit vectors [n, 3]; lengths are fractions of the mean radius."""

    diameter_mm: float
    suspicion: float
    rotation: Floats
    axes: Floats
    bumps: Floats
    bump_heights: Floats
    spikes: Floats
    spike_heights: Floats
    spike_sharpness: float
    spicules: Floats
    spicule_lengths_mm: Floats
    edge_mm: float
    mixture: float
    ground_glass: float
    core_offset: Floats
    calcium: float
    scale_mm: float

    def relief(self, directions: Floats) -> Floats:
        """Distance of the surface from the centre along unit `directions` [m, 3], before scaling to millimetres: [m]."""
        along = (directions @ self.rotation) / self.axes
        radius = 1 / np.sqrt((along**2).sum(-1))
        radius = radius + np.exp(6.0 * (directions @ self.bumps.T - 1)) @ self.bump_heights
        radius = radius + np.exp(self.spike_sharpness * (directions @ self.spikes.T - 1)) @ self.spike_heights
        return np.maximum(radius, 0.35).astype(np.float32)

    def surface_mm(self) -> Floats:
        """Points of the surface, evenly spread in direction, from the centre: [m, 3]."""
        directions = fibonacci_sphere(_DIRECTIONS)
        return directions * (self.scale_mm * self.relief(directions))[:, None]

    @property
    def reach_mm(self) -> float:
        """No part of the nodule's body is farther than this from its centre."""
        return float(np.linalg.norm(self.surface_mm(), axis=1).max()) + 1.0


def fibonacci_sphere(count: int) -> Floats:
    """`count` unit vectors that cover the sphere evenly: [count, 3]."""
    index = np.arange(count) + 0.5
    height = 1 - 2 * index / count
    angle = np.pi * (1 + 5**0.5) * index
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), height], -1).astype(np.float32)


def unit_vectors(generator: np.random.Generator, count: int) -> Floats:
    """`count` directions, uniform on the sphere: [count, 3]."""
    vectors = generator.standard_normal((count, 3))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def draw_diameters(generator: np.random.Generator, count: int) -> Floats:
    """Typical diameters in mm: [count], mostly from 7 to 16."""
    low, high = DIAMETER_MM
    return (low + (high - low) * generator.beta(1.5, 1.9, count)).astype(np.float32)


def draw_nodule(generator: np.random.Generator, *, malignant: bool, typical_mm: float) -> Nodule:
    """A nodule of the given diagnosis, within a millimetre of `typical_mm`."""
    diameter_mm = round(float(np.clip(typical_mm + generator.uniform(-1, 1), *DIAMETER_MM)), 1)
    suspicion = float(generator.standard_normal()) + (SEPARATION / 2 if malignant else -SEPARATION / 2)

    def trait(steepness: float) -> float:
        """0 (calm) to 1 (suspicious): the suspicion, seen through a trait's own noise."""
        return float(1 / (1 + np.exp(-steepness * (suspicion + 0.45 * generator.standard_normal()))))

    spikiness, lobulation, roughness = trait(1.6), trait(1.3), trait(1.5)
    bumps, spikes, spicules = 7, 6 + round(18 * spikiness), round(20 * spikiness**1.5)
    matrix, _ = np.linalg.qr(generator.standard_normal((3, 3)))
    part_solid = generator.random() < 0.45 * roughness
    calcified = generator.random() < 0.3 * (1 - roughness)
    shape = Nodule(
        diameter_mm=diameter_mm,
        suspicion=suspicion,
        rotation=matrix.astype(np.float32),
        axes=generator.uniform(0.86, 1.16, 3).astype(np.float32),
        bumps=unit_vectors(generator, bumps),
        bump_heights=(generator.uniform(-0.5, 1.0, bumps) * (0.05 + 0.42 * lobulation)).astype(np.float32),
        spikes=unit_vectors(generator, spikes),
        spike_heights=(generator.uniform(0.35, 1.0, spikes) * 0.7 * spikiness).astype(np.float32),
        spike_sharpness=float(generator.uniform(26, 55)),
        spicules=unit_vectors(generator, spicules),
        spicule_lengths_mm=generator.uniform(2.0, 8.0, spicules).astype(np.float32),
        edge_mm=0.9 + 0.9 * roughness,
        mixture=15.0 + 190.0 * roughness,
        ground_glass=float(generator.uniform(0.45, 0.75)) if part_solid else 0.0,
        core_offset=(0.25 * generator.standard_normal(3)).astype(np.float32),
        calcium=float(generator.uniform(0.25, 0.45)) if calcified else 0.0,
        scale_mm=1.0,
    )
    # Volume of a star-shaped body: the mean of r^3 over all directions, times 4 pi / 3.
    mean_cube = float((shape.relief(fibonacci_sphere(_DIRECTIONS)) ** 3).mean())
    return Nodule(**{**vars(shape), "scale_mm": diameter_mm / 2 / mean_cube ** (1 / 3)})


def render_nodule(nodule: Nodule, offsets: Floats, texture: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Density, occupancy and mask of a nodule.

    offsets: [..., 3] millimetres from the centre.  texture: [...] smooth noise of unit spread.
    Returns HU [...], the share of each voxel that the nodule fills [...], and where that is at least one half [...].
    """
    distance = np.sqrt((offsets**2).sum(-1))
    directions = offsets / np.maximum(distance, 1e-3)[..., None]
    surface = nodule.scale_mm * nodule.relief(directions.reshape(-1, 3)).reshape(distance.shape)
    occupancy = np.clip(0.5 - (distance - surface) / nodule.edge_mm, 0, 1)

    hu = SOLID_HU + nodule.mixture * np.minimum(texture, 0.3) + 12 * texture
    if nodule.ground_glass:
        core = nodule.ground_glass * surface
        aside = np.sqrt(((offsets - nodule.core_offset * nodule.scale_mm) ** 2).sum(-1))
        solid = np.clip(0.5 - (aside - core) / 2.0, 0, 1)
        hu = solid * hu + (1 - solid) * (GROUND_GLASS_HU + 60 * texture)
    if nodule.calcium:
        grain = np.clip(0.5 - (distance - nodule.calcium * surface) / 1.5, 0, 1)
        hu = (1 - grain) * hu + grain * CALCIUM_HU
    return hu.astype(np.float32), occupancy.astype(np.float32), distance <= surface
