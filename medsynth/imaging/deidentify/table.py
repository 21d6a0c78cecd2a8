"""The table of de-identification as data: which attribute gets which action in which kind of object.

`table.json` is generated (see `build_table.py`): the actions of PS3.15 table E.1-1, and for each supported object the
attributes of its modules in PS3.3 with their types. `vocabulary.json` is written by hand: the terms that equipment
writes into coded attributes. Whatever is in neither is removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pydicom.datadict import dictionary_keyword, dictionary_VM, dictionary_VR

NUMBER_TEXT = {"DS", "IS"}
BINARY_SIZES = {"AT": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "UV": 8}
CODED_TEXT = {"CS", "LO", "SH"}
BULK = {"OB", "OW", "OV"}


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to one attribute at one place of one kind of object."""

    tag: int
    keyword: str
    vrs: tuple[str, ...]
    most_values: int | None
    """Upper bound of its value multiplicity; None where the standard sets none."""
    requirement: int
    """1, 2 or 3: the attribute's type, a conditional type counting as its unconditional one."""
    action: str
    """X remove, Z empty, D dummy, U new UID, K keep numbers or bulk, C keep known terms, S recurse, CODE look up."""
    items: Mapping[int, Rule] | None
    terms: frozenset[str]
    pattern: re.Pattern[str] | None


Rules = Mapping[int, Rule]


@dataclass(frozen=True, slots=True)
class Table:
    """Everything that the driver looks up."""

    edition: str
    sop_classes: Mapping[str, str]
    profile: Mapping[str, str]
    attributes: Mapping[str, Rules]
    codes: Mapping[str, Mapping[str, str]]
    methods: tuple[re.Pattern[str], ...]
    """Forms of DeidentificationMethod that other tools write and that hold no free text."""
    words: frozenset[str]
    """Lower-case words that the kept terms, code meanings and attribute names are made of."""

    def rules_for(self, sop_class: str) -> Rules:
        """The rules of a supported SOP class."""
        return self.attributes[self.sop_classes[sop_class]]


def resolve(code: str, requirement: int) -> str:
    """The one action out of a table E.1-1 code, in the way that leaves the object valid (PS3.15 E.3, notes of E.1-1).

    Where the standard leaves a choice, the attribute's type makes it: type 1 needs a value (dummy, or new UIDs inside
    a sequence), type 2 is emptied, type 3 removed.
    """
    if "/" not in code:
        return code
    if requirement == 3:
        return "X"
    if requirement == 2:
        return "Z"
    return "S" if code.endswith("U*") else "D"


@cache
def load_table() -> Table:
    """The table that ships with the package; read once."""
    folder = files(__package__)
    generated = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    curated = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    terms = {keyword: set(words) for keyword, words in generated["terms"].items()}
    for keyword, words in curated["terms"].items():
        terms.setdefault(keyword, set()).update(words)
    patterns = {keyword: re.compile(text) for keyword, text in curated["patterns"].items()}
    vocabulary = _Vocabulary(terms, frozenset(curated["any_code"]), patterns)
    attributes = {iod: _rules(tree, generated["profile"], vocabulary) for iod, tree in generated["attributes"].items()}
    return Table(
        edition=generated["edition"],
        sop_classes=generated["sop_classes"],
        profile=generated["profile"],
        attributes=attributes,
        codes=generated["codes"],
        methods=tuple(re.compile(text) for text in curated["methods"]),
        words=_words(terms, curated, generated["codes"]),
    )


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    terms: Mapping[str, set[str]]
    any_code: frozenset[str]
    patterns: Mapping[str, re.Pattern[str]]


def _rules(tree: Mapping[str, Any], profile: Mapping[str, str], vocabulary: _Vocabulary) -> dict[int, Rule]:
    return {int(tag, 16): _rule(tag, entry, profile, vocabulary) for tag, entry in tree.items()}


def _rule(tag: str, entry: str | dict[str, Any], profile: Mapping[str, str], vocabulary: _Vocabulary) -> Rule:
    number = int(tag, 16)
    keyword = dictionary_keyword(number)
    vrs = tuple(dictionary_VR(number).split(" or "))
    text, children = (entry["type"], entry["items"]) if isinstance(entry, dict) else (entry, None)
    requirement = int(text[0]) if text[0].isdigit() else 3
    items = None if children is None else _rules(children, profile, vocabulary)
    action = resolve(profile[tag], requirement) if tag in profile else _keep_action(vrs, items)
    words = vocabulary.terms.get(keyword, set()) | (vocabulary.any_code if "CS" in vrs else set())
    return Rule(
        tag=number,
        keyword=keyword,
        vrs=vrs,
        most_values=_most_values(dictionary_VM(number)),
        requirement=requirement,
        action=action,
        items=items,
        terms=frozenset(word.upper() for word in words),
        pattern=vocabulary.patterns.get(keyword),
    )


def _keep_action(vrs: tuple[str, ...], items: Rules | None) -> str:
    """How an attribute that table E.1-1 does not list is kept."""
    if "SQ" in vrs:
        return "S" if items else "CODE"
    if "UI" in vrs:
        return "U"
    return "C" if CODED_TEXT & set(vrs) else "K"


def _most_values(multiplicity: str) -> int | None:
    last = multiplicity.rsplit("-", 1)[-1]
    return int(last) if last.isdigit() else None


def _words(
    terms: Mapping[str, set[str]], curated: Mapping[str, Any], codes: Mapping[str, Mapping[str, str]]
) -> frozenset[str]:
    texts = [word for group in terms.values() for word in group]
    texts += curated["any_code"]
    texts += [meaning for scheme in codes.values() for meaning in scheme.values()]
    texts += [f"{scheme} {value}" for scheme, values in codes.items() for value in values]
    texts += ["medsynth", "authors", "earlier de-identification text removed", "Basic Profile Details Annex"]
    return frozenset(word for text in texts for word in re.findall(r"\w+", text.lower()))
