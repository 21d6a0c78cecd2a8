"""What the verbs of the command line do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsynth.config.generate import ScanFormat
from medsynth.config.pipeline import Pipeline
from medsynth.console import Screen
from medsynth.errors import UsageError
from medsynth.stages.base import Context, check_needs, plan, run_stages
from medsynth.stages.chain import chosen
from medsynth.stages.files import read_json
from medsynth.stages.workspace import Workspace

BYTES_PER_STORED_VOXEL = 6
"""Prepared image (2 or 4), mask (1), latents and masks again, rounded up."""


def run_pipeline(pipeline: Pipeline, folder: Path, only: str | None, *, force: bool, screen: Screen) -> dict[str, Any]:
    """Run the stages that are not done and say what came of them."""
    from medsynth.tracking.mlflow_tracker import open_tracker

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "expected one process per workspace, found several (torchrun); the loops in medsynth.training run on many, the "
            "command line on one"
        )
    workspace = Workspace(folder)
    check_needs(chosen(only), workspace)  # a mistyped folder is not made
    with workspace.opened(pipeline):
        planned = plan(chosen(only), pipeline, workspace, force=force)
        if any(line.run for line in planned):
            with open_tracker(pipeline.tracking, folder, pipeline.name) as tracker:
                tracker.params(scrubbed(pipeline))
                context = Context(pipeline, workspace, tracker, screen.progress(), screen.say)
                run_stages(chosen(only), context, force=force)
    stages = {stage.name: read_json(workspace.stage(stage.name) / "stage.json") for stage in chosen(only)}
    report = workspace.stage("evaluate") / "report.html"
    return {
        "pipeline": pipeline.name,
        "workspace": str(folder),
        "stages": {
            name: {"seconds": found["seconds"], "refused": found["refused"], **found["summary"]}
            for name, found in stages.items()
        },
        **({"report": str(report)} if report.exists() else {}),
    }


def scrubbed(pipeline: Pipeline) -> dict[str, Any]:
    """The resolved settings without any path of the user's disk."""
    settings = pipeline.model_dump(mode="json", by_alias=True)
    settings["workspace"] = None
    settings["prepare"]["key_file"] = settings["prepare"]["linking_table"] = None
    settings["deidentify"]["regions"] = settings["deidentify"]["face_command"] = None
    for key in ("csv", "root", "images", "masks", "npz"):
        if settings["cohort"].get(key) is not None:
            settings["cohort"][key] = Path(settings["cohort"][key]).name
    return settings


def show_plan(pipeline: Pipeline, folder: Path, only: str | None, *, force: bool) -> dict[str, Any]:
    """Stages to run or skip and why, cases, and the disk they need; nothing is written."""
    workspace = Workspace(folder)
    cases = _case_count(pipeline)
    voxels = max(int(np.prod(grid.box)) for grid in pipeline.prepare.every_grid())
    generate = pipeline.generate
    scans = sum(generate.counts.values()) or generate.count
    if generate.ratio_of_training is not None:
        scans = round(generate.ratio_of_training * pipeline.prepare.split.train * cases)
    needed = (cases * (1 + pipeline.denoiser.augment.variants) + scans) * voxels * BYTES_PER_STORED_VOXEL
    parent = next(place for place in (folder, *folder.parents) if place.exists())
    return {
        "pipeline": pipeline.name,
        "workspace": str(folder),
        "plan": {
            line.stage.name: ("run" if line.run else "skip") + f" ({line.state.why})"
            for line in plan(chosen(only), pipeline, workspace, force=force)
        },
        "cases": cases,
        "synthetic_scans": scans,
        "disk_needed_mb": round(needed / 1e6, 1),
        "disk_free_mb": round(shutil.disk_usage(parent).free / 1e6, 1),
    }


def _case_count(pipeline: Pipeline) -> int:
    from medsynth.cohort.medmnist import read_medmnist
    from medsynth.cohort.source import read_sources
    from medsynth.config.cohort import MedmnistCohort, PhantomCohort

    if isinstance(pipeline.cohort, PhantomCohort):
        return pipeline.cohort.patients
    if isinstance(pipeline.cohort, MedmnistCohort):
        return len(list(read_medmnist(pipeline.cohort, pipeline.conditions)))
    return len(read_sources(pipeline.cohort, pipeline.conditions))


def generate_from_model(
    *,
    model: str,
    out: Path | None,
    count: int | None,
    conditions: Sequence[str],
    grid: str | None,
    masks: Path | None,
    again: Path | None,
    cases: Sequence[str],
    tracking_uri: str | None,
    workspace: Path | None,
    overrides: Sequence[str],
    seed: int | None,
    device: str,
    dry_run: bool,
    screen: Screen,
    form: ScanFormat | None = None,
) -> dict[str, Any]:
    """Generate a dataset from a model folder or a registered model into a new folder."""
    from medsynth.stages.ask import Question, answer

    if out is None:
        raise UsageError("generate: expected --out FOLDER with --model, found none; name a new folder for the dataset")
    question = Question(
        model=model,
        out=out,
        count=count,
        conditions=tuple(conditions),
        grid=grid,
        masks=masks,
        again=again,
        cases=tuple(cases),
        tracking_uri=_registry(workspace, tracking_uri),
        overrides=tuple(overrides),
        seed=seed,
        device=device,
        format=form,
    )
    return answer(question, dry_run=dry_run, progress=screen.progress(), say=screen.say)


def compare_samplers(
    *,
    model: str,
    real: Path,
    out: Path,
    samplers: tuple[str, ...] | None,
    evaluations: tuple[int, ...] | None,
    count: int | None,
    tracking_uri: str | None,
    workspace: Path | None,
    seed: int | None,
    device: str,
    dry_run: bool,
    screen: Screen,
) -> dict[str, Any]:
    """Network evaluations against quality for a model's samplers, into a new folder."""
    from medsynth.diffusion.samplers import SAMPLERS
    from medsynth.stages.samplers import EVALUATIONS, Comparison
    from medsynth.stages.samplers import compare_samplers as compare

    asked = Comparison(
        model=model,
        real=real,
        out=out,
        samplers=samplers or SAMPLERS,
        evaluations=evaluations or EVALUATIONS,
        count=count,
        tracking_uri=_registry(workspace, tracking_uri),
        seed=seed or 0,
        device=device,
    )
    return compare(asked, dry_run=dry_run, progress=screen.progress())


def _registry(workspace: Path | None, tracking_uri: str | None) -> str | None:
    """Where a `models:/` name is looked up. Raises UsageError for a workspace without a registry."""
    if tracking_uri is not None or workspace is None:
        return tracking_uri
    database = workspace.resolve() / "mlflow.db"
    if not database.is_file():
        raise UsageError(f"{workspace}: expected a workspace with a registry, found none; check --workspace")
    return f"sqlite:///{database}"
