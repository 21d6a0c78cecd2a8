"""Headers of DICOM files: read quietly, turned into small records at once, and judged before any pixel is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.uid import UID, UID_dictionary

from medsynth.errors import DataError, MedsynthError, PrivacyError, UnreadableError
from medsynth.imaging.describe import DESCRIPTION_TAGS, description_class
from medsynth.imaging.fields import items, plain_words, text, whole
from medsynth.imaging.planes import PLANE_TAGS, Plane, planes_of
from medsynth.imaging.walk import READ_ERRORS, read_elements
from medsynth.imaging.words import HU, SYNTHETIC_MANUFACTURER

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

SOP_CLASS, SOP_INSTANCE, MEDIA_CLASS, SYNTAX = 0x00080016, 0x00080018, 0x00020002, 0x00020010
PATIENT, STUDY, SERIES, NUMBER = 0x00100020, 0x0020000D, 0x0020000E, 0x00200011
IMAGE_TYPE, BURNED_IN, SAMPLES, RESCALE_TYPE, COLUMNS = 0x00080008, 0x00280301, 0x00280002, 0x00281054, 0x00280011
MANUFACTURER = 0x00080070
SHARED, VALUES_IN, BITS_STORED = 0x52009229, 0x00289145, 0x00280101

HEADER_TAGS = (
    frozenset({SOP_CLASS, SOP_INSTANCE, PATIENT, STUDY, SERIES, NUMBER, IMAGE_TYPE, BURNED_IN, SAMPLES, RESCALE_TYPE})
    | PLANE_TAGS
    | DESCRIPTION_TAGS
    | {MANUFACTURER}
)
NO_RESCALE = "a CT image has no rescale slope and intercept, so its values in HU are unknown; leave it out"
JPEG = "1.2.840.10008.1.2.4."
PLUGINS = {
    **dict.fromkeys((f"{JPEG}50", f"{JPEG}51"), "pillow"),
    **dict.fromkeys((f"{JPEG}57", f"{JPEG}70"), "gdcm"),
    **dict.fromkeys((f"{JPEG}80", f"{JPEG}81"), "pyjpegls"),
    **dict.fromkeys((f"{JPEG}{n}" for n in (90, 91, 201, 202, 203)), "pylibjpeg"),
    "1.2.840.10008.1.2.5": "pylibjpeg",
}
"""Transfer syntax -> pydicom's plugin that decodes it. One each: the others would be tried after a failure, and gdcm ends the
whole process on damaged JPEG-LS."""


class Fault(NamedTuple):
    """What speaks against a file. Of several in one series, the one of lowest rank is told."""

    rank: int
    kind: type[MedsynthError]
    words: str


class Group(NamedTuple):
    """What files of one series share, and no file of another has."""

    series_uid: str
    kind: str
    """CT or MR, or the SOP class of other objects: they never join a series, even under the same UID."""
    place: tuple[str, ...] = ()
    """Folder, study and series number, where there is no UID."""


@dataclass(slots=True)
class Header:
    """What is remembered of a DICOM file; equal texts and numbers of many files are one object."""

    path: Path
    group: Group
    sop_class: str
    sop_instance: str
    patient: str
    planes: tuple[Plane, ...]
    fault: Fault | None
    description: str
    syntax: str
    synthetic: bool
    """Made by medsynth itself."""


def read_header(path: Path) -> Header | tuple[str, bool]:
    """The header, or why the file is skipped and whether that means damage."""
    try:
        if path.stat().st_size == 0:
            return "empty file", _named_like_dicom(path)
        dataset = read_elements(path, HEADER_TAGS, pixels=False)
        sop_class = text(dataset, SOP_CLASS) or text(dataset.file_meta, MEDIA_CLASS)
        if sop_class == DIRECTORY_CLASS:
            return "a DICOMDIR: an index, not an image", False
        if not sop_class or (sop_class in IMAGE_CLASSES and COLUMNS not in dataset):
            return "DICOM header cut short", True
        return _record(path, sop_class, dataset)
    except InvalidDicomError:
        return "not a DICOM file", False
    except (UnreadableError, *READ_ERRORS):
        return "damaged DICOM header", True


def _record(path: Path, sop_class: str, dataset: Dataset) -> Header:
    modality = IMAGE_CLASSES.get(sop_class)
    syntax = text(dataset.file_meta, SYNTAX)
    planes: tuple[Plane, ...] = ()
    fault = _fault(sop_class, syntax, dataset)
    if fault is None:
        try:
            planes = tuple(planes_of(dataset))
            fault = check_unit(modality or "", planes)
        except DataError as error:
            fault = Fault(9, type(error), str(error))
    series_uid = text(dataset, SERIES)
    place = () if series_uid else (str(path.parent), text(dataset, STUDY), text(dataset, NUMBER))
    return Header(
        path=path,
        group=_once(Group(series_uid, modality or sop_class, place)),
        sop_class=_once(sop_class),
        sop_instance=text(dataset, SOP_INSTANCE),
        patient=_once(text(dataset, PATIENT)),
        planes=planes,
        fault=_once(fault) if fault else None,
        description=description_class(*plain_words(dataset, *sorted(DESCRIPTION_TAGS))),
        syntax=_once(syntax),
        synthetic=text(dataset, MANUFACTURER) == SYNTHETIC_MANUFACTURER,
    )


@lru_cache(1 << 12)
def _once(value):  # type: ignore[no-untyped-def]
    """One object for equal values."""
    return value


def _named_like_dicom(path: Path) -> bool:
    suffix = path.suffix.lower()
    return not path.name.startswith(".") and (suffix in ("", ".dcm", ".dicom", ".ima") or suffix[1:].isdigit())


def check_unit(modality: str, planes: Sequence[Plane]) -> Fault | None:
    """What speaks against the unit of a CT's values: they must be HU, by a rescale or a lookup table."""
    if modality != "CT":
        return None
    for plane in planes:
        if plane.table is not None and plane.table.unit != HU:
            return Fault(
                9, DataError, "a lookup table maps this CT's values to another unit than HU; leave the series out"
            )
        if plane.table is None and not plane.rescaled:
            return Fault(9, DataError, NO_RESCALE)
    return None


def _fault(sop_class: str, syntax: str, dataset: Dataset) -> Fault | None:
    modality = IMAGE_CLASSES.get(sop_class)
    if modality is None:
        kind = _standard_name(sop_class, "an unknown kind of object")
        return Fault(0, DataError, f"expected CT or MR images, found {kind}; leave it out")
    if text(dataset, BURNED_IN).upper() == "YES":
        words = (
            "the header says that text is burned into the pixels, which could name the patient; leave the series out"
        )
        return Fault(2, PrivacyError, words)
    if whole(dataset, SAMPLES, 1) != 1:
        return Fault(3, DataError, "expected grey values, found colour images; leave the series out")
    if "LOCALIZER" in text(dataset, IMAGE_TYPE).upper().split("\\"):
        return Fault(4, DataError, "a localizer (scout) is not a volume; leave it out")
    if modality == "CT" and _rescale_type(dataset) not in ("", HU, "US"):
        words = "expected CT values in HU, found another unit (a map made from CT?); leave the series out"
        return Fault(5, DataError, words)
    if not _decodable(syntax):
        name = _standard_name(syntax, "an unknown transfer syntax")
        words = f"no decoder is installed for {name}; export the series uncompressed or as JPEG 2000, RLE or JPEG-LS"
        return Fault(6, UnreadableError, words)
    if syntax == f"{JPEG}51" and whole(dataset, BITS_STORED, 0) != 8:
        words = (
            "no free decoder is right for JPEG Extended of 12 bits; export the series as JPEG lossless or uncompressed"
        )
        return Fault(6, UnreadableError, words)
    return None


DAMAGED_BESIDE = Fault(
    1,
    UnreadableError,
    "a damaged or empty DICOM file lies in its folder and may be one of its slices; export the series again",
)


@lru_cache(256)
def _standard_name(uid: str, otherwise: str) -> str:
    """The name of a UID of the standard; others may hold anything and are not repeated."""
    return UID(uid).name if uid in UID_dictionary else otherwise


def _rescale_type(dataset: Dataset) -> str:
    for holder in (dataset, *items(dataset, SHARED)):
        for item in (*(items(holder, VALUES_IN) if holder is not dataset else ()), holder):
            found = text(item, RESCALE_TYPE)
            if found:
                return found
    return ""


@lru_cache(256)
def _decodable(name: str) -> bool:
    syntax = UID(name)
    if not syntax.is_transfer_syntax:
        return False
    if not syntax.is_compressed or syntax.is_deflated:
        return True
    return name in PLUGINS and PLUGINS[name] in get_decoder(syntax).available_plugins
