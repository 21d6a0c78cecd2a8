"""The elements of a DICOM file that are wanted, found by walking over its bytes.

pydicom decides what a file means: wherever the walk meets anything but a plain little-endian file in order and whole,
it gives up and pydicom reads the file instead. The walk only spares the time that pydicom takes to hand out elements
nobody asked for; a test compares both, element by element, over every file at hand.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pydicom
from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.dataelem import RawDataElement, empty_value_for_VR
from pydicom.dataset import FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag

Elements = dict[BaseTag, RawDataElement]

READ_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError),
    *(NotImplementedError, RecursionError, struct.error, zlib.error, MemoryError, BytesLengthException),
)
"""What pydicom raises on damaged bytes. Their text may hold a header's value, so it is never passed on."""

FIRST_BYTES, MORE = 1 << 15, 8
"""How much of a file is read for its header, and how many times more where that was too little."""
LARGEST_INFLATED = 1 << 29
"""Bytes that a deflated dataset may have: a small file can inflate to a thousand times its size."""
MOST_NESTED = 64

IMPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
OTHERS_OF_PYDICOM = {"", "1.2.840.10008.1.2.2"}
STANDARD_SYNTAX = "1.2.840.10008.1.2."
META_START = 132
CHARSET, SYNTAX, PIXELS_FROM, PIXEL_DATA = 0x00080005, 0x00020010, 0x7FE00008, 0x7FE00010
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OW", b"OV", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
SHORT_VRS = {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO"),
    *(b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
TEXT_OF_VR = {vr: vr.decode() for vr in LONG_VRS | SHORT_VRS}

_implicit = struct.Struct("<HHL").unpack_from
_explicit = struct.Struct("<HH2sH").unpack_from
_length = struct.Struct("<L").unpack_from


class Unusual(Exception):
    """The walk gives up; pydicom is to read the file."""


class TooShort(Unusual):
    """The bytes at hand end too early; there may be more in the file."""


class Inflated(NamedTuple):
    """File meta information, and the dataset's bytes."""

    meta: Elements
    syntax: str
    data: bytes
    start: int


def read_elements(path: Path, wanted: frozenset[int], *, pixels: bool) -> Dataset:
    """The `wanted` elements of a file with its `file_meta`; up to the pixels, or whole and with them.

    Raises InvalidDicomError where it is no DICOM file, one of READ_ERRORS where it is damaged.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        data = _read(file, FIRST_BYTES)
        while True:
            try:
                header = _walked(data, wanted, whole=len(data) >= size)
                if pixels:
                    _add_pixels(header, file, size)
                return header.dataset
            except TooShort:
                if len(data) >= size:
                    break
                file.seek(len(data))
                data += _read(file, len(data) * MORE)
            except Unusual:
                break
        tags: list[BaseTag | int] = [*wanted, PIXEL_DATA]
        if len(data) >= size:
            return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels, specific_tags=tags)
        bounded: Any = _Bounded(file, size)
        return pydicom.dcmread(bounded, stop_before_pixels=not pixels, specific_tags=tags)


def _read(file: io.FileIO, count: int) -> bytes:
    """Up to `count` bytes: one call of the system may bring fewer."""
    parts = []
    while count > 0 and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _Bounded:
    """A file that never promises memory for more bytes than it has, whatever length an element claims."""

    def __init__(self, file: io.FileIO, size: int) -> None:
        self._file = io.BufferedReader(file)
        self._size = size
        self.seek(0)
        self.tell = self._file.tell

    def read(self, count: int = -1) -> bytes:
        left = max(self._size - self._file.tell(), 0)
        return self._file.read(left if count < 0 else min(count, left))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)


class _Walked(NamedTuple):
    """The dataset up to its pixels, and where those lie: VR, length and first byte in the file or in `inflated`."""

    dataset: Dataset
    pixels: tuple[bytes | None, int, int] | None
    inflated: bytes | None


def _walked(data: bytes, wanted: frozenset[int], *, whole: bool) -> _Walked:
    meta, syntax, body, start = _opened(data, whole=whole)
    implicit = syntax == IMPLICIT
    found, pixels = _top_level(body, start, implicit, wanted)
    dataset = Dataset(found)
    charset = found.get(BaseTag(CHARSET))
    encodings: Any = "iso8859"
    if charset is not None and charset.value:
        encodings = convert_encodings(charset.value.decode("iso8859").strip("\0 ").split("\\"))
    dataset.set_original_encoding(implicit, True, encodings)
    dataset.file_meta = FileMetaDataset(meta)
    return _Walked(dataset, pixels, None if body is data else body)


def _add_pixels(header: _Walked, file: io.FileIO, size: int) -> None:
    """Put the element of the pixel data into the dataset: native as it is, encapsulated up to its delimiter."""
    if header.pixels is None:
        raise Unusual
    vr, length, begin = header.pixels
    implicit = header.dataset.original_encoding[0] is True
    if header.inflated is None:
        file.seek(begin)
        value = _read(file, size - begin)
    else:
        value = header.inflated[begin:]
    if length == UNDEFINED:
        if implicit or vr not in (b"OB", b"OW"):
            raise Unusual
        value = value[: _past_undefined(value, 0, implicit)[0]]
    elif length > len(value):
        raise Unusual
    elif length < len(value):
        value = value[:length]
    tag = BaseTag(PIXEL_DATA)
    name = None if vr is None else TEXT_OF_VR[vr]
    header.dataset[tag] = RawDataElement(tag, name, length, value, begin, implicit, True)


def _opened(data: bytes, *, whole: bool) -> Inflated:
    """File meta information (PS3.10 section 7.1) and where the dataset begins, inflated where it is deflated."""
    if len(data) < META_START:
        raise Unusual
    if data[128:META_START] != b"DICM":
        raise InvalidDicomError
    meta: Elements = {}
    start = META_START
    while True:
        if start + 12 > len(data):
            raise TooShort
        group, element, vr, length = _explicit(data, start)
        if group != 2:
            break
        begin = start + 8
        if vr in LONG_VRS:
            begin, length = start + 12, _length(data, start + 8)[0]
        elif vr not in SHORT_VRS:
            raise Unusual
        start = begin + length
        if start > len(data):
            raise TooShort
        _keep(meta, group << 16 | element, vr, data[begin:start], begin, implicit=False)
    named = meta.get(BaseTag(SYNTAX))
    syntax = "" if named is None else (named.value or b"").decode("iso8859").rstrip("\0 ")
    if syntax == DEFLATED:
        if not whole:
            raise TooShort
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        data = inflater.decompress(data[start:], LARGEST_INFLATED)
        if inflater.unconsumed_tail:
            raise ValueError("a deflated dataset larger than any image")
        start = 0
    elif syntax in OTHERS_OF_PYDICOM or (syntax != IMPLICIT and not syntax.startswith(STANDARD_SYNTAX)):
        raise Unusual
    return Inflated(meta, syntax, data, start)


def _top_level(
    data: bytes, place: int, implicit: bool, wanted: frozenset[int]
) -> tuple[Elements, tuple[bytes | None, int, int] | None]:
    """The wanted elements before the pixels, and VR, length and first byte of the pixels."""
    found: Elements = {}
    end = len(data)
    last = 0x00030000  # a command set is none of ours
    vr: bytes | None = None
    while place < end:
        if place + 12 > end:
            raise TooShort
        begin = place + 8
        if implicit:
            group, element, length = _implicit(data, place)
        else:
            group, element, vr, length = _explicit(data, place)
            if vr in LONG_VRS:
                begin, length = place + 12, _length(data, begin)[0]
            elif vr not in SHORT_VRS:
                raise Unusual
        tag = group << 16 | element
        if tag <= last:
            raise Unusual
        if tag >= PIXELS_FROM:
            return found, (vr, length, begin) if tag == PIXEL_DATA else None
        last = tag
        if length != UNDEFINED:
            stop = place = begin + length
            if stop > end:
                raise TooShort
        elif vr is None or vr == b"SQ":
            stop, place = _past_undefined(data, begin, implicit)
        else:
            raise Unusual
        if tag in wanted or tag == CHARSET:
            _keep(found, tag, vr, data[begin:stop], begin, implicit=implicit)
    return found, None


def _keep(found: Elements, tag: int, vr: bytes | None, value: bytes, begin: int, *, implicit: bool) -> None:
    name = None if vr is None else TEXT_OF_VR[vr]
    key = BaseTag(tag)
    found[key] = RawDataElement(
        key, name, len(value), value or empty_value_for_VR(name, raw=True), begin, implicit, True
    )


def _past_undefined(data: bytes, place: int, implicit: bool) -> tuple[int, int]:
    """Where the value of an undefined length ends, and where the element after it begins (PS3.5 section 7.5)."""
    inside = [SEQUENCE_END]  # the delimiters that are still to come, innermost last
    end = len(data)
    while True:
        if place + 8 > end:
            raise TooShort
        group, element, length = _implicit(data, place)
        tag = group << 16 | element
        if tag == inside[-1]:
            inside.pop()
            if not inside:
                return place, place + 8
            place += 8
            continue
        begin = place + 8
        if inside[-1] == SEQUENCE_END:
            if tag != ITEM:
                raise Unusual
            inner = ITEM_END
        else:
            if not implicit:
                if begin + 4 > end:
                    raise TooShort
                vr, length = data[place + 4 : place + 6], length >> 16
                if vr in LONG_VRS:
                    begin, length = place + 12, _length(data, begin)[0]
                elif vr not in SHORT_VRS:
                    raise Unusual
                if length == UNDEFINED and vr == b"UN":
                    raise Unusual
            inner = SEQUENCE_END
        if length == UNDEFINED:
            if len(inside) >= MOST_NESTED:
                raise Unusual
            inside.append(inner)
            place = begin
        else:
            place = begin + length
