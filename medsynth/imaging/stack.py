"""Images of a DICOM series put in order: where each one lies, and whether together they are one regular volume.

Positions, directions and spacings follow PS3.3 section C.7.6.2 (Image Plane) and, for multi-frame objects, the
functional groups of section C.7.6.16. They are in DICOM's own LPS millimetres until `Stack.affine` turns them to RAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom.spatial import get_volume_positions
from numpy.typing import NDArray
from pydicom import Dataset

from medsynth.errors import DataError, GeometryError, UnreadableError

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


@dataclass(frozen=True)
class Plane:
    """One image: where it lies (LPS mm) and how its stored values become physical ones."""

    position: tuple[float, ...]
    """Centre of the first pixel."""
    directions: tuple[float, ...]
    """Unit vectors along a row (toward growing column) and down a column: six numbers."""
    spacing: tuple[float, ...]
    """Between rows, between columns."""
    rows: int
    columns: int
    slope: float
    intercept: float
    rescaled: bool
    """Whether slope and intercept were in the header."""
    inverted: bool
    """MONOCHROME1: the lowest stored value is the brightest."""


@dataclass(frozen=True)
class Stack:
    """A regular volume: `order[k]` is the plane that becomes slice k, `affine` takes (column, row, k) to RAS mm.

    Slices run along rows x columns, so that the three axes are right-handed.
    """

    order: tuple[int, ...]
    affine: NDArray[np.float64]
    shape: tuple[int, int, int]


def planes_of(dataset: Dataset) -> list[Plane]:
    """The images of a dataset: one, or one per frame of a multi-frame object.

    Raises UnreadableError where the header is cut short, GeometryError where it does not say where an image lies,
    DataError where values are mapped by a table instead of a line.
    """
    size = [dataset.get("Rows"), dataset.get("Columns")]
    if not all(isinstance(n, int) and n > 0 for n in size):
        raise UnreadableError(
            "the header does not say how many rows and columns the image has; the file may be cut short"
        )
    inverted = str(dataset.get("PhotometricInterpretation", "")) == "MONOCHROME1"
    shared = _groups(dataset, "SharedFunctionalGroupsSequence")
    frames = _groups(dataset, "PerFrameFunctionalGroupsSequence")
    declared = _integer(dataset, "NumberOfFrames")
    if frames and declared != len(frames):
        raise UnreadableError(
            f"expected the geometry of {declared} frames, found that of {len(frames)}; export it again"
        )
    if declared > 1 and not frames:
        raise GeometryError(
            f"the {declared} frames do not say where they lie; export the series as enhanced or single-frame"
        )
    sources = [[frame, *shared, dataset] for frame in frames] or [[*shared, dataset]]
    return [_plane(source, size[0], size[1], inverted) for source in sources]


def stack_planes(planes: Sequence[Plane]) -> Stack:
    """The one regular volume that the planes make, in whatever order they come.

    highdicom judges whether gaps are equal (within 1 % or 0.02 mm) and slices stacked along their normal; beyond that
    the whole stack may tilt by a quarter of a degree, and no slice lie off the grid by a tenth of the spacing. Raises
    GeometryError naming the position and the gap, the tilt, or what else speaks against it.
    """
    if len(planes) < 2:
        raise GeometryError("one image alone is not a volume; give the folder that holds the whole series")
    _check_alike(planes)
    positions = np.array([plane.position for plane in planes])
    directions = np.array(planes[0].directions)
    across = np.cross(directions[:3], directions[3:])
    along = np.sort(positions @ across)
    mean = (along[-1] - along[0]) / (len(planes) - 1)
    _check_distinct(positions, across)
    spacing, _ = get_volume_positions(
        positions.tolist(),
        directions.tolist(),
        atol=max(GAP_TOLERANCE * mean, GAP_TOLERANCE_MM),
        perpendicular_tol=PERPENDICULAR_TOLERANCE,
    )
    if spacing is None or _tilt_degrees(positions, across) > MAX_TILT_DEGREES:
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


def _plane(source: Sequence[Dataset], rows: int, columns: int, inverted: bool) -> Plane:
    position = _numbers(source, "PlanePositionSequence", "ImagePositionPatient", 3)
    directions = _numbers(source, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _numbers(source, "PixelMeasuresSequence", "PixelSpacing", 2)
    if position is None or directions is None or spacing is None:
        raise GeometryError("an image does not say its position, orientation and pixel spacing; leave the series out")
    if min(spacing) <= 0:
        raise GeometryError("an image has a pixel spacing of zero; leave the series out")
    lengths = [np.linalg.norm(directions[:3]), np.linalg.norm(directions[3:])]
    skew = abs(np.dot(directions[:3], directions[3:]))
    if np.abs(np.array(lengths) - 1).max() > 1e-3 or skew > 1e-3:
        raise GeometryError("the directions of an image's rows and columns are not perpendicular unit vectors")
    if any("ModalityLUTSequence" in item for item in source):
        raise DataError("stored values are mapped by a modality lookup table; only a linear rescale is supported")
    slope = _numbers(source, "PixelValueTransformationSequence", "RescaleSlope", 1)
    intercept = _numbers(source, "PixelValueTransformationSequence", "RescaleIntercept", 1)
    if slope is not None and slope[0] == 0:
        raise DataError("the rescale slope is zero, so every voxel would be the same; leave the series out")
    return Plane(
        position=position,
        directions=directions,
        spacing=spacing,
        rows=rows,
        columns=columns,
        slope=1.0 if slope is None else slope[0],
        intercept=0.0 if intercept is None else intercept[0],
        rescaled=slope is not None and intercept is not None,
        inverted=inverted,
    )


def _groups(dataset: Dataset, keyword: str) -> list[Dataset]:
    return list(dataset.get(keyword) or [])


def _integer(dataset: Dataset, keyword: str) -> int:
    try:
        return int(dataset.get(keyword) or 1)
    except (TypeError, ValueError):
        raise UnreadableError(f"{keyword} is not a number; export the series again") from None


def _numbers(source: Sequence[Dataset], sequence: str, keyword: str, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers from the first dataset that has them, itself or in its item of `sequence`."""
    for dataset in source:
        for holder in (*_groups(dataset, sequence), dataset):
            # A damaged value surfaces only here, when pydicom converts it; its message would repeat the value.
            try:
                value: Any = holder.get(keyword)
                if value is None or value == "":
                    continue
                found = tuple(float(number) for number in ([value] if count == 1 else value))
            except (TypeError, ValueError):
                raise UnreadableError(f"{keyword} is not a list of {count} numbers; export the series again") from None
            if len(found) != count or not np.isfinite(found).all():
                raise UnreadableError(f"{keyword} is not a list of {count} numbers; export the series again")
            return found
    return None


def _check_alike(planes: Sequence[Plane]) -> None:
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


def _check_distinct(positions: NDArray, across: NDArray) -> None:
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


def _tilt_degrees(positions: NDArray, across: NDArray) -> float:
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
    tilt = _tilt_degrees(positions, across)
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
