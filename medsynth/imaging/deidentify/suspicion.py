"""What in a header makes one suspect that text stands in the pixels. Values are looked at in memory and never repeated."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

IMAGE_TYPE, SOP_CLASS, MODALITY, CONVERSION = 0x00080008, 0x00080016, 0x00080060, 0x00080064
SERIES_DESCRIPTION, PHOTOMETRIC, SAMPLES, BURNED_IN = 0x0008103E, 0x00280004, 0x00280002, 0x00280301

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SHEET_WORDS = frozenset(
    {"SCREEN", "SCREENSAVE", "SCREENSHOT", "SAVE", "CAPTURE", "DOSE", "REPORT", "PROT", "PROTOCOL", "VOLREN"}
)
"""Words in ImageType: of screen captures (GE `SCREEN SAVE`), dose sheets (Siemens `CT_SOM5 PROT`, Philips `DOSE_INFO`),
reports (Siemens `CSA REPORT`) and pictures of volume renderings."""
SHEET_PHRASES = re.compile(
    r"DOSE (REPORT|INFO|SHEET|SUMMARY|RECORD)|PATIENT PROTOCOL|EXAM SUMMARY|SCREEN ?(SAVE|SHOT|CAPTURE)"
)
"""In the series description, where `DOSE` alone is in the name of many scans."""


@dataclass(frozen=True)
class Suspicion:
    """Why text is suspected; nothing is, where there are no reasons."""

    admitted: bool
    """The header itself says that text is burned in."""
    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.reasons)


def suspected_text(source: Dataset) -> Suspicion:
    """The signs of text in the pixels. BurnedInAnnotation NO takes none of them away: equipment sets it by habit."""
    reasons = []
    admitted = any("YES" in value for value in text_values(source, BURNED_IN))
    if admitted:
        reasons.append("the header says BurnedInAnnotation YES")
    sop_class = "".join(text_values(source, SOP_CLASS))
    if sop_class == SECONDARY_CAPTURE or sop_class.startswith(SECONDARY_CAPTURE + "."):
        reasons.append("a secondary capture")
    image_words = {word for value in text_values(source, IMAGE_TYPE) for word in re.findall("[A-Z]+", value)}
    description = " ".join(re.findall("[A-Z]+", " ".join(text_values(source, SERIES_DESCRIPTION))))
    if image_words & SHEET_WORDS or SHEET_PHRASES.search(description):
        reasons.append("a screen capture, dose sheet or report")
    if any(text_values(source, CONVERSION)):
        reasons.append("an image converted from another source")
    if any(value not in {"", "CT", "MR"} for value in text_values(source, MODALITY)):
        reasons.append("a modality other than CT or MR")
    if any(value not in {"", "MONOCHROME1", "MONOCHROME2"} for value in text_values(source, PHOTOMETRIC)):
        reasons.append("colours in place of grey values")
    return Suspicion(admitted, tuple(reasons))


def text_values(source: Dataset, tag: int) -> list[str]:
    """The values of a text attribute in upper case and trimmed; every byte that is not ASCII stands for itself."""
    if tag not in source:
        return []
    value = source.get_item(tag).value
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    elif isinstance(value, MultiValue | list | tuple):
        value = "\\".join(map(str, value))
    return [part.strip(" \0").upper() for part in str(value if value is not None else "").split("\\")]
