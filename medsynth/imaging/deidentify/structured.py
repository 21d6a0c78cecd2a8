"""Clean Structured Content (PS3.15 E.3.4): of content items only known concepts are left, with known codes or numbers.

Every code is looked up in the dictionary of the table and written anew; texts, names, dates and references of content items
go, and so does an item whose concept is not known: without its meaning a number says nothing.
"""

from __future__ import annotations

from pydicom.dataset import Dataset

from medsynth.imaging.deidentify import actions
from medsynth.imaging.deidentify.elements import ascii_text
from medsynth.imaging.deidentify.options import NUMBERS

CONCEPT_NAME, CONCEPT_CODE, UNITS = 0x0040A043, 0x0040A168, 0x004008EA
VALUE_TYPE, NUMERIC_VALUE = 0x0040A040, 0x0040A30A
NUMERIC_TYPES, CODE_TYPES = {"NUM", "NUMERIC"}, {"CODE"}


def clean_content_item(item: Dataset, codes: actions.Codes) -> Dataset | None:
    """One item of an acquisition context (PS3.3 table 10-2), cleaned; None if nothing may be left of it."""
    concept = _known_code(item, CONCEPT_NAME, codes)
    if concept is None:
        return None
    clean = Dataset()
    kind = ascii_text(item, VALUE_TYPE).upper()
    if kind in {"", *CODE_TYPES} and (value := _known_code(item, CONCEPT_CODE, codes)) is not None:
        clean.add_new(CONCEPT_CODE, "SQ", [value])
    elif kind in {"", *NUMERIC_TYPES} and (units := _known_code(item, UNITS, codes)) is not None:
        numbers = _numbers(item)
        if numbers is None:
            return None
        clean.add_new(NUMERIC_VALUE, "DS", numbers)
        clean.add_new(UNITS, "SQ", [units])
    else:
        return None
    if kind:
        clean.add_new(VALUE_TYPE, "CS", kind)
    clean.add_new(CONCEPT_NAME, "SQ", [concept])
    return clean


def _known_code(item: Dataset, tag: int, codes: actions.Codes) -> Dataset | None:
    if tag not in item or item[tag].VR != "SQ" or not item[tag].value:
        return None
    return actions.code_item(*actions.code_of(item[tag].value[0]), codes)


def _numbers(item: Dataset) -> list[str] | None:
    if NUMERIC_VALUE not in item or item.get_item(NUMERIC_VALUE).VR not in {None, *NUMBERS}:
        return None
    values = ascii_text(item, NUMERIC_VALUE).split("\\")
    return values if all(actions.DECIMAL.fullmatch(value) and len(value) <= 16 for value in values) else None
