"""What a PACS is to the rest of this package, whichever protocol it speaks."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from io import BytesIO
from types import TracebackType
from typing import Protocol

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from medsynth.config.pacs import Dicomweb, Pacs
from medsynth.imaging.deidentify.instance import READ_ERRORS
from medsynth.pacs.question import Question

Receive = Callable[[str, Dataset | None], None]
"""Takes an instance by its SOP Instance UID; None where what came cannot be read."""

DAMAGED = (InvalidDicomError, *READ_ERRORS)
"""What reading an instance that came over the network may raise; the texts quote values."""


@dataclass(frozen=True)
class Series:
    """A series that the PACS holds."""

    study: str = field(repr=False)
    uid: str = field(repr=False)
    modality: str
    count: int | None
    """Number of instances as the PACS counts them (0020,1209), where it does."""


@dataclass(frozen=True)
class Entry:
    """An instance that the PACS holds."""

    uid: str = field(repr=False)
    sop_class: str
    """Empty where the PACS does not say."""


@dataclass(frozen=True)
class Parcel:
    """An instance to send, as its header describes it; the dataset itself is loaded when its turn comes."""

    number: int
    uid: str = field(repr=False)
    study: str = field(repr=False)
    series: str = field(repr=False)
    sop_class: str
    transfer_syntax: str
    load: Callable[[], Dataset] = field(repr=False)


Sent = Callable[[Parcel, str], None]
"""Hears of each parcel's fate: an empty text where the PACS holds it, otherwise why the PACS refused it."""


class Archive(Protocol):
    """A PACS. Every method raises UsageError where the PACS refuses and TransferError where a connection breaks down."""

    troubles: Counter[str]
    """What the PACS said when it failed to hand out instances, and how often; no values."""

    def find(self, question: Question) -> list[Series]:
        """The series that match, each once."""
        ...

    def entries(self, series: Sequence[Series]) -> Iterator[list[Entry]]:
        """The instances of each series, each once; none where the PACS does not know the series."""
        ...

    def fetch(self, series: Series, wanted: Sequence[Entry], whole: bool, receive: Receive) -> None:
        """Have the wanted instances of a series come in, in any order; whole: they are all that it has."""
        ...

    def send(self, parcels: Sequence[Parcel], sent: Sent) -> None:
        """Store instances in the PACS."""
        ...

    def close(self) -> None:
        """Let go of sockets and threads."""
        ...


class Inbox(AbstractContextManager[None]):
    """Where instances arrive from a thread of the network library: only those asked for, one at a time.

    That library swallows what a handler raises. As a context around the handler's work this keeps the first failure, for
    whoever waits for the transfer to raise it again.
    """

    def __init__(self, wanted: Iterable[Entry], receive: Receive) -> None:
        self.failure: BaseException | None = None
        self._wanted = {entry.uid for entry in wanted}
        self._receive = receive
        self._lock = threading.Condition()
        self._last = 0.0

    def take(self, uid: str, encoded: Callable[[], bytes]) -> bool:
        """Hand an instance on; False, and nothing is done with it, where it is not wanted or an earlier one failed."""
        with self._lock, self:
            if uid not in self._wanted or self.failure is not None:
                return False
            self._wanted.discard(uid)
            self._receive(uid, decoded(encoded()))
            self._last = time.monotonic()
            self._lock.notify_all()
            return True

    def await_rest(self, silence_s: float) -> None:
        """Wait for what is still wanted, until nothing has come for `silence_s` seconds: some archives say that they are done
        when they begin.
        """
        with self._lock:
            self._last = time.monotonic()
            while self._wanted and self.failure is None and (left := self._last + silence_s - time.monotonic()) > 0:
                self._lock.wait(left)

    def close(self) -> None:
        """Take nothing more, once the instance at hand is done with."""
        with self._lock:
            self._wanted.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.failure = self.failure or error


def decoded(encoded: bytes) -> Dataset | None:
    """A DICOM file in memory as a dataset; None where it cannot be read."""
    try:
        return pydicom.dcmread(BytesIO(encoded))
    except DAMAGED:
        return None


def open_archive(settings: Pacs) -> Archive:
    """The PACS that the settings name; nothing is sent yet. Raises UsageError where the extra `pacs` is not installed."""
    if isinstance(settings.connection, Dicomweb):
        from medsynth.pacs.web import WebArchive

        return WebArchive(settings.connection, settings.timeout_s)
    from medsynth.pacs.dimse import DimseArchive

    return DimseArchive(settings.connection, settings.timeout_s)
