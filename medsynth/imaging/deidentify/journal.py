"""What is done so far in an output folder: a file of lines, each for some sources, so that a killed run loses little.

A line says all about its sources or, if a kill cut it short, nothing: they are done again. It holds keyed digests,
pseudonyms, new UIDs and counts, and so names nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from medsynth.errors import UsageError
from medsynth.imaging.deidentify.tally import Outcome, Tally

JOURNAL = ".deidentify.jsonl"
FORMAT = 2


class Entry(NamedTuple):
    """One source and what became of it."""

    token: int
    outcome: Outcome
    size: int
    """Bytes of the written file; 0 if none was."""


@dataclass(frozen=True)
class Batch:
    """What one line of the journal says."""

    entries: list[Entry]
    """Without their counts of attributes, which only the sum of the line tells."""
    tally: Tally


class Journal:
    """The file; only one process at a time may use it (see `Store`)."""

    def __init__(self, out: Path, head: dict[str, Any]) -> None:
        self.path = out / JOURNAL
        self._head = head

    def begin(self) -> None:
        """Make the file if it is not there."""
        if not self.path.exists():
            write_whole(self.path, json.dumps(self._head) + "\n")

    def batches(self) -> Iterator[Batch]:
        """What the whole lines say. Raises UsageError if the file was begun by another version, key or settings."""
        with self.path.open(encoding="utf-8") as file:
            self._check_head(file.readline())
            for line in file:
                if line.endswith("\n"):
                    yield _parsed(line)

    def append(self, batch: Batch) -> None:
        """Add one line; it is on its way to the disk when this returns."""
        done = [
            [f"{token:016x}", outcome.kind, outcome.name, size or outcome.reason]
            for token, outcome, size in batch.entries
        ]
        record = {"done": done, "attributes": batch.tally.by_attribute}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n")

    def keep(self, wanted: Callable[[Batch], bool]) -> None:
        """Drop the lines that are not wanted, and what a kill left of one; only then is the file written anew."""
        with self.path.open(encoding="utf-8") as file:
            if all(line.endswith("\n") and (number == 0 or wanted(_parsed(line))) for number, line in enumerate(file)):
                return
            file.seek(0)
            draft = self.path.with_name(f"{JOURNAL}.draft")
            with draft.open("w", encoding="utf-8") as new:
                new.writelines(
                    line
                    for number, line in enumerate(file)
                    if line.endswith("\n") and (number == 0 or wanted(_parsed(line)))
                )
            draft.replace(self.path)

    def _check_head(self, line: str) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UsageError(
                f"expected the journal of an output folder, found something else at {self.path}; name another folder"
            )
        names = {"format": "version", "tool": "version", "table": "table", "key": "key", "settings": "settings"}
        other = sorted({name for field, name in names.items() if found.get(field) != self._head[field]})
        if other:
            raise UsageError(
                f"expected an output folder begun by this version with the same key and settings, found another "
                f"{' and '.join(other)} at {self.path.parent}; name another folder"
            )


def _parsed(line: str) -> Batch:
    record = json.loads(line)
    tally = Tally()
    entries = []
    for token, kind, name, last in record["done"]:
        size, reason = (last, "") if isinstance(last, int) else (0, last)
        outcome = Outcome(kind, name, reason)
        entries.append(Entry(int(token, 16), outcome, size))
        tally.add(outcome)
    for name, counts in record["attributes"].items():
        for action, count in counts.items():
            tally.attributes[name, action] += count
    return Batch(entries, tally)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
