"""Dates, times and ages of DICOM (PS3.5 table 6.2-1): checked, moved by whole weeks, never guessed."""

from __future__ import annotations

import re
from datetime import date, timedelta
from functools import lru_cache

EARLIEST_YEAR, LATEST_YEAR = 1850, 2199
"""Years beyond these are marks of an unknown date (0001, 9999), not dates of a visit."""
OLDEST_YEARS = 89
"""Ages above it become one group of 90 and over: 45 CFR 164.514(b)(2)(i)(C) counts them as identifying."""

DATE = re.compile(r"(\d{4})(\d\d)(\d\d)")
DATE_BEFORE_1993 = re.compile(r"(\d{4})\.(\d\d)\.(\d\d)")
CLOCK = r"(?:[01]\d|2[0-3])(?:[0-5]\d(?:(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?"
TIME = re.compile(CLOCK)
DATETIME = re.compile(rf"(\d{{4}})(?:(\d\d)(?:(\d\d)({CLOCK})?)?)?([+-](?:0\d|1[0-4])[0-5]\d)?")
AGE = re.compile(r"(\d{3})([DWMY])")
DAYS_OF = {"D": 1, "W": 7, "M": 30, "Y": 365}


def is_date(text: str) -> bool:
    """Whether a DA value is a day that there is."""
    return _day(DATE.fullmatch(text) or DATE_BEFORE_1993.fullmatch(text)) is not None


def is_time(text: str) -> bool:
    """Whether a TM value is a time of day."""
    return TIME.fullmatch(text) is not None


def is_datetime(text: str) -> bool:
    """Whether a DT value is a point in time, to the year at least."""
    match = DATETIME.fullmatch(text)
    if match is None:
        return False
    year, month, day = match.group(1, 2, 3)
    return _day_of(year, month or "01", day or "01") is not None


@lru_cache(maxsize=4096)
def moved_date(text: str, days: int) -> str | None:
    """A DA value `days` later; None if it is no date."""
    return _moved(_day(DATE.fullmatch(text) or DATE_BEFORE_1993.fullmatch(text)), days)


@lru_cache(maxsize=4096)
def moved_datetime(text: str, days: int) -> str | None:
    """A DT value `days` later, its time, fraction and offset as they are; None if it does not tell the day."""
    match = DATETIME.fullmatch(text)
    if match is None or match.group(3) is None:
        return None
    moved = _moved(_day(match), days)
    return None if moved is None else moved + (match.group(4) or "") + (match.group(5) or "")


def capped_age(text: str) -> str | None:
    """An AS value, ages above 89 years as `090Y`; None if it is no age."""
    match = AGE.fullmatch(text)
    if match is None:
        return None
    number, unit = int(match.group(1)), match.group(2)
    return "090Y" if number * DAYS_OF[unit] >= (OLDEST_YEARS + 1) * DAYS_OF["Y"] else text


def _day(match: re.Match[str] | None) -> date | None:
    return None if match is None else _day_of(*match.group(1, 2, 3))


def _day_of(year: str, month: str, day: str) -> date | None:
    if not EARLIEST_YEAR <= int(year) <= LATEST_YEAR:
        return None
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        return None


def _moved(day: date | None, days: int) -> str | None:
    if day is None:
        return None
    moved = day + timedelta(days=days)
    return f"{moved.year:04}{moved.month:02}{moved.day:02}"
