"""What a PACS holds of what was asked for: series and their instances, told as numbers only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pydicom.uid

from medsynth.imaging.deidentify.table import load_table
from medsynth.pacs.archive import Archive, Entry, Series
from medsynth.pacs.question import Question

MOST_LINES = 40
"""Studies that are told one by one."""


@dataclass(frozen=True)
class Plan:
    """Series with the instances that will be fetched, and how many of other kinds will not be."""

    series: tuple[tuple[Series, tuple[Entry, ...]], ...]
    whole: frozenset[str]
    """UIDs of the series of which every instance will be fetched."""
    other_kinds: dict[str, int]
    """Kind of object -> how many: nothing but CT and MR images passes the door, so they are not even asked for."""
    unlisted: int
    """Instances that the PACS counts (0020,1209) and does not list."""

    @property
    def instances(self) -> int:
        """How many instances will be fetched."""
        return sum(len(entries) for _, entries in self.series)

    @property
    def studies(self) -> int:
        """How many studies they belong to."""
        return len({series.study for series, _ in self.series})

    def facts(self) -> dict[str, Any]:
        """The figures, for a terminal or JSON."""
        return {
            "studies": self.studies,
            "series": len(self.series),
            "instances": self.instances,
            "not_fetched": self.other_kinds,
        }

    def lines(self) -> Iterator[str]:
        """One line per study: a number and what it holds."""
        studies: dict[str, list[tuple[Series, tuple[Entry, ...]]]] = {}
        for series, entries in self.series:
            studies.setdefault(series.study, []).append((series, entries))
        for number, held in enumerate(list(studies.values())[:MOST_LINES], start=1):
            kinds: Counter[str] = Counter()
            for series, entries in held:
                kinds[_modality(series.modality)] += len(entries)
            told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
            yield f"study {number}: {len(held)} series, {told}"
        if len(studies) > MOST_LINES:
            yield f"and {len(studies) - MOST_LINES} more studies"


def make_plan(archive: Archive, asked: Sequence[Question]) -> Plan:
    """Ask for series, then for the instances of each."""
    found: dict[str, Series] = {}
    for question in asked:
        found.update((series.uid, series) for series in archive.find(question))
    known = load_table().sop_classes
    seen: set[str] = set()
    wanted: list[tuple[Series, tuple[Entry, ...]]] = []
    whole: set[str] = set()
    other: Counter[str] = Counter()
    unlisted = 0
    for series, listed in zip(found.values(), archive.entries(list(found.values())), strict=True):
        unlisted += max(0, (series.count or 0) - len(listed))
        entries = tuple(
            entry for entry in listed if (not entry.sop_class or entry.sop_class in known) and entry.uid not in seen
        )
        other.update(_kind(entry.sop_class) for entry in listed if entry.sop_class and entry.sop_class not in known)
        seen.update(entry.uid for entry in entries)
        if entries:
            wanted.append((series, entries))
        if len(entries) == len(listed):
            whole.add(series.uid)
    return Plan(tuple(wanted), frozenset(whole), dict(sorted(other.items())), unlisted)


def _kind(sop_class: str) -> str:
    return pydicom.uid.UID(sop_class).name if sop_class in pydicom.uid.UID_dictionary else "private or unknown"


def _modality(value: str) -> str:
    """A modality as it may be shown: whatever else stands there is not."""
    return value if re.fullmatch(r"[A-Z]{2,4}", value) else "other"
