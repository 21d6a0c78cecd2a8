"""A phantom patient's anatomy as a scanner would show it, in Hounsfield units.

Only tissue texture and scanner noise are drawn here, from the generator that `render` is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medsynth.cohort.phantom_anatomy import FLATNESS_MM, Anatomy, Grid, Tube
from medsynth.cohort.phantom_nodule import Floats, render_nodule

AIR_HU, LUNG_HU, FAT_HU, MUSCLE_HU, BLOOD_HU = -1000.0, -860.0, -105.0, 55.0, 42.0
MARROW_HU, CORTEX_HU, SKIN_HU, LIVER_HU, BRONCHIAL_WALL_HU = 280.0, 1150.0, 20.0, 62.0, -60.0
_RIB_DEPTH_MM = 4.8


@dataclass(frozen=True)
class Rendered:
    """HU [X, Y, Z] float32 and nodule mask [X, Y, Z] bool."""

    hu: Floats
    mask: NDArray[np.bool_]


def smooth_field(generator: np.random.Generator, grid: Grid, length_mm: float) -> Floats:
    """Smooth random texture of unit spread that changes over about `length_mm`: [X, Y, Z].

    A coarse grid of independent numbers, interpolated by a Gaussian along each axis.
    """
    bases = []
    for axis in grid.axes_mm():
        line = axis.ravel()
        knots = np.arange(line[0] - 2 * length_mm, line[-1] + 2 * length_mm, length_mm, dtype=np.float32)
        bases.append(np.exp(-0.5 * ((line[:, None] - knots) / (0.65 * length_mm)) ** 2))
    a, b, c = bases
    coarse = generator.standard_normal((a.shape[1], b.shape[1], c.shape[1]), dtype=np.float32)
    field = np.tensordot(np.tensordot(np.tensordot(coarse, c, (2, 1)), b, (1, 1)), a, (0, 1))  # [Z, Y, X]
    spread = np.sqrt(np.multiply.outer((a**2).sum(1), (b**2).sum(1))[:, :, None] * (c**2).sum(1))
    return (field.transpose(2, 1, 0) / spread).astype(np.float32)


def _within(distance_mm: Floats, edge_mm: float = 1.1) -> Floats:
    """Share of a voxel inside a surface, from the signed distance of its centre (negative inside)."""
    return np.clip(0.5 - distance_mm / edge_mm, 0, 1)


def _blend(hu: Floats, share: Floats, tissue: Floats | float) -> None:
    hu += share * (tissue - hu)


def render(anatomy: Anatomy, generator: np.random.Generator) -> Rendered:
    """The field as a scanner would show it."""
    grid = anatomy.grid
    x, y, z = grid.axes_mm()
    coarse, fine = smooth_field(generator, grid, 11.0), smooth_field(generator, grid, 3.2)

    lung = LUNG_HU + 22 * coarse + 16 * fine + 0.6 * y  # the dependent lung is denser
    hu = lung.astype(np.float32)
    if anatomy.fissure is not None:
        a, b, c = anatomy.fissure
        _blend(hu, 0.35 * _within(np.abs(a * x + b * y + c * z - anatomy.fissure_mm + coarse) - 0.4), -300.0)
    for tube in anatomy.vessels:
        _draw_tube(hu, grid, tube, BLOOD_HU)
    for tube in anatomy.airways:
        _draw_tube(hu, grid, tube, BRONCHIAL_WALL_HU, grow_mm=0.8)
    for tube in anatomy.airways:
        _draw_tube(hu, grid, tube, AIR_HU)

    mask = _place_nodule(hu, anatomy, fine)

    if anatomy.diaphragm is not None:
        mx, my, mz = anatomy.diaphragm
        dome = z - mz + ((x - mx) ** 2 + (y - my) ** 2) / FLATNESS_MM
        _blend(hu, _within(dome, grid.spacing_mm[2]), LIVER_HU + 6 * coarse)
    for middle, radius in anatomy.trunks:
        trunk = np.sqrt((x - middle[0]) ** 2 + (y - middle[1]) ** 2) - radius + 0.05 * z + 0.6 * coarse
        _blend(hu, _within(trunk), BLOOD_HU + 5 * fine)
    _chest_wall(hu, anatomy, coarse, fine)

    hu = gaussian_filter(hu, [anatomy.kernel_mm / s for s in grid.spacing_mm[:2]] + [0.3])
    noise = generator.standard_normal(grid.shape, dtype=np.float32)
    noise = gaussian_filter(noise, (0.6, 0.6, 0))
    hu += (anatomy.noise_hu / float(noise.std())) * noise
    return Rendered(hu, mask)


def _place_nodule(hu: Floats, anatomy: Anatomy, texture: Floats) -> NDArray[np.bool_]:
    """Draw the nodule and its spicules into `hu`; return the mask of its body."""
    nodule, grid = anatomy.nodule, anatomy.grid
    for direction, length in zip(nodule.spicules, nodule.spicule_lengths_mm, strict=True):
        surface = nodule.scale_mm * float(nodule.relief(direction[None])[0])
        start, end = direction * (surface - 1), direction * (surface + float(length))
        _draw_tube(hu, grid, Tube(anatomy.nodule_centre + start, anatomy.nodule_centre + end, 1.1, 0.35), -20.0)
    mask = np.zeros(grid.shape, bool)
    reach = np.full(3, nodule.reach_mm, np.float32)
    box = _box(grid, anatomy.nodule_centre - reach, anatomy.nodule_centre + reach)
    axes = [axis.ravel()[part] - c for axis, part, c in zip(grid.axes_mm(), box, anatomy.nodule_centre, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    density, occupancy, inside = render_nodule(nodule, offsets, texture[box])
    _blend(hu[box], occupancy, density)
    mask[box] = inside
    return mask


def _box(grid: Grid, low_mm: NDArray[np.floating], high_mm: NDArray[np.floating]) -> tuple[slice, slice, slice]:
    """The voxels whose centres may lie between two corners."""
    parts = []
    for low, high, size, step in zip(low_mm, high_mm, grid.shape, grid.spacing_mm, strict=True):
        middle = (size - 1) / 2
        first, last = int(np.floor(low / step + middle)), int(np.ceil(high / step + middle))
        parts.append(slice(min(max(first, 0), size), min(max(last + 1, 0), size)))
    return parts[0], parts[1], parts[2]


def _draw_tube(hu: Floats, grid: Grid, tube: Tube, tissue: float, grow_mm: float = 0.0) -> None:
    """Blend a tapering capsule into `hu`; one thinner than a voxel is as faint as the share of it that it fills."""
    widest = max(tube.radius_start_mm, tube.radius_end_mm) + grow_mm + 1.0
    box = _box(grid, np.minimum(tube.start, tube.end) - widest, np.maximum(tube.start, tube.end) + widest)
    if any(part.start >= part.stop for part in box):
        return
    axis = tube.end - tube.start
    x, y, z = (line.ravel()[part] for line, part in zip(grid.axes_mm(), box, strict=True))
    px, py, pz = x[:, None, None] - tube.start[0], y[None, :, None] - tube.start[1], z[None, None, :] - tube.start[2]
    along = np.clip((px * axis[0] + py * axis[1] + pz * axis[2]) / float(axis @ axis), 0, 1)
    distance = np.sqrt((px - along * axis[0]) ** 2 + (py - along * axis[1]) ** 2 + (pz - along * axis[2]) ** 2)
    radius = tube.radius_start_mm + along * (tube.radius_end_mm - tube.radius_start_mm) + grow_mm
    share = np.clip(0.5 - (distance - radius) / 1.1, 0, 1) * np.minimum(1, 1.25 * radius)
    _blend(hu[box], share, tissue)


def _chest_wall(hu: Floats, anatomy: Anatomy, coarse: Floats, fine: Floats) -> None:
    """Pleura, intercostal muscle, slanting ribs, outer muscle, fat, skin and the air outside."""
    x, y, z = anatomy.grid.axes_mm()
    around = anatomy.wall.around_mm(x, y) * (1 if anatomy.left else -1)  # grows toward the back on both sides
    depth = anatomy.wall.depth_mm(x, y, z) + 0.3 * coarse  # [X, Y, Z]

    inner, outer = _RIB_DEPTH_MM + anatomy.rib_half_mm[0] + 0.3, 0.0
    _blend(hu, _within(-depth), MUSCLE_HU + 8 * fine - 55 * np.clip(coarse, 0, 1))
    _blend(hu, _within(np.abs(depth - 0.4) - 0.35), FAT_HU)
    for thickness, tissue in (
        (anatomy.fat_plane_mm, FAT_HU + 10 * fine),
        (anatomy.muscle_mm, MUSCLE_HU + 10 * fine),
        (anatomy.fat_mm, FAT_HU + 14 * fine + 8 * coarse),
        (1.8, np.full_like(fine, SKIN_HU)),
        (1e3, np.full_like(fine, AIR_HU)),
    ):
        _blend(hu, _within(inner + outer - depth), tissue)
        outer += thickness

    # Ribs run down toward the front: one slanted, repeated ellipse in (depth, height) coordinates.
    pitch = anatomy.rib_pitch_mm
    height = z - anatomy.rib_phase_mm - anatomy.rib_slope * around
    height = ((height + pitch / 2) % pitch - pitch / 2) / np.sqrt(1 + anatomy.rib_slope**2)
    half_depth, half_height = anatomy.rib_half_mm
    ellipse = np.sqrt(((depth - _RIB_DEPTH_MM) / half_depth) ** 2 + (height / half_height) ** 2)
    distance = (ellipse - 1) * (half_depth + half_height) / 2
    _blend(hu, _within(distance), CORTEX_HU)
    _blend(hu, _within(distance + 1.3), MARROW_HU + 60 * fine)
