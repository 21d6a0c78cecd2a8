"""A folder of DICOM in, a folder of de-identified DICOM out: resumable, in parallel, searched, with an audit.

Transfer syntax and pixel bytes stay as they are unless pixels have to be cleaned. Images that may show a face wait, where
faces are to be removed, until all others are done; then their series are worked on one by one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsynth.config.deidentify import Deidentify
from medsynth.errors import DataError, PrivacyError, UnreadableError, UsageError
from medsynth.imaging.deidentify.guard import PixelGuard
from medsynth.imaging.deidentify.keys import SecretKey
from medsynth.imaging.deidentify.linking import LinkingTable
from medsynth.imaging.deidentify.store import Store
from medsynth.imaging.deidentify.tally import Kind, Outcome, Tally
from medsynth.imaging.deidentify.workers import CHUNK, FileTask, Job, Result, SeriesTask, results_of
from medsynth.progress import Advance, Progress, Silent

MOST_LISTED = 200
"""Files left out that a report names; all are counted."""


@dataclass(frozen=True)
class LeftOut:
    """A source file that was not written."""

    number: int
    """Its place among the source files in the order of their paths, from 1: names of files may name patients."""
    path: Path
    kind: Kind
    reason: str


@dataclass(frozen=True)
class FolderReport:
    """What became of a folder."""

    found: int
    tally: Tally
    left_out: tuple[LeftOut, ...]
    """The first `MOST_LISTED`."""
    audit: Path | None
    """None after a rehearsal."""

    @property
    def written(self) -> int:
        """How many files were written."""
        return self.tally.count("written")

    @property
    def patients(self) -> int:
        """How many patients they are of."""
        return self.tally.patients

    def count(self, *kinds: Kind) -> int:
        """How many files were left out for a kind of reason."""
        return self.tally.count(*kinds)

    def summary(self) -> dict[str, Any]:
        """The figures alone, for a terminal or JSON."""
        facts: dict[str, Any] = {"files": self.found, "written": self.written, "patients": self.patients}
        if self.tally.reasons:
            facts["left_out"] = self.tally.reasons
        if self.audit is not None:
            facts["audit"] = str(self.audit)
        return facts

    def raise_if_incomplete(self) -> None:
        """Raise PrivacyError if a privacy rule kept any file out, DataError if damage did; the others are written.

        Copies and files that are no DICOM images are no loss.
        """
        refused, damaged = self.count("refused", "withheld"), self.count("damaged")
        if refused:
            raise PrivacyError(
                f"{refused} of {self.found} files were left out by a privacy rule{self._first('refused', 'withheld')}"
            )
        if damaged:
            raise UnreadableError(f"{damaged} of {self.found} files were left out as damaged{self._first('damaged')}")

    def _first(self, *kinds: Kind) -> str:
        first = next((entry for entry in self.left_out if entry.kind in kinds), None)
        return f", the first (number {first.number}): {first.reason}" if first else ""


def deidentify_folder(
    source: Path,
    out: Path,
    key: SecretKey,
    settings: Deidentify | None = None,
    *,
    linking: LinkingTable | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> FolderReport:
    """De-identify every DICOM file below `source` into `out`; the same call again continues an interrupted one.

    Raises UsageError if `out` overlaps `source` or holds something else, WorkspaceBusyError if another run is at work in
    it, StorageError if the disk is full, DataError (PrivacyError if rules forbade it) if nothing could be written. Files that are
    no DICOM, damaged, refused by a privacy rule, twice there, or in whose result an identifying value was found are left out
    and reported.
    """
    settings = settings or Deidentify()
    check_places(source, out)
    check_workers(key, workers)
    PixelGuard(settings)  # tells mistakes in the site's rules before anything is written
    with Store.open(out, key, settings, linking) as store:
        run = _Run(source, store, key, Job(settings, linking is not None), workers)
        run.work(progress or Silent())
        audit = store.finish()
        report = FolderReport(run.found, store.tally, tuple(run.left_out()), audit)
    if not report.written:
        report.raise_if_incomplete()
        reason = report.left_out[0].reason if report.left_out else "the folder holds no file"
        raise DataError(f"expected CT or MR images in DICOM files, found none to write among {report.found}: {reason}")
    return report


def rehearse_folder(
    source: Path, key: SecretKey, settings: Deidentify, *, workers: int = 1, progress: Progress | None = None
) -> FolderReport:
    """Do everything but write: what `deidentify_folder` would do with the files and why it would leave some out."""
    check_places(source, None)
    check_workers(key, workers)
    rehearsal = Rehearsal()
    run = _Run(source, rehearsal, key, Job(settings, linked=False), workers)
    run.work(progress or Silent())
    return FolderReport(run.found, rehearsal.tally, (), None)


def check_places(source: Path, out: Path | None) -> None:
    """Raise UsageError unless there is a source, and the output lies apart from it."""
    if not source.is_dir():
        raise UsageError(f"expected a folder to de-identify, found none at {source}")
    if out is not None:
        here, there = source.resolve(), out.resolve()
        if here == there or here in there.parents or there in here.parents:
            raise UsageError(
                f"expected an output folder apart from the input, found {out}; originals are never mixed in"
            )


def check_workers(key: SecretKey, workers: int) -> None:
    """Raise UsageError where other processes could not load the key."""
    if workers > 1 and key.path is None:
        raise UsageError("expected a key that was loaded from a file when workers > 1; processes load it there again")


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and its sub-folders, in the order of their paths. Links to folders are not followed."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in names:
        path = folder / name
        if is_folder:
            yield from files_below(path)
        elif path.is_file():
            yield path


class Rehearsal:
    """Stands in for a store where nothing is to be written."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._names: set[int] = set()

    def token(self, source: str) -> int:
        """Nothing is remembered beyond this run, so every source is new."""
        return 0

    def has(self, token: int) -> bool:
        """Never."""
        return False

    def draft(self, token: int) -> None:
        """Nowhere."""

    def why_left_out(self, token: int) -> None:
        """Not remembered."""

    def seek(self, values: object) -> None:
        """There is no report to search."""

    def adopt(self, token: int, outcome: Outcome, link: object = None) -> Outcome:
        """Count an outcome."""
        name = hash(outcome.name)
        if outcome.kind == "written" and name in self._names:
            outcome = Outcome("duplicate", outcome.series, "same name as an earlier file")
        self._names.add(name)
        self.tally.add(outcome)
        return outcome


class _Run:
    """One pass over a folder."""

    def __init__(self, source: Path, store: Store | Rehearsal, key: SecretKey, job: Job, workers: int) -> None:
        self.found = sum(1 for _ in files_below(source))
        self._source = source
        self._store = store
        self._key = key
        self._job = job
        self._workers = workers
        self._waiting: dict[str, list[FileTask]] = {}
        """Files that wait for the rest of their series, by `<patient>/<series>`."""

    def work(self, progress: Progress) -> None:
        """Do what is not done yet."""
        with progress.task("de-identify", self.found) as advance:
            for result in self._results(self._file_tasks(advance), CHUNK):
                if result.outcome is None:
                    self._waiting.setdefault(result.series, []).append(result.task)
                else:
                    advance(1)
            series = (tuple(tasks) for _, tasks in sorted(self._waiting.items()))
            for _ in self._results(series, 1):
                advance(1)

    def left_out(self) -> Iterator[LeftOut]:
        """The first files that were not written."""
        missing = min(MOST_LISTED, self._store.tally.total - self._store.tally.count("written"))
        if not missing:
            return
        for number, path in enumerate(files_below(self._source), start=1):
            known = self._store.why_left_out(self._token(path))
            if known is not None:
                yield LeftOut(number, path, *known)
                missing -= 1
            if not missing:
                return

    def _file_tasks(self, advance: Advance) -> Iterator[FileTask]:
        for path in files_below(self._source):
            token = self._token(path)
            if self._store.has(token):
                advance(1)
                continue
            draft = self._store.draft(token)
            yield FileTask(token, str(path), None if draft is None else str(draft))

    def _results(self, tasks: Iterable[FileTask] | Iterable[SeriesTask], chunk: int) -> Iterator[Result]:
        for result in results_of(tasks, self._job, self._key, self._workers, chunk):
            if result.outcome is not None:
                self._store.seek(result.sought)
                self._store.adopt(result.task.token, result.outcome, result.link)
            yield result

    def _token(self, path: Path) -> int:
        """Another size or time makes it another file."""
        stat = path.stat()
        return self._store.token(f"{path.relative_to(self._source)}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}")
