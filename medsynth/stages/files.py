"""Small files written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from medsynth.errors import UnreadableError

INTENT = "intent.json"
"""In a folder that is not finished: the digest of what it is to be made from."""
HALF_WRITTEN = (".*.part", ".*.tmp")
"""Names of files that are being written; a kill leaves them there."""


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary sibling, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all. Not-a-number is refused, because JSON has no word for it."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises UnreadableError where it is none any more."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UnreadableError(
            f"{path}: expected what an earlier run wrote, found it damaged; delete it, so that its folder is made again"
        ) from None


def digest(value: Any) -> str:
    """A short digest of any JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def stamp(path: Path) -> list[Any]:
    """Name, size and time of change of a file, or of every file below a folder."""
    if path.is_dir():
        return [stamp(entry) for entry in sorted(path.rglob("*")) if entry.is_file()]
    try:
        found = path.stat()
    except OSError:
        return [str(path), None]
    return [str(path), found.st_size, found.st_mtime_ns]


def discard_half_written(folder: Path) -> None:
    """Remove what a killed process was writing in `folder` or below."""
    for pattern in HALF_WRITTEN:
        for path in folder.rglob(pattern):
            path.unlink(missing_ok=True)
