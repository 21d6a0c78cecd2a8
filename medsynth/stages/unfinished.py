"""A new folder that a verb writes: made beside its place, taken up again after an interruption, and then renamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medsynth.errors import UsageError, says_storage_failed
from medsynth.held import held
from medsynth.stages.files import INTENT, discard_half_written, read_json, write_json

LOCK = ".lock"


def check_new(out: Path) -> None:
    """Raise UsageError where `out` is there already."""
    if out.exists():
        raise UsageError(f"{out}: expected a new folder, found one that exists; choose another, nothing is overwritten")


@contextmanager
def unfinished(out: Path, mark: str) -> Iterator[Path]:
    """The folder to work in beside `out`, which takes its place in the end; what an interrupted call with the same mark left
    there is kept.

    `mark` is a digest of all that decides the result. Raises UsageError where `out` exists, cannot be made, or has the
    unfinished work of another request beside it, WorkspaceBusyError where another call is at work there.
    """
    check_new(out)
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if says_storage_failed(error):
            raise
        raise UsageError(
            f"{out}: expected a folder that can be made, found: {error.strerror}; choose another with --out"
        ) from None
    with held(
        partial / LOCK, f"expected nobody at work for the same folder, found another call in {partial}; wait for it"
    ):
        intent = partial / INTENT
        found = read_json(intent)["digest"] if intent.exists() else None
        if found != mark and any(path.is_file() for path in partial.rglob("*") if path.name not in (INTENT, LOCK)):
            raise UsageError(
                f"{partial}: expected no unfinished work for another request, found some; delete it or choose another --out"
            )
        write_json(intent, {"digest": mark})
        discard_half_written(partial)
        yield partial
        partial.rename(out)
        for name in (INTENT, LOCK):
            (out / name).unlink(missing_ok=True)
