"""Elements in their encoded form: made and read as bytes, so that no value is decoded, validated or warned about."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

Element: TypeAlias = DataElement | RawDataElement

ASCII = "iso8859"
"""pydicom's name for no character set at all: what is left after de-identification needs none."""


DAMAGE = (
    ValueError, TypeError, EOFError, OSError, NotImplementedError, struct.error, RecursionError, BytesLengthException,
)  # fmt: skip
"""What pydicom raises on damaged bytes. Its texts may quote a header, so they are never passed on."""


class Encoding(NamedTuple):
    """How a dataset is written (PS3.5 section 7.1 and annex A)."""

    implicit: bool
    little: bool


EXPLICIT_LITTLE = Encoding(implicit=False, little=True)


def encoding_of(dataset: Dataset, otherwise: Encoding) -> Encoding:
    """How a dataset was read; a dataset made in memory was not, and is taken to be like `otherwise`."""
    implicit, little = dataset.original_encoding
    if implicit is None or little is None:
        return otherwise
    return Encoding(implicit, little)


def encoded(tag: int, vr: str, value: bytes, encoding: Encoding) -> RawDataElement:
    """An element of given bytes, padded to even length as its VR asks (PS3.5 table 6.2-1)."""
    if len(value) % 2:
        value += b"\0" if vr in {"UI", "OB", "UN"} else b" "
    return RawDataElement(BaseTag(tag), vr, len(value), value, 0, *encoding)


def encoded_text(tag: int, vr: str, values: Iterable[str], encoding: Encoding) -> RawDataElement:
    """An element of ASCII values."""
    return encoded(tag, vr, "\\".join(values).encode("ascii"), encoding)


def encoded_sequence(tag: int, items: Iterable[Dataset], encoding: Encoding) -> RawDataElement:
    """A sequence as bytes: never changes when the dataset it stands in is changed, and is written without work."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = encoding
    write_sequence(buffer, DataElement(tag, "SQ", Sequence(items)), [ASCII])
    return encoded(tag, "SQ", buffer.getvalue(), encoding)


def item_of(elements: dict[BaseTag, Element], encoding: Encoding, charset: str = ASCII) -> Dataset:
    """A dataset that holds exactly `elements`, whose text is in `charset` (pydicom's name of it)."""
    charsets = charset if charset == ASCII else [charset]
    dataset = Dataset(elements, parent_encoding=charsets)
    dataset.set_original_encoding(*encoding, charsets)
    return dataset


def texts(element: Element) -> list[str] | None:
    """The values of a coded or numeric text element, trimmed; None if they are not plain ASCII."""
    value = element.value
    if value is None:
        return [""]
    if isinstance(value, bytes):
        if not value.isascii():
            return None
        text = value.decode("ascii")
    elif isinstance(value, MultiValue | list | tuple):
        text = "\\".join(map(str, value))
    else:
        text = str(value)
    if not text.isascii():
        return None
    return [part.strip(" \0") for part in text.split("\\")]


def ascii_text(dataset: Dataset, tag: int) -> str:
    """The one text of an attribute; empty if it is missing or not plain ASCII."""
    if tag not in dataset:
        return ""
    return "\\".join(texts(dataset.get_item(tag)) or [])


def whole_number(dataset: Dataset, tag: int, missing: int) -> int:
    """A number of VR US or IS; `missing` if it is not there or not one number."""
    if tag not in dataset:
        return missing
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes) and element.VR != "IS":
        value = element.value
        return int.from_bytes(value, "little" if element.is_little_endian else "big") if len(value) == 2 else missing
    text = "\\".join(texts(element) or [])
    return int(text) if text.isdecimal() else missing
