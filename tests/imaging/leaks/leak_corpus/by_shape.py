"""Places that have another shape than an attribute's plain value: graphics, groups of old, undeclared values, functional
groups, text where a number or a known term should be."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from .carriers import CLASSIC, ENHANCED, item
from .secrets import Secret
from .sheet import Place, Plant, Sheet

OVERLAY, CURVE, OLD_PIXELS = 0x60000000, 0x50000000, 0x7F000000


def places() -> Iterator[Place]:
    """All of them."""
    yield from _graphics()
    yield from _undeclared()
    yield from _wrong_values()
    yield from _frames()


def _text(tag: int, vr: str, before: str = "", **first: tuple[int, str, object]) -> Plant:
    """Text in one element, after `first` others are there."""

    def plant(sheet: Sheet) -> Secret:
        secret = sheet.secrets.word()
        for other, other_vr, value in first.values():
            sheet.add(other, other_vr, value)
        text = secret.text.encode()
        if vr in {"OB", "OW", "UN"}:
            sheet.add(tag, vr, text)
        else:
            sheet.put(tag, vr, before.encode() + text)
        return secret

    return plant


def _overlay_size(plane: int) -> dict[str, tuple[int, str, object]]:
    base = OVERLAY + plane * 0x20000
    return {
        "rows": (base + 0x10, "US", 10),
        "columns": (base + 0x11, "US", 8),
        "kind": (base + 0x40, "CS", "G"),
        "origin": (base + 0x50, "SS", [1, 1]),
        "bits": (base + 0x100, "US", 1),
        "place": (base + 0x102, "US", 0),
    }


def _graphics() -> Iterator[Place]:
    overlay, curve = "overlays", "curves"
    yield Place(overlay, "data", _text(OVERLAY + 0x3000, "OB", **_overlay_size(0)))
    yield Place(overlay, "description", _text(OVERLAY + 0x22, "LO"))
    yield Place(overlay, "label", _text(OVERLAY + 0x1500, "LO"))
    yield Place(overlay, "subtype", _text(OVERLAY + 0x45, "LO"))
    yield Place(overlay, "comments", _text(OVERLAY + 0x4000, "LT"))
    yield Place(overlay, "data of the last plane, 601E", _text(OVERLAY + 0x1E3000, "OB", **_overlay_size(15)))
    yield Place(overlay, "description of the last plane", _text(OVERLAY + 0x1E0022, "LO"))
    yield Place(overlay, "in the unused high bits of samples", _embedded, CLASSIC, alone=True)
    yield Place(overlay, "high bits of samples, not declared", _high_bits, CLASSIC, alone=True)
    yield Place(curve, "data", _text(CURVE + 0x3000, "OB"))
    yield Place(curve, "description", _text(CURVE + 0x22, "LO"))
    yield Place(curve, "label of an axis", _text(CURVE + 0x40, "SH"))
    yield Place(curve, "audio comments", _text(CURVE + 0x200E, "LT"))
    yield Place(curve, "data of the last curve, 501E", _text(CURVE + 0x1E3000, "OB"))
    yield Place("old pixel groups", "variable pixel data 7F00", _text(OLD_PIXELS + 0x10, "OB"))
    icon = "icons and annotations"
    yield Place(icon, "icon pixels", _icon)
    yield Place(icon, "text of a graphic annotation", _annotation("UnformattedTextValue"))
    yield Place(icon, "layer of a graphic annotation", _layer)
    yield Place(icon, "referenced photo", _photo)
    yield Place(icon, "encapsulated document", _text(0x00420011, "OB"))
    yield Place(icon, "title of a document", _text(0x00420010, "ST"))
    yield Place(icon, "explanation of a VOI table", _lut("LUTExplanation"), CLASSIC)
    yield Place(icon, "explanation of a window", _window)
    yield Place(icon, "table data beyond its declared length", _lut("LUTData"), CLASSIC, alone=True)
    yield Place(icon, "ICC profile", _text(0x00282000, "OB"))


def _bits_into_samples(sheet: Sheet, bit: int) -> Secret:
    """A secret's bits, one per sample, in a bit that no sample uses."""
    secret = sheet.secrets.word()
    bits = np.unpackbits(np.frombuffer(secret.text.encode(), np.uint8), bitorder="little").astype("<u2")
    samples = np.frombuffer(sheet.dataset.PixelData, "<u2").copy()
    samples[16 : 16 + bits.size] |= bits << bit
    sheet.dataset.PixelData = samples.tobytes()
    return secret


def _embedded(sheet: Sheet) -> Secret:
    for tag, vr, value in _overlay_size(0).values():
        sheet.add(tag, vr, value)
    sheet.add(OVERLAY + 0x10, "US", sheet.dataset.Rows)
    sheet.add(OVERLAY + 0x11, "US", sheet.dataset.Columns)
    sheet.add(OVERLAY + 0x100, "US", 16)
    sheet.add(OVERLAY + 0x102, "US", 15)
    return _bits_into_samples(sheet, 15)


def _high_bits(sheet: Sheet) -> Secret:
    return _bits_into_samples(sheet, 13)


def _icon(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    icon = item(Rows=4, Columns=4, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=8)
    icon.BitsStored, icon.HighBit, icon.PixelRepresentation = 8, 7, 0
    sheet.add(0x7FE00010, "OB", secret.text.encode().ljust(16, b"\0"), to=icon)
    sheet.dataset.IconImageSequence = Sequence([icon])
    return secret


def _annotation(keyword: str) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        secret = sheet.secrets.word()
        text = item(**{keyword: secret.text})
        sheet.dataset.GraphicAnnotationSequence = Sequence([item(TextObjectSequence=Sequence([text]))])
        return secret

    return plant


def _layer(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.dataset.GraphicLayerSequence = Sequence([item(GraphicLayer="L", GraphicLayerDescription=secret.text)])
    return secret


def _photo(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.dataset.ReferencedPatientPhotoSequence = Sequence([item(RetrieveURI=f"https://x/{secret.text}")])
    return secret


def _window(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.dataset.WindowCenter, sheet.dataset.WindowWidth = [40, 300], [300, 1500]
    sheet.dataset.WindowCenterWidthExplanation = ["WINDOW1", secret.text]
    return secret


def _lut(keyword: str) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        secret = sheet.secrets.word()
        lut = Dataset()
        sheet.add(0x00283002, "US", [2, 0, 16], to=lut)
        entries = np.array([0, 65535], "<u2").tobytes()
        if keyword == "LUTData":
            entries += secret.text.encode()
        else:
            lut.LUTExplanation = secret.text
        sheet.add(0x00283006, "OW", entries, to=lut)
        sheet.dataset.VOILUTSequence = Sequence([lut])
        return secret

    return plant


def _undeclared() -> Iterator[Place]:
    kind = "undeclared"
    yield Place(kind, "known attribute as UN", _text(0x00101040, "UN"))
    yield Place(kind, "known number as UN", _number_as_un, CLASSIC)
    yield Place(kind, "known UID as UN", _text(0x00081155, "UN"))
    yield Place(kind, "UTF-16 text as UN", _wide)
    yield Place(kind, "trailing padding FFFC,FFFC", _text(0xFFFCFFFC, "OB"))
    yield Place(kind, "attribute that only newer dictionaries know", _text(0x00100011, "SH"))
    yield Place(kind, "group length of a private group", _group_length)
    yield Place(kind, "directory group", _text(0x00041130, "CS"))
    yield Place(kind, "private creator itself", _text(0x00910010, "LO", "ACME "))
    yield Place(kind, "safe private attribute holding text", _safe_private)
    yield Place(kind, "private attribute beside a safe one", _beside_safe)
    for tag, vr, name in (
        *((0x00080010, "SH", "recognition code"), (0x00084000, "LT", "identifying comments")),
        *((0x00101050, "LO", "insurance plan"), (0x00280062, "LO", "compression label")),
        *((0x00280700, "LO", "DCT label"), (0x00324000, "LT", "study comments")),
        *((0x4008010C, "PN", "interpretation author"), (0x40080115, "LT", "diagnosis description")),
        *((0x40080300, "ST", "impressions"), (0x20100050, "LO", "film format")),
    ):
        yield Place("retired", name, _text(tag, vr))


def _number_as_un(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    text = secret.text.encode()
    sheet.insert(struct.pack("<HH2sxxI", 0x0018, 0x9073, b"UN", len(text)) + text)
    return secret


def _wide(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.add(0x0042F181, "UN", secret.text.encode("utf-16-le"))
    return secret


def _group_length(sheet: Sheet) -> Secret:
    """Four bytes that should be a number."""
    secret = Secret(f"~{sheet.number % 1000:03d}", own=True)
    sheet.insert(struct.pack("<HH2sH", 0x0095, 0, b"UL", 4) + secret.text.encode())
    return secret


def _siemens(sheet: Sheet) -> None:
    sheet.add(0x00190010, "LO", "SIEMENS MR HEADER")


def _safe_private(sheet: Sheet) -> Secret:
    """(0019,xx0C) is the b-value; here it holds a word."""
    _siemens(sheet)
    secret = sheet.secrets.word()
    sheet.put(0x0019100C, "IS", secret.text.encode())
    return secret


def _beside_safe(sheet: Sheet) -> Secret:
    _siemens(sheet)
    secret = sheet.secrets.word()
    sheet.add(0x00191008, "CS", secret.text)
    return secret


def _wrong_values() -> Iterator[Place]:
    number = "text under a number's tag"
    for keyword_tag, vr, name in (
        *((0x00180060, "DS", "KVP"), (0x00180050, "DS", "slice thickness"), (0x00200013, "IS", "instance number")),
        *((0x00181041, "LO", "contrast volume as LO"), (0x00180091, "IS", "echo train length")),
        *((0x00281050, "DS", "window centre"), (0x00281053, "DS", "rescale slope")),
        *((0x00201041, "DS", "slice location"), (0x00180081, "DS", "echo time")),
    ):
        yield Place(number, name, _text(keyword_tag, vr), CLASSIC, alone=True)
    yield Place(number, "number, then text", _text(0x00181130, "DS", "151.5 "), CLASSIC)
    yield Place(number, "second of two numbers", _text(0x00189305, "LO", "0.4\\"), CLASSIC)
    hidden = "text behind a value"
    yield Place(hidden, "behind NUL, number", _text(0x00181130, "DS", "151.5\0"), CLASSIC)
    yield Place(hidden, "behind NUL, known term", _text(0x00185100, "CS", "HFS\0"), CLASSIC)
    yield Place(hidden, "behind NUL, UID", _text(0x00200052, "UI", "1.2.826.0.1.3680043.98.9\0"))
    yield Place(hidden, "behind NUL, charset", _text(0x00080005, "CS", "ISO_IR 100\0"), refusable=True, alone=True)
    yield Place(hidden, "behind eighty spaces", _text(0x00180015, "CS", "CHEST" + " " * 80))
    yield Place(hidden, "name of a character set", _text(0x00080005, "CS"), alone=True)
    yield Place(hidden, "below a root of the standard", _below_the_root, allowed=frozenset({"retain_uids"}))
    yield Place("identity in other attributes", "date in LO text", _date_in_text)
    yield Place("identity in other attributes", "phone number in SH text", _phone)
    yield Place("identity in other attributes", "name in a stack's label", _text(0x00209056, "SH"))


def _below_the_root(sheet: Sheet) -> Secret:
    """A UID that begins like the standard's own and is none of them."""
    secret = Secret(f"1.2.840.10008.77{sheet.number:05d}.{sheet.number % 977 + 10001}", own=True)
    sheet.dataset.IrradiationEventUID = secret.text
    return secret


def _date_in_text(sheet: Sheet) -> Secret:
    secret = sheet.secrets.day()
    sheet.dataset.SeriesDescription = f"compare with {secret.text}"
    return secret


def _phone(sheet: Sheet) -> Secret:
    secret = sheet.secrets.phone()
    sheet.dataset.ReceiveCoilName = secret.text
    return secret


def _frames() -> Iterator[Place]:
    """Functional groups of enhanced images."""
    group = "functional groups"

    def of(make: Callable[[Dataset, str], None]) -> Plant:
        def plant(sheet: Sheet) -> Secret:
            secret = sheet.secrets.word()
            make(sheet.dataset.PerFrameFunctionalGroupsSequence[1], secret.text)
            return secret

        return plant

    def content(keyword: str) -> Plant:
        return of(lambda frame, word: setattr(frame.FrameContentSequence[0], keyword, word))

    yield Place(group, "frame comments", content("FrameComments"), ENHANCED)
    yield Place(group, "frame label", content("FrameLabel"), ENHANCED)
    yield Place(group, "stack", content("StackID"), ENHANCED, alone=True)
    yield Place(group, "date of a frame", _frame_date, ENHANCED, frozenset({"retain_full_dates"}))
    yield Place(group, "derivation of a frame", of(_derivation), ENHANCED)
    yield Place(group, "anatomic region of a frame", of(_region), ENHANCED)
    yield Place(group, "unknown functional group", of(_unknown_group), ENHANCED)
    yield Place(group, "type of a frame", of(_frame_type), ENHANCED)
    yield Place(group, "unassigned values", of(_unassigned), ENHANCED)
    yield Place(group, "label of a dimension", _dimension, ENHANCED)


def _frame_date(sheet: Sheet) -> Secret:
    secret = sheet.secrets.day()
    content = sheet.dataset.PerFrameFunctionalGroupsSequence[1].FrameContentSequence[0]
    content.FrameAcquisitionDateTime = f"{secret.text}101112"
    return secret


def _derivation(frame: Dataset, word: str) -> None:
    frame.DerivationImageSequence = Sequence([item(DerivationDescription=word)])


def _region(frame: Dataset, word: str) -> None:
    code = item(CodeValue="69536005", CodingSchemeDesignator="SCT", CodeMeaning=word)
    frame.FrameAnatomySequence = Sequence([item(AnatomicRegionSequence=Sequence([code]), FrameLaterality="U")])


def _unknown_group(frame: Dataset, word: str) -> None:
    frame.add_new(0x0042F1F1, "SQ", Sequence([item(PatientComments=word)]))


def _frame_type(frame: Dataset, word: str) -> None:
    holder = item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", word])
    frame.MRImageFrameTypeSequence = Sequence([holder])
    frame.CTImageFrameTypeSequence = Sequence([item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", word])])


def _unassigned(frame: Dataset, word: str) -> None:
    value = item(ValueType="TEXT", TextValue=word)
    frame.UnassignedSharedConvertedAttributesSequence = Sequence([value])


def _dimension(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.dataset.DimensionIndexSequence = Sequence([item(DimensionDescriptionLabel=secret.text)])
    return secret
