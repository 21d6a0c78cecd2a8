"""DICOM series: found by their headers, de-identified in memory, read as one regular volume.

Nothing is read with pydicom's `force`, which would turn any text into a dataset. Messages name a file by its place in
the series and never repeat a header's value.
"""

from __future__ import annotations

import filecmp
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID

from medsynth.errors import DataError, UnreadableError
from medsynth.imaging.scan import ARBITRARY, HU, Scan, make_scan
from medsynth.imaging.stack import Plane, Stack, planes_of, stack_planes
from medsynth.progress import Progress, Silent

if TYPE_CHECKING:
    from medsynth.imaging.deidentify import Deidentifier

IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
}
"""SOP classes (PS3.4 annex B) that are CT or MR images: single-frame, enhanced, legacy-converted enhanced."""
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"

HEADER_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
    *("ImageType", "BurnedInAnnotation", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]

READ_ERRORS = (OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError, struct.error)
"""What pydicom raises on damaged bytes. Their text may hold a header's value, so it is never passed on."""
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

    @property
    def folder(self) -> Path:
        """The innermost folder that holds all its files."""
        return Path(os.path.commonpath([file.parent for file in self.files]))

    def stack(self) -> Stack:
        """Geometry by the headers; raises DataError or GeometryError saying why the series is no regular volume."""
        if self.fault:
            raise DataError(self.fault)
        return stack_planes(self.planes)


@dataclass(frozen=True)
class Found:
    """What a folder holds: its series, and the files that belong to none, each with the reason."""

    series: list[Series]
    skipped: list[tuple[Path, str]]


@dataclass
class _Header:
    path: Path
    sop_class: str
    sop_instance: str
    dataset: Dataset


def find_series(folder: Path, *, progress: Progress | None = None) -> Found:
    """DICOM series in `folder` and everything below it, by header alone; `folder` may also be one DICOM file.

    Grouped by SeriesInstanceUID wherever the files lie; files without one by folder, study and series number.
    Byte-equal copies of one object count once. A damaged file makes every series that shares its folder unusable,
    because it may be the slice that is missing. Raises UnreadableError where the folder cannot be listed.
    """
    paths = list(_files(Path(folder)))
    groups: dict[tuple[str, ...], list[_Header]] = {}
    skipped: list[tuple[Path, str]] = []
    damaged: dict[Path, str] = {}
    with _quiet(), (progress or Silent()).task("reading headers", len(paths)) as advance:
        for path in paths:
            header = _read_header(path)
            if isinstance(header, _Header):
                groups.setdefault(_series_key(header), []).append(header)
            else:
                reason, is_damaged = header
                skipped.append((path, reason))
                if is_damaged:
                    damaged[path.parent] = path.name
            advance(1)
        series = []
        for headers in groups.values():
            distinct, copies = _without_copies(headers)
            skipped += [(path, "a byte-equal copy of another file of its series") for path in copies]
            series.append(_series(distinct, damaged=any(header.path.parent in damaged for header in distinct)))
    return Found(sorted(series, key=lambda one: one.files), sorted(skipped))


def read_series(series: Series, deidentifier: Deidentifier) -> Scan:
    """The series as one scan [1, columns, rows, slices] with its RAS affine: CT in HU, MR in arbitrary units.

    Each dataset is de-identified in memory before anything else, and geometry and values are taken from the result.
    Rescale is applied slice by slice; voxels are int16 where that is exact, else float32. Raises UnreadableError where
    a file is damaged or compressed in a way that cannot be decoded, GeometryError where there is no regular volume.
    """
    if series.fault:
        raise DataError(series.fault)
    with _quiet():
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


def _read_header(path: Path) -> _Header | tuple[str, bool]:
    """The header, or why the file is skipped and whether that means damage."""
    try:
        if path.stat().st_size == 0:
            return "empty file", _named_like_dicom(path)
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
        sop_class = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", ""))
        sop_instance = str(dataset.get("SOPInstanceUID", ""))
    except InvalidDicomError:
        return "not a DICOM file", False
    except READ_ERRORS:
        return "damaged DICOM header", True
    if sop_class == DIRECTORY_CLASS:
        return "a DICOMDIR: an index, not an image", False
    if not sop_class or (sop_class in IMAGE_CLASSES and "Columns" not in dataset):
        return "DICOM header cut short", True
    return _Header(path, sop_class, sop_instance, dataset)


def _named_like_dicom(path: Path) -> bool:
    suffix = path.suffix.lower()
    return not path.name.startswith(".") and (suffix in ("", ".dcm", ".dicom", ".ima") or suffix[1:].isdigit())


def _series_key(header: _Header) -> tuple[str, ...]:
    """What files of one series share. Objects of another kind never join it, even under the same UID."""
    uid = str(header.dataset.get("SeriesInstanceUID") or "")
    kind = IMAGE_CLASSES.get(header.sop_class, header.sop_class)
    if uid:
        return (uid, kind)
    rest = (str(header.dataset.get(keyword, "")) for keyword in ("StudyInstanceUID", "SeriesNumber"))
    return ("", kind, str(header.path.parent), *rest)


def _without_copies(headers: list[_Header]) -> tuple[list[_Header], list[Path]]:
    kept: dict[str, list[_Header]] = {}
    copies = []
    for header in headers:
        rivals = kept.setdefault(header.sop_instance, [])
        if header.sop_instance and any(filecmp.cmp(header.path, rival.path, shallow=False) for rival in rivals):
            copies.append(header.path)
        else:
            rivals.append(header)
    return [header for header in headers if header.path not in set(copies)], copies


def _series(headers: list[_Header], *, damaged: bool) -> Series:
    first = headers[0]
    fault = _fault(headers, damaged=damaged)
    planes: list[Plane] = []
    if not fault:
        try:
            planes = [plane for header in headers for plane in planes_of(header.dataset)]
            _check_unit(IMAGE_CLASSES[first.sop_class], planes)
        except DataError as error:
            fault = str(error)
    return Series(
        files=tuple(header.path for header in headers),
        modality=IMAGE_CLASSES.get(first.sop_class, ""),
        series_uid=str(first.dataset.get("SeriesInstanceUID") or ""),
        patient=str(first.dataset.get("PatientID") or ""),
        planes=tuple(planes),
        fault=fault,
    )


def _fault(headers: Sequence[_Header], *, damaged: bool) -> str:
    first = headers[0]
    modality = IMAGE_CLASSES.get(first.sop_class)
    if modality is None:
        kind = (
            UID(first.sop_class).name if first.sop_class.startswith("1.2.840.10008.") else "an unknown kind of object"
        )
        return f"expected CT or MR images, found {kind}; leave it out"
    if damaged:
        return "a damaged or empty DICOM file lies in its folder and may be one of its slices; export the series again"
    datasets = [header.dataset for header in headers]
    if any(str(dataset.get("BurnedInAnnotation", "")).upper() == "YES" for dataset in datasets):
        return "the header says that text is burned into the pixels, which could name the patient; leave the series out"
    if any((dataset.get("SamplesPerPixel") or 1) != 1 for dataset in datasets):
        return "expected grey values, found colour images; leave the series out"
    if any("LOCALIZER" in _words(dataset.get("ImageType")) for dataset in datasets):
        return "a localizer (scout) is not a volume; leave it out"
    if modality == "CT" and any(_rescale_type(dataset) not in ("", HU, "US") for dataset in datasets):
        return "expected CT values in HU, found another unit (a map made from CT?); leave the series out"
    for header in headers:
        syntax = header.dataset.file_meta.get("TransferSyntaxUID")
        if syntax is None or not _decodable(syntax):
            name = UID(syntax).name if syntax and syntax.startswith("1.2.840.10008.") else "an unknown transfer syntax"
            return f"no decoder is installed for {name}; export the series uncompressed or as JPEG 2000, RLE or JPEG-LS"
    return ""


def _check_unit(modality: str, planes: Sequence[Plane]) -> None:
    if modality == "CT" and not all(plane.rescaled for plane in planes):
        raise DataError("a CT image has no rescale slope and intercept, so its values in HU are unknown; leave it out")


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(word) for word in value or ()]


def _rescale_type(dataset: Dataset) -> str:
    for holder in (dataset, *(dataset.get("SharedFunctionalGroupsSequence") or ())):
        for item in (*(holder.get("PixelValueTransformationSequence") or ()), holder):
            if item.get("RescaleType"):
                return str(item.RescaleType)
    return ""


def _decodable(syntax: UID) -> bool:
    if not syntax.is_compressed:
        return True
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _read_whole(path: Path, number: int, total: int) -> Dataset:
    try:
        return pydicom.dcmread(path)
    except (InvalidDicomError, *READ_ERRORS):
        raise UnreadableError(
            f"file {number} of {total} of the series cannot be read; export the series again"
        ) from None


def _decode(dataset: Dataset, frame: int, number: int, total: int) -> NDArray:
    """Stored values [rows, columns] of one frame."""
    try:
        return np.asarray(pixel_array(dataset, index=frame, raw=True))
    except DECODE_ERRORS:
        raise UnreadableError(
            f"the pixels of file {number} of {total} of the series are missing, cut short or damaged; export it again"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from printing header values that it finds invalid: its warnings repeat them."""
    settings = pydicom.config.settings
    before = settings.reading_validation_mode
    settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        yield
    finally:
        settings.reading_validation_mode = before
