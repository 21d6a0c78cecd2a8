"""Reading a table that people made, and collecting all that is wrong with it.

Understood: commas, semicolons (as Excel writes where the comma is the decimal mark) and tabs; UTF-8 with or without a
byte order mark; any line ending; quoted cells; Excel's `sep=;` line; blank lines. Anything else is an error, not a guess.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsynth.errors import CohortError, UnreadableError

DELIMITERS = (",", ";", "\t")
_SEPARATOR_LINE = re.compile(r"\Asep=(.)(?:\r\n|\r|\n)", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One row: the line of the file it starts on (counted from 1) and its cells, stripped, by column."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """The columns and rows of a file."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    decimal_comma: bool
    """Whether `12,5` means twelve and a half: true where the comma does not separate cells."""


@dataclass
class Mistakes:
    """What is wrong with a table, one line per kind of mistake, with the rows it was found in."""

    name: str
    unit: str = "row"
    _rows: dict[str, list[int]] = field(default_factory=dict)

    def add(self, message: str, *lines: int) -> None:
        """Note a mistake at some lines of the file; without lines, it concerns the whole table."""
        self._rows.setdefault(message, []).extend(lines)

    def messages(self) -> list[str]:
        """One line per kind of mistake, in the order of the first row each was found in."""
        ordered = sorted(self._rows.items(), key=lambda item: min(item[1], default=0))
        return [f"{self.name}{_spell(rows, self.unit)}: {message}" for message, rows in ordered]

    def raise_any(self) -> None:
        """Raise CohortError with every mistake noted so far; do nothing where there is none."""
        if self._rows:
            raise CohortError("\n".join(self.messages()))


def _spell(lines: Sequence[int], unit: str) -> str:
    """` row 4` or ` rows 2-5, 9`, or nothing."""
    numbers = sorted(set(lines))
    if not numbers:
        return ""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    spelled = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
    return f" {unit}{'s' if len(numbers) > 1 else ''} {spelled}"


def nearest(name: str, options: Iterable[str]) -> str:
    """` (nearest: ...)` where one of the options resembles or continues `name`, case ignored; else nothing."""
    by_fold = {option.casefold(): option for option in options}
    continued = [option for option in by_fold if option.startswith(name.casefold())]
    close = continued or difflib.get_close_matches(name.casefold(), by_fold, n=1, cutoff=0.5)
    return f" (nearest: {by_fold[close[0]]})" if close else ""


def read_table(path: Path, known_columns: Iterable[str] = ()) -> Table:
    """The table in `path`. The delimiter is the one that finds most of `known_columns` in the first line.

    Raises UnreadableError where the file is missing, empty or not text; CohortError with all rows that do not fit the
    first line, and all repeated or nameless columns.
    """
    text = _read_text(path)
    explicit = _SEPARATOR_LINE.match(text)
    skipped = 0
    if explicit:
        text, skipped = text[explicit.end() :], 1
    if not text.strip():
        raise UnreadableError(f"{path}: expected a table with a first line of column names, found an empty file")
    delimiter = explicit.group(1) if explicit else _delimiter(text, frozenset(known_columns))
    mistakes = Mistakes(path.name)
    records = _records(text, delimiter, skipped, path)

    header_line, header = records[0]
    width = max((index + 1 for index, name in enumerate(header) if name), default=0)
    columns = tuple(header[:width])
    for name, count in Counter(columns).items():
        if not name:
            mistakes.add("a column has no name; name it or remove it", header_line)
        elif count > 1:
            mistakes.add(f"column {name} stands there {count} times; keep one", header_line)
    rows = []
    for line, cells in records[1:]:
        if any(cells[width:]) or len(cells) < width:
            mistakes.add(f"expected {width} cells, as in the first line; complete the row, or quote the cell", line)
        else:
            rows.append(Row(line, dict(zip(columns, cells, strict=False))))
    mistakes.raise_any()
    return Table(columns, tuple(rows), decimal_comma=delimiter != ",")


def finite(text: str) -> float | None:
    """The number that `text` is; None where it is none, or not a finite one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise UnreadableError(f"{path}: expected a CSV file, found {'a folder' if path.is_dir() else 'nothing'} there")
    raw = path.read_bytes()
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UnreadableError(
            f"{path}: expected UTF-8 text, found another encoding in line {line}; save it as 'CSV UTF-8'"
        ) from None
    if "\x00" in text:
        raise UnreadableError(f"{path}: expected a CSV text file, found binary content; export the table as CSV")
    return text


def _delimiter(text: str, known: frozenset[str]) -> str:
    first = next(line for line in re.split(r"\r\n|\r|\n", text) if line.strip())

    def score(delimiter: str) -> tuple[int, int]:
        cells = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
        return len(known & set(cells)), len(cells)

    return max(DELIMITERS, key=score)


def _records(text: str, delimiter: str, skipped: int, path: Path) -> list[tuple[int, list[str]]]:
    """The line each record starts on, and its stripped cells; records without any content are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, line = [], 1 + skipped
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                records.append((line, stripped))
            line = reader.line_num + 1 + skipped
    except csv.Error:
        raise UnreadableError(
            f"{path}: row {line}: expected complete, quoted cells; close the quotation mark"
        ) from None
    return records
