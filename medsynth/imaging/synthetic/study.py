"""One synthetic scan written as a DICOM study: the images, and beside them the mask."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from medsynth.errors import DataError, GeometryError
from medsynth.imaging.quiet import quiet_pydicom
from medsynth.imaging.scan import Scan, affine_of, modality_of
from medsynth.imaging.synthetic.header import IMAGE_CLASS, Origin, Uids, ds, series_header
from medsynth.imaging.synthetic.segmentation import segmentation
from medsynth.imaging.synthetic.slices import slices_of, stored

IMAGE_FOLDER, MASK_FOLDER = "image", "mask"


def write_study(
    scan: Scan,
    folder: Path,
    origin: Origin,
    *,
    mask: Scan | None = None,
    labels: Mapping[str, int] | None = None,
    window: tuple[float, float] | None = None,
) -> None:
    """Write `folder/image/CASE_synthetic_0001.dcm` and so on, and `folder/mask/CASE_synthetic_mask.dcm`, whole or not at all.

    scan: [1, X, Y, Z] of CT or MR, any grid with perpendicular axes; voxels keep their world positions exactly. mask:
    labels on the same grid, named by `labels`. window: intensities to show as black and white, those of the 1st and
    99th percentile unless given. What stood at `folder` is replaced: it is from a call that was killed before anybody
    heard of it. Raises DataError for another modality or several channels, GeometryError for a sheared grid or a mask
    on another one, OSError where the disk refuses.
    """
    check_writable(modality_of(scan))
    if scan.shape[0] != 1:
        raise DataError(f"expected one channel, found {scan.shape[0]}; write one study per channel")
    if mask is not None and (mask.shape != scan.shape or not np.allclose(affine_of(mask), affine_of(scan), atol=1e-4)):
        raise GeometryError("expected a mask on the scan's grid, found another grid; resample it to the scan's")
    partial = folder.with_name(f".{folder.name}.writing")
    for left in (partial, folder):
        if left.exists():
            shutil.rmtree(left)
    try:
        _write(scan, partial, origin, mask, labels or {}, window)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_writable(modality: str) -> None:
    """Raise DataError where DICOM has no image object for scans of this modality."""
    if modality not in IMAGE_CLASS:
        raise DataError(
            f"expected scans of {' or '.join(IMAGE_CLASS)} to write as DICOM, found {modality or 'none stated'}; write NIfTI"
        )


def _write(
    scan: Scan,
    folder: Path,
    origin: Origin,
    mask: Scan | None,
    labels: Mapping[str, int],
    window: tuple[float, float] | None,
) -> None:
    slices, uids = slices_of(scan), Uids.of(scan, origin)
    voxels = scan.as_tensor()[0].cpu().numpy()
    quantised = stored(slices.cut(scan))
    low, high = window or tuple(float(edge) for edge in np.percentile(voxels, [1, 99]))
    header = series_header(scan, slices, quantised, origin, uids, (low, high))
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    sources = []
    for number, image in enumerate(_images(header, quantised.values, slices.affine, uids), start=1):
        path = folder / IMAGE_FOLDER / f"{origin.case}_synthetic_{number:04d}.dcm"
        _save(image, path)
        if mask is not None:
            sources.append(dcmread(path, stop_before_pixels=True))
    if mask is None:
        return
    (folder / MASK_FOLDER).mkdir()
    made = segmentation(mask, slices, sources, labels, origin, uids)
    _save(made, folder / MASK_FOLDER / f"{origin.case}_synthetic_mask.dcm")


def _images(header: Dataset, values: np.ndarray, affine: np.ndarray, uids: Uids) -> Iterator[Dataset]:
    """The same dataset again and again, with what differs from slice to slice: number, UID, position, pixels."""
    image = _encoded(header)
    for level, pixels in enumerate(values):
        position = affine[:3, 3] + level * affine[:3, 2]
        image.SOPInstanceUID = uids.make("image", level + 1)
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.InstanceNumber = level + 1
        image.ImagePositionPatient = [ds(x) for x in position]
        image.add_new("PixelData", "OW", np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes())
        yield image


def _encoded(header: Dataset) -> Dataset:
    """The same header with its elements left as bytes, so that writing each slice does not encode them again."""
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


def _save(dataset: Dataset, path: Path) -> None:
    with path.open("wb") as file, quiet_pydicom():
        dataset.save_as(file, enforce_file_format=True)
        file.flush()
        os.fsync(file.fileno())
