"""What of a folder a PACS has said it holds: a list beside the folder, so that the folder itself stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType

from medsynth.config.pacs import Dicomweb, Dimse
from medsynth.errors import UsageError

FORMAT = 1


class PushJournal:
    """An append-only list of SOP Instance UIDs; a line cut short by a kill is dropped and its instance sent again.

    UIDs of synthetic or de-identified instances lead to nobody.
    """

    def __init__(self, folder: Path, connection: Dimse | Dicomweb) -> None:
        """Raises UsageError for a journal that this version cannot read."""
        folder = folder.resolve()
        named = f"{folder.name}\x1f{_address(connection)}".encode()
        self.path = folder.parent / f".push-{hashlib.sha256(named).hexdigest()[:12]}.jsonl"
        self.held: set[str] = set()
        whole = b""
        if self.path.exists():
            whole = self.path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]
            self._read(whole)
        self._file = self.path.open("r+b" if self.path.exists() else "x+b")
        self._file.truncate(len(whole))
        self._file.seek(len(whole))
        if not whole:
            self._append({"format": FORMAT})

    def note(self, uid: str, *, held: bool) -> None:
        """Remember that the PACS holds an instance, or that it turned out not to."""
        (self.held.add if held else self.held.discard)(uid)
        self._append({"instance": uid, "held": held})

    def close(self) -> None:
        """Bring everything to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _append(self, entry: dict[str, object]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def _read(self, whole: bytes) -> None:
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines and lines[0] != {"format": FORMAT}:
                raise ValueError
            for entry in lines[1:]:
                (self.held.add if entry["held"] else self.held.discard)(entry["instance"])
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"expected a list of this version's at {self.path}, found another or a damaged one; delete it, and the PACS "
                "will be asked what it holds"
            ) from None

    def __enter__(self) -> PushJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _address(connection: Dimse | Dicomweb) -> str:
    if isinstance(connection, Dicomweb):
        return connection.url
    return f"{connection.host}:{connection.port}/{connection.ae_title}"
