"""A folder held against other processes."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medsynth.errors import WorkspaceBusyError


@contextmanager
def held(lock: Path, busy: str) -> Iterator[None]:
    """Keep others out who hold the same file, which is made if need be. Raises WorkspaceBusyError, which says `busy`.

    The lock goes with the process that holds it, however that ends.
    """
    with lock.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceBusyError(busy) from None
        yield
