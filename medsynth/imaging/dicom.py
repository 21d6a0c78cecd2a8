"""DICOM series: found by their headers, de-identified in memory, read as one regular volume.

Nothing is read with pydicom's `force`, which would turn any text into a dataset. Messages name a file by its place in
the series and never repeat a header's value.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import pixel_array

from medsynth.errors import DataError, MedsynthError, UnreadableError
from medsynth.imaging.headers import (
    IMAGE_CLASSES,
    READ_ERRORS,
    Header,
    fault_of,
    quiet,
    read_header,
    series_key,
    without_copies,
)
from medsynth.imaging.scan import ARBITRARY, HU, Scan, make_scan
from medsynth.imaging.stack import Plane, Stack, planes_of, stack_planes
from medsynth.progress import Progress, Silent

if TYPE_CHECKING:
    from medsynth.imaging.deidentify import Deidentifier

DECODE_ERRORS = (*READ_ERRORS, RuntimeError, IndexError)


@dataclass(frozen=True)
class Series:
    """The files of one series, sorted by path, and what their headers say about it."""

    files: tuple[Path, ...]
    modality: str
    """CT or MR by the SOP class; empty where the objects are not such images."""
    series_uid: str
    """SeriesInstanceUID; empty where the files have none."""
    patient: str = field(repr=False)
    """PatientID as received: for pseudonyms only, never to be shown or written."""
    planes: tuple[Plane, ...] = field(repr=False)
    fault: str = ""
    """Why it cannot be used, geometry apart; empty if nothing in the headers speaks against it."""
    fault_kind: type[MedsynthError] = DataError

    @property
    def folder(self) -> Path:
        """The innermost folder that holds all its files."""
        return Path(os.path.commonpath([file.parent for file in self.files]))

    def check(self) -> None:
        """Raise the fault, if there is one."""
        if self.fault:
            raise self.fault_kind(self.fault)

    def stack(self) -> Stack:
        """Geometry by the headers; raises what `check` does, and GeometryError where this is no regular volume."""
        self.check()
        return stack_planes(self.planes)


@dataclass(frozen=True)
class Found:
    """What a folder holds: its series, and the files that belong to none, each with the reason."""

    series: list[Series]
    skipped: list[tuple[Path, str]]


def find_series(folder: Path, *, progress: Progress | None = None) -> Found:
    """DICOM series in `folder` and everything below it, by header alone; `folder` may also be one DICOM file.

    Grouped by SeriesInstanceUID wherever the files lie; files without one by folder, study and series number.
    Byte-equal copies of one object count once. A damaged file makes every series that shares its folder unusable,
    because it may be the slice that is missing. Raises UnreadableError where the folder cannot be listed.
    """
    paths = list(_files(Path(folder)))
    groups: dict[tuple[str, ...], list[Header]] = {}
    skipped: list[tuple[Path, str]] = []
    damaged: set[Path] = set()
    with quiet(), (progress or Silent()).task("reading headers", len(paths)) as advance:
        for path in paths:
            header = read_header(path)
            if isinstance(header, Header):
                groups.setdefault(series_key(header), []).append(header)
            else:
                reason, is_damaged = header
                skipped.append((path, reason))
                if is_damaged:
                    damaged.add(path.parent)
            advance(1)
        series = []
        for headers in groups.values():
            distinct, copies = without_copies(headers)
            skipped += [(path, "a byte-equal copy of another file of its series") for path in copies]
            series.append(_series(distinct, damaged=any(header.path.parent in damaged for header in distinct)))
    return Found(sorted(series, key=lambda one: one.files), sorted(skipped))


def read_series(series: Series, deidentifier: Deidentifier) -> Scan:
    """The series as one scan [1, columns, rows, slices] with its RAS affine: CT in HU, MR in arbitrary units.

    Each dataset is de-identified in memory before anything else, and geometry and values are taken from the result.
    Rescale is applied slice by slice; voxels are int16 where that is exact, else float32. Raises UnreadableError where
    a file is damaged or compressed in a way that cannot be decoded, GeometryError where there is no regular volume,
    PrivacyError where the pixels may name the patient.
    """
    series.check()
    with quiet():
        datasets = [
            deidentifier.dataset(_read_whole(path, number, len(series.files)))
            for number, path in enumerate(series.files, start=1)
        ]
        planes: list[Plane] = []
        frames: list[tuple[int, int]] = []
        for place, dataset in enumerate(datasets):
            found = planes_of(dataset)
            planes += found
            frames += [(place, frame) for frame in range(len(found))]
        _check_unit(series.modality, planes)
        stack = stack_planes(planes)
        voxels = _Voxels(stack.shape)
        for k, place in enumerate(stack.order):
            which, frame = frames[place]
            dataset = datasets[which]
            stored = _decode(dataset, frame, which + 1, len(datasets))
            voxels.put(k, stored, dataset, planes[place], invert=planes[place].inverted and series.modality != "CT")
            if len(datasets) == len(frames):
                del dataset.PixelData  # its memory goes as the volume fills
    unit = HU if series.modality == "CT" else ARBITRARY
    return make_scan(voxels.array.transpose(2, 1, 0), stack.affine, modality=series.modality, unit=unit)


class _Voxels:
    """A volume [slices, rows, columns] filled slice by slice: int16 until a value comes that int16 cannot hold."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.array: NDArray = np.empty(shape[::-1], dtype=np.int16)

    def put(self, k: int, stored: NDArray, dataset: Dataset, plane: Plane, *, invert: bool) -> None:
        """Slice k: output = slope * stored + intercept (PS3.3 C.11.1.1.2).

        MONOCHROME1 says only how a value is shown. Hounsfield units mean the same under it and stay; in MR, where only
        brightness has a meaning, values are mirrored within their range of bits, as a viewer would.
        """
        if invert:
            bits = int(dataset.BitsStored)
            mirror = -1 if int(dataset.PixelRepresentation) else 2**bits - 1
            stored = mirror - stored.astype(np.int64)
        if plane.slope.is_integer() and plane.intercept.is_integer():
            values: NDArray = stored.astype(np.int64) * int(plane.slope) + int(plane.intercept)
            limits = np.iinfo(np.int16)
            exact = values.min() >= limits.min and values.max() <= limits.max
        else:
            values, exact = stored * plane.slope + plane.intercept, False
        if not exact and self.array.dtype == np.int16:
            self.array = self.array.astype(np.float32)
        self.array[k] = values


def _files(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise UnreadableError("a folder cannot be listed; check that it exists and may be read") from error

    if folder.is_file():
        yield folder
        return
    if not folder.is_dir():
        raise UnreadableError(f"expected a folder or a DICOM file, found nothing at {folder}; check the path")
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))


def _series(headers: list[Header], *, damaged: bool) -> Series:
    first = headers[0]
    fault = fault_of(headers, damaged=damaged)
    planes: list[Plane] = []
    if fault is None:
        try:
            planes = [plane for header in headers for plane in planes_of(header.dataset)]
            _check_unit(IMAGE_CLASSES[first.sop_class], planes)
        except DataError as error:
            fault = error
    return Series(
        files=tuple(header.path for header in headers),
        modality=IMAGE_CLASSES.get(first.sop_class, ""),
        series_uid=str(first.dataset.get("SeriesInstanceUID") or ""),
        patient=str(first.dataset.get("PatientID") or ""),
        planes=tuple(planes),
        fault="" if fault is None else str(fault),
        fault_kind=type(fault) if fault else DataError,
    )


def _check_unit(modality: str, planes: Sequence[Plane]) -> None:
    if modality == "CT" and not all(plane.rescaled for plane in planes):
        raise DataError("a CT image has no rescale slope and intercept, so its values in HU are unknown; leave it out")


def _read_whole(path: Path, number: int, total: int) -> Dataset:
    which = f"file {number} of {total} of the series"
    try:
        dataset = pydicom.dcmread(path)
    except (InvalidDicomError, *READ_ERRORS):
        raise UnreadableError(f"{which} cannot be read; export the series again") from None
    # pydicom takes the end of the file for the end of the dataset, wherever that is.
    if "PixelData" not in dataset:
        raise UnreadableError(f"{which} ends before its pixels do; export the series again")
    return dataset


def _decode(dataset: Dataset, frame: int, number: int, total: int) -> NDArray:
    """Stored values [rows, columns] of one frame."""
    try:
        return np.asarray(pixel_array(dataset, index=frame, raw=True))
    except DECODE_ERRORS:
        raise UnreadableError(
            f"the pixels of file {number} of {total} of the series are missing, cut short or damaged; export it again"
        ) from None
