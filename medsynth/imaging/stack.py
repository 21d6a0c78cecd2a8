"""Images of a DICOM series put in order: where each one lies, and whether together they are one regular volume.

Positions and directions are in DICOM's own LPS millimetres until `Stack.affine` turns them to RAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom.spatial import get_volume_positions
from numpy.typing import NDArray

from medsynth.errors import GeometryError
from medsynth.imaging.planes import Plane

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

GAP_TOLERANCE = 0.01
"""Share of the slice spacing by which one gap may differ from the mean: room for positions rounded in the header."""
GAP_TOLERANCE_MM = 0.02
MAX_TILT_DEGREES = 0.25
"""Between the whole stack and the slice normal."""
PERPENDICULAR_TOLERANCE = 1e-4
"""1 - cosine for the line to any single slice: 0.8 degrees, because rounded positions of neighbours jitter more."""
MAX_DRIFT = 0.1
"""Share of the slice spacing by which a slice may lie off the regular grid, however small each gap's error."""
DIRECTION_TOLERANCE = 1e-4
SPACING_TOLERANCE = 1e-4
SAME_POSITION_MM = 1e-3


def normal_of(plane: Plane) -> NDArray[np.float64]:
    """Unit normal (LPS) of an image: rows x columns."""
    directions = np.array(plane.directions)
    return np.cross(directions[:3], directions[3:])


@dataclass(frozen=True)
class Stack:
    """A regular volume: `order[k]` is the plane that becomes slice k, `affine` takes (column, row, k) to RAS mm.

    Slices run along rows x columns, so that the three axes are right-handed.
    """

    order: tuple[int, ...]
    affine: NDArray[np.float64]
    shape: tuple[int, int, int]


def stack_planes(planes: Sequence[Plane]) -> Stack:
    """The one regular volume that the planes make, in whatever order they come.

    highdicom judges whether gaps are equal (within 1 % or 0.02 mm) and slices stacked along their normal; beyond that
    the whole stack may tilt by a quarter of a degree, and no slice lie off the grid by a tenth of the spacing. Raises
    GeometryError naming the position and the gap, the tilt, or what else speaks against it.
    """
    if len(planes) < 2:
        raise GeometryError("one image alone is not a volume; give the folder that holds the whole series")
    check_alike(planes)
    positions = np.array([plane.position for plane in planes])
    directions = np.array(planes[0].directions)
    across = normal_of(planes[0])
    along = np.sort(positions @ across)
    mean = (along[-1] - along[0]) / (len(planes) - 1)
    check_distinct(positions, across)
    spacing, _ = get_volume_positions(
        positions.tolist(),
        directions.tolist(),
        atol=max(GAP_TOLERANCE * mean, GAP_TOLERANCE_MM),
        perpendicular_tol=PERPENDICULAR_TOLERANCE,
    )
    if spacing is None or tilt_degrees(positions, across) > MAX_TILT_DEGREES:
        raise GeometryError(_irregular(positions, across))
    _check_drift(along, mean)
    order = np.argsort(positions @ across)
    first, last = positions[order[0]], positions[order[-1]]
    lps = np.eye(4)
    lps[:3, 0] = directions[:3] * planes[0].spacing[1]
    lps[:3, 1] = directions[3:] * planes[0].spacing[0]
    lps[:3, 2] = (last - first) / (len(planes) - 1)
    lps[:3, 3] = first
    return Stack(
        order=tuple(int(place) for place in order),
        affine=LPS_TO_RAS @ lps,
        shape=(planes[0].columns, planes[0].rows, len(planes)),
    )


def check_alike(planes: Sequence[Plane]) -> None:
    """Raise GeometryError unless all images have one size, orientation and pixel spacing."""
    sizes = {(plane.columns, plane.rows) for plane in planes}
    if len(sizes) > 1:
        raise GeometryError(f"expected images of one size, found {len(sizes)} sizes; split the series")
    directions = np.array([plane.directions for plane in planes])
    if np.abs(directions - directions[0]).max() > DIRECTION_TOLERANCE:
        count = len(np.unique(directions.round(3), axis=0))
        raise GeometryError(f"expected parallel images, found {max(count, 2)} orientations in the series; split it")
    spacings = np.array([plane.spacing for plane in planes])
    if np.abs(spacings / spacings[0] - 1).max() > SPACING_TOLERANCE:
        raise GeometryError("expected one pixel spacing, found several in the series; split it")


def check_distinct(positions: NDArray, across: NDArray) -> None:
    """Raise GeometryError where two of the positions [N, 3] lie in one plane across the normal `across`."""
    along = np.sort(positions @ across)
    places = 1 + int((np.diff(along) > SAME_POSITION_MM).sum())
    if places < len(positions):
        raise GeometryError(
            f"expected one image per position, found {len(positions)} images at {places} positions (several echoes, "
            "times or reconstructions in one series?); split it and keep one"
        )


def _check_drift(along: NDArray, mean: float) -> None:
    drift = np.abs(along - along[0] - mean * np.arange(len(along)))
    worst = int(drift.argmax())
    if drift[worst] > max(MAX_DRIFT * mean, GAP_TOLERANCE_MM):
        raise GeometryError(
            f"expected equal gaps of {mean:.2f} mm, but their small differences add up to {drift[worst]:.2f} mm at "
            f"slice {worst + 1} of {len(along)}. Correct the series, or leave it out"
        )


def tilt_degrees(positions: NDArray, across: NDArray) -> float:
    """Angle between the line from the first slice to the last and the slice normal."""
    order = np.argsort(positions @ across)
    span = positions[order[-1]] - positions[order[0]]
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(span, across)), abs(span @ across))))


def _irregular(positions: NDArray, across: NDArray) -> str:
    """Why highdicom refused: the tilt and the gap farthest from the usual one, in words and mm."""
    ordered = positions[np.argsort(positions @ across)]
    gaps = np.linalg.norm(np.diff(ordered, axis=0), axis=1)
    usual = float(np.median(gaps))
    worst = int(np.argmax(np.abs(gaps - usual)))
    tilt = tilt_degrees(positions, across)
    reasons = []
    if abs(gaps[worst] - usual) > max(GAP_TOLERANCE * usual, GAP_TOLERANCE_MM):
        low, high = float(gaps.min()), float(gaps.max())
        reasons.append(
            f"expected equal gaps between slices, found {low:.2f} to {high:.2f} mm: {gaps[worst]:.2f} mm between "
            f"slices {worst + 1} and {worst + 2} of {len(positions)}, where {usual:.2f} mm is usual"
        )
    if tilt > MAX_TILT_DEGREES:
        reasons.append(f"expected slices stacked along their normal, found a tilt of {tilt:.1f} degrees")
    found = "; ".join(reasons) or "the slices are not stacked along one straight line"
    return f"{found}. Complete or correct the series, or leave it out"
