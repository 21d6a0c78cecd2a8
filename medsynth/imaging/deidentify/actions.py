"""The actions of PS3.15 Annex E, each a tiny function from an element and its rule to what is left of it (or None).

Elements arrive as pydicom read them, undecoded where possible: numbers and codes are checked as bytes and passed on as
bytes, which is fast and never makes a value part of a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from medsynth.imaging.deidentify.elements import Element, Encoding, encoded, encoded_text, texts
from medsynth.imaging.deidentify.keys import SecretKey
from medsynth.imaging.deidentify.table import BINARY_SIZES, BULK, NUMBER_TEXT, Rule

Codes = Mapping[str, Mapping[str, str]]

DUMMY_TEXT = b"REMOVED"
DUMMIES: Mapping[str, bytes] = {
    "AE": DUMMY_TEXT, "AS": b"000Y", "CS": b"OTHER", "DA": b"19000101", "DT": b"19000101000000", "LO": DUMMY_TEXT,
    "LT": DUMMY_TEXT, "PN": DUMMY_TEXT, "SH": DUMMY_TEXT, "ST": DUMMY_TEXT, "TM": b"000000", "UC": DUMMY_TEXT,
    "UR": b"urn:removed", "UT": DUMMY_TEXT, "DS": b"0", "IS": b"0",
}  # fmt: skip
"""Values for type 1 attributes; 19000101 because the year 1 of 00010101 is no valid date to many readers."""
ZEROS = bytes(8)
"""Dummy of binary VRs, whose values have at most eight bytes."""
EMPTY_ITEM = {True: b"\xfe\xff\x00\xe0\0\0\0\0", False: b"\xff\xfe\xe0\x00\0\0\0\0"}
"""A sequence item without attributes, by whether the encoding is little endian (PS3.5 table 7.5-1)."""

DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
INTEGER = re.compile(r"[+-]?\d{1,12}")
LONGEST_DECIMAL = 32
"""PS3.5 allows 16 characters, which scanners exceed."""
PLACEHOLDER = "OTHER"


def remove(element: Element, rule: Rule, encoding: Encoding) -> None:
    """X."""


def empty(element: Element, rule: Rule, encoding: Encoding) -> Element:
    """Z: there, of zero length."""
    return encoded(rule.tag, rule.vrs[0], b"", encoding)


def dummy(element: Element, rule: Rule, encoding: Encoding) -> Element:
    """D: a value that says nothing; a sequence keeps one empty item."""
    vr = rule.vrs[0]
    value = EMPTY_ITEM[encoding.little] if vr == "SQ" else DUMMIES.get(vr, ZEROS[: BINARY_SIZES.get(vr, 2)])
    return encoded(rule.tag, vr, value, encoding)


def replace_uids(element: Element, rule: Rule, encoding: Encoding, key: SecretKey) -> Element | None:
    """U: every UID by the key; those of the standard itself stay."""
    values = texts(element)
    if values is None:
        return without(rule, encoding)
    return encoded_text(rule.tag, "UI", [key.uid(value) if value else "" for value in values], encoding)


def keep(element: Element, rule: Rule, encoding: Encoding) -> Element | None:
    """K: numbers and bulk data as they are, provided that they are what the attribute says they are."""
    vr = rule.vrs[0] if element.VR in (None, "UN") else str(element.VR)
    if vr in NUMBER_TEXT:
        good = _holds_numbers(texts(element), rule, vr)
    elif vr in BINARY_SIZES:
        good = _holds_binary(element, rule, BINARY_SIZES[vr])
    else:
        good = vr in BULK and element.VR != "UN"
    return element if good else without(rule, encoding)


def keep_known_terms(element: Element, rule: Rule, encoding: Encoding) -> Element | None:
    """C: coded text as it is, if it is made of known terms alone.

    Unknown terms are dropped; in ImageType, where the place of a value has a meaning, they become OTHER.
    """
    values = texts(element)
    if values is None:
        return without(rule, encoding)
    known = [_is_known(value, rule) for value in values]
    if all(known):
        return element if any(values) or rule.requirement == 2 else without(rule, encoding)
    if rule.keyword == "ImageType":
        values = [value if good else PLACEHOLDER for value, good in zip(values, known, strict=True)]
        return encoded_text(rule.tag, "CS", values, encoding)
    left = [value for value, good in zip(values, known, strict=True) if good and value]
    if not left or rule.vrs[0] != "CS":
        return without(rule, encoding)
    return encoded_text(rule.tag, "CS", left, encoding)


def keep_codes(element: DataElement, rule: Rule, encoding: Encoding, codes: Codes) -> Element | None:
    """C for sequences of codes: only codes of the dictionary, their meaning written anew, nothing else of the item."""
    items = [code_item(value, scheme, codes) for value, scheme in map(_code_of, element.value)]
    left = [item for item in items if item is not None]
    return DataElement(rule.tag, "SQ", Sequence(left)) if left else without(rule, encoding)


def code_item(value: str, scheme: str, codes: Codes) -> Dataset | None:
    """The item for one coded concept (PS3.3 table 8.8-1), or None if the dictionary does not have it."""
    meaning = codes.get(scheme, {}).get(value)
    if meaning is None:
        return None
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning[:64]
    return item


def without(rule: Rule, encoding: Encoding) -> Element | None:
    """What stands in for a value that cannot be kept: by type a dummy, nothing between the ends, or no attribute."""
    vr = rule.vrs[0]
    if rule.requirement == 2:
        return encoded(rule.tag, vr, b"", encoding)
    if rule.requirement == 1 and vr in {"CS", "LO", "SH"}:
        return encoded(rule.tag, vr, DUMMIES[vr], encoding)
    return None  # geometry without its number is better missing, and so found, than invented


SIMPLE: Mapping[str, Callable[[Element, Rule, Encoding], Element | None]] = {
    "X": remove,
    "Z": empty,
    "D": dummy,
    "K": keep,
    "C": keep_known_terms,
}
"""Actions that need nothing but the element and its rule."""


def _holds_numbers(values: list[str] | None, rule: Rule, vr: str) -> bool:
    if values is None or not _fits(len(values), rule):
        return False
    if vr == "IS":
        return all(not value or INTEGER.fullmatch(value) for value in values)
    return all(not value or (len(value) <= LONGEST_DECIMAL and DECIMAL.fullmatch(value)) for value in values)


def _holds_binary(element: Element, rule: Rule, size: int) -> bool:
    value = element.value
    if value is None:
        return True
    if isinstance(value, bytes):
        return len(value) % size == 0 and _fits(len(value) // size, rule)
    values = value if isinstance(value, MultiValue | list | tuple) else [value]
    return _fits(len(values), rule) and all(isinstance(number, int | float) for number in values)


def _fits(count: int, rule: Rule) -> bool:
    return rule.most_values is None or count <= rule.most_values


def _is_known(value: str, rule: Rule) -> bool:
    return not value or value.upper() in rule.terms or bool(rule.pattern and rule.pattern.fullmatch(value))


def _code_of(item: Dataset) -> tuple[str, str]:
    pair = []
    for keyword in ("CodeValue", "CodingSchemeDesignator"):
        values = texts(item.get_item(keyword)) if keyword in item else None
        pair.append(values[0] if values and len(values) == 1 else "")
    return pair[0], pair[1]
