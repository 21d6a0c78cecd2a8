"""The thorax around the nodule of a phantom patient, rendered in Hounsfield units.

Positions are millimetres in DICOM's patient axes (x to the patient's left, y to the back, z to the head), measured from
the centre of the field. `draw_anatomy` makes every random choice; `render` only computes, apart from tissue texture and
scanner noise, which come from the generator it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medsynth.cohort.phantom_nodule import Floats, Nodule, draw_nodule, render_nodule, unit_vectors

AIR_HU, LUNG_HU, FAT_HU, MUSCLE_HU, BLOOD_HU = -1000.0, -860.0, -105.0, 55.0, 42.0
MARROW_HU, CORTEX_HU, SKIN_HU, LIVER_HU, BRONCHIAL_WALL_HU = 280.0, 1150.0, 20.0, 62.0, -60.0
PIXELS = 56
FIELD_MM = 52.0
_RIB_DEPTH_MM = 4.8


@dataclass(frozen=True)
class Grid:
    """A regular axial grid whose middle is the origin."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    def axes_mm(self) -> tuple[Floats, Floats, Floats]:
        """Voxel centres along x, y and z, shaped to broadcast to [X, Y, Z]."""
        x, y, z = (
            ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
            for n, step in zip(self.shape, self.spacing_mm, strict=True)
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]


@dataclass(frozen=True)
class Tube:
    """A straight piece of vessel or airway that tapers from `start` to `end`."""

    start: Floats
    end: Floats
    radius_start_mm: float
    radius_end_mm: float


@dataclass(frozen=True)
class Anatomy:
    """Everything a phantom patient's field is made of."""

    grid: Grid
    left: bool
    outward: Floats
    pleura_mm: float
    wall_radius_mm: float
    wall_lean: float
    wall_height_mm: float
    rib_pitch_mm: float
    rib_phase_mm: float
    rib_slope: float
    rib_half_mm: tuple[float, float]
    muscle_mm: float
    fat_plane_mm: float
    fat_mm: float
    mediastinum: tuple[Floats, ...]
    mediastinum_radii_mm: tuple[float, ...]
    diaphragm_mm: float | None
    diaphragm_centre: Floats
    fissure: Floats | None
    fissure_mm: float
    vessels: tuple[Tube, ...]
    airways: tuple[Tube, ...]
    nodule: Nodule
    nodule_centre: Floats
    noise_hu: float
    kernel_mm: float


@dataclass(frozen=True)
class Rendered:
    """HU [X, Y, Z] float32 and nodule mask [X, Y, Z] bool."""

    hu: Floats
    mask: NDArray[np.bool_]


def draw_anatomy(generator: np.random.Generator, *, malignant: bool, female: bool) -> Anatomy:
    """Everything about one patient's field. Only the nodule depends on the diagnosis, only the fat on the sex."""
    uniform = generator.uniform
    nodule = draw_nodule(generator, malignant=malignant)
    radius = nodule.diameter_mm / 2
    slice_mm = float(generator.choice([1.5, 1.6, 1.75, 2.0]))
    pixel_mm = round(float(uniform(0.93, 1.06)), 4)
    grid = Grid((PIXELS, PIXELS, int(np.ceil(FIELD_MM / slice_mm))), (pixel_mm, pixel_mm, slice_mm))

    left = bool(generator.random() < 0.5)
    angle = float(uniform(-0.6, 1.0))
    outward = np.array([np.cos(angle) * (1 if left else -1), np.sin(angle), 0], np.float32)
    sideways = np.array([-outward[1], outward[0], 0], np.float32)
    pleura_mm = float(uniform(4.0, 10.0))
    gap_mm = float(uniform(0.5, 7.0))
    centre = outward * max(pleura_mm - radius - gap_mm, -9.0) + sideways * float(uniform(-7, 7))
    centre[2] = float(uniform(-6, 6))

    hubs = tuple(
        -outward * float(distance + uniform(16, 34)) + sideways * float(uniform(-30, 30)) for distance in (26.0, 14.0)
    )
    floor_mm = None
    if generator.random() < 0.35:
        floor_mm = float(min(uniform(-20, -12), centre[2] - radius - 3))
    fissure, fissure_mm = None, 0.0
    if generator.random() < 0.5:
        fissure = unit_vectors(generator, 1)[0] * np.array([1, 1, 0.8], np.float32)
        fissure = fissure / np.linalg.norm(fissure)
        fissure_mm = float(fissure @ centre + generator.choice([-1, 1]) * (radius + uniform(3, 9)))
    vessels, airways = _draw_trees(generator, outward, sideways)
    if nodule.suspicion > 0.8:
        # A pleural tag: a strand from the nodule to the wall.
        tag = centre + outward * (pleura_mm - float(centre @ outward) + 1)
        vessels = (*vessels, Tube(centre, tag + sideways * float(uniform(-3, 3)), 0.9, 0.5))
    return Anatomy(
        grid=grid,
        left=left,
        outward=outward,
        pleura_mm=pleura_mm,
        wall_radius_mm=float(uniform(62, 95)),
        wall_lean=float(uniform(-0.12, 0.12)),
        wall_height_mm=float(uniform(120, 260)),
        rib_pitch_mm=float(uniform(22, 28)),
        rib_phase_mm=float(uniform(0, 28)),
        rib_slope=float(uniform(0.3, 0.65)),
        rib_half_mm=(float(uniform(2.9, 3.6)), float(uniform(5.0, 6.5))),
        muscle_mm=float(uniform(2.0, 4.0)),
        fat_plane_mm=float(uniform(0.9, 2.2) if female else uniform(0.4, 1.4)),
        fat_mm=float(uniform(7.5, 16.0) if female else uniform(2.5, 9.0)),
        mediastinum=hubs,
        mediastinum_radii_mm=(float(uniform(22, 30)), float(uniform(9, 13))),
        diaphragm_mm=floor_mm,
        diaphragm_centre=(-outward * float(uniform(5, 25)) + sideways * float(uniform(-12, 12))).astype(np.float32),
        fissure=fissure,
        fissure_mm=fissure_mm,
        vessels=vessels,
        airways=airways,
        nodule=nodule,
        nodule_centre=centre.astype(np.float32),
        noise_hu=float(uniform(14, 30)),
        kernel_mm=float(uniform(0.45, 0.65)),
    )


def _draw_trees(
    generator: np.random.Generator, outward: Floats, sideways: Floats
) -> tuple[tuple[Tube, ...], tuple[Tube, ...]]:
    """Vessels that enter from the hilum and branch toward the pleura, and one airway that runs beside an artery."""
    up = np.array([0, 0, 1], np.float32)
    vessels: list[Tube] = []
    airways: list[Tube] = []

    def grow(start: Floats, heading: Floats, radius: float, depth: int, *, airway: bool = False) -> None:
        length = float(generator.uniform(6, 12)) * (0.75 + 0.12 * radius)
        end = start + heading * length
        vessels.append(Tube(start, end, radius, 0.92 * radius))
        if airway and radius > 1.2:
            aside = np.cross(heading, up) * (2.1 * radius + 0.4)
            airways.append(Tube(start + aside, end + aside, 1.05 * radius, 0.95 * radius))
        if depth == 0 or radius < 0.45 or float(end @ outward) > 14:
            return
        # Murray's law: the cubes of the daughters' radii add up to the parent's.
        share = float(generator.uniform(0.3, 0.7))
        turn = unit_vectors(generator, 1)[0]
        turn = turn - heading * (turn @ heading)
        turn = turn / np.linalg.norm(turn)
        for part, sign in ((share, 1), (1 - share, -1)):
            bend = sign * float(generator.uniform(0.25, 0.75)) * (1.3 - part)
            onward = heading * np.cos(bend) + turn * np.sin(bend)
            grow(end, onward.astype(np.float32), 0.92 * radius * part ** (1 / 3), depth - 1, airway=airway and sign > 0)

    for index in range(6):
        root = -outward * 36 + sideways * float(generator.uniform(-22, 22)) + up * float(generator.uniform(-22, 22))
        aim = outward * 20 + sideways * float(generator.uniform(-22, 22)) + up * float(generator.uniform(-22, 22))
        heading = (aim - root) / np.linalg.norm(aim - root)
        radius = float(generator.uniform(2.0, 2.8) if index == 0 else generator.uniform(1.3, 2.6))
        grow(root.astype(np.float32), heading.astype(np.float32), radius, 4, airway=index == 0)
    return tuple(vessels), tuple(airways)


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

    if anatomy.diaphragm_mm is not None:
        mx, my, _ = anatomy.diaphragm_centre
        dome = z - anatomy.diaphragm_mm + ((x - mx) ** 2 + (y - my) ** 2) / 90
        _blend(hu, _within(dome, grid.spacing_mm[2]), LIVER_HU + 6 * coarse)
    for hub, radius in zip(anatomy.mediastinum, anatomy.mediastinum_radii_mm, strict=True):
        trunk = np.sqrt((x - hub[0]) ** 2 + (y - hub[1]) ** 2) - radius + 0.08 * z + 0.8 * coarse
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
    middle = anatomy.outward * (anatomy.pleura_mm - anatomy.wall_radius_mm)
    rx, ry = x - middle[0], y - middle[1]
    round_mm = np.arctan2(
        anatomy.outward[0] * ry - anatomy.outward[1] * rx, anatomy.outward[0] * rx + anatomy.outward[1] * ry
    )
    round_mm = round_mm * anatomy.wall_radius_mm * (1 if anatomy.left else -1)  # grows toward the back on both sides
    depth = np.sqrt(rx**2 + ry**2) - anatomy.wall_radius_mm
    depth = depth + anatomy.wall_lean * z + z**2 / (2 * anatomy.wall_height_mm) + 0.3 * coarse  # [X, Y, Z]

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
    height = z - anatomy.rib_phase_mm - anatomy.rib_slope * round_mm
    height = ((height + pitch / 2) % pitch - pitch / 2) / np.sqrt(1 + anatomy.rib_slope**2)
    half_depth, half_height = anatomy.rib_half_mm
    ellipse = np.sqrt(((depth - _RIB_DEPTH_MM) / half_depth) ** 2 + (height / half_height) ** 2)
    distance = (ellipse - 1) * (half_depth + half_height) / 2
    _blend(hu, _within(distance), CORTEX_HU)
    _blend(hu, _within(distance + 1.3), MARROW_HU + 60 * fine)
