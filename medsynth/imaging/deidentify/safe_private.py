"""Retain Safe Private (PS3.15 E.3.10): private attributes of table E.3.10-1 that describe a CT or MR acquisition.

`safe_private.json` lists them by creator: number within the reserved block, VR, multiplicity, meaning, and for text a
pattern of all the values it may have. Numbers must be numbers. Rows of the table that hold free text, bulk data, sequences
or presentation state are left out, as are ultrasound and mammography: E.3.10 asks for what is known to be safe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from medsynth.imaging.deidentify import actions
from medsynth.imaging.deidentify.case import Case
from medsynth.imaging.deidentify.elements import Element, encoded_text, texts
from medsynth.imaging.deidentify.options import NUMBERS
from medsynth.imaging.deidentify.table import Rule, most_values

FIRST_BLOCK = 0x10
"""Lowest number of a reservation; (gggg,0010) reserves (gggg,1000) to (gggg,10FF) (PS3.5 section 7.8.1)."""


@dataclass(frozen=True)
class SafePrivate:
    """The list, by creator and number: (group, last two digits of the element)."""

    edition: str
    rules: Mapping[str, Mapping[tuple[int, int], Rule]]

    def kept(self, element: Element, case: Case) -> tuple[Element, Element] | None:
        """A private element if it is safe, and the reservation of its block; None if it goes."""
        group, number = element.tag.group, element.tag.element
        block = number >> 8
        if block < FIRST_BLOCK:
            return None  # a reservation goes or stays with what it reserves
        creator_tag = group << 16 | block
        if creator_tag not in case.dataset:
            return None
        names = texts(case.dataset.get_item(creator_tag))
        creator = names[0] if names and len(names) == 1 else ""
        rule = self.rules.get(creator, {}).get((group, number & 0xFF))
        if rule is None:
            return None
        known = _in_listed_vr(element, rule)
        if known is None or actions.SIMPLE[rule.action](known, rule, case) is not known:
            return None
        return known, encoded_text(creator_tag, "LO", [creator], case.encoding)


@cache
def load_safe_private() -> SafePrivate:
    """The list that ships with the package; read once."""
    data = json.loads((files(__package__) / "safe_private.json").read_text(encoding="utf-8"))
    rules = {
        creator: {(int(tag[:4], 16), int(tag[-2:], 16)): _rule(tag, *row) for tag, row in rows.items()}
        for creator, rows in data["creators"].items()
    }
    return SafePrivate(edition=f"{data['source']}, {data['edition']}", rules=rules)


def _rule(tag: str, vr: str, multiplicity: str, meaning: str, pattern: str | None = None) -> Rule:
    return Rule(
        tag=int(tag.replace("xx", "00"), 16),
        keyword=meaning,
        vrs=(vr,),
        most_values=most_values(multiplicity),
        requirement=3,
        action="K" if vr in NUMBERS else "C",
        items=None,
        terms=frozenset(),
        pattern=None if pattern is None else re.compile(pattern),
        least_values=int(multiplicity.split("-")[0]),
    )


def _in_listed_vr(element: Element, rule: Rule) -> Element | None:
    """The element in the VR of the list where the file does not say it; None where it says another kind of value."""
    if element.VR in (None, "UN"):
        if isinstance(element, RawDataElement) and element.is_little_endian:
            return element._replace(tag=BaseTag(element.tag), VR=rule.vrs[0])
        return None
    both_numbers = rule.vrs[0] in NUMBERS and element.VR in NUMBERS
    return element if both_numbers or element.VR in rule.vrs else None
