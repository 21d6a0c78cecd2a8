"""The actions of PS3.15 Annex E, each a tiny function from an element and its rule to what is left of it (or None).

Elements arrive as pydicom read them, undecoded where possible: numbers and codes are checked as bytes and passed on as
bytes, which is fast and never makes a value part of a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from medsynth.imaging.deidentify import dates
from medsynth.imaging.deidentify.case import Case
from medsynth.imaging.deidentify.descriptors import Dictionary
from medsynth.imaging.deidentify.elements import Element, encoded, encoded_sequence, encoded_text, item_of, texts
from medsynth.imaging.deidentify.options import BINARY_SIZES
from medsynth.imaging.deidentify.table import BULK, NUMBER_TEXT, Rule

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
WORDS_IN_NUMBERS = re.compile(rb"[A-Za-z0-9 ^=.,_-]{7,}\0*")
"""Bytes that are writing and no numbers: a double of usual size ends in `?` or `@`, and small integers in zeros."""
PLACEHOLDER = "OTHER"

WHOLE_TEXT = {"LT", "ST", "UR", "UT"}
"""VRs in which a backslash is a letter and not the end of a value."""
LONGEST = {"AE": 16, "LO": 64, "LT": 10240, "SH": 16, "ST": 1024, "UC": 65536, "UR": 4096, "UT": 65536}
"""Characters; UC, UR and UT have no limit in the standard, and a retained text needs none beyond these."""
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd]")
LINE_ENDS = re.compile(r"[\t\n\f\r]")
FORMS = {
    "CS": re.compile(r"[A-Z0-9_ ]{1,16}"),
    "UI": re.compile(r"(?=.{1,64}$)(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*))+"),
    "AE": re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}"),
    "UR": re.compile(r"[\x21-\x7e]{1,4096}"),
}
CODE_PARTS = {0x00080100: "SH", 0x00080102: "SH", 0x00080104: "LO"}
"""Value, scheme and meaning of a coded concept (PS3.3 table 8.8-1)."""


def remove(element: Element, rule: Rule, case: Case) -> None:
    """X."""


def empty(element: Element, rule: Rule, case: Case) -> Element:
    """Z: there, of zero length."""
    return encoded(rule.tag, rule.vrs[0], b"", case.encoding)


def dummy(element: Element, rule: Rule, case: Case) -> Element:
    """D: a value that says nothing; a sequence keeps one empty item."""
    vr = rule.vrs[0]
    value = EMPTY_ITEM[case.encoding.little] if vr == "SQ" else DUMMIES.get(vr, ZEROS[: BINARY_SIZES.get(vr, 2)])
    return encoded(rule.tag, vr, value, case.encoding)


def replace_uids(element: Element, rule: Rule, case: Case) -> Element | None:
    """U: every UID by the key; those of the standard itself stay."""
    values = texts(element)
    if values is None:
        return without(rule, case)
    return encoded_text(rule.tag, "UI", [case.key.uid(value) if value else "" for value in values], case.encoding)


def keep(element: Element, rule: Rule, case: Case) -> Element | None:
    """K: numbers and bulk data as they are, provided that they are what the attribute says they are."""
    vr = rule.vrs[0] if element.VR in (None, "UN") else str(element.VR)
    if vr in NUMBER_TEXT:
        good = _holds_numbers(texts(element), rule, vr)
    elif vr in BINARY_SIZES:
        good = _holds_binary(element, rule, BINARY_SIZES[vr])
    else:
        good = vr in BULK and element.VR != "UN"
    return element if good else without(rule, case)


def keep_known_terms(element: Element, rule: Rule, case: Case) -> Element | None:
    """C: coded text as it is, if it is made of known terms alone.

    Unknown terms are dropped; in ImageType, where the place of a value has a meaning, they become OTHER.
    """
    values = texts(element)
    if values is None:
        return without(rule, case)
    known = [_is_known(value, rule) for value in values]
    if all(known):
        return element if any(values) or rule.requirement == 2 else without(rule, case)
    if rule.keyword == "ImageType":
        values = [value if good else PLACEHOLDER for value, good in zip(values, known, strict=True)]
        return encoded_text(rule.tag, "CS", values, case.encoding)
    left = [value for value, good in zip(values, known, strict=True) if good and value]
    if not left or rule.vrs[0] != "CS":
        return without(rule, case)
    return encoded_text(rule.tag, "CS", left, case.encoding)


def keep_codes(element: DataElement, rule: Rule, case: Case, codes: Codes) -> Element | None:
    """C for sequences of codes: only codes of the dictionary, their meaning written anew, nothing else of the item."""
    items = [code_item(value, scheme, codes) for value, scheme in map(code_of, element.value)]
    left = [item for item in items if item is not None]
    return encoded_sequence(rule.tag, left, case.encoding) if left else without(rule, case)


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


def code_of(item: Dataset) -> tuple[str, str]:
    """Value and scheme of a coded concept; empty where there is not exactly one in ASCII."""
    pair = []
    for keyword in ("CodeValue", "CodingSchemeDesignator"):
        values = texts(item.get_item(keyword)) if keyword in item else None
        pair.append(values[0] if values and len(values) == 1 else "")
    return pair[0], pair[1]


def retain(element: Element, rule: Rule, case: Case) -> Element | None:
    """R: text, dates and UIDs that an option keeps, provided that every value is valid for its VR (PS3.5 table 6.2-1)."""
    vr = rule.vrs[0]
    values = case.text_of(element)
    if values is None:
        return without(rule, case)
    if vr == "UI":
        values = [value if not value or _is_valid(value, vr) else case.key.uid(value) for value in values]
    if vr in WHOLE_TEXT:
        values = ["\\".join(values)]
    if not _fits(len(values), rule) or not all(not value or _is_valid(value, vr) for value in values):
        return without(rule, case)
    if not any(values):
        return empty(element, rule, case) if rule.requirement == 2 else without(rule, case)
    text = "\\".join(values)
    return encoded(rule.tag, vr, text.encode("ascii" if text.isascii() else case.charset), case.encoding)


def retain_codes(element: DataElement, rule: Rule, case: Case) -> Element | None:
    """R for sequences of codes that an option keeps and no dictionary knows: value, scheme and meaning, nothing else."""
    items = []
    for item in element.value:
        inner, kept = case.inside(item, case.encoding), {}
        for tag, vr in CODE_PARTS.items():
            if tag in item:
                part = retain(item.get_item(tag), _plain_rule(tag, vr), inner)
                if part is not None:
                    kept[BaseTag(tag)] = part
        if len(kept) == len(CODE_PARTS):
            items.append(item_of(kept, case.encoding, case.charset))
    return DataElement(rule.tag, "SQ", Sequence(items)) if items else without(rule, case)


def cap_age(element: Element, rule: Rule, case: Case) -> Element | None:
    """A: an age, the highest ones in one group."""
    values = texts(element) or []
    age = dates.capped_age(values[0]) if len(values) == 1 else None
    return without(rule, case) if age is None else encoded_text(rule.tag, "AS", [age], case.encoding)


def move_dates(element: Element, rule: Rule, case: Case) -> Element | None:
    """M: dates some whole weeks away, by patient; weekdays and intervals stay. What is no date goes, and is not made one."""
    move = dates.moved_date if rule.vrs[0] == "DA" else dates.moved_datetime
    values = texts(element)
    moved = [value and move(value, case.shift_days) for value in values or []]
    if not any(moved) or None in moved:
        return without(rule, case)
    return encoded_text(rule.tag, rule.vrs[0], [value or "" for value in moved], case.encoding)


def clean_words(element: Element, rule: Rule, case: Case, dictionary: Dictionary) -> Element | None:
    """W: the words of radiology in a free text, none that is part of a name in the same header."""
    vr, value = rule.vrs[0], element.value
    if isinstance(value, bytes):
        text = "" if b"\x1b" in value else value.decode("latin-1")  # words left are ASCII, whatever the rest is
    else:
        text = "\\".join(map(str, value)) if isinstance(value, MultiValue | list | tuple) else str(value or "")
    parts = [text] if vr in WHOLE_TEXT else text.split("\\")
    left = [cleaned for part in parts if (cleaned := dictionary.cleaned(part.strip(" \0"), case.names))]
    return encoded_text(rule.tag, vr, left, case.encoding) if left else without(rule, case)


def without(rule: Rule, case: Case) -> Element | None:
    """What stands in for a value that cannot be kept: by type a dummy, nothing between the ends, or no attribute."""
    vr = rule.vrs[0]
    if rule.requirement == 2:
        return encoded(rule.tag, vr, b"", case.encoding)
    if rule.requirement == 1 and vr in {"CS", "LO", "SH"}:
        return encoded(rule.tag, vr, DUMMIES[vr], case.encoding)
    return None  # geometry without its number is better missing, and so found, than invented


SIMPLE: Mapping[str, Callable[[Element, Rule, Case], Element | None]] = {
    "X": remove,
    "Z": empty,
    "D": dummy,
    "K": keep,
    "C": keep_known_terms,
    "R": retain,
    "A": cap_age,
    "M": move_dates,
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
        return len(value) % size == 0 and _fits(len(value) // size, rule) and not WORDS_IN_NUMBERS.fullmatch(value)
    values = value if isinstance(value, MultiValue | list | tuple) else [value]
    return _fits(len(values), rule) and all(isinstance(number, int | float) for number in values)


def _fits(count: int, rule: Rule) -> bool:
    return rule.least_values <= count and (rule.most_values is None or count <= rule.most_values)


def _is_known(value: str, rule: Rule) -> bool:
    return not value or value.upper() in rule.terms or bool(rule.pattern and rule.pattern.fullmatch(value))


def _is_valid(value: str, vr: str) -> bool:
    if vr == "DA":
        return dates.is_date(value)
    if vr == "DT":
        return dates.is_datetime(value)
    if vr == "TM":
        return dates.is_time(value)
    if vr in FORMS:
        return FORMS[vr].fullmatch(value) is not None
    one_line = vr in {"LO", "SH", "UC"}
    return len(value) <= LONGEST[vr] and not CONTROLS.search(value) and not (one_line and LINE_ENDS.search(value))


@cache
def _plain_rule(tag: int, vr: str) -> Rule:
    """The rule of a part of a retained code: one value, needed."""
    return Rule(tag, "", (vr,), 1, 3, "R", None, frozenset(), None)
