"""Places outside the dataset or in the way it is written: file meta, preamble, padding, character sets, codecs, names."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from .carriers import CLASSIC, item
from .secrets import Secret
from .sheet import Place, Plant, Sheet, silence

COMMENT, APP1, END_OF_IMAGE = b"\xff\xfe", b"\xff\xe1", b"\xff\xd9"
J2K_COMMENT = b"\xff\x64"


def places() -> Iterator[Place]:
    """All of them."""
    yield from _file_meta()
    yield from _around()
    yield from _scripts()
    yield from _encodings()
    yield from _codecs()


def _file_meta() -> Iterator[Place]:
    group = "file meta"
    for keyword in ("ImplementationVersionName", "SourceApplicationEntityTitle", "SendingApplicationEntityTitle",
                    "ReceivingApplicationEntityTitle", "SourcePresentationAddress"):  # fmt: skip
        yield Place(group, keyword, _meta(keyword, lambda sheet: sheet.secrets.word()))
    yield Place(group, "ImplementationClassUID", _meta("ImplementationClassUID", lambda sheet: sheet.secrets.uid()))
    yield Place(group, "PrivateInformationCreatorUID", _private_information(creator=True))
    yield Place(group, "PrivateInformation", _private_information(creator=False))
    yield Place(group, "unknown element", _meta_element)
    yield Place("preamble", "128 bytes before the file", _preamble, alone=True)


def _meta(keyword: str, draw: Callable[[Sheet], Secret]) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        secret = draw(sheet)
        setattr(sheet.dataset.file_meta, keyword, secret.text)
        return secret

    return plant


def _private_information(*, creator: bool) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        meta = sheet.dataset.file_meta
        secret = sheet.secrets.uid() if creator else sheet.secrets.word()
        if creator:
            meta.PrivateInformationCreatorUID = secret.text
        else:
            meta.setdefault(0x00020100, pydicom.DataElement(0x00020100, "UI", "1.2.826.0.1.3680043.98.4"))
            meta.PrivateInformation = secret.text.encode()
        return secret

    return plant


def _meta_element(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.add(0x00020999, "LO", secret.text, to=sheet.dataset.file_meta)
    return secret


def _preamble(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.preamble = b"II*\0" + secret.text.encode().ljust(124, b"\0")
    return secret


def _around() -> Iterator[Place]:
    group = "after the end"
    yield Place(group, "bytes after the last sample", _after_samples, alone=True)
    yield Place(group, "bytes after the dataset", _after_dataset, CLASSIC, refusable=True, alone=True)
    yield Place(group, "a second dataset after the first", _second_file, CLASSIC, refusable=True, alone=True)
    yield Place("names of files", "file name", _file_name, CLASSIC, alone=True)
    yield Place("names of files", "folder name", _folder_name, CLASSIC, alone=True)


def _after_samples(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.dataset.PixelData = sheet.dataset.PixelData + secret.text.encode()
    return secret


def _after_dataset(sheet: Sheet) -> Secret:
    """What looks like one more private element, of a group that sorts last."""
    secret = sheet.secrets.word()
    value = secret.text.encode()
    element = struct.pack("<HH2sxxI", 0xFFFB, 0x1001, b"OB", len(value)) + value
    sheet.edits.append(lambda data: data + element)
    return secret


def _second_file(sheet: Sheet) -> Secret:
    """Two files in one, as a careless copy makes them."""
    secret = sheet.secrets.word()
    other = item(PatientID=secret.text, PatientName="Other^One")
    buffer = io.BytesIO()
    other.save_as(buffer, implicit_vr=False, little_endian=True)
    sheet.edits.append(lambda data: data + buffer.getvalue())
    return secret


def _file_name(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.file_name = f"{secret.text}_{sheet.number}.dcm"
    return secret


def _folder_name(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.file_name = f"{secret.text}/{sheet.file_name}"
    return secret


def _scripts() -> Iterator[Place]:
    for name, charset, text, before, after in (
        ("Cyrillic", "ISO_IR 144", "Жданович", "", "^Пётр"),
        ("Latin with accents", "ISO_IR 100", "Quäzlöffel", "", "^Jörg"),
        ("UTF-8, Polish", "ISO_IR 192", "Źdźbłowski", "", "^Łucja"),
        ("UTF-8, ideographic group", "ISO_IR 192", "山田竹", "Yamada^T=", "^太郎"),
        ("UTF-8, phonetic group", "ISO_IR 192", "やまだたけ", "Yamada^T=山^太=", "^たろう"),
        ("ISO 2022 JP, ideographic group", ["", "ISO 2022 IR 87"], "森田薫子", "Morita^K=", "^花"),
        ("ISO 2022 KR, ideographic group", ["", "ISO 2022 IR 149"], "김희중특", "Kim^H=", "^희"),
        ("GB18030", "GB18030", "王小东京", "Wang^X=", "^东"),
        ("GBK", "GBK", "刘备关羽", "Liu^B=", "^飞"),
        ("Greek", "ISO_IR 126", "Παπαδάκης", "", "^Γ"),
        ("Thai", "ISO_IR 166", "สมชายใจ", "", "^ก"),
        ("Hebrew", "ISO_IR 138", "שרוןכהן", "", "^ב"),
    ):
        for keyword in ("PatientName", "InstitutionName"):
            plant = _script(keyword, charset, text if keyword == "PatientName" else text[::-1], before, after)
            allowed = frozenset({"retain_institution_identity"}) if keyword == "InstitutionName" else frozenset()
            yield Place("scripts", f"{name}, {keyword}", plant, CLASSIC, allowed, alone=True)
    yield Place("scripts that lie", "says Latin-1, is UTF-8", _lie("ISO_IR 100", "utf-8"), CLASSIC, alone=True)
    yield Place("scripts that lie", "says UTF-8, is Latin-1", _lie("ISO_IR 192", "latin-1"), CLASSIC, alone=True)
    yield Place("scripts that lie", "says nothing, is Shift JIS", _lie("", "shift_jis"), CLASSIC, alone=True)
    yield Place("scripts that lie", "says a set unknown to all", _lie("ISO_IR 999", "cp1251"), CLASSIC, alone=True)


def _script(keyword: str, charset: str | list[str], text: str, before: str, after: str) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        sheet.dataset.SpecificCharacterSet = charset
        whole = f"{before}{text}{after}" if keyword == "PatientName" else f"Klinik {text}"
        setattr(sheet.dataset, keyword, whole)
        return sheet.secrets.said(text)

    return plant


LIES = {"utf-8": "Wójcikówna", "latin-1": "Müllerström", "shift_jis": "高橋一生", "cp1251": "Щербакова"}


def _lie(charset: str, encoding: str) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        text = LIES[encoding]
        sheet.put(0x00104000, "LT", text.encode(encoding))
        if charset:
            sheet.put(0x00080005, "CS", charset.encode())
        return sheet.secrets.said(text)

    return plant


def _encodings() -> Iterator[Place]:
    """Other transfer syntaxes and odd ways of writing sequences."""
    group = "transfer syntaxes"
    for name, syntax in (
        ("implicit VR", ImplicitVRLittleEndian),
        ("big endian", ExplicitVRBigEndian),
        ("deflated", DeflatedExplicitVRLittleEndian),
    ):
        yield Place(group, f"{name}, patient's name", _in_syntax(syntax, _patient), CLASSIC, alone=True)
        yield Place(group, f"{name}, private sequence", _in_syntax(syntax, _private_item), CLASSIC, alone=True)
        yield Place(group, f"{name}, unknown tag", _in_syntax(syntax, _unknown), CLASSIC, alone=True)
    yield Place(group, "UN of undefined length, known sequence", _un_sequence(0x00400275), CLASSIC, alone=True)
    yield Place(group, "UN of undefined length, private", _un_sequence(0x00771010), CLASSIC, alone=True)
    yield Place(group, "sequence of undefined length", _undefined_length, CLASSIC, alone=True)


def _patient(sheet: Sheet) -> Secret:
    secret = sheet.secrets.name()
    sheet.dataset.PatientName = f"{secret.text}^X"
    return secret


def _private_item(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.add(0x00770010, "LO", "ACME 1.1")
    sheet.add(0x00771010, "SQ", Sequence([item(PatientID=secret.text)]))
    return secret


def _unknown(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.add(0x0042F1A1, "LO", secret.text)
    return secret


def _in_syntax(syntax: pydicom.uid.UID, plant_in: Plant) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        secret = plant_in(sheet)
        dataset = sheet.dataset
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
            dataset["PixelData"].VR = "OW"
        dataset.file_meta.TransferSyntaxUID = syntax
        return secret

    return plant


def _un_sequence(tag: int) -> Plant:
    """Items in implicit VR under UN of undefined length (PS3.5 section 6.2.2, note 2)."""

    def plant(sheet: Sheet) -> Secret:
        secret = sheet.secrets.word()
        value = secret.text.encode()
        inner = struct.pack("<HHI", 0x0010, 0x0020, len(value)) + value
        element = struct.pack("<HH2sxxI", tag >> 16, tag & 0xFFFF, b"UN", 0xFFFFFFFF)
        element += struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        creator = struct.pack("<HH2sH", tag >> 16, 0x10, b"LO", 8) + b"ACME 1.1" if tag >> 16 & 1 else b""
        sheet.insert(creator + element)
        return secret

    return plant


def _undefined_length(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    inner = item(PatientID=secret.text)
    inner.is_undefined_length_sequence_item = True
    sheet.dataset.RequestAttributesSequence = Sequence([inner])
    sheet.dataset["RequestAttributesSequence"].is_undefined_length = True
    return secret


def _codecs() -> Iterator[Place]:
    """Text that compressed pixel data carries beside pixels."""
    group = "compressed pixel data"
    for name, syntax, change in (
        ("comment segment, JPEG lossless", JPEGLosslessSV1, _segment(COMMENT)),
        ("application segment, JPEG lossless", JPEGLosslessSV1, _segment(APP1)),
        ("after the end, JPEG lossless", JPEGLosslessSV1, _after_end),
        ("comment segment, JPEG-LS", JPEGLSLossless, _segment(COMMENT)),
        ("application segment, JPEG-LS", JPEGLSLossless, _segment(APP1)),
        ("comment segment, JPEG 2000", JPEG2000Lossless, _j2k_comment),
        ("after the end, JPEG 2000", JPEG2000Lossless, _after_end),
        ("behind the last segment, RLE", RLELossless, _after_end),
    ):
        yield Place(group, name, _compressed(syntax, change), CLASSIC, refusable=True, alone=True)
    yield Place(group, "fragment that belongs to no frame", _extra_fragment, CLASSIC, refusable=True, alone=True)
    yield Place(group, "basic offset table", _offset_table, CLASSIC, refusable=True, alone=True)
    yield Place(group, "after the sequence delimiter", _after_delimiter, CLASSIC, refusable=True, alone=True)


def _frame(sheet: Sheet, syntax: str) -> bytes:
    """The carrier's one frame, compressed without loss."""
    if syntax == JPEGLosslessSV1:
        return _jpeg_lossless(np.frombuffer(sheet.dataset.PixelData, "<u2"), sheet.dataset.Rows, sheet.dataset.Columns)
    copy = Dataset()
    copy.update(sheet.dataset)
    copy.file_meta = sheet.dataset.file_meta
    with silence():
        copy.compress(syntax, generate_instance_uid=False)
    return next(generate_frames(copy.PixelData, number_of_frames=1))


def _jpeg_lossless(samples: np.ndarray, rows: int, columns: int) -> bytes:
    """Lossless JPEG, process 14, selection value 1 (ISO 10918-1 annex H), with a code of equal lengths.

    Every difference category of 0 to 15 gets a code of five bits, which is wasteful and right.
    """
    pixels = samples.reshape(rows, columns).astype(int)
    bits = []
    for row in range(rows):
        for column in range(columns):
            left = pixels[row, column - 1] if column else pixels[row - 1, 0] if row else 1 << 11
            difference = int(pixels[row, column] - left)
            size = abs(difference).bit_length()
            bits.append(f"{size:05b}")
            if size:
                bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    counts = bytes([0, 0, 0, 0, 16, *[0] * 11])
    return b"".join(
        [
            b"\xff\xd8",
            b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, 12, rows, columns, 1, 1, 0x11, 0),
            b"\xff\xc4" + struct.pack(">HB", 3 + 16 + 16, 0) + counts + bytes(range(16)),
            b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0),
            scan,
            END_OF_IMAGE,
        ]
    )


def _compressed(syntax: str, change: Callable[[bytes, bytes], bytes]) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        secret = sheet.secrets.word()
        _put_frames(sheet, syntax, [change(_frame(sheet, syntax), secret.text.encode())])
        return secret

    return plant


def _put_frames(sheet: Sheet, syntax: str, frames: list[bytes]) -> None:
    sheet.dataset.PixelData = encapsulate(frames)
    sheet.dataset["PixelData"].VR = "OB"
    sheet.dataset["PixelData"].is_undefined_length = True
    sheet.dataset.file_meta.TransferSyntaxUID = syntax


def _segment(marker: bytes) -> Callable[[bytes, bytes], bytes]:
    return lambda frame, text: frame[:2] + marker + struct.pack(">H", 2 + len(text)) + text + frame[2:]


def _j2k_comment(frame: bytes, text: bytes) -> bytes:
    """A COM segment of registration 1 (text) before the first tile (ISO 15444-1 section A.9.2)."""
    place = frame.index(b"\xff\x90")
    return frame[:place] + J2K_COMMENT + struct.pack(">HH", 4 + len(text), 1) + text + frame[place:]


def _after_end(frame: bytes, text: bytes) -> bytes:
    return frame + b"\0" * (len(frame) % 2) + text


def _extra_fragment(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    _put_frames(sheet, JPEGLSLossless, [_frame(sheet, JPEGLSLossless)])
    value = bytes(sheet.dataset.PixelData)
    text = secret.text.encode()
    delimiter = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    sheet.dataset.PixelData = value.removesuffix(delimiter) + struct.pack("<HHI", 0xFFFE, 0xE000, len(text)) + text
    return secret


def _offset_table(sheet: Sheet) -> Secret:
    """Four bytes of the table; the one frame is found without it."""
    secret = Secret(f"~{sheet.number % 1000:03d}", own=True)
    _put_frames(sheet, RLELossless, [_frame(sheet, RLELossless)])
    value = bytes(sheet.dataset.PixelData)
    first = 12 if value[4:8] == struct.pack("<I", 4) else 8
    table = struct.pack("<HHI", 0xFFFE, 0xE000, 4) + secret.text.encode()
    sheet.dataset.PixelData = table + value[first:]
    return secret


def _after_delimiter(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    _put_frames(sheet, RLELossless, [_frame(sheet, RLELossless)])
    value = secret.text.encode()
    element = struct.pack("<HH2sxxI", 0xFFFC, 0xFFFC, b"OB", len(value)) + value
    sheet.edits.append(lambda data: data + element)
    return secret


def inflated(data: bytes) -> bytes:
    """The dataset of a deflated file, or nothing."""
    start = data.find(b"1.2.840.10008.1.2.1.99")
    if data[128:132] != b"DICM" or start < 0:
        return b""
    (length,) = struct.unpack_from("<I", data, 140)
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[144 + length :])
