"""From a folder into a PACS: synthetic instances, and de-identified ones on request; nothing else leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import get_expected_length

from medsynth.config.pacs import Pacs
from medsynth.errors import DataError, InterruptedRun, PrivacyError, UnreadableError, UsageError
from medsynth.imaging.deidentify.instance import READ_ERRORS
from medsynth.pacs.archive import Archive, Parcel, Series, open_archive
from medsynth.pacs.faults import RefusalError, persevere
from medsynth.pacs.push_journal import PushJournal
from medsynth.pacs.quiet import quiet_network
from medsynth.progress import Advance, Progress, Silent

SYNTHETIC, PATIENT_REMOVED = "SyntheticData", "PatientIdentityRemoved"
NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

Say = Callable[[str], None]


@dataclass(frozen=True)
class PushReport:
    """What came of a push."""

    found: int
    sent: int
    """In this run; the others were there before."""
    refused: dict[str, int]
    """Why the PACS refused an instance -> how often."""
    missing: int | None
    """Instances that it accepted and does not list; None where it cannot be asked."""
    journal: Path

    def facts(self) -> dict[str, Any]:
        """The figures, for a terminal or JSON."""
        return {
            "instances": self.found,
            "sent_now": self.sent,
            "held_by_the_pacs": None
            if self.missing is None
            else self.found - self.missing - sum(self.refused.values()),
            "refused_by_the_pacs": self.refused,
            "journal": str(self.journal),
        }

    def raise_if_incomplete(self) -> None:
        """Raise InterruptedRun where the PACS lacks what it accepted, RefusalError where it refused instances."""
        if self.missing:
            raise InterruptedRun(
                f"expected {self.found} instances in the PACS, found {self.missing} missing; the same command goes on"
            )
        if self.refused:
            reason, _ = max(self.refused.items(), key=lambda item: item[1])
            raise RefusalError(
                f"expected the PACS to take {self.found} instances, found that it refused {sum(self.refused.values())}, most "
                f"with: {reason}; ask its administrator"
            )


def parcels_of(folder: Path, *, deidentified: bool) -> list[Parcel]:
    """The DICOM files below a folder, by their headers, in the order of their paths; other files are none of them.

    Raises PrivacyError if any of them is neither marked as synthetic (0008,001C) nor, where `deidentified` lets them through,
    as freed of the patient's identity (0012,0062); UsageError or DataError where there is nothing to send.
    """
    if not folder.is_dir():
        raise UsageError("expected a folder to push, found none; check the path")
    found: dict[str, Parcel] = {}
    unmarked: list[int] = []
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file()), start=1):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*NEEDED, SYNTHETIC, PATIENT_REMOVED])
            texts = [str(header.get(keyword) or "") for keyword in NEEDED]
            syntax = str(header.file_meta.get("TransferSyntaxUID") or "")
        except InvalidDicomError:
            continue
        except READ_ERRORS:
            raise UnreadableError(
                f"expected whole DICOM files, found file {number} of the folder damaged; replace it"
            ) from None
        if not _may_leave(header, deidentified):
            unmarked.append(number)
            continue
        if not all(texts) or not syntax:
            raise DataError(
                f"expected UIDs, SOP class and transfer syntax, found file {number} of the folder without; replace it"
            )
        sop_class, uid, study, series = texts
        if uid in found:
            raise DataError(
                f"expected each instance once, found file {number} of the folder to be another's twin; remove one"
            )
        load = partial(_load, path, number, uid, deidentified)
        found[uid] = Parcel(number, uid, study, series, sop_class, syntax, load)
    if unmarked:
        raise PrivacyError(
            f"expected only files marked as synthetic (0008,001C){' or de-identified (0012,0062)' if deidentified else ''}, found "
            f"{len(unmarked)} without the mark, the first number {unmarked[0]} in the order of paths; nothing was sent"
        )
    if not found:
        raise DataError("expected DICOM files to push, found none; `medsynth generate --format dicom` writes them")

    return list(found.values())


def push(
    settings: Pacs,
    folder: Path,
    *,
    deidentified: bool = False,
    progress: Progress | None = None,
    say: Say = lambda line: None,
) -> PushReport:
    """Send what the PACS does not hold yet; the same call again goes on where an earlier one ended.

    Raises what `parcels_of` does, UsageError where the PACS refuses, TransferError where it stays away.
    """
    with quiet_network():
        parcels = parcels_of(folder, deidentified=deidentified)
        listener = progress or Silent()
        with PushJournal(folder, settings.connection) as journal, listener.task("push", len(parcels)) as advance:
            archive = open_archive(settings)
            try:
                sending = _Sending(archive, journal, advance)
                persevere(lambda: sending.send(parcels), lambda: sending.sent, settings, say)
                accepted = [parcel for parcel in parcels if parcel.uid not in sending.refused]
                missing = _missing(archive, accepted, journal, settings, say)
            finally:
                archive.close()
        return PushReport(len(parcels), sending.sent, dict(Counter(sending.refused.values())), missing, journal.path)


class _Sending:
    """Sends what is neither there nor refused yet, however often it is begun again."""

    def __init__(self, archive: Archive, journal: PushJournal, advance: Advance) -> None:
        self.sent = 0
        self.refused: dict[str, str] = {}
        """SOP Instance UID -> what the PACS said."""
        self._archive = archive
        self._journal = journal
        self._advance = advance
        self._counted: set[str] = set()

    def send(self, parcels: Sequence[Parcel]) -> None:
        todo = [parcel for parcel in parcels if parcel.uid not in self._journal.held and parcel.uid not in self.refused]
        there = held_of(self._archive, todo) or set()
        for uid in there:
            self._journal.note(uid, held=True)
        self._archive.send([parcel for parcel in todo if parcel.uid not in there], self._hear)
        self._advance(len(parcels) - len(self._counted))

    def _hear(self, parcel: Parcel, reason: str) -> None:
        if reason:
            self.refused[parcel.uid] = reason
        else:
            self._journal.note(parcel.uid, held=True)
            self.sent += 1
        self._counted.add(parcel.uid)
        self._advance(1)


def held_of(archive: Archive, parcels: Sequence[Parcel]) -> set[str] | None:
    """Which of these the PACS lists; None where it does not answer searches."""
    wanted = {parcel.uid for parcel in parcels}
    series = list({parcel.series: Series(parcel.study, parcel.series, "", None) for parcel in parcels}.values())
    try:
        return {entry.uid for entries in archive.entries(series) for entry in entries} & wanted
    except RefusalError:
        return None


def _missing(
    archive: Archive, accepted: Sequence[Parcel], journal: PushJournal, settings: Pacs, say: Say
) -> int | None:
    """How many of the accepted instances the PACS does not list; they are sent again next time."""
    answers: list[set[str] | None] = []
    persevere(lambda: answers.append(held_of(archive, accepted)), lambda: 0, settings, say)
    held = answers[-1]
    if held is None:
        return None
    missing = [parcel.uid for parcel in accepted if parcel.uid not in held]
    for uid in missing:
        journal.note(uid, held=False)
    return len(missing)


def _may_leave(header: Dataset, deidentified: bool) -> bool:
    marks = [SYNTHETIC, PATIENT_REMOVED] if deidentified else [SYNTHETIC]
    return any(str(header.get(mark) or "") == "YES" for mark in marks)


def _load(path: Path, number: int, uid: str, deidentified: bool) -> Dataset:
    """The dataset to send, looked at once more: a file may change between its header's reading and its sending."""
    try:
        dataset = pydicom.dcmread(path)
        whole = _is_whole(dataset)
        same = str(dataset.get("SOPInstanceUID") or "") == uid and _may_leave(dataset, deidentified)
    except (InvalidDicomError, *READ_ERRORS):
        whole, same = False, True
    if not same:
        raise PrivacyError(f"expected file {number} of the folder as it was looked at, found it changed; run again")
    if not whole:
        raise UnreadableError(f"expected file {number} of the folder whole, found it damaged or gone; replace it")
    return dataset


def _is_whole(dataset: Dataset) -> bool:
    """Whether no pixels are cut off: pydicom takes the end of a file for the end of the dataset, wherever that is."""
    if "PixelData" not in dataset or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return True
    return len(dataset.PixelData) >= get_expected_length(dataset)
