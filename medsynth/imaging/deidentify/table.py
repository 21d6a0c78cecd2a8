"""The table of de-identification as data: which attribute gets which action in which kind of object.

`table.json` is generated (see `build_table.py`): the actions of PS3.15 table E.1-1, and for each supported object the
attributes of its modules in PS3.3 with their types. `vocabulary.json` is written by hand: the terms that equipment
writes into coded attributes. Whatever is in neither is removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from pydicom.datadict import dictionary_keyword, dictionary_VM, dictionary_VR

from medsynth.imaging.deidentify.descriptors import Dictionary
from medsynth.imaging.deidentify.options import OPTIONS, action_under

NUMBER_TEXT = {"DS", "IS"}
CODED_TEXT = {"CS", "LO", "SH"}
BULK = {"OB", "OW", "OV"}
ONLY_BY_OPTION = {"ManufacturerModelName", "SoftwareVersions"}
"""Free text outside table E.1-1 that stands in the trees because an option keeps it."""


@dataclass(frozen=True, slots=True, eq=False)
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
    """What is done, by the names in `options.ACTIONS`."""
    items: Mapping[int, Rule] | None
    terms: frozenset[str]
    pattern: re.Pattern[str] | None
    least_values: int = 0
    """Lower bound of its value multiplicity, where values could hide behind a wrong one."""


Rules = Mapping[int, Rule]


@dataclass(frozen=True)
class Table:
    """Everything that the driver looks up."""

    edition: str
    options_edition: str
    sop_classes: Mapping[str, str]
    profile: Mapping[str, str]
    options: Mapping[str, Mapping[str, str]]
    """Option -> tag -> K or C, for attributes that table E.1-1 answers."""
    codes: Mapping[str, Mapping[str, str]]
    methods: tuple[re.Pattern[str], ...]
    """Forms of DeidentificationMethod that other tools write and that hold no free text."""
    words: frozenset[str]
    """Lower-case words that the kept terms, code meanings, attribute names and cleaned descriptions are made of."""
    dictionary: Dictionary
    """The words that Clean Descriptors keeps."""
    trees: Mapping[str, Mapping[str, Any]]
    vocabulary: Vocabulary
    _resolved: dict[tuple[str, frozenset[str]], Rules] = field(default_factory=dict)

    def rules_for(self, sop_class: str, options: Set[str] = frozenset()) -> Rules:
        """The rules of a supported SOP class under some options; each attribute at each depth has one action."""
        iod, active = self.sop_classes[sop_class], frozenset(options)
        if (iod, active) not in self._resolved:
            self._resolved[iod, active] = self._rules(self.trees[iod], active, root=True)
        return self._resolved[iod, active]

    @cached_property
    def attributes(self) -> Mapping[str, Rules]:
        """The rules of every kind of object under the Basic Profile alone."""
        return {iod: self.rules_for(sop_class) for sop_class, iod in self.sop_classes.items()}

    def _rules(self, tree: Mapping[str, Any], options: frozenset[str], *, root: bool = False) -> dict[int, Rule]:
        found = {int(tag, 16): self._rule(tag, entry, options) for tag, entry in tree.items()}
        if root:  # what an option keeps, it keeps also where the object's modules do not foresee it
            listed = {tag for option in options for tag in self.options.get(option, {}) if "x" not in tag}
            for tag in sorted(listed):
                if int(tag, 16) not in found and self._answer(tag, "X", None, options) is not None:
                    found[int(tag, 16)] = self._rule(tag, "3", options)
        return found

    def _rule(self, tag: str, entry: str | Mapping[str, Any], options: frozenset[str]) -> Rule:
        number = int(tag, 16)
        keyword = dictionary_keyword(number)
        vrs = _vrs(number)
        text, children = (entry, None) if isinstance(entry, str) else (entry["type"], entry["items"])
        requirement = int(text[0]) if text[0].isdigit() else 3
        items = None if children is None else self._rules(children, options)
        words = self.vocabulary.terms.get(keyword, set()) | (self.vocabulary.any_code if "CS" in vrs else set())
        if tag in self.profile:
            basic = resolve(self.profile[tag], requirement)
        else:
            basic = "X" if keyword in ONLY_BY_OPTION else _keep_action(vrs, items)
        return Rule(
            tag=number,
            keyword=keyword,
            vrs=vrs,
            most_values=most_values(dictionary_VM(number)),
            requirement=requirement,
            action=self._answer(tag, basic, items, options) or basic,
            items=items,
            terms=frozenset(word.upper() for word in words),
            pattern=self.vocabulary.patterns.get(keyword),
        )

    def _answer(self, tag: str, basic: str, items: Rules | None, options: frozenset[str]) -> str | None:
        """The action that the options put in place of the basic one."""
        answers = [(name, self.options[name][tag]) for name in sorted(options) if tag in self.options.get(name, {})]
        if basic == "U" and "retain_uids" in options:
            answers.append(("retain_uids", "K"))  # UIDs that the table does not list are replaced like the listed
        known = bool(self.vocabulary.terms.get(dictionary_keyword(int(tag, 16))))
        return action_under(answers, _vrs(int(tag, 16))[0], has_terms=known, has_items=bool(items))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The terms of coded attributes, by keyword."""

    terms: Mapping[str, set[str]]
    any_code: frozenset[str]
    patterns: Mapping[str, re.Pattern[str]]


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
    codes = {scheme: dict(values) for scheme, values in generated["codes"].items()}
    for scheme, values in curated["codes"].items():
        codes.setdefault(scheme, {}).update(values)
    patterns = {keyword: re.compile(text) for keyword, text in curated["patterns"].items()}
    methods = [*curated["methods"], *(re.escape(option.name) for option in OPTIONS.values())]
    prose = frozenset(word for lines in curated["words"].values() for line in lines for word in line.split())
    named = {keyword: words for keyword, words in terms.items() if keyword != "Manufacturer"}  # firms bear surnames
    listed = {word for word in _words(named, curated, codes) if len(word) > 1 and any(map(str.isalpha, word))}
    return Table(
        edition=generated["edition"],
        options_edition=generated["options_edition"],
        sop_classes=generated["sop_classes"],
        profile=generated["profile"],
        options=generated["options"],
        codes=codes,
        methods=tuple(re.compile(text) for text in methods),
        words=_words(terms, curated, codes) | prose,
        dictionary=Dictionary(prose | listed, re.compile("|".join(curated["technical"]), re.IGNORECASE)),
        trees=generated["attributes"],
        vocabulary=Vocabulary(terms, frozenset(curated["any_code"]), patterns),
    )


def _keep_action(vrs: tuple[str, ...], items: Rules | None) -> str:
    """How an attribute that table E.1-1 does not list is kept."""
    if "SQ" in vrs:
        return "S" if items else "CODE"
    if "UI" in vrs:
        return "U"
    return "C" if CODED_TEXT & set(vrs) else "K"


def _vrs(tag: int) -> tuple[str, ...]:
    return tuple(dictionary_VR(tag).split(" or "))


def most_values(multiplicity: str) -> int | None:
    """Upper bound of a value multiplicity as PS3.6 writes it; None where there is none."""
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
