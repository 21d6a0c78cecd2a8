"""Values of header elements, read from their bytes where that is plain and by pydicom where it is not.

Slices of a series repeat most values byte for byte, so what was read once is remembered by its bytes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement

from medsynth.errors import UnreadableError
from medsynth.imaging.walk import READ_ERRORS

REMEMBERED = 1 << 12
BINARY_VRS = {"SQ", "OB", "OW", "US", "SS", "UL", "SL", "FD", "FL", "AT", "UN", "OF", "OD", "OL", "SV", "UV", "OV"}


def text(dataset: Dataset, tag: int) -> str:
    """The value as text, several joined by a backslash; empty where there is none. Raises UnreadableError."""
    element = dataset.get_item(tag, keep_deferred=True)
    if element is None:
        return ""
    if isinstance(element, RawDataElement) and (element.VR or _usual_vr(tag)) not in BINARY_VRS:
        if not element.value:
            return ""
        plain = _ascii(element.value)
        if plain is not None:
            return plain
    try:
        value = dataset[tag].value
        return "\\".join(map(str, value)) if isinstance(value, (list, tuple)) or _is_multi(value) else str(value or "")
    except READ_ERRORS:
        raise _damaged(tag) from None


def plain_words(dataset: Dataset, *tags: int) -> tuple[bytes, ...]:
    """The bytes of text elements as they stand in the file, to be looked at for words and never shown."""
    found = []
    for tag in tags:
        element = dataset.get_item(tag, keep_deferred=True)
        value = None if element is None else element.value
        if value is None or isinstance(value, bytes):
            found.append(value or b"")
        else:
            found.append(str(value).encode("ascii", "ignore"))
    return tuple(found)


def numbers(dataset: Dataset, tag: int, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers, None where there are none. Raises UnreadableError for anything else."""
    element = dataset.get_item(tag, keep_deferred=True)
    if element is None:
        return None
    if isinstance(element, RawDataElement) and element.value is not None:
        vr = element.VR or _usual_vr(tag)
        if vr in ("DS", "IS"):
            if not element.value.strip(b" \0"):
                return None
            found = _decimals(element.value)
            if found is not None and len(found) == count:
                return found
        elif vr == "US" and count == 1 and len(element.value) == 2:
            return (float(int.from_bytes(element.value, "little" if element.is_little_endian else "big")),)
    # A damaged value surfaces only here, when pydicom converts it; its message would repeat the value.
    try:
        value: Any = dataset[tag].value
        if value is None or value == "":
            return None
        found = tuple(float(number) for number in ([value] if count == 1 else value))
    except READ_ERRORS:
        raise _damaged(tag, count) from None
    if len(found) != count or not all(map(math.isfinite, found)):
        raise _damaged(tag, count)
    return found


def whole(dataset: Dataset, tag: int, otherwise: int) -> int:
    """A whole number from the header, `otherwise` where it has none. Raises UnreadableError."""
    found = numbers(dataset, tag, 1)
    if found is None:
        return otherwise
    if not found[0].is_integer():
        raise _damaged(tag, 1)
    return int(found[0])


def items(dataset: Dataset, tag: int) -> list[Dataset]:
    """The items of a sequence, none where it is missing. Raises UnreadableError."""
    if dataset.get_item(tag, keep_deferred=True) is None:
        return []
    try:
        element = dataset[tag]
        return list(element.value or []) if element.VR == "SQ" else []
    except READ_ERRORS:
        raise _damaged(tag) from None


def _damaged(tag: int, count: int = 0) -> UnreadableError:
    name = keyword_for_tag(tag) or "an element"
    wanted = f" is not a list of {count} numbers" if count else " cannot be read"
    return UnreadableError(f"{name}{wanted}; export the series again")


@lru_cache(REMEMBERED)
def _usual_vr(tag: int) -> str:
    return dictionary_VR(tag)


def _is_multi(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, (str, bytes)) and not hasattr(value, "components")


@lru_cache(REMEMBERED)
def _ascii(value: bytes) -> str | None:
    try:
        return value.decode("ascii").strip(" \0")
    except UnicodeDecodeError:
        return None


@lru_cache(REMEMBERED)
def _decimals(value: bytes) -> tuple[float, ...] | None:
    """Decimal strings (PS3.5 section 6.2), None where pydicom had better look at them."""
    try:
        found = tuple(map(float, value.strip(b" \0").split(b"\\")))
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None
