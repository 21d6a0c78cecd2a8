"""One row: an input, the command that meets it, and what the command must answer and leave on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Build = Callable[[Path], None]
GAP = "…"


@dataclass(frozen=True)
class Left:
    """What must be on disk afterwards, in words and as a check that returns what it found instead, or nothing."""

    words: str
    check: Callable[[Path], str]


@dataclass(frozen=True)
class Fault:
    """`build` makes the input in an empty folder, where `command` is then run."""

    name: str
    command: str
    build: Build
    code: int
    says: str
    """Part of what is said on standard error, or output where nothing is wrong; `…` stands for anything."""
    left: Left
    small_disk: bool = False
    """Whether the command runs where no file can grow beyond a few hundred bytes."""

    def is_said_in(self, text: str) -> bool:
        """Whether the words are there, in whatever lines."""
        pattern = r".*".join(re.escape(" ".join(part.split())) for part in self.says.split(GAP))
        return re.search(pattern, " ".join(text.split())) is not None


def _count(folder: Path, suffix: str) -> int:
    return sum(path.suffix == suffix for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _nothing(root: Path) -> str:
    written = _count(root / "clean", ".dcm") + _count(root / "clean", ".part")
    return f"{written} DICOM files" if written else ""


def written(count: int, out: str = "clean") -> Left:
    """So many DICOM files in the output folder."""

    def check(root: Path) -> str:
        found = _count(root / out, ".dcm")
        return "" if found == count else f"{found} DICOM files"

    return Left("1 file written" if count == 1 else f"{count} files written", check)


def rows(usable: int, unusable: int) -> Left:
    """An index with so many usable and unusable rows."""
    words = f"index: {usable} usable, {unusable} not"

    def check(root: Path) -> str:
        path = root / "cohort.csv"
        if not path.exists():
            return "no index"
        import csv

        with path.open(newline="", encoding="utf-8") as stream:
            found = [row["usable"] for row in csv.DictReader(stream)]
        pair = found.count("yes"), found.count("no")
        return "" if pair == (usable, unusable) else f"index: {pair[0]} usable, {pair[1]} not"

    return Left(words, check)


def absent(name: str) -> Left:
    """A file or folder that must not be there."""
    return Left(f"no `{name}`", lambda root: "it is there" if (root / name).exists() else "")


def unchanged(name: str, content: str) -> Left:
    """A file that must be as it was."""

    def check(root: Path) -> str:
        return "" if (root / name).read_text(encoding="utf-8") == content else "it was changed"

    return Left(f"`{name}` as it was", check)


NOTHING = Left("nothing written", _nothing)
