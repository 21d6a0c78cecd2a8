"""A de-identified dataset as the bytes of a file (PS3.10 section 7), its elements passed on undecoded where possible."""

from __future__ import annotations

import struct
import zlib
from operator import itemgetter

from pydicom.charset import convert_encodings
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import EXPLICIT_VR_LENGTH_32, write_data_element
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medsynth.errors import DataError
from medsynth.imaging.deidentify.elements import ASCII, Element, Encoding, ascii_text

PREAMBLE = bytes(128) + b"DICM"
CHARACTER_SET, SOP_CLASS, SOP_INSTANCE, PIXEL_DATA = 0x00080005, 0x00080016, 0x00080018, 0x7FE00010
LONG_VRS = frozenset(str(vr) for vr in EXPLICIT_VR_LENGTH_32)
"""Value representations whose length takes four bytes (PS3.5 table 7.1-1)."""
UNDEFINED = 0xFFFFFFFF
ZERO_PADDED = {"UI", "OB", "OW", "UN"}
DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
ENCODINGS = {
    ImplicitVRLittleEndian: Encoding(implicit=True, little=True),
    ExplicitVRBigEndian: Encoding(implicit=False, little=False),
}
"""Transfer syntaxes that are not explicit VR little endian, as every other one is (PS3.5 annex A)."""
META = ((18, "UI"), (19, "SH"))
"""Of file meta information, what is taken over beside UIDs: who implemented it, and in which version."""


class Encoded:
    """A file in parts: everything but the samples, element by element, and the samples."""

    def __init__(
        self, meta: list[bytes], head: list[bytes], samples: bytes, tail: list[bytes], *, deflated: bool
    ) -> None:
        self.meta = meta
        """Preamble and file meta information, element by element."""
        self.head = head
        """One entry for each element before the pixel data, its tag and length included."""
        self.samples = samples
        """The value of the image's own pixel data, without tag and length."""
        self.tail = tail
        """What stands behind them."""
        self._deflated = deflated

    @property
    def data(self) -> bytes:
        """The file."""
        return b"".join(self.pieces)

    @property
    def pieces(self) -> list[bytes]:
        """The file in pieces to be written one after the other; samples are not copied."""
        if self._deflated:
            packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            packed = packer.compress(b"".join([*self.head, self.samples, *self.tail])) + packer.flush()
            return [*self.meta, packed + b"\0" * (len(packed) % 2)]
        return [b"".join([*self.meta, *self.head]), self.samples, b"".join(self.tail)]

    @property
    def elements(self) -> list[bytes]:
        """Everything but the samples."""
        return [*self.meta, *self.head, *self.tail]


def encode(clean: Dataset) -> Encoded:
    """The dataset in the transfer syntax of its file meta information. Raises DataError where that cannot be told."""
    syntax, encoding = _syntax_of(clean)
    head, tail = list[bytes](), list[bytes]()
    samples = b""
    for tag, element in sorted(((int(tag), element) for tag, element in clean.items()), key=itemgetter(0)):
        if tag != PIXEL_DATA:
            (tail if samples else head).append(_element(clean, tag, element, encoding))
            continue
        if not isinstance(element.value, bytes) or not element.value:
            raise DataError("expected pixels in the image, found none; export the file again")
        opening, samples, closing = _pixels(element, encoding, compressed=syntax.is_encapsulated)
        head.append(opening)
        tail += [closing] if closing else []
    meta = [PREAMBLE, *_meta(clean, syntax)]
    return Encoded(meta, head, samples, tail, deflated=syntax == DeflatedExplicitVRLittleEndian)


def _syntax_of(clean: Dataset) -> tuple[UID, Encoding]:
    meta = getattr(clean, "file_meta", None) or Dataset()
    syntax = UID(str(meta.get("TransferSyntaxUID") or ""))
    if not syntax:  # a file without one is read as what it looks like
        implicit, little = clean.original_encoding
        plain = {(True, True): ImplicitVRLittleEndian, (False, True): ExplicitVRLittleEndian}
        syntax = plain.get((implicit, little), ExplicitVRBigEndian)
    return syntax, ENCODINGS.get(syntax, Encoding(implicit=False, little=True))


def _meta(clean: Dataset, syntax: UID) -> list[bytes]:
    """File meta information (PS3.10 table 7.1-1), always in explicit VR little endian."""
    instance = ascii_text(clean, SOP_INSTANCE)
    if not instance:
        raise DataError("expected a SOP Instance UID in the header, found none; export the file again")
    given = getattr(clean, "file_meta", None) or Dataset()
    values = [(2, "UI", ascii_text(clean, SOP_CLASS)), (3, "UI", instance), (16, "UI", str(syntax))]
    values += [(number, vr, ascii_text(given, 0x00020000 + number)) for number, vr in META]
    parts = [struct.pack("<HH2sHI2s", 2, 1, b"OB", 0, 2, b"\0\1")]
    for number, vr, text in values:
        value = text.encode("ascii")
        value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
        if value:
            parts.append(struct.pack("<HH2sH", 2, number, vr.encode(), len(value)) + value)
    return [struct.pack("<HH2sHI", 2, 0, b"UL", 4, sum(map(len, parts))), *parts]


def _element(clean: Dataset, tag: int, element: Element, encoding: Encoding) -> bytes:
    if isinstance(element, RawDataElement) and _is_as_written(element, encoding):
        value, vr = element.value or b"", str(element.VR)
        if len(value) % 2:
            value += b"\0" if vr in ZERO_PADDED else b" "
        return _opening(tag, vr, len(value), encoding) + value
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = encoding
    charset = ascii_text(clean, CHARACTER_SET)
    write_data_element(buffer, clean[tag], convert_encodings(charset.split("\\")) if charset else [ASCII])
    return bytes(buffer.getvalue())


def _is_as_written(element: RawDataElement, encoding: Encoding) -> bool:
    """Whether the bytes of an element can stand in the file as they are."""
    same = element.is_implicit_VR == encoding.implicit and element.is_little_endian == encoding.little
    if not same or element.length == UNDEFINED:
        return False
    if encoding.implicit:
        return True
    vr = str(element.VR)
    return len(vr) == 2 and (vr in LONG_VRS or len(element.value or b"") < 0xFFFF)


def _opening(tag: int, vr: str, length: int, encoding: Encoding) -> bytes:
    """Tag, VR and length of an element (PS3.5 section 7.1.2 and 7.1.3)."""
    order = "<" if encoding.little else ">"
    if encoding.implicit:
        return struct.pack(f"{order}HHI", tag >> 16, tag & 0xFFFF, length)
    if vr in LONG_VRS:
        return struct.pack(f"{order}HH2sHI", tag >> 16, tag & 0xFFFF, vr.encode("ascii"), 0, length)
    return struct.pack(f"{order}HH2sH", tag >> 16, tag & 0xFFFF, vr.encode("ascii"), length)


def _pixels(element: Element, encoding: Encoding, *, compressed: bool) -> tuple[bytes, bytes, bytes]:
    """Opening, value and closing of the pixel data (PS3.5 annex A.4: compressed frames have an undefined length)."""
    value: bytes = element.value
    if compressed:
        return _opening(PIXEL_DATA, "OB", UNDEFINED, encoding), value, DELIMITER
    value += b"\0" * (len(value) % 2)
    return _opening(PIXEL_DATA, "OB" if element.VR == "OB" else "OW", len(value), encoding), value, b""
