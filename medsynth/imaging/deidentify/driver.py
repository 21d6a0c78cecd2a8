"""One dataset in, its de-identified twin out: the Basic Application Level Confidentiality Profile and its options.

PS3.15 Annex E. What is done to which attribute is data (`table.py`); how it is done is one small function per action
(`actions.py`). Here they meet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, TypeAlias

import pydicom.uid
from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

import medsynth
from medsynth.config.deidentify import Deidentify
from medsynth.errors import DataError, PrivacyError, UnreadableError
from medsynth.imaging.deidentify import actions
from medsynth.imaging.deidentify.case import CHARACTER_SET, Case, character_set_element, charset_of_result
from medsynth.imaging.deidentify.elements import (
    ASCII,
    DAMAGE,
    EXPLICIT_LITTLE,
    Element,
    ascii_text,
    encoded_text,
    encoding_of,
    item_of,
    texts,
)
from medsynth.imaging.deidentify.guard import PixelGuard
from medsynth.imaging.deidentify.keys import SecretKey
from medsynth.imaging.deidentify.lookup_tables import cut_table
from medsynth.imaging.deidentify.markers import (
    CONTRIBUTING_EQUIPMENT,
    PURPOSE,
    SOP_CLASS,
    SOP_INSTANCE,
    Markers,
    file_meta_of,
)
from medsynth.imaging.deidentify.pixels import clean_pixel_element
from medsynth.imaging.deidentify.retained import retained_texts
from medsynth.imaging.deidentify.safe_private import load_safe_private
from medsynth.imaging.deidentify.structured import clean_content_item
from medsynth.imaging.deidentify.table import Rule, Rules, load_table
from medsynth.imaging.quiet import quiet_pydicom

Elements: TypeAlias = dict[BaseTag, Element]
Action: TypeAlias = Callable[[Any, Rule, Case], Element | None]

PROFILE = "Basic Application Level Confidentiality Profile"
MANUFACTURER, META_SOP_CLASS, META_SOP_INSTANCE = 0x00080070, 0x00020002, 0x00020003
KEEPS_TEXT = {
    "retain_full_dates", "retain_patient_characteristics", "retain_device_identity", "retain_institution_identity",
}  # fmt: skip
"""Options under which words in another script than ASCII may stay."""
VALUE_FREE = {"Z", "D"}
"""Actions that do not look at the value."""
PURE = {"K", "C", "U", "CODE"}
"""Actions whose result depends on the value alone; the next slice of a series mostly has the same values."""
LONGEST_REMEMBERED, MOST_REMEMBERED = 256, 20_000
"""Bytes of a value, and values, up to which results are kept for the next slice."""
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

    def __init__(self, key: SecretKey, settings: Deidentify | None = None) -> None:
        """Without settings the Basic Profile alone."""
        self.key = key
        self.settings = settings or Deidentify()
        self.options = frozenset(self.settings.options)
        self._table = load_table()
        self._guard = PixelGuard(self.settings)
        self._markers = Markers(self._table, self.settings.options)
        self._safe_private = load_safe_private() if "retain_safe_private" in self.options else None
        self._counts: defaultdict[Rule | tuple[str, str], int] = defaultdict(int)
        self._remembered: dict[tuple[object, ...], Element | None] = {}
        self._actions: dict[str, Action] = {
            **actions.SIMPLE,
            "U": actions.replace_uids,
            "W": partial(actions.clean_words, dictionary=self._table.dictionary),
            "S": self._recurse,
            "CODE": self._known_codes,
            "RCODE": actions.retain_codes,
            "T": self._content,
        }

    @property
    def profile(self) -> dict[str, Any]:
        """What was asked for, as plain JSON: profile, options, editions of the tables, the key's fingerprint."""
        return {
            "tool": f"medsynth {medsynth.__version__}",
            "profile": PROFILE,
            "options": list(self.settings.options),
            "edition": f"PS3.15 {self._table.edition}",
            "options_edition": f"PS3.15 {self._table.options_edition}",
            "safe_private": None if self._safe_private is None else self._safe_private.edition,
            "accept_faces": self.settings.accept_faces,
            "key": self.key.fingerprint,
        }

    @property
    def report(self) -> dict[str, dict[str, int]]:
        """Attribute -> action -> how often. Names are DICOM keywords, `private`, or the tag of an unknown one.

        The actions are those of `options.ACTIONS`.
        """
        report: dict[str, dict[str, int]] = {}
        for counted, count in self._counts.items():
            name, action = (counted.keyword, counted.action) if isinstance(counted, Rule) else counted
            entry = report.setdefault(name, {})
            entry[action] = entry.get(action, 0) + count
        return {name: dict(sorted(report[name].items())) for name in sorted(report)}

    def add_report(self, report: Mapping[str, Mapping[str, int]]) -> None:
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

        Raises PrivacyError for kinds of objects whose pixels may show names or faces and may not be cleaned, DataError
        where patient or kind cannot be told, UnreadableError where elements are damaged.
        """
        with quiet_pydicom():
            try:
                return self._twin(source)
            except DAMAGE:
                raise UnreadableError(
                    "expected a whole DICOM header, found elements that cannot be read; export the file again"
                ) from None  # what pydicom says may quote the header

    def retained(self, source: Dataset, clean: Dataset) -> frozenset[str]:
        """The texts that options kept on purpose in `clean`, the twin of `source`; in lower case.

        Dates under full dates, serial numbers under device identity, and so on; for the search of the result.
        """
        if not self.options:
            return frozenset()
        with quiet_pydicom():
            return frozenset(retained_texts(clean, self._table.rules_for(self._sop_class(source), self.options)))

    def _twin(self, source: Dataset) -> Dataset:
        sop_class = self._sop_class(source)
        regions = self._guard.check(source)
        patient = self.patient_of(source)
        encoding = encoding_of(source, EXPLICIT_LITTLE)
        charset = charset_of_result(source) if KEEPS_TEXT & self.options else ASCII
        case = Case(source, encoding, self.key, shift_days=self.key.shift_days(patient), charset=charset)
        elements = self._clean(case, self._table.rules_for(sop_class, self.options))
        elements[BaseTag(SOP_CLASS)] = encoded_text(SOP_CLASS, "UI", [sop_class], encoding)
        instance = self._instance_uid(source, elements)
        if instance:
            elements[BaseTag(SOP_INSTANCE)] = encoded_text(SOP_INSTANCE, "UI", [instance], encoding)
        if charset != ASCII:
            elements[BaseTag(CHARACTER_SET)] = character_set_element(encoding)
        earlier = elements.get(BaseTag(CONTRIBUTING_EQUIPMENT))
        markers = self._markers.written(source, patient, earlier, encoding, pixels_cleaned=bool(regions))
        for keyword, made in markers.items():
            elements[made.tag] = made
            self._counts[keyword, "pseudonym" if keyword in {"PatientName", "PatientID"} else "marker"] += 1
        clean = item_of(elements, encoding, charset)
        meta = file_meta_of(source, sop_class, instance)
        if meta is not None:
            clean.file_meta = meta
        clean_pixel_element(source, clean)
        if regions:
            self._guard.clean(source, clean, regions)
        return clean

    def _sop_class(self, source: Dataset) -> str:
        found = ascii_text(source, SOP_CLASS) or _meta_text(source, META_SOP_CLASS)
        if not found:
            raise DataError("expected a SOP class (0008,0016) in the header, found none; the file's kind is unknown")
        if found not in self._table.sop_classes:
            name = pydicom.uid.UID(found).name if found in pydicom.uid.UID_dictionary else "a private or unknown class"
            raise PrivacyError(
                f"expected a CT or MR image, found {name}, whose pixels or text may show names; leave it out"
            )
        return found

    def _clean(self, case: Case, rules: Rules) -> Elements:
        clean: Elements = {}
        counts = self._counts
        for tag, element in case.dataset.items():
            rule = rules.get(int(tag))
            if rule is None:
                self._clean_unlisted(tag, element, case, clean)
                continue
            counts[rule] += 1
            if rule.action == "X":
                continue
            if element.value is None and isinstance(element, RawDataElement) and element.length:
                element = case.dataset.get_item(tag)  # left in the file so far
            kept = self._apply(element, rule, case)
            if kept is not None:
                clean[tag] = kept
        return clean

    def _clean_unlisted(self, tag: BaseTag, element: Element, case: Case, clean: Elements) -> None:
        if not tag.is_private:
            self._counts[_name(tag), "unlisted"] += 1
            return
        safe = None if self._safe_private is None else self._safe_private.kept(element, case)
        self._counts["private", "private" if safe is None else "P"] += 1
        if safe is not None:
            clean.update((part.tag, part) for part in safe)

    def _apply(self, element: Element, rule: Rule, case: Case) -> Element | None:
        action = rule.action
        act = self._actions[action]
        if action in VALUE_FREE:
            return act(element, rule, case)
        if element.VR is not None and element.VR not in rule.vrs:
            known = _in_known_vr(element, rule)
            if known is None:
                return actions.without(rule, case)
            element = known
        value = element.value
        if action not in PURE or not isinstance(value, bytes) or len(value) > LONGEST_REMEMBERED:
            return self._act(act, element, rule, case)
        mark = (rule, element.VR, value, case.encoding)
        if mark in self._remembered:
            return self._remembered[mark]
        if len(self._remembered) >= MOST_REMEMBERED:
            self._remembered.clear()
        kept = self._remembered[mark] = self._act(act, element, rule, case)
        return kept

    @staticmethod
    def _act(act: Action, element: Element, rule: Rule, case: Case) -> Element | None:
        """The action, on decoded items where it is a sequence."""
        if rule.vrs[0] != "SQ":
            return act(element, rule, case)
        decoded = case.dataset[rule.tag]
        return act(decoded, rule, case) if decoded.VR == "SQ" else actions.without(rule, case)

    def _recurse(self, element: DataElement, rule: Rule, case: Case) -> Element | None:
        items: list[Dataset] = []
        for item in element.value:
            own = encoding_of(item, case.encoding)  # items of a sequence that came as UN are encoded in their own way
            elements = self._clean(case.inside(item, own), rule.items or {})
            cut_table(elements, own)
            if elements and _is_complete(elements, rule):
                items.append(item_of(elements, own, case.charset))
        return DataElement(rule.tag, "SQ", Sequence(items)) if items else actions.without(rule, case)

    def _known_codes(self, element: DataElement, rule: Rule, case: Case) -> Element | None:
        return actions.keep_codes(element, rule, case, self._table.codes)

    def _content(self, element: DataElement, rule: Rule, case: Case) -> Element | None:
        items = [clean_content_item(item, self._table.codes) for item in element.value]
        left = [item for item in items if item is not None]
        return DataElement(rule.tag, "SQ", Sequence(left)) if left else actions.without(rule, case)

    def _instance_uid(self, source: Dataset, elements: Elements) -> str:
        """The new UID; some archives empty it in the dataset and leave it in the file meta information."""
        kept = elements.get(BaseTag(SOP_INSTANCE))
        values = texts(kept) if kept is not None else None
        if values and values[0]:
            return values[0]
        found = _meta_text(source, META_SOP_INSTANCE)
        if not found:
            return ""
        valid = "retain_uids" in self.options and actions.FORMS["UI"].fullmatch(found)
        return found if valid else self.key.uid(found)


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


def _meta_text(source: Dataset, tag: int) -> str:
    meta = getattr(source, "file_meta", None)
    return ascii_text(meta, tag) if meta else ""


def _is_complete(elements: Elements, rule: Rule) -> bool:
    """Whether a scrubbed item of earlier equipment still says what it must (PS3.3 table C.12-1)."""
    return rule.tag != CONTRIBUTING_EQUIPMENT or (PURPOSE in elements and MANUFACTURER in elements)
