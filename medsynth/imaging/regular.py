"""Irregular stacks brought to a regular grid, on explicit request only: tilt undone, unequal gaps interpolated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsynth.errors import GeometryError
from medsynth.imaging.planes import Plane
from medsynth.imaging.stack import (
    GAP_TOLERANCE_MM,
    LPS_TO_RAS,
    MAX_TILT_DEGREES,
    check_alike,
    check_distinct,
    normal_of,
    tilt_degrees,
)

MAX_GAP_MM = 10.0
"""Across a wider gap nothing is known of the anatomy, and interpolation would invent it."""
MAX_UNDONE_TILT_DEGREES = 45.0
MAX_OFF_LINE_MM = 1.0
"""How far a slice may lie beside the straight line through the stack: beyond it the patient or the table moved."""
WHOLE_VOXEL = 1e-4
"""Share of a voxel that is taken for a rounding error of the header."""


def order_of(planes: Sequence[Plane]) -> tuple[int, ...]:
    """The planes' places along their normal, once they are images that `regular_grid` can bring to a regular grid.

    Raises GeometryError where they are not parallel, share positions, leave a gap over 10 mm or no straight line.
    """
    if len(planes) < 2:
        raise GeometryError("one image alone is not a volume; give the folder that holds the whole series")
    check_alike(planes)
    positions = np.array([plane.position for plane in planes])
    across = normal_of(planes[0])
    check_distinct(positions, across)
    order = np.argsort(positions @ across)
    ordered = positions[order]
    gaps = np.diff(ordered @ across)
    widest = int(gaps.argmax())
    if gaps[widest] > MAX_GAP_MM:
        raise GeometryError(
            f"expected no gap over {MAX_GAP_MM:.0f} mm, found {gaps[widest]:.2f} mm between slices {widest + 1} and "
            f"{widest + 2} of {len(planes)}, across which nothing is known of the anatomy. Complete the series, or leave it out"
        )
    tilt = tilt_degrees(positions, across)
    if tilt > MAX_UNDONE_TILT_DEGREES:
        raise GeometryError(
            f"expected a tilt of at most {MAX_UNDONE_TILT_DEGREES:.0f} degrees, found {tilt:.1f}; leave it out"
        )
    share = ((ordered - ordered[0]) @ across / gaps.sum())[:, None]
    off = np.linalg.norm(ordered - ordered[0] - share * (ordered[-1] - ordered[0]), axis=1)
    worst = int(off.argmax())
    if off[worst] > MAX_OFF_LINE_MM:
        raise GeometryError(
            f"expected slices along one straight line, found slice {worst + 1} of {len(planes)} {off[worst]:.1f} mm beside it: "
            "something moved; leave it out"
        )
    return tuple(int(place) for place in order)


def regular_grid(slices: NDArray, planes: Sequence[Plane]) -> tuple[NDArray[np.float32], NDArray[np.float64], str]:
    """Voxels [columns, rows, slices] float32 on a regular grid, their RAS affine, and what was done in words.

    `slices` [slices, rows, columns] in the order of `order_of`, `planes` likewise. New slices lie perpendicular to
    the normal, as far apart as the median gap, from the first slice to the last; each is interpolated linearly
    between its two neighbours, taken at the same place in the world, so linear functions of position stay exact. The
    field of view grows by what the tilt moves the slices; where a neighbour shows nothing, voxels get the lowest value.
    """
    first = planes[0]
    across = normal_of(first)
    row, column = np.array(first.directions[:3]), np.array(first.directions[3:])
    between_rows, between_columns = first.spacing
    positions = np.array([plane.position for plane in planes])
    moved = positions - positions[0]
    along = moved @ across
    gap = float(np.median(np.diff(along)))
    count = math.floor(along[-1] / gap + WHOLE_VOXEL) + 1
    # In voxels, where each slice's first pixel lies beside the first slice's.
    down, right = moved @ column / between_rows, moved @ row / between_columns
    top, left = math.floor(down.min() + WHOLE_VOXEL), math.floor(right.min() + WHOLE_VOXEL)
    rows = first.rows + math.ceil(down.max() - WHOLE_VOXEL) - top
    columns = first.columns + math.ceil(right.max() - WHOLE_VOXEL) - left
    lowest = np.float32(slices.min())
    voxels = np.full((columns, rows, count), lowest, dtype=np.float32)
    for k in range(count):
        height = k * gap
        below = min(int(np.searchsorted(along, height + WHOLE_VOXEL * gap, side="right")) - 1, len(planes) - 2)
        weight = (height - along[below]) / (along[below + 1] - along[below])
        parts = [(1 - weight, below), (weight, below + 1)]
        mixed = np.zeros((rows, columns), dtype=np.float64)
        known = np.ones((rows, columns), dtype=bool)
        for share, which in parts:
            if abs(share) > WHOLE_VOXEL:
                shown, where = _shifted(slices[which], down[which] - top, right[which] - left, (rows, columns))
                mixed += share * shown
                known &= where
        voxels[:, :, k] = np.where(known, mixed, lowest).T
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = row * between_columns, column * between_rows, across * gap
    lps[:3, 3] = positions[0] + left * lps[:3, 0] + top * lps[:3, 1]
    return voxels, LPS_TO_RAS @ lps, _in_words(positions, across, gap)


def _shifted(image: NDArray, down: float, right: float, shape: tuple[int, int]) -> tuple[NDArray, NDArray]:
    """An image [rows, columns] moved by voxels and parts of voxels on a larger canvas, and where it shows something."""
    canvas = np.zeros((shape[0] + 1, shape[1] + 1))
    seen = np.zeros(canvas.shape)
    r, c = math.floor(down + WHOLE_VOXEL), math.floor(right + WHOLE_VOXEL)
    canvas[r : r + image.shape[0], c : c + image.shape[1]] = image
    seen[r : r + image.shape[0], c : c + image.shape[1]] = 1
    for axis, part in ((0, max(down - r, 0.0)), (1, max(right - c, 0.0))):
        if part > WHOLE_VOXEL:
            before, weight = np.roll(canvas, 1, axis), np.roll(seen, 1, axis)
            canvas = (1 - part) * canvas + part * before
            seen = np.minimum(seen, weight)
    return canvas[: shape[0], : shape[1]], seen[: shape[0], : shape[1]] > 0


def _in_words(positions: NDArray, across: NDArray, gap: float) -> str:
    tilt = tilt_degrees(positions, across)
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    words = [f"gantry tilt of {tilt:.1f} degrees undone"] if tilt > MAX_TILT_DEGREES else []
    if np.ptp(gaps) > GAP_TOLERANCE_MM:
        words.append(f"gaps of {gaps.min():.2f} to {gaps.max():.2f} mm brought to {gap:.2f} mm")
    return "; ".join(words) or "slices brought to one line"
