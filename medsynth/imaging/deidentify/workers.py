"""What is done to one file, or to one series with faces, in this process or in others."""

from __future__ import annotations

import filecmp
import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from medsynth.config.deidentify import Deidentify
from medsynth.errors import DataError, InterruptedRun, PrivacyError, StorageError, UnreadableError, says_storage_failed
from medsynth.imaging.deidentify.driver import Deidentifier
from medsynth.imaging.deidentify.elements import ascii_text
from medsynth.imaging.deidentify.identifiers import Identifiers
from medsynth.imaging.deidentify.instance import (
    READ_ERRORS,
    SOP_INSTANCE,
    Instance,
    LeakError,
    deidentify_instance,
    deidentify_series,
    needs_whole_series,
    series_of,
)
from medsynth.imaging.deidentify.keys import SecretKey
from medsynth.imaging.deidentify.linking import Link
from medsynth.imaging.deidentify.residual import ResidualSearch
from medsynth.imaging.deidentify.store import CLASH, DUPLICATE, outcome_of, storage_told, write_pieces
from medsynth.imaging.deidentify.tally import NO_SERIES, Kind, Outcome
from medsynth.imaging.quiet import quiet_pydicom

CHUNK = 16
"""Files that a process takes at once: neighbours, mostly of one series."""
MOST_IN_MEMORY = 1 << 26
"""Bytes of a file that is read at once, which is faster; of a larger one, there is only one copy in memory."""
USUAL_BLOCK = 1 << 24
SOP_CLASS, DICOMDIR = 0x00080016, "1.2.840.10008.1.3.10"
WITHOUT_MARK = tuple(bytes((*group, element, 0)) for group in ((8, 0), (2, 0)) for element in (0, 1, 5, 8, 16, 18))
"""How a DICOM file may begin that lacks preamble and mark, as some did before PS3.10."""


@dataclass(frozen=True)
class Job:
    """What is the same for all tasks; goes to every process once. The key stays in its file."""

    settings: Deidentify
    linked: bool


@dataclass(frozen=True)
class FileTask:
    """One file; its result goes into `draft`, or nowhere."""

    token: int
    path: str
    draft: str | None


SeriesTask = tuple[FileTask, ...]
"""All files of one series in which faces may be recognised."""


@dataclass(frozen=True)
class Result:
    """What became of one file, small enough to be sent from process to process."""

    task: FileTask
    outcome: Outcome | None
    """None where the file waits for its series."""
    series: str = NO_SERIES
    link: Link | None = None
    sought: Identifiers | None = None
    """The identifying values, where they are not the same as for the file before; in memory only."""


class Worker:
    """De-identifies one file after the other."""

    def __init__(self, job: Job, key: SecretKey) -> None:
        self._linked = job.linked
        self._deidentifier = Deidentifier(key, job.settings)
        self._search = ResidualSearch()
        bytearray(
            USUAL_BLOCK
        )  # having freed a block of this size, glibc keeps smaller ones for the next image (mallopt(3))

    def file(self, task: FileTask) -> Result:
        """Read, de-identify, search, and leave the result as a draft."""
        try:
            original = _read(task.path)
        except _ForeignFile as foreign:
            return Result(task, Outcome("foreign", NO_SERIES, str(foreign)))
        except DataError as error:
            return Result(task, outcome_of(error, NO_SERIES))
        try:
            if needs_whole_series(original, self._deidentifier):
                return Result(task, None, series_of(original, self._deidentifier))
            instance = deidentify_instance(original, self._deidentifier, linked=self._linked, search=self._search)
        except (PrivacyError, DataError) as error:
            return Result(task, outcome_of(error, series_of(original, self._deidentifier)))
        return _drafted(task, instance)

    def series(self, tasks: SeriesTask) -> list[Result]:
        """All files of one series: all drafts, or none and one reason."""
        originals: dict[str, tuple[FileTask, Dataset]] = {}
        results: list[Result] = []
        series = NO_SERIES
        try:
            for task in tasks:
                original = _read(task.path)
                series = series_of(original, self._deidentifier)
                first, _ = originals.setdefault(ascii_text(original, SOP_INSTANCE), (task, original))
                if first is not task:
                    same = filecmp.cmp(first.path, task.path, shallow=False)
                    outcome = Outcome("duplicate" if same else "damaged", series, DUPLICATE if same else CLASH)
                    results.append(Result(task, outcome))
            instances = deidentify_series(
                [original for _, original in originals.values()], self._deidentifier, linked=self._linked
            )
        except (PrivacyError, DataError, _ForeignFile) as error:
            kind: Kind = "withheld" if isinstance(error, LeakError) else "refused"
            return [Result(task, Outcome(kind, series, f"its faces could not be removed: {error}")) for task in tasks]
        pairs = zip((task for task, _ in originals.values()), instances, strict=True)
        return results + [_drafted(task, instance) for task, instance in pairs]


def results_of(
    tasks: Iterable[FileTask | SeriesTask], job: Job, key: SecretKey, workers: int, chunk: int = CHUNK
) -> Iterator[Result]:
    """The results of all tasks, in their order whatever the number of workers; only a few are under way at a time.

    Raises InterruptedRun if a process dies.
    """
    if workers <= 1 or key.path is None:
        worker = Worker(job, key)
        with quiet_pydicom():  # once for all: to switch it costs as much as a tenth of an image's work
            for task in tasks:
                yield from _done(worker, [task])
        return
    context = multiprocessing.get_context("spawn")
    remaining = iter(tasks)
    under_way: deque[Future[list[Result]]] = deque()
    with ProcessPoolExecutor(workers, context, _begin_worker, (job, str(key.path))) as pool:
        try:
            while True:
                while len(under_way) < 3 * workers and (some := list(itertools.islice(remaining, chunk))):
                    under_way.append(pool.submit(_work, some))
                if not under_way:
                    return
                yield from under_way.popleft().result()
        except BrokenProcessPool:
            raise InterruptedRun(
                "expected all processes to go on, found one ended by force, often for want of memory; run the same command "
                "again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_worker: list[Worker] = []


def _begin_worker(job: Job, key_path: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one hears it, and ends it in order
    _worker[:] = [Worker(job, SecretKey.load(Path(key_path)))]


def _work(tasks: Sequence[FileTask | SeriesTask]) -> list[Result]:
    with quiet_pydicom():
        return _done(_worker[0], tasks)


def _done(worker: Worker, tasks: Sequence[FileTask | SeriesTask]) -> list[Result]:
    results: list[Result] = []
    for task in tasks:
        results.extend([worker.file(task)] if isinstance(task, FileTask) else worker.series(task))
    return results


class _ForeignFile(Exception):
    """A file that is no DICOM image file."""


def _read(path: str) -> Dataset:
    try:
        with Path(path).open("rb", buffering=0) as file, quiet_pydicom():
            head = file.read(132)
            if head[128:] != b"DICM":
                if head.startswith(WITHOUT_MARK):
                    raise UnreadableError(
                        "expected the mark DICM after 128 bytes, found a file that may be DICOM without it; convert it"
                    )
                raise _ForeignFile("no DICOM file")
            file.seek(0)
            small = os.fstat(file.fileno()).st_size <= MOST_IN_MEMORY
            dataset = pydicom.dcmread(BytesIO(file.read()) if small else file)
            sop_class = ascii_text(dataset, SOP_CLASS) or str(dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    except READ_ERRORS as error:
        if isinstance(error, OSError) and says_storage_failed(error):
            raise StorageError(
                "expected a disk that can be read, found it failing; run the same command again"
            ) from None
        raise UnreadableError("expected a whole DICOM file, found it damaged or cut short; export it again") from None
    if sop_class == DICOMDIR:
        raise _ForeignFile("a DICOMDIR, which lists other files")
    return dataset


def _drafted(task: FileTask, instance: Instance) -> Result:
    if task.draft is not None:
        with storage_told():
            write_pieces(Path(task.draft), instance.encoded.pieces)
    outcome = Outcome("written", instance.name, counts=instance.counts)
    return Result(task, outcome, instance.series, instance.link, instance.values)
