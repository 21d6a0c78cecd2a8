"""One folder per experiment: who holds it, which stages are done, and why the others are not."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medsynth.config.pipeline import Pipeline
from medsynth.config.resolved import resolved_yaml
from medsynth.errors import UsageError, says_storage_failed
from medsynth.held import held
from medsynth.stages.files import INTENT, digest, discard_half_written, read_json, write_json, write_text
from medsynth.stages.forgotten import forgotten_patients

PIPELINE_FILE = "pipeline.yaml"
RECORD = "stage.json"
"""In the folder of a finished stage: what it was made from."""

FOLDERS = {"encode": "latents", "generate": "synthetic", "evaluate": "evaluation", "register": "registry"}
"""Stages whose folder is named after what is in it; the others are named after the stage."""


@dataclass(frozen=True)
class StageState:
    """What a look at a stage's folder tells."""

    done: bool
    why: str
    fingerprint: str
    resumable: bool = False


class Workspace:
    """The folder of one experiment."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stage(self, name: str) -> Path:
        """Folder of a finished stage."""
        return self.path / FOLDERS.get(name, name)

    def partial(self, name: str) -> Path:
        """Folder that a stage works in until it is whole."""
        return self.path / f".{FOLDERS.get(name, name)}.partial"

    @property
    def secrets(self) -> Path:
        """Folder of the keys, closed to others."""
        return self.path / "secrets"

    @contextmanager
    def opened(self, pipeline: Pipeline) -> Iterator[None]:
        """Make the folder, hold it against other runs, mend what a kill left, and keep the resolved pipeline in it.

        Raises UsageError where the folder cannot be written, is somebody else's, or belongs to another pipeline,
        WorkspaceBusyError where another run is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_ours(pipeline)
            probe = self.path / f".probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            if says_storage_failed(error):
                raise
            raise UsageError(
                f"expected a workspace that can be written at {self.path}, found: {error.strerror}; "
                "choose another with --workspace"
            ) from None
        busy = (
            f"expected a free workspace, found another run at work in {self.path}; wait for it, or choose another with "
            "--workspace"
        )
        with held(self.path / ".lock", busy):
            self._check_ours(pipeline)
            self._mend()
            write_text(self.path / PIPELINE_FILE, resolved_yaml(pipeline))
            self.secrets.mkdir(mode=0o700, exist_ok=True)
            self.secrets.chmod(0o700)
            yield

    def _check_ours(self, pipeline: Pipeline) -> None:
        owner = self.owner()
        if owner is None and any(entry for entry in self.path.iterdir() if not entry.name.startswith(".")):
            raise UsageError(
                f"expected a new or earlier workspace at {self.path}, found other files there; choose another with --workspace"
            )
        if owner not in (None, pipeline.name):
            raise UsageError(
                f"expected the workspace of pipeline {pipeline.name!r} at {self.path}, found that of {owner!r}; "
                "choose another with --workspace"
            )

    def owner(self) -> str | None:
        """Name of the pipeline whose workspace this is; None where it is new."""
        path = self.path / PIPELINE_FILE
        if not path.exists():
            return None
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(found["name"]) if isinstance(found, dict) and "name" in found else ""

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to `events.jsonl`."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **facts}, sort_keys=True)
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def state(self, name: str, fingerprint: dict[str, Any]) -> StageState:
        """Whether a stage that would run with `fingerprint` is already done, and if not, why. Changes nothing."""
        fingerprint = self._without_forgotten(name, fingerprint)
        mark = digest(fingerprint)
        found, intent = self._record(name), self._intent(name)
        if found is not None and found["digest"] == mark:
            return StageState(True, "done", mark)
        if found is None:
            why = "was interrupted; will resume" if intent == mark else "not run yet"
        else:
            changed = sorted(key for key in fingerprint if found["fingerprint"].get(key) != fingerprint[key])
            why = f"stale: {', '.join(changed) or 'its inputs'} changed"
        if intent not in (None, mark):
            why += "; half-finished work with other settings or inputs will be dropped"
        return StageState(False, why, mark, intent == mark)

    def digest_of(self, name: str) -> str | None:
        """Digest of a finished stage; None where it is not there."""
        found = self._record(name)
        return None if found is None else str(found["digest"])

    def needed(self, name: str, other: str) -> str | None:
        """Digest of the stage `other` that a finished stage was made from; None where it did not need it."""
        found = self._record(name)
        return None if found is None else found["fingerprint"].get(f"stage {other}")

    def open_partial(self, name: str, mark: str) -> Path:
        """The folder to work in: what an interrupted run with the same digest left, or an empty one."""
        folder = self.partial(name)
        if self._intent(name) != mark:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_json(folder / INTENT, {"digest": mark})
        discard_half_written(folder)
        return folder

    def commit(self, name: str, record: dict[str, Any]) -> Path:
        """Make the partial folder the stage's folder; a kill in between is mended when the workspace is next opened."""
        folder = self.partial(name)
        record = {**record, "fingerprint": self._without_forgotten(name, record["fingerprint"])}
        write_json(folder / RECORD, record)
        self._finish_rename(folder)
        return self.stage(name)

    def _without_forgotten(self, name: str, fingerprint: dict[str, Any]) -> dict[str, Any]:
        """What a stage depends on in this workspace: who was forgotten here is not prepared again."""
        left_out = sorted(forgotten_patients(self.path)) if name == "prepare" else []
        return {**fingerprint, "forgotten patients": digest(left_out)} if left_out else fingerprint

    def _mend(self) -> None:
        """Finish what a run was doing with whole folders when it was killed."""
        for folder in sorted(self.path.glob(".*.partial")):
            self._finish_rename(folder)
        for old in sorted(self.path.glob(".*.old")):
            shutil.rmtree(old, ignore_errors=True)

    def _record(self, name: str) -> dict[str, Any] | None:
        """What a finished stage noted, be its folder renamed already or not."""
        for folder in (self.partial(name), self.stage(name)):
            if (folder / RECORD).exists():
                return dict(read_json(folder / RECORD))
        return None

    def _intent(self, name: str) -> str | None:
        path = self.partial(name) / INTENT
        return str(read_json(path)["digest"]) if path.exists() else None

    def _finish_rename(self, folder: Path) -> None:
        """Put a partial folder that is whole (it has its record) in its place."""
        target = folder.with_name(folder.name.removeprefix(".").removesuffix(".partial"))
        old = target.with_name(f".{target.name}.old")
        if (folder / RECORD).exists():
            (folder / INTENT).unlink(missing_ok=True)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            folder.rename(target)
        shutil.rmtree(old, ignore_errors=True)
