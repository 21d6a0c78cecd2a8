"""Every error a user can meet; one family per exit code.

A message says what was expected, what was found and what to do, in one or two lines, and never repeats a value that
came from a patient's record.
"""

from __future__ import annotations

import errno
import re


class MedsynthError(Exception):
    """Base of all errors that are reported to the user without a traceback."""

    exit_code = 1


class UsageError(MedsynthError):
    """The command line, or the place it was told to work in, cannot be used as asked."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more mistakes in a configuration; `mistakes` holds a line for each."""

    def __init__(self, mistakes: list[str]) -> None:
        self.mistakes = mistakes
        super().__init__("\n".join(mistakes))


class MemoryRanOutError(UsageError):
    """What was asked for does not fit the memory of the device or of the machine."""


class DataError(MedsynthError):
    """The scans, the table of cases or a model folder are not what they must be."""

    exit_code = 3


class UnreadableError(DataError):
    """A file is missing, truncated or not of the kind its name says."""


class GeometryError(DataError):
    """A series or volume has no regular, trustworthy geometry."""


class CohortError(DataError):
    """The table of cases contradicts itself or the configuration."""


class ModelFolderError(DataError):
    """A model folder is incomplete, altered or of a newer format."""


class RefusedError(MedsynthError):
    """A privacy rule or a gate says no."""

    exit_code = 4


class PrivacyError(RefusedError):
    """Continuing would let an identity out."""


class GateError(RefusedError):
    """The evidence does not reach what the gate asks for."""


class InterruptedRun(MedsynthError):
    """Work stopped half-way; nothing is lost and the same command resumes it."""

    exit_code = 5


class DivergenceError(InterruptedRun):
    """Training produced a loss that is not finite or that exploded; the checkpoint before that is kept."""


class WorkspaceBusyError(InterruptedRun):
    """Another run holds this workspace."""


class StorageError(InterruptedRun):
    """The disk is full or stopped answering while writing."""


MEMORY_RAN_OUT = (
    "expected enough free memory, found less; free some, lower compute.tile_voxels (generate.batch_size is found by itself), or "
    "take a larger device"
)


def says_memory_ran_out(error: BaseException) -> bool:
    """Whether a library's error means that memory did not suffice: torch has a type of its own for a GPU alone."""
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return told or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


_STORAGE_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE})
_NUMBER_IN_TEXT = re.compile(r"os error (\d+)")
_NUMPY_TEXTS = re.compile(r"\d+ requested and \d+ written|[Nn]ot enough free space")


def says_storage_failed(error: BaseException) -> bool:
    """Whether a library's error means that the disk is full or fails.

    Where there is no error number, its text is looked at: safetensors raises no OSError, and numpy one without a number.
    """
    if isinstance(error, OSError):
        if error.errno is not None:
            return error.errno in _STORAGE_NUMBERS
        return _NUMPY_TEXTS.search(str(error)) is not None
    number = _NUMBER_IN_TEXT.search(str(error)) if type(error).__name__ == "SafetensorError" else None
    return number is not None and int(number[1]) in _STORAGE_NUMBERS
