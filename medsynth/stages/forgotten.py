"""Patients who were forgotten: `forgotten.json` in the workspace, by pseudonym, so that they are never prepared again."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medsynth.stages.files import read_json, write_json

FILE = "forgotten.json"


@dataclass(frozen=True)
class Forgotten:
    """One patient who was forgotten, and what that took. No identity."""

    pseudonym: str
    begun: str
    finished: str | None = None
    """None where a kill came in between; the same command finishes it."""
    deleted: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """What was trained with the patient and is still there."""


def read_forgotten(workspace: Path) -> list[Forgotten]:
    """Everybody who was forgotten in a workspace, in order."""
    path = workspace / FILE
    if not path.exists():
        return []
    entries = read_json(path)["patients"]
    return [
        Forgotten(**{**entry, "deleted": tuple(entry["deleted"]), "models": tuple(entry["models"])})
        for entry in entries
    ]


def forgotten_patients(workspace: Path) -> frozenset[str]:
    """Their pseudonyms."""
    return frozenset(entry.pseudonym for entry in read_forgotten(workspace))


def begin(workspace: Path, pseudonym: str, deleted: tuple[str, ...], models: tuple[str, ...]) -> Forgotten:
    """Note who is being forgotten before anything is deleted; what an interrupted call noted is kept."""
    others = [entry for entry in read_forgotten(workspace) if entry.pseudonym != pseudonym]
    earlier = next((entry for entry in read_forgotten(workspace) if entry.pseudonym == pseudonym), None)
    entry = Forgotten(
        pseudonym,
        earlier.begun if earlier else _now(),
        None,
        tuple(dict.fromkeys([*(earlier.deleted if earlier else ()), *deleted])),
        tuple(dict.fromkeys([*(earlier.models if earlier else ()), *models])),
    )
    _write(workspace, [*others, entry])
    return entry


def finish(workspace: Path, entry: Forgotten) -> None:
    """Note that everything is deleted."""
    others = [other for other in read_forgotten(workspace) if other.pseudonym != entry.pseudonym]
    _write(workspace, [*others, replace(entry, finished=_now())])


def _write(workspace: Path, entries: list[Forgotten]) -> None:
    write_json(workspace / FILE, {"format": 1, "patients": [asdict(entry) for entry in entries]})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
