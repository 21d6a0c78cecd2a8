"""How many of what: the figures of a de-identification, by kind, by series and by attribute; never a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Kind = Literal["written", "duplicate", "foreign", "damaged", "refused", "withheld"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Counts = dict[str, dict[str, int]]
"""Attribute -> action -> how often."""

NO_SERIES = "unknown/unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one source."""

    kind: Kind
    """`foreign`: no DICOM image file. `duplicate`: the same content as an earlier one. `damaged`: cannot be read or
    contradicts another. `refused`: a privacy rule says no. `withheld`: a value of the source was found in the result."""
    name: str
    """`<patient>/<series>/<instance>.dcm` of what was written, `<patient>/<series>` of what was not, in pseudonyms."""
    reason: str = ""
    counts: Counts = field(default_factory=dict)

    def without_counts(self) -> Outcome:
        """The same, with what was done to attributes left out."""
        return Outcome(self.kind, self.name, self.reason)

    @property
    def series(self) -> str:
        """`<patient>/<series>`."""
        return "/".join(self.name.split("/")[:2]) or NO_SERIES


class Tally:
    """Sums of outcomes: its size depends on the number of series, not of files."""

    def __init__(self) -> None:
        self.series: dict[str, Counter[tuple[Kind, str]]] = {}
        """`<patient>/<series>` -> kind and reason -> how often."""
        self.attributes: Counter[tuple[str, str]] = Counter()

    def add(self, outcome: Outcome) -> None:
        """Count one outcome; what was done to attributes counts only if the result was written."""
        self.series.setdefault(outcome.series, Counter())[outcome.kind, outcome.reason] += 1
        for name, counts in outcome.counts.items():
            for action, count in counts.items():
                self.attributes[name, action] += count

    def merge(self, other: Tally) -> None:
        """Add the sums of another tally."""
        for series, counts in other.series.items():
            self.series.setdefault(series, Counter()).update(counts)
        self.attributes.update(other.attributes)

    def count(self, *kinds: Kind) -> int:
        """How many outcomes were of one of the kinds."""
        return sum(number for counts in self.series.values() for (kind, _), number in counts.items() if kind in kinds)

    @property
    def total(self) -> int:
        """How many outcomes there were."""
        return self.count(*KINDS)

    @property
    def patients(self) -> int:
        """How many patients have at least one file written."""
        return len({series.split("/")[0] for series, counts in self.series.items() if _written(counts)})

    @property
    def reasons(self) -> dict[str, dict[str, int]]:
        """Kind -> reason -> how often, for what was not written."""
        sums: dict[str, dict[str, int]] = {}
        for kind, reason, number in self._left_out():
            of_kind = sums.setdefault(kind, {})
            of_kind[reason] = of_kind.get(reason, 0) + number
        return {kind: dict(sorted(sums[kind].items())) for kind in KINDS if kind in sums}

    @property
    def by_attribute(self) -> Counts:
        """Attribute -> action -> how often, in alphabetical order."""
        result: Counts = {}
        for (name, action), number in sorted(self.attributes.items()):
            result.setdefault(name, {})[action] = number
        return result

    def _left_out(self) -> Iterator[tuple[Kind, str, int]]:
        for counts in self.series.values():
            for (kind, reason), number in counts.items():
                if kind != "written":
                    yield kind, reason, number


def _written(counts: Mapping[tuple[Kind, str], int]) -> int:
    return sum(number for (kind, _), number in counts.items() if kind == "written")
