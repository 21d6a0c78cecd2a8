"""Prepared volumes as tensors."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from torch import Tensor

from medsynth.cohort.manifest import Case, Manifest
from medsynth.config.grid import Grid, find_grid
from medsynth.errors import CohortError, UnreadableError
from medsynth.imaging.grid import crop_or_pad, resample
from medsynth.imaging.intensity import IntensityRule
from medsynth.imaging.scan import make_scan
from medsynth.progress import Progress, Silent


@dataclass(frozen=True)
class VolumeSet:
    """The volumes of some cases on one grid, one after another."""

    volumes: Tensor
    """[N, 1, X, Y, Z] float32 in [-1, 1]."""
    masks: Tensor | None
    """[N, 1, X, Y, Z] uint8; None where the cases have no masks."""
    cases: tuple[Case, ...]

    def __len__(self) -> int:
        return len(self.cases)


def load_volume(manifest: Manifest, case: Case, rule: IntensityRule) -> Tensor:
    """One prepared image as [1, X, Y, Z] float32 in [-1, 1], by the limits that its row holds.

    Raises UnreadableError where the file is missing, broken or of another size than its row says.
    """
    voxels = torch.from_numpy(_voxels(manifest.image_path(case), case, np.float32))
    return rule.normalise(voxels, (case.intensity_low, case.intensity_high))


def load_mask(manifest: Manifest, case: Case) -> Tensor:
    """One prepared mask as [1, X, Y, Z] uint8. Raises UnreadableError like `load_volume`, or where there is none."""
    path = manifest.mask_path(case)
    if path is None:
        raise UnreadableError(f"case {case.case}: expected a mask, found none in the manifest; prepare with masks")
    return torch.from_numpy(_voxels(path, case, np.uint8))


def _voxels(path: Path, case: Case, kind: type[np.generic]) -> Any:
    """The voxels [1, X, Y, Z] of a prepared NIfTI file."""
    try:
        image = nibabel.load(path)
        array = np.asanyarray(image.dataobj)
    except (OSError, ImageFileError, EOFError, ValueError) as error:
        raise UnreadableError(
            f"case {case.case}: expected the file {path.name}, found it missing or broken; {case.made_again}"
        ) from error
    if array.shape != case.shape:
        raise UnreadableError(
            f"case {case.case}: expected a volume of {case.shape}, found {array.shape} in {path.name}; prepare again"
        )
    return np.array(array[None], dtype=kind, order="C")


def onto(volume: Tensor, spacing_mm: Sequence[float], grid: Grid) -> Tensor:
    """A volume [1, X, Y, Z] at `spacing_mm` on another grid, about the same centre.

    Intensities (float32, in [-1, 1]) are interpolated and what lies outside is -1; labels (uint8) keep their values, and
    what lies outside is background. A volume that lies on the grid already is returned as it is.
    """
    if grid.fits(volume.shape[1:], spacing_mm):
        return volume
    labels = volume.dtype == torch.uint8
    scan = make_scan(volume, np.diag([*spacing_mm, 1.0]), modality="", unit="")
    scan = resample(scan, grid.spacing_mm, "nearest" if labels else "linear")
    return crop_or_pad(scan, grid.box, value=0.0 if labels else -1.0).as_tensor()


def load_by_grid(
    manifest: Manifest,
    rule: IntensityRule,
    grids: Sequence[Grid],
    progress: Progress | None = None,
    *,
    in_memory: bool = True,
    cache: Path | None = None,
) -> tuple[VolumeSet, ...]:
    """The volumes of a manifest in a set per grid that holds some, in the order of `grids`; see `load_volumes`.

    Raises CohortError for a case that lies on none of them.
    """
    by_grid: dict[Grid | None, list[Case]] = {grid: [] for grid in grids}
    for case in manifest.cases:
        by_grid.setdefault(find_grid(grids, case.shape, case.spacing_mm), []).append(case)
    if None in by_grid:
        raise CohortError(
            f"expected cases on {', '.join(map(str, grids))}, found {len(by_grid[None])} on another grid; prepare again"
        )
    parts = [replace(manifest, cases=tuple(cases)) for cases in by_grid.values() if cases]
    return tuple(load_volumes(part, rule, progress, in_memory=in_memory, cache=cache) for part in parts)


def load_volumes(
    manifest: Manifest,
    rule: IntensityRule,
    progress: Progress | None = None,
    *,
    grid: Grid | None = None,
    in_memory: bool = True,
    cache: Path | None = None,
) -> VolumeSet:
    """All volumes of a manifest, and their masks where every case has one; put on `grid` where one is given.

    In memory they take 4 bytes per voxel (1 for a mask). With `in_memory=False` they are written once to an unnamed
    file in `cache` (the system's temporary folder unless given) and mapped from there: the same tensors, of which the
    system keeps in memory what is in use. The file has no name, so it disappears with the process.

    Raises CohortError where the cases differ in size or only some have a mask; UnreadableError like `load_volume`.
    """
    cases = manifest.cases
    shapes = {case.shape for case in cases} if grid is None else {grid.box}
    if len(shapes) != 1:
        raise CohortError(f"expected cases of one size, found {len(shapes)} sizes; prepare them with one box")
    masked = sum(bool(case.mask) for case in cases)
    if masked not in (0, len(cases)):
        raise CohortError(f"expected a mask for all cases or for none, found {masked} of {len(cases)}; complete them")
    shape = (len(cases), 1, *shapes.pop())

    def placed(volume: Tensor, case: Case) -> Tensor:
        return volume if grid is None else onto(volume, case.spacing_mm, grid)

    with (progress or Silent()).task("volumes", len(cases)) as advance:

        def normalised() -> Iterator[Tensor]:
            for case in cases:
                yield placed(load_volume(manifest, case, rule), case)
                advance(1)

        volumes = _gather(normalised(), shape, np.float32, in_memory, cache)
    masks = None
    if masked:
        masks = _gather((placed(load_mask(manifest, case), case) for case in cases), shape, np.uint8, in_memory, cache)
    return VolumeSet(volumes, masks, cases)


def _gather(
    items: Iterator[Tensor], shape: tuple[int, ...], kind: type[np.generic], in_memory: bool, cache: Path | None
) -> Tensor:
    """The items one after another, in memory or in an unnamed file."""
    if in_memory:
        array = np.empty(shape, kind)
        for index, item in enumerate(items):
            array[index] = item.numpy()
        return torch.from_numpy(array)
    with tempfile.TemporaryFile(dir=cache) as stream:
        # Written, not mapped: a full disk is then an error here, and not a crash when a page is touched.
        for item in items:
            stream.write(item.contiguous().numpy().tobytes())
        stream.flush()
        return torch.from_numpy(_mapped(stream, shape, kind))


def _mapped(stream: IO[bytes], shape: tuple[int, ...], kind: type[np.generic]) -> Any:
    """An open file as an array. Changes to it stay in memory (copy on write)."""
    expected = math.prod(shape) * np.dtype(kind).itemsize
    if stream.tell() != expected:
        raise UnreadableError(f"expected {expected} bytes of volumes, wrote {stream.tell()}")
    return np.memmap(stream, kind, "c", shape=shape)
