"""From a PACS into a folder, each instance de-identified in memory before anything of it touches the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsynth.config.deidentify import Deidentify
from medsynth.config.pacs import Pacs
from medsynth.errors import DataError, InterruptedRun, PrivacyError
from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify.linking import LinkingTable
from medsynth.imaging.deidentify.store import Store
from medsynth.pacs.archive import Archive, open_archive
from medsynth.pacs.arrival import Arrival
from medsynth.pacs.faults import persevere
from medsynth.pacs.plan import Plan, make_plan
from medsynth.pacs.question import Question
from medsynth.pacs.quiet import quiet_network
from medsynth.progress import Progress, Silent

Say = Callable[[str], None]


@dataclass(frozen=True)
class PullReport:
    """What came of a pull."""

    plan: Plan
    came: int
    """Instances that came in this run; the others had come before."""
    written: int
    patients: int
    left_out: dict[str, dict[str, int]]
    """Kind -> reason -> how often, over everything in the folder."""
    missing: int
    troubles: dict[str, int]
    audit: Path

    def facts(self) -> dict[str, Any]:
        """The figures, for a terminal or JSON."""
        return {
            **self.plan.facts(),
            "came_now": self.came,
            "files_in_folder": self.written,
            "patients_in_folder": self.patients,
            "left_out": self.left_out,
            "audit": str(self.audit),
        }

    def raise_if_incomplete(self) -> None:
        """Raise InterruptedRun where instances are missing, PrivacyError where a privacy rule kept some out."""
        if self.missing:
            said = ", ".join(f"{text} {count} times" for text, count in sorted(self.troubles.items()))
            raise InterruptedRun(
                f"expected {self.plan.instances + self.plan.unlisted} instances by the PACS's own count, found {self.missing} "
                f"missing{f' (it answered: {said})' if said else ''}; the same command goes on"
            )
        refused = {**self.left_out.get("refused", {}), **self.left_out.get("withheld", {})}
        if refused:
            raise PrivacyError(
                f"{sum(refused.values())} instances were left out by a privacy rule (the others are written), the first "
                f"reason: {next(iter(refused))}"
            )


def preview(settings: Pacs, asked: Sequence[Question], say: Say) -> Plan:
    """What a pull would fetch; nothing is fetched. Raises DataError where nothing matches."""
    with quiet_network():
        archive = open_archive(settings)
        try:
            plan = _planned(archive, settings, asked, say)
            for line in plan.lines():
                say(line)
            return plan
        finally:
            archive.close()


def pull(
    settings: Pacs,
    asked: Sequence[Question],
    out: Path,
    key: SecretKey,
    profile: Deidentify,
    *,
    linking: LinkingTable | None = None,
    progress: Progress | None = None,
    say: Say = lambda line: None,
) -> PullReport:
    """Fetch what matches into `out`, de-identified; the same call again goes on where an earlier one ended.

    Raises UsageError where the PACS refuses, TransferError where it stays away, DataError where nothing matches, and what
    `Store` raises.
    """
    with quiet_network():
        archive = open_archive(settings)
        try:
            plan = _planned(archive, settings, asked, say)
            for line in plan.lines():
                say(line)
            with Store.open(out, key, profile, linking) as store:
                with (progress or Silent()).task("pull", plan.instances) as advance:
                    arrival = Arrival(store, key, profile, linked=linking is not None, advance=advance)
                    advance(plan.instances - _missing(plan, arrival))
                    persevere(lambda: _fetch(archive, plan, arrival), lambda: arrival.came, settings, say)
                now = _planned(archive, settings, asked, say)
                audit = store.finish()
                return PullReport(
                    now,
                    arrival.came,
                    store.tally.count("written"),
                    store.tally.patients,
                    store.tally.reasons,
                    _missing(now, arrival) + now.unlisted,
                    dict(archive.troubles),
                    audit,
                )
        finally:
            archive.close()


def _planned(archive: Archive, settings: Pacs, asked: Sequence[Question], say: Say) -> Plan:
    found: list[Plan] = []
    persevere(lambda: found.append(make_plan(archive, asked)), lambda: 0, settings, say)
    plan = found[-1]
    if not plan.instances:
        others = sum(plan.other_kinds.values())
        raise DataError(
            f"expected CT or MR images that match, found none{f' (and {others} of other kinds)' if others else ''} in the PACS; "
            "check the question"
        )
    return plan


def _fetch(archive: Archive, plan: Plan, arrival: Arrival) -> None:
    for series, entries in plan.series:
        arrival.fetch(archive, series, entries, all_of_it=series.uid in plan.whole)


def _missing(plan: Plan, arrival: Arrival) -> int:
    return sum(not arrival.knows(entry) for _, entries in plan.series for entry in entries)
