"""Modality lookup tables: stored values mapped one by one (PS3.3 section C.11.1.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from medsynth.errors import DataError, UnreadableError
from medsynth.imaging.fields import text, whole
from medsynth.imaging.walk import READ_ERRORS

DESCRIPTOR, KIND, DATA = 0x00283002, 0x00283004, 0x00283006
SIGNED = 0x00280103
MOST_ENTRIES = 1 << 16
WRONG = "the modality lookup table contradicts its own descriptor; export the series again"


@dataclass(frozen=True, slots=True)
class Table:
    """Output values for the stored values `first`, `first` + 1, ...; beyond its ends the end's value."""

    first: int
    entries: bytes
    """Unsigned, little-endian, `width` bytes each."""
    width: int
    unit: str
    """ModalityLUTType in capitals: HU, US (unspecified), OD, ..."""

    def apply(self, stored: NDArray) -> NDArray:
        """Output values [...] of stored values [...], in the type of the entries."""
        values = np.frombuffer(self.entries, dtype=f"<u{self.width}")
        return values[np.clip(stored.astype(np.int64) - self.first, 0, len(values) - 1)]


def table_of(holder: Dataset, image: Dataset) -> Table:
    """The table in `holder`'s ModalityLUTSequence; `image` says whether stored values are signed.

    Raises UnreadableError where the table and its descriptor do not fit each other.
    """
    try:
        sequence = list(holder["ModalityLUTSequence"].value)
        if len(sequence) != 1:
            raise DataError("expected one modality lookup table, found several or none; leave the series out")
        item = sequence[0]
        descriptor, little = _numbers_of(item, DESCRIPTOR)
        count, first, bits = descriptor
        data, _ = _bytes_of(item, DATA, little)
    except READ_ERRORS:
        raise UnreadableError(WRONG) from None
    count = count or MOST_ENTRIES
    signed = whole(image, SIGNED, 0) == 1
    first = first - MOST_ENTRIES if signed and first >= MOST_ENTRIES // 2 else first
    if not 1 <= bits <= 16 or len(data) not in (count, count + count % 2, 2 * count):
        raise UnreadableError(WRONG)
    width = 2 if len(data) == 2 * count else 1
    if bits > 8 * width:
        raise UnreadableError(WRONG)
    return _once(Table(first, data[: count * width], width, text(item, KIND).upper()))


@lru_cache(64)
def _once(table: Table) -> Table:
    return table


def _numbers_of(item: Dataset, tag: int) -> tuple[tuple[int, int, int], bool]:
    """Three unsigned 16-bit numbers, whichever of US and SS the file calls them, and the file's byte order."""
    element = item.get_item(tag)
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes) and len(element.value) == 6:
        order = "<" if element.is_little_endian else ">"
        a, b, c = (int(number) for number in np.frombuffer(element.value, f"{order}u2"))
        return (a, b, c), bool(element.is_little_endian)
    a, b, c = (int(number) % MOST_ENTRIES for number in item[tag].value)
    return (a, b, c), True


def _bytes_of(item: Dataset, tag: int, little: bool) -> tuple[bytes, bool]:
    element = item.get_item(tag)
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
        raw = element.value
        return (raw if little else np.frombuffer(raw, ">u2").astype("<u2").tobytes()), little
    value = item[tag].value
    if isinstance(value, bytes):
        return value, little
    return np.asarray([int(number) for number in value]).astype("<u2").tobytes(), little
