"""Work that goes on beside the caller's: files are written, and masks made ready, while volumes are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from types import TracebackType
from typing import TypeVar

from medsynth.progress import Advance

WAITING = 2
"""Pieces of work, and so volumes in memory, that wait for those in hand."""


Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Generator[Result]:
    """What `work` makes of each item, in order, by as many threads and at most `WAITING` more ahead; without threads when asked.

    What it raises for an item is raised where that item's turn is.
    """
    if not threads:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="medsynth-ahead")
    begun: deque[Future[Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) >= WAITING + threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Background:
    """Threads that begin what they are given in that order: one, or several whose pieces may end in any.

    with Background() as background:
        background.do(work)      # waits where `WAITING` pieces are waiting already

    What a piece raises is raised again by the next `do` or `check`, or at the end of the block; nothing is begun after it.
    Leaving the block waits for everything; leaving it by an error waits for the pieces in hand alone, so that they are whole,
    and drops the others.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="medsynth-background")
        self._given: deque[Future[None]] = deque()
        self._broken = Event()

    def do(self, work: Callable[[], None]) -> None:
        """Hand over a piece of work."""
        self.check()
        while len(self._given) >= WAITING + self._threads:
            self._given.popleft().result()
            self.check()
        self._given.append(self._pool.submit(self._turn, work))

    def _turn(self, work: Callable[[], None]) -> None:
        if self._broken.is_set():
            return
        try:
            work()
        except BaseException:
            self._broken.set()
            raise

    def check(self) -> None:
        """Raise what a piece that is over raised."""
        over = [piece for piece in self._given if piece.done()]
        for piece in over:
            self._given.remove(piece)
            piece.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._given:
                self._given.popleft().result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


class Watching:
    """A listener to long work that shows nothing, but looks after the background at every step."""

    def __init__(self, background: Background) -> None:
        self._background = background

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda done: self._background.check()
