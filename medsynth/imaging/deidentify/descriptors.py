"""Clean Descriptors (PS3.15 E.3.5): of free text only words of radiology are left, and technical numbers."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

SEPARATORS = re.compile(r"([^\w.%*]+|_+)")
"""Between words. What holds a letter or digit is a word, whatever its script, and is left only if it is listed."""
WITHOUT = re.compile(r"(?i)(?<!\w)w/o(?!\w)")
"""Spelled out before the text is cut at `/`: a lost `o` would turn it into its opposite."""


@dataclass(frozen=True, slots=True)
class Dictionary:
    """Which words may stay."""

    words: frozenset[str]
    """Lower-case."""
    technical: re.Pattern[str]
    """Numbers with a meaning of their own (`3.0mm`, `b1000`, `512x512`). Bare digits may be identifiers or dates, and go."""

    def cleaned(self, text: str, names: Set[str]) -> str:
        """The words of `text` that are listed, with what stands between neighbours; empty if there are none.

        A word that is also in `names` (lower-case words of person names in the same header) goes although listed: Mrs
        White's white matter loses its colour.
        """
        pieces = SEPARATORS.split(WITHOUT.sub("without", text))
        kept: list[str] = []
        gap = " "
        for place in range(0, len(pieces), 2):
            word = pieces[place].strip(".")
            word = word if self._stays(word, names) else word.strip("*")
            if not word:
                continue
            if not self._stays(word, names):
                gap = " "
                continue
            if kept:
                kept.append(gap)
            kept.append(word)
            gap = _plain(pieces[place + 1]) if place + 1 < len(pieces) else " "
        return "".join(kept)

    def _stays(self, word: str, names: Set[str]) -> bool:
        lower = word.lower()
        return lower not in names and (lower in self.words or self.technical.fullmatch(word) is not None)


def _plain(gap: str) -> str:
    """What stands between two words, if it is a plain mark of writing; else a blank."""
    return gap if re.fullmatch(r"[ _/+,-]{1,3}", gap) else " "
