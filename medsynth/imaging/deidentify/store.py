"""An output folder of de-identified files: held by one run, resumable, with nothing in it twice and an audit at the end.

Sources stand in the journal under keyed digests, so that it names nobody. They need not be files: whoever can name a
source by a text that stays the same (a path with its size and time, a SOP instance UID) can store what became of it.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import medsynth
from medsynth.config.deidentify import Deidentify
from medsynth.digests import file_sha256
from medsynth.errors import (
    DataError,
    MedsynthError,
    PrivacyError,
    StorageError,
    UsageError,
    says_storage_failed,
)
from medsynth.held import held
from medsynth.imaging.deidentify.audit import Audit
from medsynth.imaging.deidentify.identifiers import Identifiers
from medsynth.imaging.deidentify.instance import Instance, LeakError
from medsynth.imaging.deidentify.journal import FORMAT, JOURNAL, Batch, Entry, Journal
from medsynth.imaging.deidentify.keys import SecretKey
from medsynth.imaging.deidentify.linking import Link, LinkingTable
from medsynth.imaging.deidentify.table import load_table
from medsynth.imaging.deidentify.tally import NO_SERIES, Kind, Outcome, Tally

DRAFTS, LOCK = ".drafts", ".lock"
DUPLICATE = "same content as an earlier file"
CLASH = "another file has the same SOP Instance UID and other content"
LINE_ENTRIES = 64
LINE_SECONDS = 1.0
"""How much a kill can make undone: the sources since the last line of the journal."""


class Store:
    """Use as `with Store.open(out, key, settings) as store:`; its methods may be called from several threads."""

    def __init__(self, out: Path, key: SecretKey, settings: Deidentify | None, linking: LinkingTable | None) -> None:
        self.out = out
        self.tally = Tally()
        """Sums of what is in the journal."""
        self._audit = Audit(key, settings or Deidentify(), linked=linking is not None)
        self._linking = linking
        self._mark = key.derive("journal")
        self._journal = Journal(out, _head(key, settings or Deidentify()))
        self._done: set[int] = set()
        self._names: set[int] = set()
        """Digests, at some 70 bytes each: what a store keeps in memory for every file."""
        self._left_out: dict[int, tuple[Kind, str]] = {}
        self._pending: list[Entry] = []
        self._pending_tally = Tally()
        self._last_line = time.monotonic()
        self._folders: set[str] = set()
        self._links: set[Link] = set()
        self._sought = Identifiers()
        self._threads = threading.RLock()

    @classmethod
    @contextmanager
    def open(
        cls, out: Path, key: SecretKey, settings: Deidentify | None = None, linking: LinkingTable | None = None
    ) -> Iterator[Store]:
        """Begin in an empty or missing folder, or go on in one that the same key and settings began.

        Raises UsageError for a folder that holds other things, WorkspaceBusyError where another run is at work in it.
        Whatever ends the block, what was published is in the journal afterwards.
        """
        ours = {JOURNAL, f"{JOURNAL}.draft", DRAFTS, LOCK}
        if out.exists() and (
            not out.is_dir() or not ((out / JOURNAL).exists() or {path.name for path in out.iterdir()} <= ours)
        ):
            raise UsageError(f"expected an empty or missing output folder, found other things at {out}; name another")
        store = cls(out, key, settings, linking)
        with storage_told():
            out.mkdir(parents=True, exist_ok=True)
            busy = f"expected a free output folder, found another run at work in {out}; wait for it, or name another"
            with held(out / LOCK, busy):
                store._begin()
                try:
                    yield store
                finally:
                    store.flush()
                    shutil.rmtree(out / DRAFTS, ignore_errors=True)

    def token(self, source: str) -> int:
        """How the journal calls a source."""
        digest = hashlib.blake2b(source.encode("utf-8", "surrogateescape"), key=self._mark, digest_size=8)
        return int.from_bytes(digest.digest(), "big")

    def has(self, token: int) -> bool:
        """Whether the outcome of a source is known already."""
        return token in self._done

    def why_left_out(self, token: int) -> tuple[Kind, str] | None:
        """Kind and reason for a source that was not written; None for one that was, or that is not known."""
        return self._left_out.get(token)

    def draft(self, token: int) -> Path:
        """Where the file of a source lies before it gets its name; another process may write it there."""
        return self.out / DRAFTS / f"{token:016x}"

    def publish(self, token: int, instance: Instance) -> Outcome:
        """Write an instance under its name, unless it is there already (`duplicate`) or clashes (`damaged`).

        Raises StorageError if the disk is full or fails.
        """
        with storage_told():
            write_pieces(self.draft(token), instance.encoded.pieces)
        self.seek(instance.values)
        return self.adopt(token, Outcome("written", instance.name, counts=instance.counts), instance.link)

    def adopt(self, token: int, outcome: Outcome, link: Link | None = None) -> Outcome:
        """Note an outcome; if it is `written`, its draft gets its name. Returns what it has become."""
        with self._threads, storage_told():
            size = 0
            if outcome.kind == "written":
                outcome, size = self._named(token, outcome)
            if link is not None and self._linking is not None and link not in self._links:
                self._linking.add_link(link)
                self._links.add(link)
            entry = Entry(token, outcome.without_counts(), size)
            self._remember(entry)
            self._pending.append(entry)
            self._pending_tally.add(outcome)
            if len(self._pending) >= LINE_ENTRIES or time.monotonic() - self._last_line > LINE_SECONDS:
                self.flush()
        return outcome

    def leave_out(self, token: int, error: MedsynthError, series: str = NO_SERIES) -> Outcome:
        """Note that a source was not written, and why: a LeakError is `withheld`, a PrivacyError `refused`, a DataError
        `damaged`. `series` is what `series_of` says of it.
        """
        return self.adopt(token, outcome_of(error, series))

    def seek(self, values: Identifiers | None) -> None:
        """Remember values that journal and audit are to be searched for at the end."""
        if values is not None:
            with self._threads:
                self._sought.update(values)

    def flush(self) -> None:
        """Write to the journal what is not in it yet."""
        with self._threads, storage_told():
            if self._pending:
                self._journal.append(Batch(self._pending, self._pending_tally))
                self.tally.merge(self._pending_tally)
                self._pending, self._pending_tally = [], Tally()
            self._last_line = time.monotonic()

    def finish(self) -> Path:
        """Search journal and audit for identifying values, write `deidentification.json` and `.html`, give the former's path.

        Raises PrivacyError, and leaves no audit, if a value is found.
        """
        with self._threads, storage_told():
            self.flush()
            return self._audit.write(self.out, self.tally, self._sought, self._journal.path)

    def _begin(self) -> None:
        """Take up what is done. A line of the journal whose files are not all there as written is void."""
        shutil.rmtree(self.out / DRAFTS, ignore_errors=True)
        (self.out / DRAFTS).mkdir()
        self._journal.begin()
        there = {self._name_digest(name, size) for name, size in _written_files(self.out)}
        for batch in self._journal.batches():
            if self._stands(batch, there):
                self.tally.merge(batch.tally)
                for entry in batch.entries:
                    self._remember(entry)
        self._journal.keep(lambda batch: self._stands(batch, there))
        for name, _ in _written_files(self.out):
            if self._name_digest(name) not in self._names:
                (self.out / name).unlink()  # published by a run that was killed before it could note it

    def _stands(self, batch: Batch, there: set[int]) -> bool:
        return all(
            self._name_digest(entry.outcome.name, entry.size) in there
            for entry in batch.entries
            if entry.outcome.kind == "written"
        )

    def _remember(self, entry: Entry) -> None:
        self._done.add(entry.token)
        if entry.outcome.kind == "written":
            self._names.add(self._name_digest(entry.outcome.name))
        else:
            self._left_out[entry.token] = entry.outcome.kind, sys.intern(entry.outcome.reason)

    def _named(self, token: int, outcome: Outcome) -> tuple[Outcome, int]:
        """Give a draft its name, unless an earlier file has it; and its size."""
        draft, final = self.draft(token), self.out / outcome.name
        if self._name_digest(outcome.name) in self._names:
            same = filecmp.cmp(draft, final, shallow=False)
            draft.unlink()
            return Outcome("duplicate" if same else "damaged", outcome.series, DUPLICATE if same else CLASH), 0
        if outcome.series not in self._folders:
            (self.out / outcome.series).mkdir(parents=True, exist_ok=True)
            self._folders.add(outcome.series)
        size = draft.stat().st_size
        draft.rename(final)
        return outcome, size

    def _name_digest(self, name: str, size: int | None = None) -> int:
        text = name if size is None else f"{name} {size}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def outcome_of(error: MedsynthError, series: str) -> Outcome:
    """What an error makes of a source. Raises it again if it is none of the source's."""
    if isinstance(error, LeakError):
        return Outcome("withheld", series, str(error))
    if isinstance(error, PrivacyError):
        return Outcome("refused", series, str(error))
    if isinstance(error, DataError):
        return Outcome("damaged", series, str(error))
    raise error


def write_pieces(path: Path, pieces: Sequence[bytes]) -> None:
    """Write a file without putting its pieces together first."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for piece in pieces:
            left = memoryview(piece)
            while left:
                left = left[os.write(handle, left) :]
    finally:
        os.close(handle)


@contextmanager
def storage_told() -> Iterator[None]:
    """A disk that is full or fails ends the run with a StorageError."""
    try:
        yield
    except OSError as error:
        if not says_storage_failed(error):
            raise
        raise StorageError(
            "expected room on a working disk, found it full or failing; free some and run the same command again"
        ) from None


def _head(key: SecretKey, settings: Deidentify) -> dict[str, object]:
    """What a run must share with the one that it continues."""
    asked = settings.model_dump(mode="json", exclude={"regions"})
    asked["regions"] = None if settings.regions is None else file_sha256(Path(settings.regions))
    return {
        "format": FORMAT,
        "tool": f"medsynth {medsynth.__version__}",
        "table": f"PS3.15 {load_table().edition}",
        "key": key.fingerprint,
        "settings": hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16],
    }


def _written_files(out: Path) -> Iterator[tuple[str, int]]:
    """Name and size of every published file: three levels deep, the first one a pseudonym."""
    for patient in sorted(out.glob("P*/")):
        for series in sorted(patient.iterdir()):
            with os.scandir(series) as files:
                yield from (
                    (f"{patient.name}/{series.name}/{file.name}", file.stat().st_size)
                    for file in files
                    if file.name.endswith(".dcm")
                )
