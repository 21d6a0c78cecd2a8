"""What a stage is, and the runner that does what is left to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsynth import __version__
from medsynth.config.pipeline import Pipeline
from medsynth.errors import (
    MEMORY_RAN_OUT,
    MemoryRanOutError,
    StorageError,
    UsageError,
    says_memory_ran_out,
    says_storage_failed,
)
from medsynth.progress import Progress
from medsynth.stages.files import digest
from medsynth.stages.workspace import StageState, Workspace
from medsynth.tracking.tracker import Tracker


@dataclass(frozen=True)
class Context:
    """What a stage is given besides its folder."""

    pipeline: Pipeline
    workspace: Workspace
    tracker: Tracker
    progress: Progress
    say: Callable[[str], None]
    """Takes one line for the user: a warning or a finding."""


@dataclass(frozen=True)
class StageResult:
    """What a stage says of itself when it is done; `summary` holds plain figures and no identifier."""

    summary: dict[str, Any]
    refused: int = 0
    """Inputs that were left out for a stated reason."""


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline: a pure function of its settings and of the stages it needs."""

    name: str
    needs: tuple[str, ...]
    settings: Callable[[Pipeline], Any]
    """The part of the pipeline that its result depends on, as JSON."""
    run: Callable[[Context, Path], StageResult]
    """Writes into the folder it is given; whatever an interrupted run left there may be used."""
    revision: int = 1
    """Raised when a change of the code changes the result."""
    sources: Callable[[Pipeline], Any] = field(default=lambda pipeline: None)
    """A digest of inputs outside the workspace."""
    room: str = MEMORY_RAN_OUT
    """What to say where memory does not suffice."""

    def fingerprint(self, pipeline: Pipeline, needed: dict[str, str]) -> dict[str, Any]:
        """All that the result depends on."""
        return {
            "settings": digest(self.settings(pipeline)),
            "seed": pipeline.seed,
            "sources": digest(self.sources(pipeline)),
            "code": f"{__version__}/{self.revision}",
            **{f"stage {name}": mark for name, mark in needed.items()},
        }


@dataclass(frozen=True)
class Planned:
    """One line of a plan."""

    stage: Stage
    state: StageState
    run: bool


def plan(stages: Sequence[Stage], pipeline: Pipeline, workspace: Workspace, *, force: bool = False) -> list[Planned]:
    """Which of `stages` would run, which are done, and why."""
    marks: dict[str, str] = {}
    lines = []
    for stage in stages:
        needed = {name: marks.get(name) or workspace.digest_of(name) or "missing" for name in stage.needs}
        state = workspace.state(stage.name, stage.fingerprint(pipeline, needed))
        marks[stage.name] = state.fingerprint
        lines.append(Planned(stage, state, force or not state.done))
    return lines


def check_needs(stages: Sequence[Stage], workspace: Workspace) -> None:
    """Raise UsageError where a stage that is not among them is needed and not done."""
    named = {stage.name for stage in stages}
    for stage in stages:
        missing = [name for name in stage.needs if name not in named and workspace.digest_of(name) is None]
        if missing:
            raise UsageError(
                f"{stage.name}: expected the stage {missing[0]} to be done, found none in {workspace.path}; "
                f"run `medsynth {missing[0]}` or `medsynth run` first"
            )


def run_stages(stages: Sequence[Stage], context: Context, *, force: bool = False) -> dict[str, StageResult]:
    """Run what is not done, in order. Returns the results of the stages that ran.

    Raises StorageError where the disk is full, and whatever a stage raises.
    """
    workspace, pipeline = context.workspace, context.pipeline
    results = {}
    for stage in stages[1:]:
        stage.sources(pipeline)  # what is missing outside the workspace is told before hours of work, not after
    for stage in stages:
        (planned,) = plan([stage], pipeline, workspace, force=force)
        if not planned.run:
            workspace.event("skipped", stage=stage.name)
            context.say(f"{stage.name}: done already")
            continue
        results[stage.name] = _run_one(stage, planned.state, context)
    return results


def _run_one(stage: Stage, state: StageState, context: Context) -> StageResult:
    workspace, pipeline = context.workspace, context.pipeline
    folder = workspace.open_partial(stage.name, state.fingerprint)
    workspace.event("started", stage=stage.name, why=state.why)
    start = time.monotonic()
    try:
        with context.tracker.stage(stage.name) as tracker:
            tracker.tags({"medsynth.digest": state.fingerprint})
            result = stage.run(Context(pipeline, workspace, tracker, context.progress, context.say), folder)
            seconds = time.monotonic() - start
            numbers = {key: float(value) for key, value in result.summary.items() if isinstance(value, (int, float))}
            tracker.metrics({"seconds": seconds, **numbers})
    except BaseException as error:
        with suppress(OSError):  # what stopped the stage is what is reported, not a disk without room for this line
            workspace.event("stopped", stage=stage.name, error=type(error).__name__)
        if says_memory_ran_out(error):
            raise MemoryRanOutError(f"{stage.name}: {stage.room}") from error
        if says_storage_failed(error):
            raise StorageError(
                f"{stage.name}: expected room on the disk of {workspace.path}, found it full or failing; free some and "
                "run the same command again, what is done is kept"
            ) from None
        raise
    needed = {name: workspace.digest_of(name) or "" for name in stage.needs}
    record = {
        "stage": stage.name,
        "digest": state.fingerprint,
        "fingerprint": stage.fingerprint(pipeline, needed),
        "version": __version__,
        "seconds": round(seconds, 3),
        "summary": result.summary,
        "refused": result.refused,
    }
    workspace.commit(stage.name, record)
    workspace.event("finished", stage=stage.name, seconds=round(seconds, 3))
    return result
