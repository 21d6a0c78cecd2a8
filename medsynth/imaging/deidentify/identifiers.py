"""Values by which a person could be found, gathered from a header: what de-identification must not leave anywhere.

They are held in memory only. Nothing here prints one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from itertools import permutations

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID_dictionary

from medsynth.imaging.deidentify.audit_page import page_words
from medsynth.imaging.deidentify.elements import Element, texts
from medsynth.imaging.deidentify.table import load_table
from medsynth.imaging.deidentify.written_dates import Date, date_of, dates_in

TEXT_VRS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
LOOSE_VRS = {"UN", "OB", None}
SOUGHT_VRS = TEXT_VRS | {"DA", "DT", "UI"}
"""Beside them, ages (AS) and times (TM) are not sought: they are shared by too many, and numbers meet them by chance."""
LONGEST_LOOSE = 16_384
"""Bytes of an undeclared value that are searched for text; what is longer is bulk data."""

SHORTEST_IDEOGRAPHIC = 2
SHORTEST_NAME = 3
SHORTEST_VALUE = 4
SHORTEST_WORD = 6
SHORTEST_CODE = 5
SHORTEST_NUMBER = 6
"""Characters below which a value would be found by chance: in scripts of East Asia, names, whole values, words, tokens with
digits and numbers alone."""
MOST_WORDS = 12
"""Of a family name and of given names that are paired: what has more is no name but a damaged length."""

CHARACTER_SET = 0x00080005
ALL_PRINTABLE = re.compile(rb"[\x20-\x7e]{%d,}" % SHORTEST_VALUE)
PRINTABLE_RUN = re.compile(rb"[\x20-\x7e]{%d,}" % SHORTEST_WORD)
"""In binary content shorter ones come up by chance."""

OTHER_SCRIPTS = ("latin-1", "cp1250", "cp1251", "shift_jis", "iso2022_jp", "euc_jp", "euc_kr", "gb18030")
NAME_GAPS = ("", " ", "^", ",", ", ", "_", "-", ".")
GERMAN = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "ø": "oe", "å": "aa", "æ": "ae"})


class Identifiers:
    """Values that must not survive, each with the attribute it came from; never printed."""

    def __init__(self, values: Mapping[str, str] | None = None, dates: Mapping[Date, str] | None = None) -> None:
        self._keywords: dict[str, str] = {}
        self._dates: dict[Date, str] = dict(dates or {})
        self._patterns: list[tuple[bytes, str]] | None = None
        for value, keyword in (values or {}).items():
            self.add(value, keyword)

    def add(self, value: str, keyword: str) -> None:
        """Remember one value, without regard to case."""
        self._keywords.setdefault(value.strip().lower(), keyword)
        self._patterns = None

    def add_date(self, date: Date, keyword: str) -> None:
        """Remember a date, to be found in any way of writing."""
        self._dates.setdefault(date, keyword)

    def update(self, others: Identifiers) -> None:
        """Remember the values of another dataset as well."""
        self._keywords = {**others._keywords, **self._keywords}
        self._dates = {**others._dates, **self._dates}
        self._patterns = None

    def without(self, text: str) -> Identifiers:
        """Those values that do not stand in `text`."""
        if not text:
            return self
        there = self.sought_in(text.encode("utf-8", "surrogatepass"))
        kept = {value: keyword for value, keyword in self._keywords.items() if value not in there}
        return Identifiers(kept, {date: keyword for date, keyword in self._dates.items() if date not in there})

    def __len__(self) -> int:
        return len(self._keywords) + len(self._dates)

    def __iter__(self) -> Iterator[str]:
        yield from self._keywords
        yield from (f"{year:04d}{month:02d}{day:02d}" for year, month, day in self._dates)

    def __contains__(self, value: str) -> bool:
        lower = value.strip().lower()
        return lower in self._keywords or bool(self._dates.keys() & dates_in(lower.encode()))

    def __repr__(self) -> str:
        return f"Identifiers({len(self)} values, not shown)"

    def __reduce__(self) -> tuple[type[Identifiers], tuple[dict[str, str], dict[Date, str]]]:
        return Identifiers, (self._keywords, self._dates)  # patterns are made where they are needed

    def put(self, value: str | Date, keyword: str) -> None:
        """Remember a text or a date."""
        if isinstance(value, tuple):
            self.add_date(value, keyword)
        else:
            self.add(value, keyword)

    def has(self, value: str | Date) -> bool:
        """Whether a text (in lower case) or a date is among the values."""
        return value in (self._dates if isinstance(value, tuple) else self._keywords)

    @property
    def keywords(self) -> set[str]:
        """The attributes that the values came from."""
        return {*self._keywords.values(), *self._dates.values()}

    def keyword(self, value: str | Date) -> str:
        """The attribute that a value came from."""
        return self._dates[value] if isinstance(value, tuple) else self._keywords[value]

    def found_in(self, data: bytes, shortest: int = 0) -> set[str]:
        """Keywords of the attributes whose values occur in `data`; values below `shortest` characters are not sought."""
        return {self.keyword(value) for value in self.sought_in(data, shortest)}

    def sought_in(self, data: bytes, shortest: int = 0) -> set[str | Date]:
        """The values themselves that occur in `data`: for whoever asks further, never to be shown."""
        return self.in_text(unfolded(data), shortest)

    def in_text(self, text: bytes, shortest: int = 0) -> set[str | Date]:
        """The same for a text that is `unfolded` already."""
        if not text:
            return set()
        if self._patterns is None:
            self._patterns = [(pattern, value) for value in self._keywords for pattern in patterns_of(value)]
        found: set[str | Date] = {
            value
            for pattern, value in self._patterns
            if pattern in text and len(value) >= shortest and occurs(pattern, value, text)
        }
        if self._dates:
            found |= self._dates.keys() & dates_in(text)
        return found


class Gathered:
    """What one element, or a whole header, holds: values and dates to seek, and texts that the profile keeps."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.dates: dict[Date, str] = {}
        self.kept: set[str] = set()

    def add(self, dataset: Dataset, tag: BaseTag, element: Element) -> None:
        """Look into one element of `dataset`, and into all the items of a sequence."""
        if tag == CHARACTER_SET:
            return
        vr = declared_vr(element)
        if vr == "SQ" or (vr == "UN" and dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"):
            decoded = dataset[tag]
            if decoded.VR == "SQ":
                for item in decoded.value:
                    for inner, entry in item.items():
                        self.add(item, inner, entry)
            return
        values = _values(dataset, tag, element, vr)
        if tag in _kept_tags():
            self.kept.update(value.lower() for value in values)
            return
        keyword = keyword_for_tag(tag) or ("private" if tag.is_private else "unknown")
        for value in values:
            if vr in {"DA", "DT"}:
                date = date_of(value)
                if date is not None:
                    self.dates.setdefault(date, keyword)
                continue
            for part in _parts_of(value, vr):
                self.values.setdefault(part, keyword)


def declared_vr(element: Element) -> str | None:
    """The VR of an element, from the dictionary where the encoding leaves it open."""
    if element.VR is not None:
        return str(element.VR)
    return dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else None


def _values(dataset: Dataset, tag: BaseTag, element: Element, vr: str | None) -> list[str]:
    """The texts of an element; of undeclared bytes the runs of printable characters."""
    if vr in LOOSE_VRS:
        value = element.value
        if not isinstance(value, bytes) or len(value) > LONGEST_LOOSE:
            return []
        whole = value.strip(b" \0")
        runs = [whole] if ALL_PRINTABLE.fullmatch(whole) else PRINTABLE_RUN.findall(value)
        return [run.decode("ascii") for run in runs]
    if vr not in SOUGHT_VRS | {"DS", "IS"}:
        return []
    plain = texts(element)
    if plain is not None and not (isinstance(element, RawDataElement) and b"\x1b" in (element.value or b"")):
        return plain
    decoded: DataElement = dataset[tag]
    values = decoded.value if decoded.VM > 1 else [decoded.value]
    return [str(value) for value in values]


@lru_cache(maxsize=8192)
def _parts_of(value: str, vr: str | None) -> tuple[str, ...]:
    """What to look for of one value, in lower case. Kept for the next slice of the same series, which says the same."""
    return tuple(dict.fromkeys(part.lower() for part in _split(value.strip(" \0"), vr)))


def _split(value: str, vr: str | None) -> Iterator[str]:
    if vr == "UI":
        if value and value not in UID_dictionary:
            yield value
        return
    if vr in {"DS", "IS"}:
        return
    if vr == "PN":
        yield from _forms_of_name(value)
        return
    words = re.findall(r"\w+", value)
    whole = " ".join(value.split())
    if len(words) > 1 and SHORTEST_VALUE <= len(whole) <= 64 and not all(map(_is_plain, words)) and not whole.isdigit():
        yield whole
        joined = "".join(words)
        if len(joined) >= SHORTEST_NUMBER and any(map(str.isdigit, joined)) and len(words) <= 4:
            yield joined  # 4711-0815-AB as 47110815AB
    if len(words) == 1 and not _is_plain(words[0]) and _is_telling(whole, SHORTEST_VALUE) and not whole.isdigit():
        yield whole
    for word in words:
        has_digit = any(character.isdigit() for character in word)
        if not _is_plain(word) and _is_telling(word, SHORTEST_CODE if has_digit else SHORTEST_WORD):
            yield word


def _forms_of_name(value: str) -> Iterator[str]:
    """A person's name (PS3.5 section 6.2.1): its parts; two parts run together, in both orders; with an initial; without
    accents. Parts too short to be sought alone are sought beside each other.
    """
    for group in value.split("="):
        family, *others = [re.findall(r"\w+", component) for component in group.split("^")[:3]]
        given = [word for component in others for word in component]
        for word in (*family, *given, *re.findall(r"\w+", "^".join(group.split("^")[3:]))):
            yield from (form for form in _spellings(word) if _is_telling(form, SHORTEST_NAME))
        for last, first in ((last, first) for last in family[:MOST_WORDS] for first in given[:MOST_WORDS]):
            if _is_ordinary(last) and _is_ordinary(first):
                continue
            for one, two in permutations((last, first)):
                gaps = NAME_GAPS if min(len(one), len(two)) < SHORTEST_NAME else ("",)
                for form_one, form_two in zip(_spellings(one), _spellings(two), strict=False):
                    yield from (form_one + gap + form_two for gap in gaps if len(form_one + form_two) > SHORTEST_NAME)
            if len(last) >= SHORTEST_CODE and not _is_ordinary(last):
                yield from (first[0] + last, last + first[0])


def _spellings(word: str) -> tuple[str, ...]:
    """A word as it is, without accents, and with the letters that German writes for them."""
    lower = word.lower()
    plain = "".join(char for char in unicodedata.normalize("NFKD", lower) if not unicodedata.combining(char))
    forms = (lower, plain.replace("ß", "ss").replace("ø", "o").replace("ł", "l"), lower.translate(GERMAN))
    return forms if any(form != lower for form in forms) else (lower,)


def _is_telling(word: str, shortest: int) -> bool:
    if _is_ordinary(word):
        return False
    if word.isdigit():
        return len(word) >= SHORTEST_NUMBER and word != "19000101" and len(set(word)) > 1
    return len(word) >= (SHORTEST_IDEOGRAPHIC if _is_ideographic(word) else shortest)


def _is_ordinary(word: str) -> bool:
    """Whether a word stands in kept terms, codes and markers, and so in every result."""
    return word.lower() in load_table().words


def _is_plain(word: str) -> bool:
    """Whether a word of free text leads to nobody: a word of radiology, or of the report on de-identification."""
    lower = word.lower()
    return lower in load_table().words or lower in load_table().dictionary.words or lower in page_words()


@cache
def _kept_tags() -> frozenset[int]:
    """Tags whose values may outlive the profile somewhere: numbers and known terms."""
    trees = load_table().attributes.values()
    return frozenset(tag for rules in trees for tag, rule in rules.items() if rule.action in {"K", "C"})


UTF16_RUN = re.compile(rb"(?:[ -~]\0){3,}[ -~]?")


def unfolded(data: bytes) -> bytes:
    """Lower case, with every stretch of ASCII in UTF-16 (either byte order) added in plain."""
    lower = data.lower()
    if lower.count(b"\0") < 3:
        return lower
    wide = [run.replace(b"\0", b"") for run in UTF16_RUN.findall(lower)]
    return (
        b"\n".join([lower, *wide, *(run[:-1] for run in wide)]) if wide else lower
    )  # the last may belong to what follows


@lru_cache(maxsize=65536)
def patterns_of(value: str) -> tuple[bytes, ...]:
    """The ways in which a lower-case value may stand in an `unfolded` file."""
    if value.isascii():
        return (value.encode("ascii"),)
    found = []
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", *OTHER_SCRIPTS):
        for form in (value, value.upper(), value.title()):
            try:
                found.append(form.encode(encoding).lower())
            except UnicodeEncodeError:
                continue
    return tuple(dict.fromkeys(found))


def _is_ideographic(word: str) -> bool:
    """Whether a word has characters of East Asia, of which each says as much as a syllable and takes two bytes or more."""
    return any(character >= "\u2e80" for character in word)


def occurs(pattern: bytes, value: str, lower: bytes) -> bool:
    """Whether a pattern that is there is more than a part of a longer word or number."""
    if _is_ideographic(value):
        return True
    if not value.isascii():
        before, after = rb"(?<![a-z\x80-\xff])", rb"(?![a-z\x80-\xff])"
    elif value.isdigit():
        before, after = rb"(?<![0-9a-z])(?<![0-9][.])", rb"(?![0-9a-z])(?![.][0-9])"  # nor of a decimal
    elif len(value) < SHORTEST_WORD:
        before, after = rb"(?<![0-9a-z])", rb"(?![0-9a-z])"
    elif value.isalpha():
        before, after = rb"(?<![a-z])", rb"(?![a-z])"
    else:
        return True  # long enough, and of no ordinary word's form
    return re.search(before + re.escape(pattern) + after, lower) is not None
