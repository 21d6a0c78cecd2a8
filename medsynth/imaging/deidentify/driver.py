"""One dataset in, its de-identified twin out: the Basic Application Level Confidentiality Profile (PS3.15 Annex E)."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any

import pydicom.uid
from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

import medsynth
from medsynth.errors import DataError, PrivacyError, UnreadableError
from medsynth.imaging.deidentify import actions
from medsynth.imaging.deidentify.elements import (
    DAMAGE,
    EXPLICIT_LITTLE,
    Element,
    Encoding,
    ascii_text,
    encoded_sequence,
    encoded_text,
    encoding_of,
    item_of,
    texts,
)
from medsynth.imaging.deidentify.keys import SecretKey
from medsynth.imaging.deidentify.pixels import clean_pixel_element
from medsynth.imaging.deidentify.quiet import quiet_pydicom
from medsynth.imaging.deidentify.table import Rule, Rules, load_table

Elements = dict[BaseTag, Element]

IMAGE_TYPE, SOP_CLASS, SOP_INSTANCE, MANUFACTURER = 0x00080008, 0x00080016, 0x00080018, 0x00080070
CODE_VALUE, CODING_SCHEME, PURPOSE = 0x00080100, 0x00080102, 0x0040A170
METHOD, METHOD_CODES, TIMES = 0x00120063, 0x00120064, 0x00280303
BURNED_IN, CONTRIBUTING_EQUIPMENT = 0x00280301, 0x0018A001

IMPLEMENTATION_UID = "2.25.232194270186512937386475310265931466253"
IMPLEMENTATION_NAME = "MEDSYNTH"
EARLIER_METHOD = "earlier de-identification (text removed)"
OWN_EQUIPMENT = "The medsynth authors"
BASIC_PROFILE = "113100"
DEIDENTIFYING_EQUIPMENT = "109104"
SCREEN_CONTENT = {"SCREEN SAVE", "SCREENSAVE", "SCREENSHOT", "SCREEN CAPTURE"}
IDENTITY = (
    ("patient", (0x00100020,)),
    ("name", (0x00100010, 0x00100030)),
    ("study", (0x0020000D,)),
    ("series", (0x0020000E,)),
    ("frame", (0x00200052,)),
    ("instance", (SOP_INSTANCE,)),
)
"""Whose scan it is, from the best source to the worst (patient ID; name and birth date; UIDs of study, series, frame
of reference, instance); each source gets pseudonyms of its own."""


class Deidentifier:
    """De-identifies datasets under one secret key and counts what it did, never what it saw."""

    def __init__(self, key: SecretKey) -> None:
        self.key = key
        self._table = load_table()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._made: dict[tuple[Any, ...], Element] = {}
        """Markers already encoded; they are bytes, so datasets can share them."""

    @property
    def report(self) -> dict[str, dict[str, int]]:
        """Attribute -> action -> how often. Names are DICOM keywords, `private`, or the tag of an unknown one.

        Actions: X removed, Z emptied, D dummy, U new UID, K kept, C kept if known, S cleaned inside, `unlisted`
        removed because no table keeps it, `pseudonym` and `marker` written.
        """
        report: dict[str, dict[str, int]] = {}
        for (name, action), count in sorted(self._counts.items()):
            report.setdefault(name, {})[action] = count
        return report

    def add_report(self, report: dict[str, dict[str, int]]) -> None:
        """Add the counts of another worker."""
        for name, counts in report.items():
            for action, count in counts.items():
                self._counts[name, action] += count

    def take_report(self) -> dict[str, dict[str, int]]:
        """The counts so far, which start again from nothing."""
        report = self.report
        self._counts.clear()
        return report

    def patient(self, raw: str) -> str:
        """The pseudonym of a patient ID as it stands in a header or table."""
        return self.key.pseudonym("patient", raw.strip(" \0"), "P")

    def patient_of(self, source: Dataset) -> str:
        """The pseudonym of whom a dataset belongs to: by patient ID, else name and birth date, else a UID."""
        for kind, tags in IDENTITY:
            values = [_identity_text(source, tag) for tag in tags]
            if values[0]:
                return self.key.pseudonym(kind, "\x1f".join(values), "P")
        raise DataError("expected a patient ID or any UID in the header, found none; such a file belongs to nobody")

    def dataset(self, source: Dataset) -> Dataset:
        """A new dataset in which only listed things are left; `source` is not changed.

        Raises PrivacyError for kinds of objects whose pixels may show names (burned-in annotation, screen captures,
        anything but CT and MR images), DataError where patient or kind cannot be told, UnreadableError where elements are
        damaged.
        """
        with quiet_pydicom():
            try:
                return self._twin(source)
            except DAMAGE:
                raise UnreadableError(
                    "expected a whole DICOM header, found elements that cannot be read; export the file again"
                ) from None  # what pydicom says may quote the header

    def _twin(self, source: Dataset) -> Dataset:
        sop_class = self._sop_class(source)
        _refuse_shown_identity(source)
        encoding = encoding_of(source, EXPLICIT_LITTLE)
        elements = self._clean(source, self._table.rules_for(sop_class), encoding)
        elements[SOP_CLASS] = encoded_text(SOP_CLASS, "UI", [sop_class], encoding)
        self._restore_instance_uid(source, elements, encoding)
        self._mark(source, elements, encoding)
        clean = item_of(elements, encoding)
        clean_pixel_element(source, clean)
        self._rebuild_file_meta(source, clean)
        return clean

    def _sop_class(self, source: Dataset) -> str:
        meta = getattr(source, "file_meta", None) or Dataset()
        found = ascii_text(source, SOP_CLASS) or str(meta.get("MediaStorageSOPClassUID") or "")
        if not found:
            raise DataError("expected a SOP class (0008,0016) in the header, found none; the file's kind is unknown")
        if found not in self._table.sop_classes:
            name = pydicom.uid.UID(found).name if found in pydicom.uid.UID_dictionary else "a private or unknown class"
            raise PrivacyError(
                f"expected a CT or MR image, found {name}, whose pixels or text may show names; leave it out"
            )
        return found

    def _clean(self, source: Dataset, rules: Rules, encoding: Encoding) -> Elements:
        clean: Elements = {}
        for tag, element in source.items():
            rule = rules.get(tag)
            if rule is None:
                self._counts[_name(tag), "private" if tag.is_private else "unlisted"] += 1
                continue
            if element.is_raw and element.value is None and element.length:
                element = source.get_item(tag)  # left in the file so far
            kept = self._apply(source, element, rule, encoding)
            self._counts[rule.keyword, rule.action] += 1
            if kept is not None:
                clean[tag] = kept
        return clean

    def _apply(self, source: Dataset, element: Element, rule: Rule, encoding: Encoding) -> Element | None:
        if rule.action in {"X", "Z", "D"}:
            return actions.SIMPLE[rule.action](element, rule, encoding)
        if element.VR is not None and element.VR not in rule.vrs:
            known = _in_known_vr(element, rule)
            if known is None:
                return actions.without(rule, encoding)
            element = known
        if rule.action == "U":
            return actions.replace_uids(element, rule, encoding, self.key)
        if rule.action in {"S", "CODE"}:
            return self._sequence(source[rule.tag], rule, encoding)
        return actions.SIMPLE[rule.action](element, rule, encoding)

    def _sequence(self, element: DataElement, rule: Rule, encoding: Encoding) -> Element | None:
        if element.VR != "SQ":
            return actions.without(rule, encoding)
        if rule.action == "CODE":
            return actions.keep_codes(element, rule, encoding, self._table.codes)
        items: list[Dataset] = []
        for item in element.value:
            own = encoding_of(item, encoding)  # items of a sequence that came as UN are encoded in their own way
            elements = self._clean(item, rule.items or {}, own)
            if elements and _is_complete(elements, rule):
                items.append(item_of(elements, own))
        return DataElement(rule.tag, "SQ", Sequence(items)) if items else actions.without(rule, encoding)

    def _restore_instance_uid(self, source: Dataset, elements: Elements, encoding: Encoding) -> None:
        """Some archives empty the UID in the dataset and leave it in the file meta information."""
        meta = getattr(source, "file_meta", None) or Dataset()
        found = ascii_text(source, SOP_INSTANCE) or str(meta.get("MediaStorageSOPInstanceUID") or "")
        if found:
            elements[SOP_INSTANCE] = encoded_text(SOP_INSTANCE, "UI", [self.key.uid(found)], encoding)

    def _mark(self, source: Dataset, elements: Elements, encoding: Encoding) -> None:
        """Say what was done, as PS3.15 E.1.1 asks."""
        name = self.patient_of(source)
        earlier = elements.get(CONTRIBUTING_EQUIPMENT)
        for keyword, action, made in (
            ("PatientName", "pseudonym", encoded_text(0x00100010, "PN", [name], encoding)),
            ("PatientID", "pseudonym", encoded_text(0x00100020, "LO", [name], encoding)),
            ("PatientIdentityRemoved", "marker", encoded_text(0x00120062, "CS", ["YES"], encoding)),
            ("DeidentificationMethod", "marker", encoded_text(METHOD, "LO", self._methods(source), encoding)),
            ("DeidentificationMethodCodeSequence", "marker", self._method_codes(source, encoding)),
            ("LongitudinalTemporalInformationModified", "marker", encoded_text(TIMES, "CS", ["REMOVED"], encoding)),
            ("ContributingEquipmentSequence", "marker", self._equipment(earlier, encoding)),
        ):
            elements[made.tag] = made
            self._counts[keyword, action] += 1

    def _methods(self, source: Dataset) -> list[str]:
        """Earlier methods in a known form, a plain note in place of free text, and this one; each once."""
        earlier = texts(source.get_item(METHOD)) if METHOD in source else []
        known = [
            text if any(form.fullmatch(text) for form in self._table.methods) and len(text) <= 64 else EARLIER_METHOD
            for text in ([EARLIER_METHOD] if earlier is None else earlier)
            if text
        ]
        own = f"medsynth {medsynth.__version__}, PS3.15 {self._table.edition} Basic Profile"
        return list(dict.fromkeys([*known, own]))

    def _method_codes(self, source: Dataset, encoding: Encoding) -> Element:
        """Codes of what earlier tools did, and of the Basic Profile; each once."""
        values: list[str] = []
        if METHOD_CODES in source and source[METHOD_CODES].VR == "SQ":
            for item in source[METHOD_CODES].value:
                value = ascii_text(item, CODE_VALUE)
                if ascii_text(item, CODING_SCHEME) == "DCM" and re.fullmatch(r"1131\d\d", value):
                    values.append(value)
        return self._codes(METHOD_CODES, tuple(dict.fromkeys([*values, BASIC_PROFILE])), encoding)

    def _equipment(self, earlier: Element | None, encoding: Encoding) -> Element:
        """Scrubbed items of earlier equipment, and this tool's own."""
        own = Dataset()
        own.Manufacturer = OWN_EQUIPMENT
        own.ManufacturerModelName = "medsynth"
        own.SoftwareVersions = medsynth.__version__
        own[PURPOSE] = self._codes(PURPOSE, (DEIDENTIFYING_EQUIPMENT,), encoding)
        if isinstance(earlier, DataElement) and earlier.value:
            return DataElement(CONTRIBUTING_EQUIPMENT, "SQ", Sequence([*earlier.value, own]))
        cached = self._made.get((CONTRIBUTING_EQUIPMENT, encoding))
        if cached is None:
            cached = encoded_sequence(CONTRIBUTING_EQUIPMENT, [own], encoding)
            self._made[CONTRIBUTING_EQUIPMENT, encoding] = cached
        return cached

    def _codes(self, tag: int, values: tuple[str, ...], encoding: Encoding) -> Element:
        """A sequence of codes of the standard's own scheme."""
        made = self._made.get((tag, *values, encoding))
        if made is None:
            items = (actions.code_item(value, "DCM", self._table.codes) for value in values)
            made = encoded_sequence(tag, [item for item in items if item is not None], encoding)
            self._made[(tag, *values, encoding)] = made
        return made

    def _rebuild_file_meta(self, source: Dataset, clean: Dataset) -> None:
        """File meta information from scratch; only the transfer syntax is taken over, because it is how pixels read."""
        meta: Any = getattr(source, "file_meta", None)
        if not meta or not meta.get("TransferSyntaxUID"):
            return
        syntax = pydicom.uid.UID(str(meta.TransferSyntaxUID))
        if not syntax.is_transfer_syntax:
            raise DataError(
                "expected a transfer syntax of the DICOM standard in the file's head, found another; convert it"
            )
        clean.file_meta = FileMetaDataset()
        clean.file_meta.MediaStorageSOPClassUID = ascii_text(clean, SOP_CLASS)
        clean.file_meta.MediaStorageSOPInstanceUID = ascii_text(clean, SOP_INSTANCE)
        clean.file_meta.TransferSyntaxUID = syntax
        clean.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
        clean.file_meta.ImplementationVersionName = IMPLEMENTATION_NAME


@lru_cache(maxsize=4096)
def _name(tag: BaseTag) -> str:
    """How the report calls an attribute that no table keeps."""
    if tag.is_private:
        return "private"
    if dictionary_has_tag(tag):
        return keyword_for_tag(tag)
    return f"({tag.group:04X},{tag.element:04X})"


def _identity_text(source: Dataset, tag: int) -> str:
    """A value that tells patients apart: as bytes where that is enough, decoded where it is not ASCII."""
    if tag not in source:
        return ""
    values = texts(source.get_item(tag))
    return "\\".join(values) if values is not None else str(source[tag].value).strip(" \0")


def _in_known_vr(element: Element, rule: Rule) -> Element | None:
    """An element of a known attribute that came as UN, in its own VR; None if its VR contradicts the dictionary."""
    if element.VR != "UN":
        return None
    if rule.vrs == ("SQ",):
        return element
    if isinstance(element, RawDataElement) and element.is_little_endian and len(rule.vrs) == 1:
        return element._replace(VR=rule.vrs[0])
    return None


def _is_complete(elements: Elements, rule: Rule) -> bool:
    """Whether a scrubbed item of earlier equipment still says what it must (PS3.3 table C.12-1)."""
    return rule.tag != CONTRIBUTING_EQUIPMENT or (PURPOSE in elements and MANUFACTURER in elements)


def _refuse_shown_identity(source: Dataset) -> None:
    if "YES" in ascii_text(source, BURNED_IN).upper():
        raise PrivacyError(
            "expected an image without burned-in text, found one whose header says BurnedInAnnotation YES; "
            "leave it out or have its pixels cleaned first"
        )
    if SCREEN_CONTENT & set(ascii_text(source, IMAGE_TYPE).upper().split("\\")):
        raise PrivacyError("expected a scan, found a screen capture, which often shows names; leave it out")
