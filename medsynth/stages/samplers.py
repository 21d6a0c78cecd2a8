"""Network evaluations against quality for each sampler, on held-out real scans: what `medsynth samplers` does.

Choosing a sampler is choosing a hyperparameter, so the validation split decides and the test split stays closed. Every
choice answers the same requests with the same seeds; a request is the conditions and the mask of one validation case.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from medsynth import __version__
from medsynth.cohort.manifest import Case, Manifest
from medsynth.config.explain import nearest
from medsynth.config.generate import Sampling
from medsynth.config.grid import Grid, find_grid
from medsynth.config.load import validated
from medsynth.diffusion.geometry import grids_of, naming
from medsynth.diffusion.model_folder import load_model
from medsynth.diffusion.pipeline import LatentVolumePipeline
from medsynth.diffusion.samplers import SAMPLERS, evaluations_used
from medsynth.errors import CohortError, ConfigError, UsageError
from medsynth.evaluation.fidelity import MINIMUM
from medsynth.evaluation.sampler_choice import Cell, RealFeatures, tabulate
from medsynth.evaluation.statistics import RESAMPLING
from medsynth.models.conditions import encode, mask_name, steering_values
from medsynth.progress import Advance, Progress
from medsynth.seeding import derive, numpy_generator
from medsynth.stages.ask import model_folder
from medsynth.stages.dataset import declared_conditions, model_identity
from medsynth.stages.export.collect import condition_columns
from medsynth.stages.files import digest, read_json
from medsynth.stages.request import Request
from medsynth.stages.sampler_cells import make_cell, read_cell, real_features, write_cell
from medsynth.stages.sampler_files import summary, write_table
from medsynth.stages.scans import check_masks
from medsynth.stages.training import pick_device
from medsynth.stages.unfinished import unfinished

EVALUATIONS = (4, 8, 15, 30, 60)
FEWEST, MOST = 32, 128
"""Scans per choice where the user names no number: as many as there are held-out scans, within these bounds."""
CELLS = "cells"


@dataclass(frozen=True)
class Comparison:
    """What the user asks for. `real`: a workspace, a prepared folder or its manifest.csv."""

    model: str
    real: Path
    out: Path
    samplers: tuple[str, ...] = SAMPLERS
    evaluations: tuple[int, ...] = EVALUATIONS
    count: int | None = None
    tracking_uri: str | None = None
    seed: int = 0
    device: str = "auto"


def compare_samplers(asked: Comparison, *, dry_run: bool, progress: Progress) -> dict[str, Any]:
    """Fill the table and write it into a new folder; choices that an interrupted call finished are kept.

    Raises UsageError, ConfigError, CohortError, UnreadableError or ModelFolderError.
    """
    folder = model_folder(asked.model, asked.tracking_uri)
    pipeline = load_model(folder)
    identity = model_identity(folder)
    stated = validated(Sampling, read_json(folder / "provenance.json")["sampling"], (), strip="sampling")
    choices = _choices(asked, stated)
    cohort = _cohort(asked.real, pipeline)
    held_out = cohort.split("validation")
    if len(held_out.cases) < MINIMUM:
        raise CohortError(
            f"expected at least {MINIMUM} scans in the split validation, found {len(held_out.cases)}; prepare more"
        )
    count = asked.count or min(max(FEWEST, len(held_out.cases)), MOST)
    requests = _requests(held_out, pipeline, count, asked.seed)
    encode(pipeline.condition_declaration, [dict(request.conditions) for request in requests])
    facts = {
        "model": identity,
        "real": cohort.digest(),
        "seed": asked.seed,
        "scans_per_choice": count,
        "held_out_scans": len(held_out.cases),
    }
    plan = {
        **facts,
        "out": str(asked.out),
        "choices": [f"{one.sampler} {one.evaluations}" for one in choices],
        "network_calls": count * sum(evaluations_used(one.sampler, one.evaluations) for one in choices),
    }
    if dry_run:
        return plan
    check_masks(pipeline, requests)
    device = pick_device(asked.device)
    pipeline = pipeline.to(device)
    with unfinished(asked.out, digest([__version__, facts])) as partial:
        (partial / CELLS).mkdir(exist_ok=True)
        training = cohort.split("train")
        lesions = all(request.mask for request in requests) and all(case.mask for case in cohort.cases)
        cells = _cells(pipeline, choices, requests, partial / CELLS, device, progress, lesions=lesions)
        with progress.task("measuring real scans", len(training.cases) + len(held_out.cases)) as advance:
            real, judge = (_real(part, pipeline, device, advance, lesions=lesions) for part in (training, held_out))
        table = tabulate(cells, real, judge, RESAMPLING, asked.seed)
        write_table(partial, table, stated, {**facts, "training_scans": len(training.cases)}, RESAMPLING)
        shutil.rmtree(partial / CELLS)
    return {**facts, "out": str(asked.out), **summary(table, stated)}


def _choices(asked: Comparison, stated: Sampling) -> list[Sampling]:
    """Every sampler at every number of evaluations, cheapest first, with the guidance that the model states."""
    mistakes = [
        f"--samplers: expected some of {', '.join(SAMPLERS)}, found {name!r}{nearest(name, SAMPLERS)}"
        for name in asked.samplers
        if name not in SAMPLERS
    ]
    mistakes += [
        f"--evaluations: expected numbers from 2 to 1000, found {number}"
        for number in asked.evaluations
        if not 2 <= number <= 1000
    ]
    if mistakes:
        raise ConfigError(mistakes)
    pairs = product(sorted(set(asked.evaluations)), dict.fromkeys(asked.samplers))
    return [stated.model_copy(update={"sampler": name, "evaluations": number}) for number, name in pairs]


def _cohort(place: Path, pipeline: LatentVolumePipeline) -> Manifest:
    """The prepared cohort without its test split. Raises UsageError where there is none."""
    options = [place] if place.is_file() else [place / "prepare" / "manifest.csv", place / "manifest.csv"]
    path = next((option for option in options if option.is_file()), None)
    if path is None:
        raise UsageError(f"--real {place}: expected a workspace with prepared scans or a manifest.csv, found none")
    declared = declared_conditions(pipeline.condition_declaration)
    manifest = Manifest.read(path, {**condition_columns(path), **declared})
    if any(case.origin != "real" for case in manifest.cases):
        raise CohortError("--real: expected a manifest of real scans, found synthetic ones; name a prepared cohort")
    cases = tuple(case for case in manifest.cases if case.split in ("train", "validation"))
    grids = grids_of(pipeline.geometry)
    if any(find_grid(grids, case.shape, case.spacing_mm) is None for case in cases):
        raise CohortError(
            f"--real: expected scans on the model's grid ({', '.join(map(str, grids))}), found others; prepare them with "
            "its settings"
        )
    return Manifest(manifest.folder, cases, manifest.declared)


def _requests(held_out: Manifest, pipeline: LatentVolumePipeline, count: int, seed: int) -> list[Request]:
    """Requests with the conditions, grids and masks of held-out cases, each case as often as any other, give or take one."""
    order = numpy_generator(seed, "samplers", "cases").permutation(len(held_out.cases))
    declaration = pipeline.condition_declaration
    steered = mask_name(declaration) is not None
    requests = []
    for number in range(count):
        case = held_out.cases[int(order[number % len(order)])]
        requests.append(
            Request(
                case=f"S{number:05d}",
                conditions={**steering_values(declaration, case.conditions), **_grid_of(case, pipeline)},
                mask=held_out.mask_path(case) if steered else None,
                seed=derive(seed, "samplers", number),
            )
        )
    return requests


def _grid_of(case: Case, pipeline: LatentVolumePipeline) -> dict[str, str]:
    """The condition that names a case's grid, where the model has several."""
    return naming(pipeline.geometry, Grid(box=case.shape, spacing_mm=case.spacing_mm))


def _cells(
    pipeline: LatentVolumePipeline,
    choices: Sequence[Sampling],
    requests: Sequence[Request],
    folder: Path,
    device: torch.device,
    progress: Progress,
    *,
    lesions: bool,
) -> list[Cell]:
    """The cells of all choices; those that have a file are read."""
    cells = []
    with progress.task("generating scans", len(choices) * len(requests)) as advance:
        for sampling in choices:
            path = folder / f"{sampling.sampler}-{sampling.evaluations}.npz"
            if path.exists():
                advance(len(requests))
            else:
                write_cell(path, *make_cell(pipeline, sampling, requests, device, advance, lesions=lesions))
            seconds, features = read_cell(path)
            calls = evaluations_used(sampling.sampler, sampling.evaluations)
            cells.append(Cell(sampling.sampler, sampling.evaluations, calls, seconds, features))
    return cells


def _real(
    part: Manifest, pipeline: LatentVolumePipeline, device: torch.device, advance: Advance, *, lesions: bool
) -> RealFeatures:
    return RealFeatures(
        real_features(part, pipeline, device, advance, lesions=lesions), [case.patient for case in part.cases]
    )
