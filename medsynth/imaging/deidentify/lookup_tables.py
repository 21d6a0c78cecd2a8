"""What can hide behind a lookup table: bytes beyond the entries that its descriptor declares (PS3.3 C.11.1.1.1)."""

from __future__ import annotations

import struct
from collections.abc import MutableMapping

from pydicom.tag import BaseTag

from medsynth.imaging.deidentify.elements import Element, Encoding, encoded

DESCRIPTOR, DATA = BaseTag(0x00283002), BaseTag(0x00283006)
MOST_ENTRIES = 65536


def cut_table(elements: MutableMapping[BaseTag, Element], encoding: Encoding) -> None:
    """Cut the LUT Data in the elements of one item to its entries; without a descriptor that can be read it goes whole."""
    element = elements.get(DATA)
    if element is None:
        return
    descriptor = _numbers(elements.get(DESCRIPTOR), encoding)
    data = _bytes(element, encoding)
    if len(descriptor) != 3 or data is None:
        del elements[DATA]
        return
    entries, bits = descriptor[0] or MOST_ENTRIES, descriptor[2]
    length = entries * (1 if bits <= 8 and not _in_words(data, entries, encoding) else 2)
    if length < len(data):
        elements[DATA] = encoded(DATA, str(element.VR or "OW"), data[:length], encoding)


def _in_words(data: bytes, entries: int, encoding: Encoding) -> bool:
    """Whether entries of 8 bits stand in words of 16: then the other half of each word is empty."""
    if len(data) < 2 * entries:
        return False
    return not any(data[1 if encoding.little else 0 : 2 * entries : 2])


def _numbers(element: Element | None, encoding: Encoding) -> tuple[int, ...]:
    data = b"" if element is None else _bytes(element, encoding) or b""
    return struct.unpack(f"{'<' if encoding.little else '>'}{len(data) // 2}H", data[: len(data) // 2 * 2])


def _bytes(element: Element, encoding: Encoding) -> bytes | None:
    """The value as it is encoded; None where it is of another kind."""
    value = element.value
    if isinstance(value, bytes):
        return value
    numbers = list(value) if isinstance(value, list | tuple) or hasattr(value, "__iter__") else [value]
    if not all(isinstance(number, int) for number in numbers):
        return None
    return struct.pack(f"{'<' if encoding.little else '>'}{len(numbers)}H", *(number & 0xFFFF for number in numbers))
