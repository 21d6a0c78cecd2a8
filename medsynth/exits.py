"""From what a verb raised to lines on stderr and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.exceptions import Abort, Exit, TyperException

from medsynth.errors import MEMORY_RAN_OUT, MedsynthError, says_memory_ran_out, says_storage_failed

TYPER_INTERRUPTED = 130
"""What typer makes of a KeyboardInterrupt."""


def guarded(work: Callable[[], Any], *, verbose: int) -> int:
    """Run `work` and turn what it raises into lines on stderr and an exit code."""
    try:
        outcome = work()
        if outcome == TYPER_INTERRUPTED:
            raise KeyboardInterrupt
    except MedsynthError as error:
        _fail(str(error), verbose)
        return error.exit_code
    except Exit as done:
        return done.exit_code
    except TyperException as error:
        _fail(error.format_message(), verbose)
        return 2
    except (KeyboardInterrupt, Abort) as stop:
        if isinstance(stop.__cause__, EOFError):  # typer takes it for the end of a dialogue; there is none here
            return _unforeseen(stop.__cause__, verbose)
        _fail("interrupted; what is done is kept, run the same command again to go on", verbose)
        return 5
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the last door: whatever comes here is a bug, told without a patient's value
        return _unforeseen(error, verbose)
    return outcome if isinstance(outcome, int) else 0


def _unforeseen(error: Exception, verbose: int) -> int:
    """A disk that gave way, memory that ran out, a place that may not be written, or a bug."""
    if says_storage_failed(error):
        _fail("expected room on a working disk, found it full or failing; free some and run the command again", verbose)
        return 5
    if says_memory_ran_out(error):
        _fail(MEMORY_RAN_OUT, verbose)
        return 2
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        _fail(f"expected a place that may be read and written, found: {error.strerror}; correct its rights", verbose)
        return 2
    where = traceback.extract_tb(error.__traceback__)[-1]
    _fail(
        f"a bug in medsynth: {type(error).__name__} at {Path(where.filename).name}:{where.lineno}; -vv shows more",
        verbose,
    )
    return 1


def _fail(message: str, verbose: int) -> None:
    if verbose >= 2:
        traceback.print_exc()
    for line in message.splitlines():
        print(f"medsynth: {line}", file=sys.stderr)
