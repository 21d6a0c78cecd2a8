"""The second look: search what was written for values that stood in the original header.

De-identification does not rely on this; it would catch a mistake in it. Values are held in memory only, and a hit says
in which file and from which attribute, never what.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from medsynth.errors import UnreadableError
from medsynth.imaging.deidentify.elements import ascii_text
from medsynth.imaging.deidentify.encode import Encoded
from medsynth.imaging.deidentify.identifiers import CHARACTER_SET, Gathered, Identifiers, unfolded
from medsynth.imaging.deidentify.written_dates import Date
from medsynth.imaging.quiet import quiet_pydicom

__all__ = ["Hit", "Identifiers", "ResidualSearch", "identifying_values", "scan_bytes", "scan_folder", "scan_places"]

SHORTEST_IN_SAMPLES = 8
"""Characters below which a value would be found by chance amid voxels."""
NEW_IN_NEW_SERIES, NEW_IN_SAME_SERIES = 32, 1000
"""An instance with more values than this that the ones before did not have is taken for the first of a series."""
MOST_REMEMBERED = 4096
LEAST_PRINTABLE_SAMPLE = 0x2000
"""As a number of 16 bits, little endian: the least positive one whose upper byte is a printable character."""
MOST_PLACES = 64
"""Beyond this, looking at every byte is faster than at each place."""
PRINTABLE = re.compile(rb"[\x20-\x7e]{%d,}" % SHORTEST_IN_SAMPLES)
NEVER_SOUGHT = {"AS", "AT", "FD", "FL", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "SV", "TM", "UL", "US", "UV"}
SERIES_INSTANCE, PIXEL_DATA = 0x0020000E, 0x7FE00010
PIXEL_DATA_MARKS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
TEXT_IN_BINARY = (b"SQLite format 3\0", b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
"""How databases and their write-ahead logs begin: binary files in which every text counts."""
DATABASE_COMPANIONS = ("-wal", "-journal")
PIECE = 1 << 26
OVERLAP = 1 << 10
"""Bytes of a large file that are searched at once, and that two pieces share."""


@dataclass(frozen=True, order=True)
class Hit:
    """A value of attribute `keyword` was found in `file` (a path within the searched folder) or in its name."""

    file: str
    keyword: str


def identifying_values(dataset: Dataset, retained: Iterable[str] = ()) -> Identifiers:
    """Everything in a header, at any depth, that could lead to a person: names in parts and in other orders, identifiers,
    dates, UIDs, and the longer words of free text, unless they are ordinary words of the standard or values that the
    profile keeps. `retained`: further texts that were kept on purpose.
    """
    gathered = Gathered()
    with quiet_pydicom():
        for part in (getattr(dataset, "file_meta", None), dataset):
            for tag, element in (part or Dataset()).items():
                gathered.add(part, tag, element)
    kept = "\n".join(sorted({*gathered.kept, *retained}))
    return Identifiers(gathered.values, gathered.dates).without(kept)


def scan_bytes(values: Identifiers, data: bytes) -> set[str]:
    """Keywords of the attributes whose values occur in a file's content: DICOM, NIfTI, text or anything else.

    Amid voxels and other binary content only ASCII text of some length is sought: numbers of soft tissue look like
    16-bit letters, and short words come up by chance.
    """
    head, samples = _parts(data)
    return values.found_in(head) | values.found_in(printable_runs(samples), SHORTEST_IN_SAMPLES)


def scan_folder(values: Identifiers, folder: Path) -> list[Hit]:
    """Search every file below `folder`, its name included; `.gz` is searched unpacked. Raises UnreadableError."""
    return _scan(values, sorted(path for path in folder.rglob("*") if path.is_file()), folder)


def scan_places(values: Identifiers, paths: Iterable[Path]) -> list[Hit]:
    """Search files, and all files of folders, wherever they lie: logs, databases with what is still in their journals,
    artifacts. Names count from the given path on. Places that do not exist hold nothing. Raises UnreadableError.
    """
    hits: set[Hit] = set()
    for path in paths:
        if path.is_dir():
            hits.update(Hit(f"{path.name}/{hit.file}", hit.keyword) for hit in scan_folder(values, path))
        else:
            places = [path, *(path.with_name(path.name + end) for end in DATABASE_COMPANIONS)]
            hits.update(_scan(values, [place for place in places if place.is_file()], path.parent))
    return sorted(hits)


def _scan(values: Identifiers, paths: Iterable[Path], root: Path) -> list[Hit]:
    hits: set[Hit] = set()
    for number, path in enumerate(paths, start=1):
        name = path.relative_to(root).as_posix()
        keywords = values.found_in(name.encode("utf-8", "surrogateescape"))
        for head, samples in _pieces(path, number):
            keywords |= values.found_in(head) | values.found_in(printable_runs(samples), SHORTEST_IN_SAMPLES)
        hits.update(Hit(name, keyword) for keyword in keywords)
    return sorted(hits)


@dataclass(frozen=True)
class Looked:
    """What is to be sought for one source."""

    entries: list[Gathered]
    new: Identifiers
    """Values that the search does not seek for every source of the series anyway."""
    first: Identifiers | None = None
    """All of its values, if the search took it for the first of a series."""

    def holds(self, value: str | Date) -> bool:
        """Whether a value comes from this source, and not only from another of its series."""
        return any(value in entry.values or value in entry.dates for entry in self.entries)

    @property
    def kept(self) -> set[str]:
        """Texts that the profile keeps."""
        return {text for entry in self.entries for text in entry.kept}


class _Seen(NamedTuple):
    """What was seen of one element of a source."""

    raw: bytes | None
    """None where it was decoded already: then nothing tells whether the next one is the same."""
    vr: str | None
    gathered: Gathered
    new: Identifiers | None
    """Those of its values that are not sought for every source of the series; None if there are none."""


class ResidualSearch:
    """Searches the results of one series after the other, and no part of them twice.

    Finds what `identifying_values` and `scan_bytes` find together. Slices of a series share nearly all elements, so two
    things are remembered: which values each element of the source holds, and which elements of the result hold none of
    the values of the series. Only new values are then sought in the whole result, and all values in new elements. (No value
    can lie across two elements: between them stands a tag, of whose bytes at least one is no character of any value.)
    """

    def __init__(self) -> None:
        self._known: tuple[dict[int, _Seen], dict[int, _Seen]] = ({}, {})
        """What is known of elements of file meta information and of datasets, by tag."""
        self._series = self._charset = ""
        self._common = Identifiers()
        self._clear: dict[bytes, bytes] = {}
        """Elements of results in which no common value stands, each with its text."""

    def look_at(self, source: Dataset) -> Looked:
        """What is to be sought for one source; best before it is de-identified, as its elements are undecoded then."""
        charset = ascii_text(source, CHARACTER_SET)
        if charset != self._charset:
            self._known, self._charset = ({}, {}), charset  # the same bytes say something else
        present: list[_Seen] = []
        with quiet_pydicom():
            for known, dataset in zip(self._known, (getattr(source, "file_meta", None), source), strict=True):
                for tag, element in list((dataset or Dataset()).items()):
                    number = int(tag)  # tags compare slowly
                    if number == PIXEL_DATA or element.VR in NEVER_SOUGHT:
                        continue
                    seen = known.get(number)
                    if seen is None or seen.raw is None or seen.raw != element.value or seen.vr != element.VR:
                        gathered = Gathered()
                        gathered.add(dataset, tag, element)
                        raw = element.value if element.is_raw else None
                        known[number] = seen = _Seen(raw, element.VR, gathered, self._beyond_common(gathered))
                    present.append(seen)
        new = Identifiers()
        for seen in present:
            if seen.new is not None:
                new.update(seen.new)
        entries = [seen.gathered for seen in present]
        series = ascii_text(source, SERIES_INSTANCE)
        if len(new) > (NEW_IN_SAME_SERIES if series == self._series else NEW_IN_NEW_SERIES) or not len(self._common):
            self._series = series
            self._begin(entries)
            return Looked(entries, Identifiers(), self._common)
        return Looked(entries, new)

    def search(
        self, looked: Looked, result: Encoded, also: Iterable[bytes], retained: Callable[[], Iterable[str]]
    ) -> set[str]:
        """Keywords of the attributes whose values occur in the encoded result, or in the other texts `also`.

        `retained` is asked for texts that were kept on purpose, and only if something is found.
        """
        elements = [*result.elements, *also]
        unknown = {element: unfolded(element) for element in elements if element not in self._clear}
        text = b"\n".join([unknown[element] if element in unknown else self._clear[element] for element in elements])
        found = self._common.in_text(b"\n".join(unknown.values()))
        if len(self._clear) > MOST_REMEMBERED:
            self._clear.clear()
        for element, part in unknown.items():
            if not found or not self._common.in_text(part):
                self._clear[element] = part
        runs = printable_runs(result.samples).lower()
        found |= looked.new.in_text(text) | looked.new.in_text(runs, SHORTEST_IN_SAMPLES)
        found |= self._common.in_text(runs, SHORTEST_IN_SAMPLES)
        values = Identifiers()
        for value in found:
            if looked.holds(value):
                values.put(value, (self._common if self._common.has(value) else looked.new).keyword(value))
        if not len(values):
            return set()
        kept = {one for one in looked.kept if one.encode("utf-8", "surrogatepass") in text}
        return values.without("\n".join(sorted({*kept, *retained()}))).keywords

    def _beyond_common(self, gathered: Gathered) -> Identifiers | None:
        if all(map(self._common.has, gathered.values)) and all(map(self._common.has, gathered.dates)):
            return None
        return Identifiers(
            {value: keyword for value, keyword in gathered.values.items() if not self._common.has(value)},
            {date: keyword for date, keyword in gathered.dates.items() if not self._common.has(date)},
        )

    def _begin(self, entries: list[Gathered]) -> None:
        """Take all values of one source for those of its series."""
        self._common = Identifiers()
        for entry in entries:
            self._common.update(Identifiers(entry.values, entry.dates))
        self._clear.clear()
        for known in self._known:
            for tag, seen in known.items():
                known[tag] = seen._replace(new=self._beyond_common(seen.gathered))


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
    if data.startswith(TEXT_IN_BINARY):
        return data, b""
    return (b"", data) if b"\0" in data[:8192] else (data, b"")


def printable_runs(data: bytes) -> bytes:
    """The stretches of at least `SHORTEST_IN_SAMPLES` printable ASCII characters, one per line.

    Every such stretch holds four printable bytes that begin at a multiple of four: few samples pass that test.
    """
    samples = np.frombuffer(data, "<i2", len(data) // 2)
    if samples.size and samples.max() < LEAST_PRINTABLE_SAMPLE and len(data) % 2 == 0:
        return b""  # every second byte is either below 0x20 or above 0x7f
    words = np.frombuffer(data, np.uint32, len(data) // 4)
    high = np.uint32(0x80808080)
    passed = words + np.uint32(0x60606060)  # no carry between bytes that are below 0x80, as printable ones are
    passed &= ~words
    passed &= high
    places = np.flatnonzero(passed == high)
    if places.size > MOST_PLACES:
        return _all_printable_runs(data)
    runs = []
    end = 0
    for place in (4 * places).tolist():
        if place < end:
            continue
        begin = place
        while begin > 0 and 0x20 <= data[begin - 1] < 0x7F:
            begin -= 1
        match = PRINTABLE.match(data, begin)
        if match is not None:
            end = match.end()
            runs.append(match[0])
    return b"\n".join(runs)


def _all_printable_runs(data: bytes) -> bytes:
    """The same by looking at every byte."""
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


def _pieces(path: Path, number: int) -> Iterator[tuple[bytes, bytes]]:
    """Head and samples of a file, in pieces if it is large; `.gz` unpacked."""
    only_samples = False
    before = b""
    for data in _unpacked(path, number):
        head, samples = (b"", before + data) if only_samples else _parts(before + data)
        only_samples = only_samples or (bool(samples) and not head) or len(samples) > len(head)
        before = data[-OVERLAP:]
        yield head, samples


def _unpacked(path: Path, number: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        first = file.read(2)
        file.seek(0)
        if first != b"\x1f\x8b":
            while data := file.read(PIECE):
                yield data
            return
        try:
            with gzip.open(file) as unpacked:
                while data := unpacked.read(PIECE):
                    yield data
        except (OSError, EOFError, zlib.error) as error:
            raise UnreadableError(f"expected a whole .gz file, found file {number} of the folder damaged") from error
