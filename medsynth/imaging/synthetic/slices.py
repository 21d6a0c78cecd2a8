"""A scan cut into the slices that a viewer expects, and its intensities as the integers that DICOM stores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsynth.errors import DataError, GeometryError
from medsynth.imaging.scan import Scan, affine_of, column_lengths, shear_degrees

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""And back."""
WANTED = {0: ((0, 1, 0), (0, 0, -1)), 1: ((1, 0, 0), (0, 0, -1)), 2: ((1, 0, 0), (0, 1, 0))}
"""Patient axis along which slices are stacked -> LPS directions of a growing column and a growing row on the screen:
the patient's right on the viewer's left, the front or the head on top."""
ALIKE = 0.99
"""Voxel axes whose spacings differ by less than this share are equally coarse."""
MAX_SHEAR_DEGREES = 0.01
"""DICOM has no word for sheared slices: `ImageOrientationPatient` is two perpendicular unit vectors."""
LEVELS = 1000
"""The fewest steps that intensities which are no whole numbers are rounded to."""


@dataclass(frozen=True)
class Slices:
    """The grid of a scan as rows and columns of stacked images."""

    axes: tuple[int, int, int]
    """Which voxel axis of the scan runs along slices, rows and columns."""
    flipped: tuple[bool, bool, bool]
    """Whether it runs backwards there."""
    affine: NDArray[np.float64]
    """[4, 4]: (column, row, slice) -> LPS mm; right-handed, columns perpendicular."""

    def cut(self, scan: Scan) -> NDArray:
        """The voxels of a one-channel scan on this grid as [slices, rows, columns]."""
        turned: NDArray = scan.as_tensor()[0].cpu().numpy().transpose(self.axes)
        return np.flip(turned, tuple(place for place, flip in enumerate(self.flipped) if flip))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Between columns, between rows, between slices."""
        columns, rows, slices = (float(length) for length in column_lengths(self.affine))
        return columns, rows, slices


def slices_of(scan: Scan) -> Slices:
    """How to cut the scan: across its coarsest axis, of equally coarse ones across that nearest to feet-head.

    No voxel is changed or moved: axes are only reordered and reversed. Raises GeometryError for a sheared grid.
    """
    affine = RAS_TO_LPS @ affine_of(scan)
    shear = shear_degrees(affine)
    if shear > MAX_SHEAR_DEGREES:
        raise GeometryError(
            f"expected perpendicular voxel axes, found a shear of {shear:.2f} degrees; resample to a regular grid first"
        )
    spacing = column_lengths(affine)
    directions = affine[:3, :3] / spacing
    coarse = [axis for axis in range(3) if spacing[axis] >= ALIKE * spacing.max()]
    across = max(coarse, key=lambda axis: abs(directions[2, axis]))
    wanted_columns, wanted_rows = WANTED[int(np.abs(directions[:, across]).argmax())]
    left = [axis for axis in range(3) if axis != across]
    columns = max(left, key=lambda axis: abs(directions[:, axis] @ wanted_columns))
    rows = next(axis for axis in left if axis != columns)
    turned = affine.copy()
    flipped = {}
    for axis, wanted in ((columns, wanted_columns), (rows, wanted_rows)):
        flipped[axis] = bool(directions[:, axis] @ wanted < 0)
    signs = {axis: -1.0 if flip else 1.0 for axis, flip in flipped.items()}
    normal = np.cross(signs[columns] * directions[:, columns], signs[rows] * directions[:, rows])
    flipped[across] = bool(directions[:, across] @ normal < 0)
    for axis, flip in flipped.items():
        if flip:
            turned[:3, 3] += turned[:3, axis] * (scan.shape[axis + 1] - 1)
            turned[:3, axis] *= -1
    order = (across, rows, columns)
    return Slices(
        axes=order,
        flipped=(flipped[across], flipped[rows], flipped[columns]),
        affine=turned[:, [columns, rows, across, 3]] + 0.0,  # + 0.0: no minus zero in a header
    )


@dataclass(frozen=True)
class Stored:
    """Integers of 16 bits with `intensity = slope * integer + intercept`."""

    values: NDArray
    """int16 or uint16, as the intensities came."""
    slope: float
    intercept: float
    largest_error: float
    """How far an intensity may be from what is read back: 0 where the intensities are whole numbers."""

    @property
    def identity(self) -> bool:
        """Whether the integers are the intensities."""
        return self.slope == 1 and self.intercept == 0


def stored(intensities: NDArray) -> Stored:
    """Intensities as 16-bit integers: exactly where they are whole numbers that fit, else in steps.

    The step is 1 where that leaves a thousand steps over the range and all of them fit in 16 bits, so that readers
    which ignore slopes get the intensities too; otherwise the power of ten that leaves one to ten thousand. Raises
    DataError for voxels that are not finite.
    """
    low, high = float(intensities.min()), float(intensities.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise DataError("expected finite voxels, found NaN or infinity; replace them first")
    span = high - low
    whole = intensities.dtype.kind in "iu" or bool((intensities == np.rint(intensities)).all())
    exact = (whole and span <= np.iinfo(np.uint16).max) or span == 0
    step = 1.0
    if span == 0 and not whole:
        step = abs(low)
    elif not exact and not (span >= LEVELS and _kind(low, high) is not None):
        step = float(10.0 ** (math.floor(math.log10(span)) - 3))
    first, last = round(low / step), round(high / step)
    offset = 0 if _kind(first, last) is not None else first
    kind = _kind(first - offset, last - offset) or np.dtype(np.uint16)
    # float64, because a float32 divided by a step of 0.1 would be rounded a second time.
    integers = np.rint(intensities.astype(np.float64) / step) - offset
    return Stored(integers.astype(kind), step, offset * step, 0.0 if exact else step / 2)


def _kind(low: float, high: float) -> np.dtype | None:
    """The type of 16 bits that holds both after rounding; None where neither does."""
    for kind in (np.int16, np.uint16):
        limits = np.iinfo(kind)
        if limits.min <= round(low) and round(high) <= limits.max:
            return np.dtype(kind)
    return None
