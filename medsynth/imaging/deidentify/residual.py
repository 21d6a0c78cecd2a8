"""The second look: search what was written for values that stood in the original header.

De-identification does not rely on this; it would catch a mistake in it. Values are held in memory only, and a hit says
in which file and from which attribute, never what.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from medsynth.errors import UnreadableError
from medsynth.imaging.deidentify.elements import Element, texts
from medsynth.imaging.deidentify.quiet import quiet_pydicom
from medsynth.imaging.deidentify.table import load_table

TEXT_VRS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
LOOSE_VRS = {"UN", "OB", None}
LONGEST_LOOSE = 16_384
"""Bytes of an undeclared value that are searched for text; what is longer is bulk data."""

SHORTEST_NAME = 3
SHORTEST_VALUE = 4
SHORTEST_WORD = 6
SHORTEST_CODE = 5
SHORTEST_NUMBER = 6
SHORTEST_IN_SAMPLES = 8
"""Characters below which a value would be found by chance: in names, whole values, words, tokens with digits, numbers
alone, and amid voxels."""

OWN_DATE = "19000101"
STANDARD_UID = "1.2.840.10008."
OTHER_SCRIPTS = ("latin-1", "cp1251", "shift_jis", "iso2022_jp", "euc_kr", "gb18030")
PIXEL_DATA_MARKS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")


class Identifiers:
    """Values that must not survive, each with the attribute it came from; never printed."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._keywords: dict[str, str] = {}
        for value, keyword in (values or {}).items():
            self.add(value, keyword)

    def add(self, value: str, keyword: str) -> None:
        """Remember one value, without regard to case."""
        self._keywords.setdefault(value.strip().lower(), keyword)

    def update(self, others: Identifiers) -> None:
        """Remember the values of another dataset as well."""
        self._keywords = {**others._keywords, **self._keywords}

    def __len__(self) -> int:
        return len(self._keywords)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keywords)

    def __contains__(self, value: str) -> bool:
        return value.strip().lower() in self._keywords

    def __repr__(self) -> str:
        return f"Identifiers({len(self)} values, not shown)"

    def found_in(self, data: bytes, shortest: int = 0) -> set[str]:
        """Keywords of the attributes whose values occur in `data`; values below `shortest` characters are not sought."""
        if not data:
            return set()
        lower = data.lower()
        return {
            keyword
            for value, keyword in self._keywords.items()
            if len(value) >= shortest and any(_occurs(pattern, value, lower) for pattern in _patterns(value))
        }


@dataclass(frozen=True, order=True)
class Hit:
    """A value of attribute `keyword` was found in `file` (a path within the searched folder) or in its name."""

    file: str
    keyword: str


def identifying_values(dataset: Dataset) -> Identifiers:
    """Everything in a header, at any depth, that could lead to a person: names in parts, IDs, dates in several ways of
    writing, UIDs, and the longer words of free text, unless they are ordinary words of the standard or kept values.
    """
    found: dict[str, str] = {}
    kept: set[str] = set()
    with quiet_pydicom():
        for part in (getattr(dataset, "file_meta", None), dataset):
            if part is not None:
                _collect(part, found, kept)
    survivors = "\n".join(sorted(kept))
    return Identifiers({value: keyword for value, keyword in found.items() if value.lower() not in survivors})


def scan_bytes(values: Identifiers, data: bytes) -> set[str]:
    """Keywords of the attributes whose values occur in a file's content: DICOM, NIfTI, text or anything else.

    Amid voxels and other binary content only ASCII text of some length is sought: numbers of soft tissue look like
    16-bit letters, and short words come up by chance.
    """
    head, samples = _parts(data)
    return values.found_in(head) | values.found_in(_printable_runs(samples), SHORTEST_IN_SAMPLES)


def scan_folder(values: Identifiers, folder: Path) -> list[Hit]:
    """Search every file below `folder`, its name included; `.gz` is searched unpacked. Raises UnreadableError."""
    hits: set[Hit] = set()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file()), start=1):
        name = path.relative_to(folder).as_posix()
        keywords = values.found_in(name.encode("utf-8", "surrogateescape")) | scan_bytes(values, _content(path, number))
        hits.update(Hit(name, keyword) for keyword in keywords)
    return sorted(hits)


def _collect(dataset: Dataset, found: dict[str, str], kept: set[str]) -> None:
    for tag, element in dataset.items():
        vr = _vr(element)
        if vr == "SQ" or (vr == "UN" and dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"):
            decoded = dataset[tag]
            if decoded.VR == "SQ":
                for item in decoded.value:
                    _collect(item, found, kept)
            continue
        values = _values(dataset, tag, element, vr)
        if tag in _kept_tags():
            kept.update(value.lower() for value in values)
            continue
        keyword = keyword_for_tag(tag) or ("private" if tag.is_private else "unknown")
        for value in values:
            for part in _parts_of(value, vr):
                found.setdefault(part, keyword)


def _vr(element: Element) -> str | None:
    if element.VR is not None:
        return str(element.VR)
    return dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else None


def _values(dataset: Dataset, tag: BaseTag, element: Element, vr: str | None) -> list[str]:
    """The texts of an element; of undeclared bytes the runs of printable characters."""
    if vr in LOOSE_VRS:
        value = element.value
        if not isinstance(value, bytes) or len(value) > LONGEST_LOOSE:
            return []
        runs = re.findall(rb"[\x20-\x7e]{%d,}" % SHORTEST_VALUE, value)
        return [run.decode("ascii") for run in runs]
    if vr not in TEXT_VRS | {"DA", "DS", "DT", "IS", "UI"}:
        return []
    plain = texts(element)
    if plain is not None and not (isinstance(element, RawDataElement) and b"\x1b" in (element.value or b"")):
        return plain
    decoded: DataElement = dataset[tag]
    values = decoded.value if decoded.VM > 1 else [decoded.value]
    return [str(value) for value in values]


@lru_cache(maxsize=8192)
def _parts_of(value: str, vr: str | None) -> tuple[str, ...]:
    """What to look for of one value. Kept for the next slice of the same series, whose header says the same."""
    return tuple(_split(value.strip(" \0"), vr))


def _split(value: str, vr: str | None) -> Iterator[str]:
    if vr == "UI":
        if value and not value.startswith(STANDARD_UID):
            yield value
        return
    if vr in {"DS", "IS"}:
        return
    if vr in {"DA", "DT"}:
        yield from _dates(value)
        return
    words = re.findall(r"\w+", value)
    if vr == "PN":
        yield from (word for word in words if _is_telling(word, SHORTEST_NAME))
        return
    whole = " ".join(value.split())
    if (
        len(words) > 1
        and SHORTEST_VALUE <= len(whole) <= 64
        and not all(map(_is_ordinary, words))
        and not whole.isdigit()
    ):
        yield whole
    if len(words) == 1 and _is_telling(whole, SHORTEST_VALUE) and not whole.isdigit():
        yield whole
    for word in words:
        has_digit = any(character.isdigit() for character in word)
        if _is_telling(word, SHORTEST_CODE if has_digit else SHORTEST_WORD):
            yield word


def _dates(value: str) -> Iterator[str]:
    match = re.match(r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)", value)
    if match is None or match.group(0) == OWN_DATE:
        return
    year, month, day = match.groups()
    yield f"{year}{month}{day}"
    for mark in "-./":
        yield from (mark.join(parts) for parts in ((year, month, day), (day, month, year), (month, day, year)))


def _is_telling(word: str, shortest: int) -> bool:
    if _is_ordinary(word):
        return False
    if word.isdigit():
        return len(word) >= SHORTEST_NUMBER and word != OWN_DATE and len(set(word)) > 1
    if not word.isascii():
        return len(word) >= 2
    return len(word) >= shortest


def _is_ordinary(word: str) -> bool:
    return word.lower() in load_table().words


@cache
def _kept_tags() -> frozenset[int]:
    """Tags whose values may outlive the profile somewhere: numbers and known terms."""
    trees = load_table().attributes.values()
    return frozenset(tag for rules in trees for tag, rule in rules.items() if rule.action in {"K", "C"})


@lru_cache(maxsize=8192)
def _patterns(value: str) -> tuple[bytes, ...]:
    """The ways in which a lower-case value may stand in a file."""
    encodings = ("utf-8", "utf-16-le", "utf-16-be") if value.isascii() else ("utf-8", "utf-16-le", *OTHER_SCRIPTS)
    found = []
    for encoding in encodings:
        try:
            found.append(value.encode(encoding).lower())
        except UnicodeEncodeError:
            continue
    return tuple(dict.fromkeys(found))


def _occurs(pattern: bytes, value: str, lower: bytes) -> bool:
    """Whether the pattern is there, and not as a part of a longer word or number."""
    place = lower.find(pattern)
    if place < 0:
        return False
    if b"\0" in pattern or not value.isascii():
        return True
    if value.isdigit():
        before, after = rb"(?<![0-9a-z])(?<![0-9][.])", rb"(?![0-9a-z])(?![.][0-9])"  # nor of a decimal
    elif len(value) < SHORTEST_WORD:
        before, after = rb"(?<![0-9a-z])", rb"(?![0-9a-z])"
    elif value.isalpha():
        before, after = rb"(?<![a-z])", rb"(?![a-z])"
    else:
        return True  # long enough, and of no ordinary word's form
    return re.search(before + re.escape(pattern) + after, lower[max(0, place - 2) :]) is not None


def _parts(data: bytes) -> tuple[bytes, bytes]:
    """Head and samples: in voxels and other binary content a short value proves nothing."""
    if data[128:132] == b"DICM":
        starts = [place for mark in PIXEL_DATA_MARKS if (place := data.find(mark, 132)) > 0]
        start = min(starts, default=len(data))
        return data[:start], data[start:]
    if data[344:348] in {b"n+1\0", b"ni1\0"}:
        order = "<" if data[:4] == struct.pack("<i", 348) else ">"
        start = max(352, int(struct.unpack_from(f"{order}f", data, 108)[0]))
        return data[:start], data[start:]
    return (b"", data) if b"\0" in data[:8192] else (data, b"")


def _printable_runs(data: bytes) -> bytes:
    """The stretches of at least `SHORTEST_IN_SAMPLES` printable ASCII characters, one per line."""
    printable = np.frombuffer(data, np.uint8) - np.uint8(0x20) < 0x5F  # what is below 0x20 wraps around
    length = 1
    while length < SHORTEST_IN_SAMPLES:  # printable[i] says whether a run of `length` starts at i
        printable = printable[:-length] & printable[length:]
        length *= 2
    starts = np.flatnonzero(printable)
    if starts.size == 0:
        return b""
    edges = np.flatnonzero(np.diff(starts) > 1)
    first = starts[np.concatenate([[0], edges + 1])]
    last = starts[np.concatenate([edges, [starts.size - 1]])] + SHORTEST_IN_SAMPLES
    return b"\n".join(data[begin:end] for begin, end in zip(first.tolist(), last.tolist(), strict=True))


def _content(path: Path, number: int) -> bytes:
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableError(f"expected a whole .gz file, found file {number} of the folder damaged") from error
