"""Dates as people and programs write them: found in text, so that a date can be recognised in any form."""

from __future__ import annotations

import re
from collections.abc import Iterator

Date = tuple[int, int, int]
"""Year, month, day."""

MONTHS: tuple[tuple[str, ...], ...] = (
    ("jan", "gen", "ene", "jän", "styc"),
    ("feb", "fev", "fév", "lut"),
    ("mar", "mär", "maer", "mrz", "maa"),
    ("apr", "avr", "abr", "kwi"),
    ("may", "mai", "mag", "maj", "mei"),
    ("jun", "juin", "giu", "cze"),
    ("jul", "juil", "lug", "lip"),
    ("aug", "aou", "aoû", "ago", "sie"),
    ("sep", "set", "wrz"),
    ("oct", "okt", "ott", "out", "paź"),
    ("nov", "lis"),
    ("dec", "dez", "déc", "dic", "gru"),
)
"""How the months' names begin in English, German, French, Italian, Spanish, Portuguese, Dutch and Polish."""
NUMBER_OF_STEM = {stem: number for number, stems in enumerate(MONTHS, start=1) for stem in stems}
OWN_DATE: Date = (1900, 1, 1)
"""The dummy that de-identification writes."""

_STEMS: set[bytes] = {
    form.encode().lower() for stem in NUMBER_OF_STEM for form in (stem, stem.upper())
}  # `Ä` has no ASCII lower case
_MONTH = b"(" + b"|".join(sorted(_STEMS, reverse=True)) + rb")(?:[a-z]|[\xc3-\xc5][\x80-\xbf]){0,8}"
_GAP = rb"[^a-z0-9]{0,3}"
_OF = rb"(?:of |de |den )?"

RUN = re.compile(
    rb"(?<![0-9a-z])(?<![0-9][.])([0-9]{8})(?:t?[0-9]{4}(?:[0-9]{2}(?:[.][0-9]*)?)?)?(?![0-9a-su-z])(?![.][0-9])"
)
"""YYYYMMDD, DDMMYYYY or MMDDYYYY, alone or with a time behind it."""
NUMBERS = re.compile(
    rb"(?<![0-9])(?<![0-9][-./_:])([0-9]{1,4})([-./_: ])([0-9]{1,2})\2([0-9]{1,4})(?![0-9])(?![-./_:][0-9])"
)
MONTH_BETWEEN = re.compile(
    rb"(?<![0-9])([0-9]{4}|[0-9]{1,2})(?:st|nd|rd|th|er)?"
    + (_GAP + _OF + _MONTH + _GAP + _OF)
    + rb"([0-9]{4}|[0-9]{1,2})(?![0-9])"
)
DAY_AND_YEAR = re.compile(rb"(?<![0-9])([0-9]{1,2})(?:st|nd|rd|th)?[^a-z0-9]{1,3}([0-9]{4}|[0-9]{2})(?![0-9])")
MONTH_BEFORE = re.compile(_MONTH + rb"[^a-z0-9]{1,3}$")
LONGEST_MONTH = 20
"""Bytes."""


def date_of(value: str) -> Date | None:
    """The date of a value of VR DA or DT (PS3.5 section 6.2; the older form with dots too); None without day or month."""
    match = re.match(r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)", value)
    if match is None:
        return None
    date = int(match[1]), int(match[2]), int(match[3])
    return date if _is_date(date) and date != OWN_DATE else None


def dates_in(lower: bytes) -> set[Date]:
    """Every date that some reader may see in a lower-case text; `03/02/1961` gives two, a year of two digits as well."""
    return {date for date in _readings(lower) if _is_date(date)}


def _readings(lower: bytes) -> Iterator[Date]:
    for match in RUN.finditer(lower):
        run = match[1]
        yield int(run[:4]), int(run[4:6]), int(run[6:])
        yield from _both(int(run[4:]), int(run[:2]), int(run[2:4]))
    for match in NUMBERS.finditer(lower):
        yield from _numbers(match[1], match[3], match[4], match[2])
    for match in MONTH_BETWEEN.finditer(lower):
        yield from _around(match[1], _month(match[2]), match[3])
    for match in DAY_AND_YEAR.finditer(lower):
        before = MONTH_BEFORE.search(lower[max(0, match.start() - LONGEST_MONTH) : match.start()])
        if before:
            yield from ((year, _month(before[1]), int(match[1])) for year in _years(match[2]))


def _numbers(first: bytes, second: bytes, third: bytes, mark: bytes) -> Iterator[Date]:
    one, two, three = int(first), int(second), int(third)
    if len(first) == 4 and len(third) <= 2:
        yield from _both(one, two, three)
    elif len(third) == 4 and len(first) <= 2:
        yield from _both(three, two, one)
    elif len(third) == 2 and len(first) <= 2 and (mark == b"/" or (mark in b".-" and len(first) == len(second) == 2)):
        for year in _years(third):
            yield from _both(year, two, one)
        for year in _years(first):
            yield year, two, three


def _around(first: bytes, month: int, last: bytes) -> Iterator[Date]:
    """A day and a year, or a year and a day, on either side of a month's name."""
    if len(last) in {2, 4} and len(first) <= 2:
        yield from ((year, month, int(first)) for year in _years(last))
    if len(first) == 4 and len(last) <= 2:
        yield int(first), month, int(last)


def _both(year: int, one: int, two: int) -> tuple[Date, Date]:
    return (year, one, two), (year, two, one)


def _years(digits: bytes) -> tuple[int, ...]:
    return (int(digits),) if len(digits) == 4 else (1900 + int(digits), 2000 + int(digits))


def _month(stem: bytes) -> int:
    return NUMBER_OF_STEM[stem.decode().lower()]


def _is_date(date: Date) -> bool:
    return 1850 <= date[0] < 2150 and 1 <= date[1] <= 12 and 1 <= date[2] <= 31
