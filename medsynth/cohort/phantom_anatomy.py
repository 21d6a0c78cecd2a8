"""The thorax around the nodule of a phantom patient, as numbers that say where everything is.

Positions are millimetres in DICOM's patient axes (x to the patient's left, y to the back, z to the head), measured from
the middle of the field. `draw_anatomy` makes every random choice about shape and place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medsynth.cohort.phantom_nodule import Floats, Nodule, draw_nodule, unit_vectors

PIXELS = 56
FIELD_MM = 52.0
FLATNESS_MM = 90.0
"""The diaphragm falls by the square of the distance from its summit over this."""


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
class Wall:
    """The inner surface of the chest wall: a cylinder around the body's axis, leaning and bulging a little."""

    outward: Floats
    """Unit vector from the middle of the field to the nearest point of the wall."""
    distance_mm: float
    radius_mm: float
    lean: float
    bulge_mm: float

    def depth_mm(self, x: Any, y: Any, z: Any) -> Any:
        """How far positions lie beyond the surface; negative inside the lung."""
        middle = self.outward * (self.distance_mm - self.radius_mm)
        ring = np.sqrt((x - middle[0]) ** 2 + (y - middle[1]) ** 2)
        return ring - self.radius_mm + self.lean * z + z**2 / (2 * self.bulge_mm)

    def around_mm(self, x: Any, y: Any) -> Any:
        """Arc length along the surface, counter-clockwise from the nearest point."""
        middle = self.outward * (self.distance_mm - self.radius_mm)
        rx, ry = x - middle[0], y - middle[1]
        ahead, aside = self.outward[0] * rx + self.outward[1] * ry, self.outward[0] * ry - self.outward[1] * rx
        return np.arctan2(aside, ahead) * self.radius_mm


@dataclass(frozen=True)
class Anatomy:
    """Everything a phantom patient's field is made of."""

    grid: Grid
    left: bool
    wall: Wall
    rib_pitch_mm: float
    rib_phase_mm: float
    rib_slope: float
    rib_half_mm: tuple[float, float]
    """Half thickness and half height of a rib's cross-section."""
    muscle_mm: float
    fat_plane_mm: float
    fat_mm: float
    trunks: tuple[tuple[Floats, float], ...]
    """Upright vessels of the mediastinum: a point of the axis, and the radius."""
    diaphragm: Floats | None
    """Summit of the dome, where the field reaches down to it."""
    fissure: Floats | None
    fissure_mm: float
    """The fissure is the plane `fissure @ position = fissure_mm`."""
    vessels: tuple[Tube, ...]
    airways: tuple[Tube, ...]
    nodule: Nodule
    nodule_centre: Floats
    noise_hu: float
    kernel_mm: float


def draw_anatomy(generator: np.random.Generator, *, malignant: bool, female: bool, typical_mm: float) -> Anatomy:
    """Everything about one patient's field. Only the nodule depends on the diagnosis, only the fat on the sex."""
    uniform = generator.uniform
    nodule = draw_nodule(generator, malignant=malignant, typical_mm=typical_mm)
    body = nodule.surface_mm()
    slice_mm = float(generator.choice([1.5, 1.6, 1.75, 2.0]))
    pixel_mm = round(float(uniform(0.93, 1.06)), 4)
    grid = Grid((PIXELS, PIXELS, int(np.ceil(FIELD_MM / slice_mm))), (pixel_mm, pixel_mm, slice_mm))

    left = bool(generator.random() < 0.5)
    angle = float(uniform(-0.6, 1.0))
    outward = np.array([np.cos(angle) * (1 if left else -1), np.sin(angle), 0], np.float32)
    sideways = np.array([-outward[1], outward[0], 0], np.float32)
    wall = Wall(
        outward, float(uniform(4, 10)), float(uniform(62, 95)), float(uniform(-0.12, 0.12)), float(uniform(120, 260))
    )

    # Each neighbour keeps its distance from the nodule: the nodule moves off the wall, the others off the nodule.
    centre = sideways * float(uniform(-7, 7))
    centre[2] = float(uniform(-6, 6))
    centre = centre - outward * float(wall.depth_mm(*(body + centre).T).max() + uniform(0.8, 7.0))
    body = body + centre
    trunks = []
    for radius, reach in ((float(uniform(22, 30)), 26.0), (float(uniform(9, 13)), 14.0)):
        middle = -outward * float(reach + uniform(16, 34)) + sideways * float(uniform(-30, 30))
        clearance = float((np.linalg.norm((body - middle)[:, :2], axis=1) - radius).min())
        trunks.append((middle - outward * max(0.0, 3.0 - clearance), radius))
    floor = None
    if generator.random() < 0.35:
        summit = -outward * float(uniform(5, 25)) + sideways * float(uniform(-12, 12))
        lowest = (body[:, 2] + ((body - summit)[:, :2] ** 2).sum(1) / FLATNESS_MM).min()
        summit[2] = min(float(uniform(-20, -12)), float(lowest) - 1.5)
        floor = summit.astype(np.float32)
    fissure, fissure_mm = None, 0.0
    if generator.random() < 0.5:
        fissure = unit_vectors(generator, 1)[0]
        fissure_mm = float((body @ fissure).max() + uniform(1, 6))
    vessels, airways = _draw_trees(generator, outward, sideways)
    if nodule.suspicion > 0.8:
        # A pleural tag: a strand from the nodule to the wall.
        tag = centre - outward * (float(wall.depth_mm(*centre)) - 1)
        vessels = (*vessels, Tube(centre, tag + sideways * float(uniform(-3, 3)), 0.9, 0.5))
    return Anatomy(
        grid=grid,
        left=left,
        wall=wall,
        rib_pitch_mm=float(uniform(22, 28)),
        rib_phase_mm=float(uniform(0, 28)),
        rib_slope=float(uniform(0.3, 0.65)),
        rib_half_mm=(float(uniform(2.9, 3.6)), float(uniform(5.0, 6.5))),
        muscle_mm=float(uniform(2.0, 4.0)),
        fat_plane_mm=float(uniform(0.9, 2.2) if female else uniform(0.4, 1.4)),
        fat_mm=float(uniform(7.5, 16.0) if female else uniform(2.5, 9.0)),
        trunks=tuple(trunks),
        diaphragm=floor,
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
