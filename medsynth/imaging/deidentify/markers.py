"""What PS3.15 E.1.1 asks to be said afterwards: who did what to a header. Only what was done is claimed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID

import medsynth
from medsynth.errors import DataError
from medsynth.imaging.deidentify import actions
from medsynth.imaging.deidentify.elements import (
    EXPLICIT_LITTLE,
    Element,
    Encoding,
    ascii_text,
    encoded_sequence,
    encoded_text,
    texts,
)
from medsynth.imaging.deidentify.options import OPTIONS
from medsynth.imaging.deidentify.table import Table

SOP_CLASS, SOP_INSTANCE = 0x00080016, 0x00080018
CODE_VALUE, CODING_SCHEME, PURPOSE = 0x00080100, 0x00080102, 0x0040A170
METHOD, METHOD_CODES, TIMES = 0x00120063, 0x00120064, 0x00280303
CONTRIBUTING_EQUIPMENT, TRANSFER_SYNTAX = 0x0018A001, 0x00020010

IMPLEMENTATION_UID = "2.25.232194270186512937386475310265931466253"
IMPLEMENTATION_NAME = "MEDSYNTH"
EARLIER_METHOD = "earlier de-identification (text removed)"
OWN_EQUIPMENT = "The medsynth authors"
BASIC_PROFILE = "113100"
DEIDENTIFYING_EQUIPMENT = "109104"
TIMES_BY_LOSS = ("UNMODIFIED", "MODIFIED", "REMOVED")
"""LongitudinalTemporalInformationModified, what was lost earlier never coming back."""


class Markers:
    """Writes the markers of one set of options; what is the same for every file is encoded once."""

    def __init__(self, table: Table, options: Sequence[str]) -> None:
        self._table = table
        self._options = tuple(options)
        self._own_times = (
            "UNMODIFIED"
            if "retain_full_dates" in options
            else "MODIFIED"
            if "retain_modified_dates" in options
            else "REMOVED"
        )
        self._made: dict[tuple[object, ...], Element] = {}
        self._last: tuple[object, ...] = ()
        self._said: dict[str, Element] = {}

    def written(
        self, source: Dataset, name: str, earlier: Element | None, encoding: Encoding, *, pixels_cleaned: bool
    ) -> Mapping[str, Element]:
        """Keyword -> element, for a header whose pseudonym is `name`.

        `earlier` is the scrubbed ContributingEquipmentSequence. `pixels_cleaned`: regions were blanked in this image.
        """
        methods = tuple(self._earlier_methods(source))
        codes = tuple(self._earlier_codes(source))
        facts = (name, ascii_text(source, TIMES), methods, codes, pixels_cleaned, encoding)
        if facts != self._last:  # mostly the same as for the slice before
            self._last = facts
            self._said = self._say(*facts)
        return {**self._said, "ContributingEquipmentSequence": self._equipment(earlier, encoding)}

    def _say(
        self,
        name: str,
        earlier_times: str,
        methods: tuple[str, ...],
        codes: tuple[str, ...],
        pixels_cleaned: bool,
        encoding: Encoding,
    ) -> dict[str, Element]:
        times = self._times(earlier_times.upper())
        applied = [option for option in self._options if self._applies(option, times, pixels_cleaned)]
        own = f"medsynth {medsynth.__version__}, PS3.15 {self._table.edition} Basic Profile"
        all_methods = dict.fromkeys([*methods, own, *(OPTIONS[option].name for option in applied)])
        all_codes = dict.fromkeys([*codes, BASIC_PROFILE, *(OPTIONS[option].code for option in applied)])
        return {
            "PatientName": encoded_text(0x00100010, "PN", [name], encoding),
            "PatientID": encoded_text(0x00100020, "LO", [name], encoding),
            "PatientIdentityRemoved": encoded_text(0x00120062, "CS", ["YES"], encoding),
            "DeidentificationMethod": encoded_text(METHOD, "LO", all_methods, encoding),
            "DeidentificationMethodCodeSequence": self._codes(METHOD_CODES, tuple(all_codes), encoding),
            "LongitudinalTemporalInformationModified": encoded_text(TIMES, "CS", [times], encoding),
        }

    def _times(self, earlier: str) -> str:
        order = TIMES_BY_LOSS
        return max(self._own_times, earlier if earlier in order else self._own_times, key=order.index)

    def _applies(self, option: str, times: str, pixels_cleaned: bool) -> bool:
        if option == "clean_pixel_data":
            return pixels_cleaned
        if option in {"retain_full_dates", "retain_modified_dates"}:
            return times == self._own_times  # dates that an earlier tool took away are not retained
        return option != "clean_recognizable_visual_features"  # said by what removes the face, once it has

    def _earlier_methods(self, source: Dataset) -> list[str]:
        """Methods in a known form, and a plain note in place of free text."""
        if METHOD not in source:
            return []
        earlier = texts(source.get_item(METHOD))
        return [
            text if any(form.fullmatch(text) for form in self._table.methods) and len(text) <= 64 else EARLIER_METHOD
            for text in ([EARLIER_METHOD] if earlier is None else earlier)
            if text
        ]

    def _earlier_codes(self, source: Dataset) -> list[str]:
        """Codes of what earlier tools did; of the standard's own scheme alone."""
        if METHOD_CODES not in source or source[METHOD_CODES].VR != "SQ":
            return []
        items = [item for item in source[METHOD_CODES].value if ascii_text(item, CODING_SCHEME) == "DCM"]
        values = [ascii_text(item, CODE_VALUE) for item in items]
        return [value for value in values if re.fullmatch(r"1131\d\d", value)]

    def _equipment(self, earlier: Element | None, encoding: Encoding) -> Element:
        """Scrubbed items of earlier equipment, and this tool's own."""
        cached = self._made.get((CONTRIBUTING_EQUIPMENT, encoding))
        if cached is not None and earlier is None:
            return cached
        own = Dataset()
        own.Manufacturer = OWN_EQUIPMENT
        own.ManufacturerModelName = "medsynth"
        own.SoftwareVersions = medsynth.__version__
        own[PURPOSE] = self._codes(PURPOSE, (DEIDENTIFYING_EQUIPMENT,), encoding)
        if isinstance(earlier, DataElement) and earlier.value:
            others = [item for item in earlier.value if not _is_own(item)]
            return DataElement(CONTRIBUTING_EQUIPMENT, "SQ", Items([*others, own]))
        made = encoded_sequence(CONTRIBUTING_EQUIPMENT, [own], encoding)
        self._made[CONTRIBUTING_EQUIPMENT, encoding] = made
        return made

    def _codes(self, tag: int, values: tuple[str, ...], encoding: Encoding) -> Element:
        """A sequence of codes of the standard's own scheme."""
        made = self._made.get((tag, values, encoding))
        if made is None:
            items = (actions.code_item(value, "DCM", self._table.codes) for value in values)
            made = encoded_sequence(tag, [item for item in items if item is not None], encoding)
            self._made[tag, values, encoding] = made
        return made


def _is_own(item: Dataset) -> bool:
    return ascii_text(item, 0x00080070) == OWN_EQUIPMENT


def file_meta_of(source: Dataset, sop_class: str, instance: str) -> FileMetaDataset | None:
    """File meta information from scratch; only the transfer syntax is taken over, because it is how pixels read.

    None where the source has none. Raises DataError for a transfer syntax that is not the standard's.
    """
    meta = getattr(source, "file_meta", None)
    found = ascii_text(meta, TRANSFER_SYNTAX) if meta else ""
    if not found:
        return None
    if not UID(found).is_transfer_syntax:
        raise DataError(
            "expected a transfer syntax of the DICOM standard in the file's head, found another; convert it"
        )
    elements = [
        encoded_text(tag, vr, [value], EXPLICIT_LITTLE)
        for tag, vr, value in (
            (0x00020002, "UI", sop_class),
            (0x00020003, "UI", instance),
            (TRANSFER_SYNTAX, "UI", found),
            (0x00020012, "UI", IMPLEMENTATION_UID),
            (0x00020013, "SH", IMPLEMENTATION_NAME),
        )
    ]
    return FileMetaDataset({element.tag: element for element in elements})
