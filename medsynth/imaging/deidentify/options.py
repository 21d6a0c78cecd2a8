"""The options of PS3.15 Annex E: how each is called and coded, and what it makes of one attribute of table E.1-1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

BINARY_SIZES = {"AT": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "UV": 8}
NUMBERS = {"DS", "IS", *BINARY_SIZES}
TEXT = {"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT"}
PROSE = {"LO", "LT", "SH", "ST", "UC", "UT"}
WHEN = {"DA", "DT", "TM"}


class Option(NamedTuple):
    """One option: its code in PS3.16 CID 7050, and its name as it stands in DeidentificationMethod."""

    code: str
    name: str


OPTIONS: Mapping[str, Option] = {
    "clean_pixel_data": Option("113101", "Clean Pixel Data"),
    "clean_recognizable_visual_features": Option("113102", "Clean Recognizable Visual Features"),
    "clean_graphics": Option("113103", "Clean Graphics"),
    "clean_structured_content": Option("113104", "Clean Structured Content"),
    "clean_descriptors": Option("113105", "Clean Descriptors"),
    "retain_full_dates": Option("113106", "Retain Full Dates"),
    "retain_modified_dates": Option("113107", "Retain Modified Dates"),
    "retain_patient_characteristics": Option("113108", "Retain Patient Characteristics"),
    "retain_device_identity": Option("113109", "Retain Device Identity"),
    "retain_uids": Option("113110", "Retain UIDs"),
    "retain_safe_private": Option("113111", "Retain Safe Private"),
    "retain_institution_identity": Option("113112", "Retain Institution Identity"),
}

ACTIONS: Mapping[str, str] = {
    "X": "removed",
    "Z": "emptied",
    "D": "replaced by a dummy value",
    "U": "replaced by a new UID",
    "K": "kept, being a number",
    "C": "kept, being a known term",
    "CODE": "kept, being a known code",
    "S": "sequence cleaned inside",
    "R": "kept as an option says",
    "RCODE": "code kept as an option says",
    "A": "age kept, 90 years at most",
    "M": "moved by whole weeks",
    "W": "cleaned to words of radiology",
    "T": "structured content cleaned to codes and numbers",
    "P": "safe private attribute kept",
    "private": "private attribute removed",
    "unlisted": "removed, as no table keeps it",
    "pseudonym": "pseudonym written",
    "marker": "marker written",
}
"""What the counts of the driver's report mean, for people."""


def action_under(
    options: Iterable[tuple[str, str]], vr: str, *, has_terms: bool = False, has_items: bool = False
) -> str | None:
    """The action that options put in place of the profile's; None where they leave it.

    `options` are the active options that table E.1-1 answers for this attribute, each with its K or C. K goes before C:
    what may be kept need not be cleaned. `has_terms`: all good values are known; `has_items`: the attributes inside the
    sequence are known.
    """
    ordered = sorted(options, key=lambda option: option[1] != "K")
    found = (
        _kept(vr, has_terms, has_items) if code == "K" else _cleaned(name, vr, has_items) for name, code in ordered
    )
    return next((action for action in found if action is not None), None)


def _kept(vr: str, has_terms: bool, has_items: bool) -> str | None:
    if vr == "SQ":
        return "S" if has_items else "RCODE"
    if vr in NUMBERS:
        return "K"
    if vr == "AS":
        return "A"
    if vr == "CS" and has_terms:
        return "C"
    return "R" if vr in TEXT | WHEN | {"UI"} else None


def _cleaned(option: str, vr: str, has_items: bool) -> str | None:
    """How an option's C is met.

    Clean Graphics (E.3.3) leaves the profile's removal: overlays, curves and graphic annotations can be kept only if it
    can be shown that they hold no identifying text, and nothing can show that of a bitmap or of strokes.
    """
    if option == "retain_modified_dates":
        return {"DA": "M", "DT": "M", "TM": "R"}.get(vr)  # whole weeks leave the time of day as it is
    if option == "clean_structured_content":
        return "T" if vr == "SQ" else None
    if option in {"clean_descriptors", "retain_patient_characteristics"}:
        if vr == "SQ":
            return "S" if has_items else "CODE"
        return "W" if vr in PROSE else None
    return None
