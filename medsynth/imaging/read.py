"""One door for scans and masks, whatever they are stored as."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsynth.errors import DataError, GeometryError, UnreadableError
from medsynth.imaging.dicom import SYNTHETIC, Found, Irregular, Series, find_series, read_series
from medsynth.imaging.formats import is_other_volume, read_other_volume
from medsynth.imaging.grid import in_axis_order_of
from medsynth.imaging.nifti import is_nifti, read_nifti
from medsynth.imaging.scan import Scan, affine_of, grid_distance_mm, make_scan

if TYPE_CHECKING:
    from medsynth.imaging.deidentify import Deidentifier

SAME_GRID_MM = 1e-3
LARGEST_LABEL = 254


def read_scan(
    path: Path,
    *,
    deidentifier: Deidentifier,
    series_uid: str | None = None,
    modality: str | None = None,
    irregular: Irregular = "refuse",
) -> Scan:
    """A scan from a NIfTI, NRRD or MetaImage file, a folder with a DICOM series, or one multi-frame DICOM file.

    `series_uid` chooses among several series of a folder, as `medsynth index` calls them: a UID, or `UID#echo=2` for
    one volume of several. `modality` says what a NIfTI file holds (CT makes its unit HU) and is checked against a
    DICOM series. `irregular="resample"` brings a DICOM series with a tilted gantry or unequal gaps to a regular grid;
    the scan's meta says so under `resampled`. Raises DataError and its kinds, each with what to do.
    """
    path = Path(path)
    if is_nifti(path):
        return read_nifti(path, modality=modality or "")
    if is_other_volume(path):
        return read_other_volume(path, modality=modality or "")
    if not path.exists():
        raise UnreadableError(f"expected a scan, found nothing at {path}; check the path")
    series = choose_series(find_series(path), series_uid or None)
    if series.synthetic:
        raise DataError(SYNTHETIC)
    if modality and series.modality and series.modality != modality:
        raise DataError(f"expected a series of {modality}, found {series.modality}; correct the table or the folder")
    return read_series(series, deidentifier, irregular=irregular)


def choose_series(found: Found, series_uid: str | None) -> Series:
    """The series of that UID, or the only one; where none is named, objects that are not CT or MR images do not count.

    Raises UnreadableError where there is none, DataError where there are several.
    """
    if series_uid is not None:
        matching = [series for series in found.series if series_uid in (series.address, series.series_uid)]
        exact = [series for series in matching if series.address == series_uid]
        matching = exact or matching
        if not matching:
            raise DataError(
                f"none of the {len(found.series)} series here has the UID in the table; index the folder again"
            )
    else:
        matching = found.series
    images = [series for series in matching if series.modality]
    candidates = images or matching
    if not candidates:
        raise UnreadableError(
            f"expected a DICOM series or a NIfTI file, found neither ({len(found.skipped)} files were passed over: "
            f"{_reasons(found)}); check the path"
        )
    if len(candidates) > 1:
        raise DataError(
            f"expected one series, found {len(candidates)}; name one in the column `series` (`medsynth index` does)"
        )
    return candidates[0]


def _reasons(found: Found) -> str:
    return ", ".join(sorted({reason for _, reason in found.skipped})) or "the folder is empty"


def read_mask(path: Path, like: Scan) -> Scan:
    """A label volume [1, X, Y, Z] uint8 on the grid of `like`, from a NIfTI, NRRD or MetaImage file.

    A mask that covers the same grid in another order or direction of axes is turned to it, voxel for voxel. Raises
    DataError where a value is no whole number from 0 to 254, GeometryError where the grids differ by over 0.001 mm.
    """
    path = Path(path)
    if not is_nifti(path) and not is_other_volume(path):
        raise DataError("expected a mask as .nii, .nii.gz, .nrrd or .mha, found another kind of file; convert it first")
    mask = read_nifti(path) if is_nifti(path) else read_other_volume(path)
    labels = mask.as_tensor().numpy()
    if (labels != np.round(labels)).any() or labels.min() < 0 or labels.max() > LARGEST_LABEL:
        raise DataError(f"expected labels that are whole numbers from 0 to {LARGEST_LABEL} in the mask; renumber them")
    turned = in_axis_order_of(make_scan(labels.astype(np.uint8), affine_of(mask), modality="", unit=""), like)
    if turned.shape[1:] != like.shape[1:]:
        raise GeometryError(
            f"expected a mask of the scan's size {tuple(like.shape[1:])}, found {tuple(turned.shape[1:])}; "
            "resample it to the scan's grid"
        )
    distance = grid_distance_mm(tuple(like.shape[1:]), affine_of(turned), affine_of(like))
    if distance > SAME_GRID_MM:
        raise GeometryError(
            f"expected a mask on the scan's grid, found it up to {distance:.3g} mm away; resample it to the scan's grid"
        )
    # The scan's own grid from here on: a rounding error between two affines can decide by how many voxels each is resampled.
    return make_scan(turned.as_tensor(), affine_of(like), modality="", unit="")
