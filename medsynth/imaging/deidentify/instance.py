"""One dataset in, one de-identified file out, searched before anything of it touches the disk."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID

from medsynth.errors import DataError, MedsynthError, PrivacyError, UnreadableError
from medsynth.imaging.deidentify.driver import Deidentifier
from medsynth.imaging.deidentify.elements import DAMAGE, ascii_text, whole_number
from medsynth.imaging.deidentify.encode import Encoded, encode
from medsynth.imaging.deidentify.heads import could_show_a_face
from medsynth.imaging.deidentify.identifiers import Identifiers
from medsynth.imaging.deidentify.linking import Link, link_of
from medsynth.imaging.deidentify.residual import Looked, ResidualSearch
from medsynth.imaging.deidentify.tally import NO_SERIES, Counts
from medsynth.imaging.quiet import quiet_pydicom

READ_ERRORS = (*DAMAGE, AttributeError, LookupError, ArithmeticError, zlib.error)
"""What pydicom raises on damaged elements; its texts quote values and are never passed on."""

SOP_INSTANCE, SERIES_INSTANCE, PATIENT_ID, PIXEL_DATA = 0x00080018, 0x0020000E, 0x00100020, 0x7FE00010
ROWS, COLUMNS, SAMPLES, FRAMES = 0x00280010, 0x00280011, 0x00280002, 0x00280008
BITS_ALLOCATED, PHOTOMETRIC = 0x00280100, 0x00280004
UID_FORM = re.compile(r"[0-9]+(\.[0-9]+)*")
"""Digits and single dots: nothing that could lead out of a folder."""
NAMELESS = "no-series-uid"


class LeakError(PrivacyError):
    """A value of the source was still found in the result, which is therefore withheld."""


@dataclass(frozen=True)
class Instance:
    """A de-identified file in memory."""

    name: str
    """`<patient>/<series>/<instance>.dcm`, its path in an output folder: a pseudonym and new UIDs."""
    encoded: Encoded
    counts: Counts
    link: Link | None = None
    """Who it is, for a linking table; only where it was asked for."""
    values: Identifiers | None = None
    """The identifying values of its series, where these begin; for the search of what is written about it."""

    @property
    def data(self) -> bytes:
        """The file."""
        return self.encoded.data

    @property
    def series(self) -> str:
        """`<patient>/<series>`."""
        return self.name.rpartition("/")[0]


def deidentify_instance(
    original: Dataset, deidentifier: Deidentifier, *, linked: bool = False, search: ResidualSearch | None = None
) -> Instance:
    """De-identify one image, encode it, and search the result for every identifying value of the original.

    Raises PrivacyError where a privacy rule refuses it (LeakError where a value was found), DataError where it is damaged.
    An image that `needs_whole_series` is refused here: see `deidentify_series`. `linked`: also say who it is. One `search`
    for many instances, one series after the other, saves work.
    """
    search = search or ResidualSearch()
    with _told_plainly(deidentifier):
        if needs_whole_series(original, deidentifier):
            raise PrivacyError(
                "expected an image that shows no face, found a head by itself; give its whole series, so that the face "
                "can be removed"
            )
        looked = search.look_at(original)
        clean = _checked(deidentifier.dataset(original))
        counts = deidentifier.take_report()
        return _searched(original, clean, counts, search, looked, deidentifier, linked=linked)


def deidentify_series(
    originals: Sequence[Dataset], deidentifier: Deidentifier, *, linked: bool = False
) -> list[Instance]:
    """All images of one series that `needs_whole_series`, in their order, faces removed. All or nothing; errors as above."""
    from medsynth.imaging.deidentify.faces import deface_series  # brings MONAI, which takes seconds in each process

    search = ResidualSearch()
    command = deidentifier.settings.face_command
    if command is None:
        raise PrivacyError("expected a command that removes faces, found none; set face_command")
    with _told_plainly(deidentifier):
        looked, cleaned, counts = [], [], []
        for original in originals:
            looked.append(search.look_at(original))
            cleaned.append(_checked(deidentifier.dataset(original)))
            counts.append(deidentifier.take_report())
        defaced = deface_series(cleaned, command)
        return [
            _searched(*parts, deidentifier, linked=linked)
            for parts in zip(originals, defaced, counts, [search] * len(defaced), looked, strict=True)
        ]


def needs_whole_series(original: Dataset, deidentifier: Deidentifier) -> bool:
    """Whether faces are to be cleaned and this image may show one: only a whole series makes a volume to do that in."""
    return "clean_recognizable_visual_features" in deidentifier.settings.options and could_show_a_face(original)


def series_of(original: Dataset, deidentifier: Deidentifier) -> str:
    """`<patient>/<series>` of what is written or refused, as far as a damaged header tells."""
    with quiet_pydicom():
        try:
            series = ascii_text(original, SERIES_INSTANCE)
            keeps_uids = "retain_uids" in deidentifier.settings.options and UID_FORM.fullmatch(series)
            new = series if keeps_uids else deidentifier.key.uid(series)
            return f"{deidentifier.patient_of(original)}/{new if series else NAMELESS}"
        except (*READ_ERRORS, DataError):
            return NO_SERIES


@contextmanager
def _told_plainly(deidentifier: Deidentifier) -> Iterator[None]:
    """Errors of pydicom become our own, and counts of an image that failed are dropped."""
    with quiet_pydicom():
        try:
            yield
        except READ_ERRORS:
            deidentifier.take_report()
            raise UnreadableError(
                "expected a whole DICOM file, found elements that cannot be read; export the file again"
            ) from None
        except MedsynthError:
            deidentifier.take_report()
            raise


def _checked(clean: Dataset) -> Dataset:
    """`clean`, if it has all its pixels: pydicom takes the end of a file for the end of the dataset, wherever that is."""
    pixels = len(clean.get_item(PIXEL_DATA).value or b"") if PIXEL_DATA in clean else 0
    if pixels < _least_pixel_bytes(clean):
        raise UnreadableError(
            "expected a whole DICOM image, found a file that ends before its pixels do; export it again"
        )
    return clean


def _least_pixel_bytes(clean: Dataset) -> int:
    """How long pixel data must be at least (PS3.5 section 8.1.1)."""
    syntax = str(clean.file_meta.get("TransferSyntaxUID") or "") if hasattr(clean, "file_meta") else ""
    if syntax and UID(syntax).is_encapsulated:
        return 1
    bits = whole_number(clean, BITS_ALLOCATED, 0) * whole_number(clean, SAMPLES, 1)
    bits *= whole_number(clean, ROWS, 0) * whole_number(clean, COLUMNS, 0) * whole_number(clean, FRAMES, 1)
    if ascii_text(clean, PHOTOMETRIC) == "YBR_FULL_422":
        bits = bits * 2 // 3
    return max(1, (bits + 7) // 8)


def _searched(
    original: Dataset,
    clean: Dataset,
    counts: Counts,
    search: ResidualSearch,
    looked: Looked,
    deidentifier: Deidentifier,
    *,
    linked: bool,
) -> Instance:
    encoded = encode(clean)
    patient = ascii_text(clean, PATIENT_ID)
    series, instance = ascii_text(clean, SERIES_INSTANCE), ascii_text(clean, SOP_INSTANCE)
    if not UID_FORM.fullmatch(instance) or not UID_FORM.fullmatch(series or "0"):
        raise DataError("expected UIDs made of digits and dots, found others; correct the header or have UIDs replaced")
    name = f"{patient}/{series or NAMELESS}/{instance}.dcm"
    leaks = search.search(looked, encoded, [name.encode()], lambda: deidentifier.retained(original, clean))
    if leaks:
        raise LeakError(
            f"expected nothing of the original header in the result, found a value of {', '.join(sorted(leaks))}; "
            "leave the image out and report this as a fault of medsynth"
        )
    link = link_of(original, patient) if linked else None
    values = looked.first
    if values is not None:
        values = values.without("\n".join(sorted(deidentifier.retained(original, clean))))
    return Instance(name, encoded, counts, link, values)
