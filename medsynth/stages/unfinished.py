"""A new folder that a verb writes: made beside its place, taken up again after an interruption, and then renamed."""

from __future__ import annotations

from pathlib import Path

from medsynth.errors import UsageError, says_storage_failed
from medsynth.stages.files import INTENT, discard_half_written, read_json, write_json


def begin(out: Path, mark: str) -> Path:
    """The folder to work in beside `out`; what an interrupted call with the same mark left there is kept.

    `mark` is a digest of all that decides the result. Raises UsageError where `out` exists, cannot be made, or has the
    unfinished work of another request beside it.
    """
    if out.exists():
        raise UsageError(f"{out}: expected a new folder, found one that exists; choose another, nothing is overwritten")
    partial = out.with_name(f".{out.name}.partial")
    intent = partial / INTENT
    found = read_json(intent)["digest"] if intent.exists() else None
    begun = partial.is_dir() and any(not entry.name.startswith(".") for entry in partial.iterdir())
    if begun and found != mark:
        raise UsageError(
            f"{partial}: expected no unfinished work for another request, found some; delete it or choose another --out"
        )
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if says_storage_failed(error):
            raise
        raise UsageError(
            f"{out}: expected a folder that can be made, found: {error.strerror}; choose another with --out"
        ) from None
    write_json(intent, {"digest": mark})
    discard_half_written(partial)
    return partial


def finish(partial: Path, out: Path) -> None:
    """Put what is whole in its place."""
    partial.rename(out)
    (out / INTENT).unlink()
