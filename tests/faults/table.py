"""All rows, and the page they make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from . import cleaning, reading, records
from .fault import Fault

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
PARTS = (("De-identification", cleaning), ("Reading", reading), ("Tables, keys and the PACS", records))
INTRODUCTION = """\
# Bad input, and what it gets

Every row is run through the command line by `tests/test_faults_table.py`, in a folder where the input has just been made.
`…` stands for anything. Exit codes: 0 done, 2 command or settings, 3 data, 4 a privacy rule, 5 broken off. In no row does a
message hold a value of a header or the name of a scan's file; the test looks for them.

This page is written by `python -m tests.faults`.
"""


def all_faults() -> list[Fault]:
    """Every row."""
    return [fault for _, part in PARTS for fault in part.faults()]


def page() -> str:
    """docs/faults.md."""
    return "\n".join([INTRODUCTION, *(line for title, part in PARTS for line in _section(title, part.faults()))])


def _section(title: str, faults: Iterator[Fault]) -> Iterator[str]:
    yield from (f"## {title}", "", "| Input | Command | Exit | Says | Leaves |", "|---|---|---|---|---|")
    for fault in faults:
        command = fault.command.removeprefix("medsynth ").replace(" --key-file secret/key --workers 1", "")
        says = fault.says.replace("|", "\\|")
        yield f"| {fault.name} | `{command}` | {fault.code} | {says} | {fault.left.words} |"
    yield ""
