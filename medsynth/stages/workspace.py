"""One folder per experiment: who holds it, which stages are done, and why the others are not."""

from __future__ import annotations

import fcntl
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
from medsynth.errors import UsageError, WorkspaceBusyError
from medsynth.stages.files import digest, read_json, write_json, write_text

PIPELINE_FILE = "pipeline.yaml"

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

    def create(self, pipeline: Pipeline) -> None:
        """Make the folder and keep the resolved pipeline in it.

        Raises UsageError where the folder cannot be written, is somebody else's, or belongs to another pipeline.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            foreign = not (self.path / PIPELINE_FILE).exists() and any(
                entry for entry in self.path.iterdir() if not entry.name.startswith(".")
            )
            probe = self.path / f".probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise UsageError(
                f"expected a workspace that can be written at {self.path}, found {type(error).__name__}; "
                "choose another with --workspace"
            ) from None
        except OSError as error:
            if error.errno == 30:  # EROFS
                raise UsageError(
                    f"expected a workspace that can be written at {self.path}, found a read-only file system; "
                    "choose another with --workspace"
                ) from None
            raise
        if foreign:
            raise UsageError(
                f"expected a new or earlier workspace at {self.path}, found other files there; choose another with --workspace"
            )
        owner = self.owner()
        if owner not in (None, pipeline.name):
            raise UsageError(
                f"expected the workspace of pipeline {pipeline.name!r} at {self.path}, found that of {owner!r}; "
                "choose another with --workspace"
            )
        self.secrets.mkdir(mode=0o700, exist_ok=True)
        self.secrets.chmod(0o700)
        write_text(self.path / PIPELINE_FILE, resolved_yaml(pipeline))

    def owner(self) -> str | None:
        """Name of the pipeline whose workspace this is; None where it is new."""
        path = self.path / PIPELINE_FILE
        if not path.exists():
            return None
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(found["name"]) if isinstance(found, dict) and "name" in found else ""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the workspace against other runs. Raises WorkspaceBusyError where one is at work."""
        with (self.path / ".lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WorkspaceBusyError(
                    f"expected a free workspace, found another run at work in {self.path}; wait for it, or choose "
                    "another with --workspace"
                ) from None
            yield

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to `events.jsonl`."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **facts}, sort_keys=True)
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def state(self, name: str, fingerprint: dict[str, Any]) -> StageState:
        """Whether a stage that would run with `fingerprint` is already done, and if not, why."""
        mark = digest(fingerprint)
        self._finish_rename(name)
        record = self.stage(name) / "stage.json"
        resumable = self._intent(name) == mark
        if not record.exists():
            return StageState(False, "was interrupted; will resume" if resumable else "not run yet", mark, resumable)
        found = read_json(record)
        if found["digest"] == mark:
            return StageState(True, "done", mark)
        changed = sorted(key for key in fingerprint if found["fingerprint"].get(key) != fingerprint[key])
        return StageState(False, f"stale: {', '.join(changed) or 'its inputs'} changed", mark, resumable)

    def digest_of(self, name: str) -> str | None:
        """Digest of a finished stage; None where it is not there."""
        record = self.stage(name) / "stage.json"
        return str(read_json(record)["digest"]) if record.exists() else None

    def open_partial(self, name: str, mark: str) -> Path:
        """The folder to work in: what an interrupted run with the same digest left, or an empty one."""
        folder = self.partial(name)
        if self._intent(name) != mark:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_json(folder / "intent.json", {"digest": mark})
        return folder

    def commit(self, name: str, record: dict[str, Any]) -> Path:
        """Make the partial folder the stage's folder; a kill in between is mended by the next look."""
        folder, target = self.partial(name), self.stage(name)
        write_json(folder / "stage.json", record)
        (folder / "intent.json").unlink(missing_ok=True)
        self._finish_rename(name)
        return target

    def _intent(self, name: str) -> str | None:
        path = self.partial(name) / "intent.json"
        return str(read_json(path)["digest"]) if path.exists() else None

    def _finish_rename(self, name: str) -> None:
        """Put a partial folder that is whole (it has its stage.json and no intent any more) in its place."""
        folder, target = self.partial(name), self.stage(name)
        old = target.with_name(f".{target.name}.old")
        if (folder / "stage.json").exists():
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            folder.rename(target)
        shutil.rmtree(old, ignore_errors=True)
