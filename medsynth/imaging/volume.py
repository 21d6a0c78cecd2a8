"""Slices made physical and laid into a volume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medsynth.errors import UnreadableError
from medsynth.imaging.fields import whole
from medsynth.imaging.planes import Plane

LIMITS = np.iinfo(np.int16)
BITS_STORED, SIGNED = 0x00280101, 0x00280103


def physical(stored: NDArray, dataset: Dataset, plane: Plane, which: str, *, invert: bool) -> NDArray:
    """Physical values [rows, columns] of a slice: slope * stored + intercept (PS3.3 C.11.1.1.2), or by lookup table.

    int16 where that is exact, else float64. MONOCHROME1 says only how a value is shown. Hounsfield units mean the same
    under it and stay; in MR, where only brightness has a meaning, values are mirrored within their range of bits
    (`invert`), as a viewer would. Raises UnreadableError where the image has another size than its header says.
    """
    if stored.shape != (plane.rows, plane.columns):
        raise UnreadableError(f"the pixels of {which} have another size than its header says; export the series again")
    if invert:
        mirror = -1 if whole(dataset, SIGNED, 0) else 2 ** whole(dataset, BITS_STORED, 0) - 1
        stored = mirror - stored.astype(np.int64)
    if plane.table is not None:
        stored = plane.table.apply(stored)
    slope, intercept = plane.slope, plane.intercept
    if slope.is_integer() and intercept.is_integer() and stored.dtype.kind in "iu":
        ends = [int(end) * int(slope) + int(intercept) for end in (stored.min(), stored.max())]
        if LIMITS.min <= min(ends) and max(ends) <= LIMITS.max:
            if slope == 1 and stored.dtype.itemsize == 2 and abs(intercept) <= LIMITS.max:
                # What wraps around in 16 bits comes back, because the sum is known to fit.
                return stored.view(np.int16) + np.int16(intercept)
            return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(np.int16)
    with np.errstate(over="ignore"):
        return stored * slope + intercept


class Volume:
    """Slices [slices, rows, columns] filled one by one, in any order: int16 until a slice is not, then float32."""

    def __init__(self, slices: int) -> None:
        self._slices = slices
        self.array: NDArray = np.empty((0, 0, 0), dtype=np.int16)

    def put(self, k: int, values: NDArray, which: str) -> None:
        """Slice k [rows, columns]. Raises UnreadableError where it has another size than the slices before."""
        if not self.array.size:  # only now, because a damaged header may claim any size
            self.array = np.empty((self._slices, *values.shape), dtype=np.int16)
        if values.shape != self.array.shape[1:]:
            raise UnreadableError(f"the pixels of {which} have another size than those before; export the series again")
        if values.dtype != np.int16 and self.array.dtype == np.int16:
            self.array = self.array.astype(np.float32)
        self.array[k] = values
