"""Secrets that are planted, each unlike any other, and the ways in which their bytes may be found again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import count

ENCODINGS = (
    *(
        "utf-8",
        "utf-16-le",
        "utf-16-be",
        "latin-1",
        "cp1251",
        "iso8859-5",
        "iso8859-7",
        "iso8859-8",
        "iso8859-11",
        "iso8859-2",
        "shift_jis",
        "iso2022_jp",
        "euc_jp",
    ),
    *("iso2022_kr", "euc_kr", "gb18030"),
)
FIRST_DATE = date(1931, 1, 5)
DAYS_APART = 11


TELLING = re.compile(rb"zq\d{4}leak|zq[a-z]{6}skaya|1\.2\.826\.0\.1\.3680043\.99\.\d+\.7777")
"""Lower-case forms of words, names and UIDs: so telling that they can be sought in the results of all files at once."""


def telling_in(data: bytes) -> set[str]:
    """Words, names and UIDs in lower-case bytes, in any encoding that is ASCII but for zeros."""
    return {found.decode() for stack in (data, data.replace(b"\0", b"")) for found in TELLING.findall(stack)}


@dataclass(frozen=True)
class Secret:
    """One planted value. `own`: short or dull enough to occur elsewhere by chance, so sought in its own file alone."""

    text: str
    own: bool = False
    other_forms: tuple[str, ...] = ()

    def needles(self) -> Iterator[bytes]:
        """Lower-case bytes to look for: the value and its other spellings in the encodings of medical equipment."""
        found: set[bytes] = set()
        for text in (self.text, self.text.lower(), self.text.upper(), *self.other_forms):
            for encoding in ENCODINGS:
                try:
                    form = text.encode(encoding)
                except UnicodeEncodeError:
                    continue
                found.add(form.removeprefix(b"\x1b$)C").lower())  # the haystack is lower case byte by byte
        return iter(sorted(found))


class Secrets:
    """Hands out secrets by a running number, so that a corpus is the same every time."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def word(self) -> Secret:
        """Ten upper-case letters and digits, short enough for CS and SH."""
        return Secret(f"ZQ{next(self._numbers):04d}LEAK")

    def name(self) -> Secret:
        """A family name of letters alone."""
        number, letters = next(self._numbers), ""
        for _ in range(3):
            number, digit = divmod(number, 20)
            letters += "bcdfghjklmnprstvwxyz"[digit] + "aeiou"[digit % 5]
        return Secret(f"Zq{letters}skaya")

    def uid(self) -> Secret:
        return Secret(f"1.2.826.0.1.3680043.99.{next(self._numbers)}.7777")

    def day(self) -> Secret:
        """YYYYMMDD between 1931 and 1999, with the ways in which people write a day."""
        day = FIRST_DATE + timedelta(days=DAYS_APART * next(self._numbers))
        forms = tuple(day.strftime(form) for form in ("%Y-%m-%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y"))
        return Secret(day.strftime("%Y%m%d"), True, forms)

    def time(self) -> Secret:
        """HHMMSS.FFFFFF, told apart by its fraction."""
        return Secret(f"131415.{next(self._numbers):04d}93", True)

    def age(self) -> Secret:
        return Secret(f"{700 + next(self._numbers) % 300}Y", True)

    def decimal(self) -> Secret:
        return Secret(f"71.34{next(self._numbers):04d}7", True)

    def integer(self) -> Secret:
        return Secret(f"{770_000_000 + next(self._numbers) * 1000 + 177}", True)

    def phone(self) -> Secret:
        return Secret(f"555 01{next(self._numbers):04d}", True, ())

    def said(self, text: str) -> Secret:
        """A value in another script, given by the place that plants it."""
        return Secret(text, own=True)
