"""Grids: turned to RAS, resampled, cropped or padded. The only place that makes a new affine out of an old one.

Every function keeps the world position of what it shows: the affine of the result is exact, not approximate.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from medsynth.errors import GeometryError
from medsynth.imaging.scan import Scan, affine_of, make_scan, modality_of, spacing_mm, unit_of

FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian, in standard deviations."""
TRUNCATE = 3.0
"""Standard deviations at which the smoothing kernel ends."""
SAME_SPACING = 1e-6

Triple = tuple[int, int, int]


def to_ras(scan: Scan) -> Scan:
    """The same voxels with axes reordered and flipped so that they run most nearly to the right, front and head.

    Nothing is interpolated: an oblique scan stays oblique.
    """
    return _reorient(scan, axcodes2ornt(("R", "A", "S")))


def in_axis_order_of(scan: Scan, like: Scan) -> Scan:
    """The same voxels with axes reordered and flipped to run as those of `like` do."""
    return _reorient(scan, io_orientation(affine_of(like)))


def _reorient(scan: Scan, target: NDArray) -> Scan:
    affine = affine_of(scan)
    transform = ornt_transform(io_orientation(affine), target)
    voxels = scan.as_tensor()
    flipped = [axis + 1 for axis in range(3) if transform[axis, 1] < 0]
    order = np.argsort(transform[:, 0])  # order[new axis] = old axis
    voxels = voxels.flip(flipped).permute(0, *(int(axis) + 1 for axis in order))
    return _on(scan, voxels, affine @ inv_ornt_aff(transform, tuple(scan.shape[1:])))


def resample(scan: Scan, spacing: tuple[float, float, float], mode: Literal["linear", "nearest"]) -> Scan:
    """The scan at another voxel spacing [mm] along its own axes, about the same centre and extent.

    `linear` (images; float32): linear interpolation. Along an axis that gets coarser the scan is first smoothed by the
    Gaussian that turns the old voxel's point spread into the new one's, sigma^2 = (new^2 - old^2) / FWHM^2
    (Cardoso 2015, "Scale factor point spread function matching"); without it detail finer than the new voxel folds
    back as false texture, which a generator would learn. Both steps reproduce a linear function of position exactly,
    away from the border. `nearest` (masks; type kept): the nearest voxel, never a value that was not there.
    Beyond the border the nearest voxel continues.
    """
    old = spacing_mm(scan)
    sizes, scales = [], []
    for n, before, after in zip(scan.shape[1:], old, spacing, strict=True):
        same = abs(after / before - 1) <= SAME_SPACING
        sizes.append(n if same else max(1, math.floor(n * before / after + 0.5)))
        scales.append(1.0 if same else after / before)
    step = np.eye(4)
    step[range(3), range(3)] = scales
    # The centre of the new grid lies on the centre of the old one.
    starts = [(n - 1) / 2 - scale * (m - 1) / 2 for n, m, scale in zip(scan.shape[1:], sizes, scales, strict=True)]
    step[:3, 3] = starts
    voxels = scan.as_tensor()
    if mode == "linear":
        voxels = voxels.to(torch.float32)
    # The axis that shrinks most goes first, so that the others have less to do.
    for axis in sorted(range(3), key=lambda a: sizes[a] / scan.shape[1 + a]):
        if scales[axis] == 1.0:
            continue
        position = np.clip(starts[axis] + scales[axis] * np.arange(sizes[axis]), 0.0, scan.shape[1 + axis] - 1.0)
        if mode == "nearest":
            voxels = voxels.index_select(axis + 1, torch.from_numpy(np.floor(position + 0.5).astype(np.int64)))
        else:
            weights = _weights(scan.shape[1 + axis], position, scales[axis])
            voxels = _apply(voxels, axis + 1, torch.from_numpy(weights).to(torch.float32))
    return _on(scan, voxels, affine_of(scan) @ step)


def _weights(n: int, position: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """What each of `n` samples adds to the value at each position [m] between 0 and n - 1: a matrix [n, m].

    Smoothing and interpolation in one: the Gaussian at the voxels below and above a position, blended.
    """
    below = np.minimum(np.floor(position).astype(np.int64), max(n - 2, 0))
    fraction = position - below
    sigma = math.sqrt(max(scale**2 - 1.0, 0.0)) / FWHM
    radius = math.ceil(TRUNCATE * sigma)
    offsets = np.arange(-radius, radius + 1)
    bell = np.exp(-0.5 * (offsets / sigma) ** 2) if radius else np.ones(1)
    kernel = bell / bell.sum()
    taps = np.zeros((len(kernel) + 1, len(position)))
    taps[:-1] += kernel[:, None] * (1 - fraction)
    taps[1:] += kernel[:, None] * fraction
    sample = np.clip(below + np.arange(-radius, radius + 2)[:, None], 0, n - 1)
    weights = np.zeros((n, len(position)))
    np.add.at(weights, (sample, np.broadcast_to(np.arange(len(position)), sample.shape)), taps)
    return weights


def _apply(voxels: torch.Tensor, axis: int, weights: torch.Tensor) -> torch.Tensor:
    """`weights` [n, m] along one axis of n voxels. A dense product: on 300 voxels an order faster than gathering taps."""
    shape = list(voxels.shape)
    n, m = weights.shape
    after = math.prod(shape[axis + 1 :])
    result = voxels.reshape(-1, n) @ weights if after == 1 else weights.T @ voxels.reshape(-1, n, after)
    return result.reshape(*shape[:axis], m, *shape[axis + 1 :])


def crop_or_pad(
    scan: Scan,
    box: Triple,
    *,
    centre_mm: tuple[float, float, float] | None = None,
    pad: Literal["constant", "edge"] = "constant",
    value: float = 0.0,
) -> Scan:
    """The box of `box` voxels around the RAS position `centre_mm` (the scan's centre unless given), voxel for voxel.

    The box is placed on whole voxels, so its centre may be up to half a voxel off along each axis. Voxels beyond the
    scan are `value` (`constant`) or the nearest voxel (`edge`). Raises GeometryError where box and scan do not meet,
    ValueError where the voxels' type cannot hold `value`.
    """
    affine = affine_of(scan)
    sizes = tuple(scan.shape[1:])
    centre: NDArray
    if centre_mm is None:
        centre = (np.array(sizes) - 1) / 2
    else:
        centre = np.linalg.solve(affine[:3, :3], np.asarray(centre_mm, dtype=np.float64) - affine[:3, 3])
    # A rounding error of the inverse must not decide a tie: round at a millionth of a voxel first.
    start = np.floor(np.round(centre - (np.array(box) - 1) / 2, 6) + 0.5).astype(np.int64)
    if ((start >= sizes) | (start + box <= 0)).any():
        raise GeometryError(f"the box of {tuple(box)} voxels lies wholly outside the scan of {sizes}; check its centre")
    shift = np.eye(4)
    shift[:3, 3] = start
    source = scan.as_tensor()
    voxels = source
    for axis in range(3):
        index = torch.arange(int(start[axis]), int(start[axis]) + box[axis]).clamp_(0, sizes[axis] - 1)
        voxels = voxels.index_select(axis + 1, index)
    if pad == "constant":
        _fill_outside(voxels, start, sizes, value)
    return _on(scan, voxels, affine @ shift)


def _fill_outside(voxels: torch.Tensor, start: NDArray[np.int64], sizes: tuple[int, ...], value: float) -> None:
    filling = torch.tensor(value, dtype=voxels.dtype)
    if not voxels.dtype.is_floating_point and float(filling) != value:
        raise ValueError(f"voxels of {voxels.dtype} cannot hold the padding value {value}")
    for axis in range(3):
        low = min(max(-int(start[axis]), 0), voxels.shape[axis + 1])
        high = min(max(sizes[axis] - int(start[axis]), 0), voxels.shape[axis + 1])
        voxels.narrow(axis + 1, 0, low).fill_(filling)
        voxels.narrow(axis + 1, high, voxels.shape[axis + 1] - high).fill_(filling)


def _on(scan: Scan, voxels: torch.Tensor, affine: NDArray) -> Scan:
    return make_scan(voxels, affine, modality=modality_of(scan), unit=unit_of(scan))
