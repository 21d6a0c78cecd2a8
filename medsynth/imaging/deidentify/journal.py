"""What is done so far in a folder being de-identified, and the audit when all is done."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import medsynth
from medsynth.errors import UsageError
from medsynth.imaging.deidentify.keys import SecretKey
from medsynth.imaging.deidentify.table import load_table

JOURNAL = ".deidentify.jsonl"
DRAFTS = ".drafts"
AUDIT = "deidentification.json"
FORMAT = 1


@dataclass(frozen=True)
class Outcome:
    """What became of one source file."""

    kind: Literal["written", "unreadable", "refused", "duplicate", "withheld"]
    reason: str = ""
    name: str = ""
    """Its path in the output folder."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Attribute -> action -> how often."""


class Journal:
    """An append-only list of outcomes; a line cut short by a kill is dropped and its file done again."""

    def __init__(self, out: Path, key: SecretKey) -> None:
        self.out = out
        self.audit = out / AUDIT
        self.done: dict[str, Outcome] = {}
        self.names: set[str] = set()
        self._key = key

    @classmethod
    def open(cls, out: Path, key: SecretKey) -> Journal:
        """Begin in an empty or missing folder, or continue. Raises UsageError for a folder that holds other things."""
        journal = cls(out, key)
        path = out / JOURNAL
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not path.exists())):
            raise UsageError(f"expected an empty or missing output folder, found other things at {out}; name another")
        out.mkdir(parents=True, exist_ok=True)
        if path.exists():
            journal._read(path)
        else:
            _write_whole(path, json.dumps(journal._head()) + "\n")
        shutil.rmtree(out / DRAFTS, ignore_errors=True)
        (out / DRAFTS).mkdir()
        return journal

    def token(self, relative: Path, stat: os.stat_result) -> str:
        """How the journal calls a source file; another size or time makes it another file."""
        return self._key.pseudonym("file", f"{relative.as_posix()}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}")

    def record(self, token: str, outcome: Outcome) -> None:
        """Append one outcome; it is on its way to the disk when this returns."""
        with (self.out / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"file": token, **asdict(outcome)}) + "\n")
        self._remember(token, outcome)

    def finish(self, found: int, written: int, patients: int, attributes: dict[str, dict[str, int]]) -> None:
        """Write the audit: what was done to which attribute how often, and which file was left out why. No values."""
        shutil.rmtree(self.out / DRAFTS, ignore_errors=True)
        kinds: dict[str, dict[str, int]] = {}
        for outcome in self.done.values():
            if outcome.kind != "written":
                reasons = kinds.setdefault(outcome.kind, {})
                reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
        audit = {
            **self._head(),
            "profile": "PS3.15 Annex E Basic Application Level Confidentiality Profile (DCM 113100)",
            "files_found": found,
            "files_written": written,
            "patients": patients,
            "files_left_out": kinds,
            "residual_search": {
                "files_searched": written + len_of(kinds, "withheld"),
                "files_withheld": len_of(kinds, "withheld"),
            },
            "attributes": attributes,
        }
        _write_whole(self.audit, json.dumps(audit, indent=2, sort_keys=True) + "\n")

    def _head(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "tool": f"medsynth {medsynth.__version__}",
            "table": f"PS3.15 {load_table().edition}",
            "key": self._key.fingerprint,
        }

    def _read(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        head = json.loads(lines[0])
        if head != self._head():
            raise UsageError(
                f"expected an output folder begun by this version with the same key, found another's at {self.out}; "
                "name another folder"
            )
        whole, rest = lines[1:-1], lines[-1]
        for line in whole:
            entry = json.loads(line)
            token = entry.pop("file")
            self._remember(token, Outcome(**entry))
        if rest:
            _write_whole(path, "\n".join(lines[:-1]) + "\n")

    def _remember(self, token: str, outcome: Outcome) -> None:
        self.done[token] = outcome
        if outcome.kind == "written":
            self.names.add(outcome.name)


def len_of(kinds: dict[str, dict[str, int]], kind: str) -> int:
    """How many files were left out for one kind of reason."""
    return sum(kinds.get(kind, {}).values())


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
