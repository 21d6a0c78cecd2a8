"""Headers of DICOM files: read quietly, told apart, and judged before any pixel is looked at."""

from __future__ import annotations

import filecmp
import logging
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.uid import UID, UID_dictionary

from medsynth.errors import DataError, MedsynthError, PrivacyError, UnreadableError
from medsynth.imaging.scan import HU

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
CODEC_LOGGERS = ("pydicom", "openjpeg", "pylibjpeg")


@dataclass
class Header:
    """A DICOM file and the part of its header that `HEADER_TAGS` names; the SOP class may come from the file meta."""

    path: Path
    sop_class: str
    sop_instance: str
    dataset: Dataset


def read_header(path: Path) -> Header | tuple[str, bool]:
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
    return Header(path, sop_class, sop_instance, dataset)


def _named_like_dicom(path: Path) -> bool:
    suffix = path.suffix.lower()
    return not path.name.startswith(".") and (suffix in ("", ".dcm", ".dicom", ".ima") or suffix[1:].isdigit())


def series_key(header: Header) -> tuple[str, ...]:
    """What files of one series share. Objects of another kind never join it, even under the same UID."""
    uid = str(header.dataset.get("SeriesInstanceUID") or "")
    kind = IMAGE_CLASSES.get(header.sop_class, header.sop_class)
    if uid:
        return (uid, kind)
    rest = (str(header.dataset.get(keyword, "")) for keyword in ("StudyInstanceUID", "SeriesNumber"))
    return ("", kind, str(header.path.parent), *rest)


def without_copies(headers: list[Header]) -> tuple[list[Header], list[Path]]:
    """The headers of distinct objects, and the files that are byte-equal copies of one of them."""
    kept: dict[str, list[Header]] = {}
    copies = []
    for header in headers:
        rivals = kept.setdefault(header.sop_instance, [])
        if header.sop_instance and any(filecmp.cmp(header.path, rival.path, shallow=False) for rival in rivals):
            copies.append(header.path)
        else:
            rivals.append(header)
    return [header for header in headers if header.path not in set(copies)], copies


def fault_of(headers: Sequence[Header], *, damaged: bool) -> MedsynthError | None:
    """What speaks against a series, geometry apart; `damaged`: an unreadable DICOM file lies beside its files."""
    modality = IMAGE_CLASSES.get(headers[0].sop_class)
    if modality is None:
        kind = _standard_name(headers[0].sop_class, "an unknown kind of object")
        return DataError(f"expected CT or MR images, found {kind}; leave it out")
    if damaged:
        return UnreadableError(
            "a damaged or empty DICOM file lies in its folder and may be one of its slices; export the series again"
        )
    datasets = [header.dataset for header in headers]
    if any(str(dataset.get("BurnedInAnnotation", "")).upper() == "YES" for dataset in datasets):
        return PrivacyError(
            "the header says that text is burned into the pixels, which could name the patient; leave the series out"
        )
    if any((dataset.get("SamplesPerPixel") or 1) != 1 for dataset in datasets):
        return DataError("expected grey values, found colour images; leave the series out")
    if any("LOCALIZER" in _words(dataset.get("ImageType")) for dataset in datasets):
        return DataError("a localizer (scout) is not a volume; leave it out")
    if modality == "CT" and any(_rescale_type(dataset) not in ("", HU, "US") for dataset in datasets):
        return DataError("expected CT values in HU, found another unit (a map made from CT?); leave the series out")
    for syntax in {str(dataset.file_meta.get("TransferSyntaxUID") or "") for dataset in datasets}:
        if not _decodable(UID(syntax)):
            name = _standard_name(syntax, "an unknown transfer syntax")
            return UnreadableError(
                f"no decoder is installed for {name}; export the series uncompressed or as JPEG 2000, RLE or JPEG-LS"
            )
    return None


def _standard_name(uid: str, otherwise: str) -> str:
    """The name of a UID of the standard; others may hold anything and are not repeated."""
    return UID(uid).name if uid in UID_dictionary else otherwise


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(word) for word in value or ()]


def _rescale_type(dataset: Dataset) -> str:
    for holder in (dataset, *(dataset.get("SharedFunctionalGroupsSequence") or ())):
        for item in (*(holder.get("PixelValueTransformationSequence") or ()), holder):
            if item.get("RescaleType"):
                return str(item.RescaleType)
    return ""


def _decodable(syntax: UID) -> bool:
    if not syntax.is_transfer_syntax:
        return False
    if not syntax.is_compressed:
        return True
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings off every log: they repeat header values that it finds invalid, and file names.

    Nothing is lost: what a warning would be about is checked here and refused in words of ours.
    """
    settings = pydicom.config.settings
    validation = settings.reading_validation_mode
    loggers = [logging.getLogger(name) for name in CODEC_LOGGERS]
    levels = [logger.level for logger in loggers]
    settings.reading_validation_mode = pydicom.config.IGNORE
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pydicom\b")
            yield
    finally:
        settings.reading_validation_mode = validation
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
