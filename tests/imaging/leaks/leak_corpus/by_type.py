"""Places by value representation: every type of value that can hold text, in every kind of surrounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from .carriers import CLASSIC, ENHANCED
from .secrets import Secret
from .sheet import Place, Sheet

TYPES = (
    *("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"),
    "OB",
    "UN",
)
LISTED = {
    "AE": 0x00080054, "AS": 0x00101010, "CS": 0x00160079, "DA": 0x00080012, "DS": 0x00101030, "DT": 0x0008002A,
    "IS": 0x0016008E, "LO": 0x00101040, "LT": 0x00104000, "PN": 0x00101060, "SH": 0x00102154, "ST": 0x00080081,
    "TM": 0x00080013, "UC": 0x3010001B, "UI": 0x00080014, "UR": 0x00720071, "UT": 0x00321066, "OB": 0x0016002B,
    "UN": 0x0072006D,
}  # fmt: skip
"""Attributes of table E.1-1, one of each type."""
UNLISTED = {
    "CS": 0x00080105, "DA": 0x00140102, "DS": 0x00140054, "DT": 0x00080404, "IS": 0x00082122, "LO": 0x00080222,
    "LT": 0x00140046, "PN": 0x00140104, "SH": 0x00142016, "ST": 0x00140105, "TM": 0x00140103, "UC": 0x00100212,
    "UI": 0x00083012, "UR": 0x00080408, "UT": 0x00100218, "OB": 0x00143080,
}  # fmt: skip
"""Attributes of the standard that neither table E.1-1 nor the modules of CT and MR images have."""
DATES, TIMES = frozenset({"retain_full_dates"}), frozenset({"retain_full_dates", "retain_modified_dates"})
PERSON, DEVICE = frozenset({"retain_patient_characteristics"}), frozenset({"retain_device_identity"})
ALLOWED = {
    "AS": PERSON,
    "DS": PERSON,
    "DA": DATES,
    "DT": DATES,
    "TM": TIMES,
    "UC": DEVICE,
    "UI": frozenset({"retain_uids"}),
    "ST": frozenset({"retain_institution_identity"}),
}
LISTED_SEQUENCES = (0x00400275, 0x00400008, 0x00400440)
UNLISTED_SEQUENCES = (0x00220031, 0x00080051, 0x00080220)
PRIVATE_SEQUENCES = (0x00751010, 0x00751011, 0x00751012)


def valued(vr: str, sheet: Sheet) -> tuple[Secret, object]:
    """A secret of a type, and the value that holds it."""
    draw = sheet.secrets
    if vr in {"AE", "CS", "SH"}:
        secret = draw.word()
        return secret, secret.text
    if vr in {"LO", "LT", "ST", "UC", "UT"}:
        secret = draw.word()
        return secret, f"see {secret.text} of ward 7"
    if vr in {"OB", "UN"}:
        secret = draw.word()
        return secret, secret.text.encode()
    if vr == "UR":
        secret = draw.word()
        return secret, f"https://pacs.example.org/{secret.text}"
    if vr == "PN":
        secret = draw.name()
        return secret, f"{secret.text}^Ximena"
    if vr == "DT":
        secret = draw.day()
        return secret, f"{secret.text}101112.5"
    plain: dict[str, Callable[[], Secret]] = {
        "AS": draw.age,
        "DA": draw.day,
        "DS": draw.decimal,
        "IS": draw.integer,
        "TM": draw.time,
        "UI": draw.uid,
    }
    secret = plain[vr]()
    return secret, secret.text


def _nest(sheet: Sheet, tags: tuple[int, int, int]) -> Dataset:
    """The item three sequences deep, made on first use."""
    holder = sheet.dataset
    for tag in tags:
        if tag not in holder:
            if tag >> 16 & 1:
                sheet.add(tag & 0xFFFF0000 | 0x10, "LO", "ACME 1.1", to=holder)
            sheet.add(tag, "SQ", Sequence([Dataset()]), to=holder)
        holder = holder[tag].value[0]
    return holder


def _kept_item(sheet: Sheet) -> Dataset:
    """An item of a sequence that the profile keeps in images of this kind."""
    if sheet.kind in ENHANCED:
        return sheet.dataset.PerFrameFunctionalGroupsSequence[1].FrameContentSequence[0]
    if "VOILUTSequence" not in sheet.dataset:
        lut = Dataset()
        sheet.add(0x00283002, "US", [2, 0, 16], to=lut)
        sheet.add(0x00283006, "US", [0, 65535], to=lut)
        sheet.dataset.VOILUTSequence = Sequence([lut])
    return sheet.dataset.VOILUTSequence[0]


def places() -> Iterator[Place]:
    """All of them."""
    for number, vr in enumerate(TYPES):
        yield _place(
            "attribute of table E.1-1", vr, lambda sheet: sheet.dataset, LISTED[vr], ALLOWED.get(vr, frozenset())
        )
        yield _place("unknown public tag", vr, lambda sheet: sheet.dataset, 0x0042F101 + 2 * number)
        yield _place("private, with creator", vr, _private, 0x00711001 + number)
        yield _place("private, no creator", vr, lambda sheet: sheet.dataset, 0x00731001 + number)
        yield _place("private, inside a kept sequence", vr, _private_in_kept, 0x00711001 + number)
        deep = LISTED[vr]
        yield _place("three deep, sequences of table E.1-1", vr, lambda sheet: _nest(sheet, LISTED_SEQUENCES), deep)
        yield _place("three deep, unlisted sequences", vr, lambda sheet: _nest(sheet, UNLISTED_SEQUENCES), deep)
        yield _place("three deep, private sequences", vr, lambda sheet: _nest(sheet, PRIVATE_SEQUENCES), deep)
        yield _place("inside a kept sequence", vr, _kept_item, deep)
        if vr in UNLISTED:
            yield _place("public, in no table or module", vr, lambda sheet: sheet.dataset, UNLISTED[vr])


def _private(sheet: Sheet) -> Dataset:
    sheet.add(0x00710010, "LO", "ACME 1.1")
    return sheet.dataset


def _private_in_kept(sheet: Sheet) -> Dataset:
    holder = _kept_item(sheet)
    sheet.add(0x00710010, "LO", "ACME 1.1", to=holder)
    return holder


def _place(
    group: str, vr: str, holder: Callable[[Sheet], Dataset], tag: int, allowed: frozenset[str] = frozenset()
) -> Place:
    def plant(sheet: Sheet) -> Secret:
        secret, value = valued(vr, sheet)
        sheet.add(tag, vr, value, to=holder(sheet))
        return secret

    kept = group.endswith("inside a kept sequence") or group == "inside a kept sequence"
    carriers = CLASSIC | ENHANCED if kept else frozenset(Place.__dataclass_fields__["carriers"].default)
    return Place(group, vr, plant, carriers, allowed)
