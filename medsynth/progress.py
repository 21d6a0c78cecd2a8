"""How long work says how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Listener for long work."""

    def task(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Open a bar of `total` steps; the yielded function takes the number of steps just done."""
        ...


class Silent:
    """A listener that shows nothing."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda done: None
