"""The scan: voxels, where they are in the world, and nothing else.

A scan is a MONAI `MetaTensor` `[channel, x, y, z]` whose affine takes a voxel's index to RAS+ millimetres: the world's
axes point to the patient's right, front and head. Its meta dictionary holds the allowlist below and what MetaTensor
itself keeps (`affine`, `space`); nothing else of a header ever gets in.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import ArrayLike, NDArray

from medsynth.errors import DataError, GeometryError

Scan: TypeAlias = MetaTensor

META_KEYS = frozenset({"modality", "unit", "resampled"})
"""What a scan's meta may hold besides MetaTensor's own `affine` and `space`; `resampled` only where that was done."""

MAX_SHEAR_DEGREES = 0.3
"""How far two voxel axes may be from perpendicular: room for header rounding, not for a tilted gantry."""

SMALLEST_SPACING_MM = 1e-3
LARGEST_SPACING_MM = 1e3


def make_scan(
    voxels: torch.Tensor | NDArray, affine: ArrayLike, *, modality: str, unit: str, resampled: str = ""
) -> Scan:
    """A scan from voxels [C, X, Y, Z] or [X, Y, Z] and a 4 x 4 affine (index -> RAS mm).

    `resampled` says what was done to bring an irregular series to a regular grid. Voxels are
    kept as they are, in whatever order they lie in memory. Raises DataError where they are not one volume,
    GeometryError where the affine is not that of a regular grid.
    """
    tensor = bare(voxels)
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4 or 0 in tensor.shape:
        raise DataError(f"expected voxels [C, X, Y, Z] or [X, Y, Z] with no empty axis, found {list(tensor.shape)}")
    checked = check_affine(affine)
    meta = {"modality": modality, "unit": unit} | ({"resampled": resampled} if resampled else {})
    return MetaTensor(tensor, affine=torch.from_numpy(checked), meta=meta)


def bare(voxels: torch.Tensor | NDArray) -> torch.Tensor:
    """The voxels as a plain tensor that shares their memory: indexing a MetaTensor would keep an affine that is wrong."""
    return voxels.as_tensor() if isinstance(voxels, MetaTensor) else torch.as_tensor(voxels)


def check_affine(affine: ArrayLike) -> NDArray[np.float64]:
    """A float64 copy of `affine` [4, 4], once it is finite, has a plausible spacing and perpendicular axes.

    Raises GeometryError naming what is wrong with it.
    """
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise GeometryError("the affine must be a finite 4 x 4 matrix ending in the row 0 0 0 1; rewrite the header")
    spacing = column_lengths(matrix)
    if not ((spacing >= SMALLEST_SPACING_MM) & (spacing <= LARGEST_SPACING_MM)).all():
        raise GeometryError(
            f"expected a voxel spacing of {SMALLEST_SPACING_MM} to {LARGEST_SPACING_MM:.0f} mm, found "
            f"{describe_mm(spacing)}; set the right spacing in the header"
        )
    shear = shear_degrees(matrix)
    if shear > MAX_SHEAR_DEGREES:
        raise GeometryError(
            f"expected perpendicular voxel axes, found a shear of {shear:.1f} degrees; resample to a regular grid first"
        )
    return matrix


def column_lengths(affine: NDArray) -> NDArray[np.float64]:
    """Spacing along each voxel axis: lengths [3] of the first three columns, in mm."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def shear_degrees(affine: NDArray) -> float:
    """Largest departure of two voxel axes from 90 degrees."""
    axes = affine[:3, :3] / column_lengths(affine)
    cosines = np.abs(axes.T @ axes)[np.triu_indices(3, k=1)]
    return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0.0, 1.0))))


def affine_of(scan: Scan) -> NDArray[np.float64]:
    """A float64 copy of the scan's affine [4, 4]."""
    return np.array(scan.affine.cpu().numpy(), dtype=np.float64)


def spacing_mm(scan: Scan) -> tuple[float, float, float]:
    """Distance between neighbouring voxels along x, y and z of the voxel grid, in mm."""
    x, y, z = (float(length) for length in column_lengths(affine_of(scan)))
    return x, y, z


def modality_of(scan: Scan) -> str:
    """The scan's modality: CT, MR, or empty where nobody said."""
    return str(scan.meta.get("modality", ""))


def unit_of(scan: Scan) -> str:
    """The unit of the scan's intensities, or empty where nobody said."""
    return str(scan.meta.get("unit", ""))


def resampled_of(scan: Scan) -> str:
    """What was done to bring an irregular series to this regular grid, or empty where nothing was."""
    return str(scan.meta.get("resampled", ""))


def same_grid(
    scan: Scan, voxels: torch.Tensor | NDArray, *, modality: str | None = None, unit: str | None = None
) -> Scan:
    """Other voxels on the grid of `scan`; any number of channels. Raises GeometryError where the size differs."""
    found = tuple(voxels.shape[-3:])
    if voxels.ndim not in (3, 4) or found != tuple(scan.shape[1:]):
        raise GeometryError(f"expected voxels on a grid of {tuple(scan.shape[1:])}, found {tuple(voxels.shape)}")
    return make_scan(
        voxels,
        affine_of(scan),
        modality=modality_of(scan) if modality is None else modality,
        unit=unit_of(scan) if unit is None else unit,
        resampled=resampled_of(scan),
    )


def world_mm(affine: NDArray, index: ArrayLike) -> NDArray[np.float64]:
    """RAS positions [..., 3] in mm of voxel indices [..., 3]."""
    return np.asarray(np.asarray(index, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3])


def grid_distance_mm(shape: tuple[int, ...], first: NDArray, second: NDArray) -> float:
    """How far the corners of one grid of `shape` lie apart under two affines: the largest distance, in mm."""
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    return float(np.linalg.norm(world_mm(first, corners) - world_mm(second, corners), axis=1).max())


def describe_mm(lengths: ArrayLike) -> str:
    """Lengths as people write them: `0.98 x 0.98 x 2 mm`."""
    return " x ".join(f"{float(length):.4g}" for length in np.ravel(np.asarray(lengths))) + " mm"
