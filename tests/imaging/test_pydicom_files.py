"""pydicom's own test files: the table in docs/reading.md says what becomes of each, and this test compares.

`python tests/imaging/test_pydicom_files.py` prints the table anew.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pydicom.data

from medsynth.errors import MedsynthError
from medsynth.imaging.dicom import find_series, read_series

FILES = Path(pydicom.data.__file__).parent / "test_files"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reading.md"
BEGIN, END = "<!-- pydicom's files: begin -->", "<!-- pydicom's files: end -->"
SUFFIXES = {".dcm", ""}


class AsItIs:
    """Hands back what it got: the table is about reading, not about privacy."""

    def dataset(self, dataset):
        return dataset


def outcomes():
    """For each file alone (of DICOMDIR sets: for the set) what reading it ends in."""
    found = {}
    for path in sorted(FILES.iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            found[f"{path.name}/"] = outcome(path)
        elif path.suffix in SUFFIXES:
            found[path.name] = outcome(path)
    return found


def outcome(path):
    result = find_series(path)
    if not result.series:
        reasons = sorted({reason for _, reason in result.skipped})
        return f"passed over: {', '.join(reasons)}"
    said = set()
    for series in result.series:
        try:
            scan = read_series(series, AsItIs())
            said.add(f"read: {series.modality}, {' x '.join(map(str, scan.shape[1:]))}")
        except MedsynthError as error:
            said.add(f"refused: {error}")
    return "; ".join(sorted(said))


def table():
    by_outcome = defaultdict(list)
    for name, said in outcomes().items():
        by_outcome[said].append(f"`{name}`")
    lines = ["| what becomes of it | files |", "|---|---|"]
    for said in sorted(by_outcome, key=lambda one: (not one.startswith("read"), one)):
        lines.append(f"| {said.replace('|', '/')} | {', '.join(by_outcome[said])} |")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_true():
    page = PAGE.read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0].strip() == table()


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
