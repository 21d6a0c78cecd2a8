"""What can go wrong between us and a PACS, and how long we keep trying."""

from __future__ import annotations

import time
from collections.abc import Callable

from medsynth.config.pacs import Pacs
from medsynth.errors import InterruptedRun, UsageError

LONGEST_PAUSE_S = 300.0


class TransferError(InterruptedRun):
    """The transfer stopped half-way and can be taken up again."""


class ConnectionLostError(TransferError):
    """A connection that had stood broke down, or the PACS fell silent."""


class BusyError(TransferError):
    """The PACS says that it has no room or no time just now."""


class RefusalError(UsageError):
    """The PACS does not want what we ask, or not from us."""


def lost(place: str) -> ConnectionLostError:
    """The error for a connection that broke down after it had stood."""
    return ConnectionLostError(
        f"expected {place} to go on answering, found the connection lost; when it answers again, the same command goes on"
    )


def needs_extra(module: str) -> UsageError:
    """The error where an optional package is missing."""
    return UsageError(
        f"expected the package {module} for work with a PACS, found none; run: pip install 'medsynth-diffusion[pacs]'"
    )


def persevere(
    work: Callable[[], None], progress: Callable[[], int], settings: Pacs, say: Callable[[str], None]
) -> None:
    """Run `work` to its end; where the transfer breaks, wait and run it again.

    progress: how many instances are through so far. Gives up with the last TransferError when `settings.attempts` in a row
    brought nothing.
    """
    fruitless, seen = 0, progress()
    while True:
        try:
            work()
        except TransferError:
            fruitless, seen = (0 if progress() > seen else fruitless + 1), progress()
            if fruitless >= settings.attempts:
                raise
            pause = min(settings.pause_s * 2**fruitless, LONGEST_PAUSE_S)
            say(f"the transfer broke off; trying again in {pause:g} s")
            time.sleep(pause)
        else:
            return
