"""Cuts through a volume, as a radiologist expects to see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsynth.errors import DataError

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")

CONVENTION = (
    "Radiological convention: in axial and coronal cuts the patient's right is on the left; in sagittal cuts "
    "anterior is on the left."
)
# Axis that is cut, and the axes that run across and up the picture, all of them from high index to low.
_AXES: dict[Plane, tuple[int, int, int]] = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
EDGES: dict[Plane, tuple[str, str]] = {"axial": ("R", "A"), "coronal": ("R", "S"), "sagittal": ("A", "S")}
"""What lies at the left and at the top of a cut."""


@dataclass(frozen=True)
class Cut:
    """One plane of a volume: pixels [row, column] from the top left, its size in mm, and its mask if there is one."""

    plane: Plane
    pixels: NDArray[Any]
    width_mm: float
    height_mm: float
    mask: NDArray[Any] | None = None


def cut(
    voxels: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    plane: Plane,
    at: tuple[int, int, int],
    mask: NDArray[Any] | None = None,
) -> Cut:
    """The cut of `voxels` [X, Y, Z] (RAS: x to the right, y to the front, z up) through the voxel `at`."""
    if voxels.ndim != 3:
        raise DataError(f"picture: expected a volume [X, Y, Z], found shape {list(voxels.shape)}")
    if mask is not None and mask.shape != voxels.shape:
        raise DataError(f"picture: expected a mask of {list(voxels.shape)} voxels, found {list(mask.shape)}")
    axis, across, up = _AXES[plane]

    def oriented(volume: NDArray[Any]) -> NDArray[Any]:
        flat = np.take(volume, at[axis], axis=axis)  # [across, up], because across < up in every plane
        return flat.T[::-1, ::-1]

    return Cut(
        plane=plane,
        pixels=oriented(voxels),
        width_mm=voxels.shape[across] * spacing_mm[across],
        height_mm=voxels.shape[up] * spacing_mm[up],
        mask=None if mask is None else oriented(mask),
    )


def centre(voxels: NDArray[Any], mask: NDArray[Any] | None = None) -> tuple[int, int, int]:
    """The voxel to cut through: the middle of what the mask marks, else of the volume."""
    if mask is not None and mask.any():
        x, y, z = (int(np.round(np.mean(index))) for index in np.nonzero(mask))
        return x, y, z
    x, y, z = (size // 2 for size in voxels.shape)
    return x, y, z
