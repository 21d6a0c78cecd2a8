"""The audit as one HTML page: no scripts, nothing loaded, readable on paper."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from pydicom.datadict import dictionary_description, tag_for_keyword

from medsynth.imaging.deidentify.options import ACTIONS

MOST_SERIES = 1000
"""Rows of the table of series; the others stand in the JSON file."""
KIND_WORDS = {
    "written": "written",
    "duplicate": "left out: the same as an earlier file",
    "foreign": "left out: no DICOM image",
    "damaged": "left out: damaged or contradicting another file",
    "refused": "refused by a privacy rule",
    "withheld": "withheld: an original value was found in the result",
}
NOT_CHECKED = {
    "quiet": "Images whose header gives no reason to suspect burned-in text were not read by text recognition, except for "
    "bright thin strokes in uncompressed grey images.",
    "no_ocr": "Text recognition was switched off: text in pixels was judged by headers and rules alone.",
    "faces_kept": "Faces were let through by the setting accept_faces: people can be recognised from head scans.",
    "faces_removed": "Faces were removed by a command of the site; whether its result is still recognisable was not checked.",
    "faces": "A head was recognised by body part, description and field of view; a head that these do not tell of was missed.",
    "words": "Words of the original free text with fewer than six letters, and words of the radiology dictionary, were not sought.",
    "ages": "Ages, sexes, sizes, weights and times of day were not sought in the results: many people share them.",
    "packed": "Text inside compressed pixel data was sought as bytes, not after decompression.",
    "outside": "Only this folder was looked at: not backups, caches, logs of other programs or the place the originals lie in.",
}
"""What a reader might take for checked."""
ACTION_ORDER = ("X", "private", "unlisted", "Z", "D", "U", "pseudonym")
"""What takes away comes first on the page; what is kept, after it; what is written, last."""


def render_page(record: dict[str, Any]) -> str:
    """The page for an audit record."""
    series = sorted(record["series"], key=lambda row: (not row["left_out"], row["patient"], row["series"]))
    return _template().render(
        record,
        audit=record,
        actions=_by_action(record["attributes"]),
        kind_words=KIND_WORDS,
        total=sum(record["files"].values()),
        rows=series[:MOST_SERIES],
        more_series=max(0, len(series) - MOST_SERIES),
    )


def _by_action(attributes: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Action -> its meaning, and the attributes that met it, most frequent first."""
    groups: dict[str, list[tuple[str, str, int]]] = {}
    for name, counts in attributes.items():
        for action, count in counts.items():
            groups.setdefault(action, []).append((*_plain_name(name), count))
    order = [*ACTION_ORDER, *(action for action in ACTIONS if action not in ACTION_ORDER)]
    return [
        {
            "meaning": ACTIONS.get(action, action),
            "attributes": sorted(groups[action], key=lambda entry: (-entry[2], entry[0])),
            "total": sum(count for _, _, count in groups[action]),
        }
        for action in sorted(
            groups, key=lambda action: (order.index(action) if action in order else len(order), action)
        )
    ]


def _plain_name(name: str) -> tuple[str, str]:
    """How the standard calls an attribute, and its tag."""
    tag = tag_for_keyword(name)
    if tag is None:
        return ("Private attributes", "") if name == "private" else ("Unknown attribute", name.strip("()"))
    return str(dictionary_description(tag)), f"{tag >> 16:04X},{tag & 0xFFFF:04X}"


@cache
def page_words() -> frozenset[str]:
    """The words that the page is made of, in lower case: where they stand in a report, they came from here."""
    text = re.sub(r"(?s)<style>.*?</style>|<[^>]*>|{{.*?}}|{%.*?%}", " ", _source())
    texts = [text, *NOT_CHECKED.values(), *KIND_WORDS.values(), *ACTIONS.values()]
    return frozenset(word for one in texts for word in re.findall("[a-z]+", one.lower()))


def _source() -> str:
    return (files(__package__) / "audit.html.j2").read_text(encoding="utf-8")


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_source())
