"""Generate from a model outside any pipeline: by request, or again from the rows of a manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from medsynth import __version__
from medsynth.cohort.manifest import SAFE_NAME
from medsynth.cohort.table import finite
from medsynth.config.base import plain
from medsynth.config.explain import nearest
from medsynth.config.generate import Generate, Sampling, ScanFormat, VaryMasks
from medsynth.config.grid import named_grid
from medsynth.config.load import validated
from medsynth.config.training import Precision
from medsynth.diffusion.batch_size import BatchSize
from medsynth.diffusion.geometry import grids_of
from medsynth.diffusion.guidance import Guidance
from medsynth.diffusion.model_folder import load_model
from medsynth.errors import CohortError, ConfigError, UsageError
from medsynth.imaging.synthetic.study import check_writable
from medsynth.models.conditions import encode, never_withheld, steering_values, withholdable
from medsynth.progress import Progress
from medsynth.stages.dataset import model_identity, write_dataset
from medsynth.stages.files import digest, read_json, stamp
from medsynth.stages.given_masks import given_masks, manifest_rows, row_conditions
from medsynth.stages.request import Request, draw_requests
from medsynth.stages.scans import check_masks
from medsynth.stages.training import pick_device
from medsynth.stages.unfinished import check_new, unfinished
from medsynth.tracking.registry import resolve

DEFAULT_COUNT = 16
HOW = ("sampler", "evaluations", "guidance", "precision", "model")
"""Columns in which rows that are made again together agree; manifests of earlier versions have no `precision`."""


@dataclass(frozen=True)
class Question:
    """What the user asks for."""

    model: str
    out: Path
    count: int | None = None
    conditions: tuple[str, ...] = ()
    grid: str | None = None
    masks: Path | None = None
    again: Path | None = None
    cases: tuple[str, ...] = ()
    tracking_uri: str | None = None
    overrides: tuple[str, ...] = ()
    seed: int | None = None
    device: str = "auto"
    format: ScanFormat | None = None
    """As the settings say unless given."""


def answer(question: Question, *, dry_run: bool, progress: Progress, say: Callable[[str], None]) -> dict[str, Any]:
    """Generate into a new folder. Raises UsageError, ConfigError, DataError, ModelFolderError or CohortError."""
    folder = model_folder(question.model, question.tracking_uri)
    pipeline = load_model(folder)
    name = model_identity(folder)
    provenance = read_json(folder / "provenance.json")
    declaration = pipeline.condition_declaration
    form: ScanFormat = question.format or "nifti"
    batch_size: BatchSize = "auto"
    if question.again is not None:
        requests, sampling, pipeline.precision = _rows_again(question, declaration, name)
    else:
        settings = _settings(question, declaration, provenance)
        _check_grid(pipeline.geometry, settings.grid)
        sampling, form = settings.sampling, question.format or settings.format
        batch_size, pipeline.precision = settings.batch_size, settings.precision
        masks = given_masks(question.masks, declaration, say)
        if not masks and any(entry["kind"] == "mask" for entry in declaration.values()):
            say("no masks given: the scans are generated without their mask condition; --masks FOLDER gives them one")
        if masks and not settings.vary_masks.any:
            usual = VaryMasks()
            say(
                "masks are asked for, and written beside the scans, as they are; where they are patients' outlines, "
                f"--set vary_masks.mix={usual.mix} --set vary_masks.rotate_degrees={usual.rotate_degrees:g} "
                f"--set vary_masks.bend={usual.bend:g} gives them shapes that nobody has"
            )
        requests = draw_requests(
            settings, declaration, provenance["profile"], masks, count=settings.count, seed=question.seed or 0
        )
    # A value that the model never saw is told before anything is written.
    encode(declaration, [steering_values(declaration, request.conditions) for request in requests])
    Guidance.of(sampling).check(withholdable(declaration), never_withheld(declaration))
    if form != "nifti":
        check_writable(pipeline.geometry["modality"])
    plan = {
        "model": name,
        "scans": len(requests),
        "out": str(question.out),
        "sampler": sampling.sampler,
        "format": form,
    }
    check_new(question.out)
    empty = check_masks(pipeline, requests)
    if empty:
        say(f"{empty} of the masks are empty: scans are asked for without anything there")
    if dry_run:
        return plan
    pipeline = pipeline.to(pick_device(question.device))
    decided = [name, plain(sampling), pipeline.precision, form]
    with unfinished(question.out, digest([__version__, *decided, [_row(request) for request in requests]])) as partial:
        write_dataset(
            pipeline, requests, sampling, partial, model=name, batch_size=batch_size, progress=progress, form=form
        )
    return {**plan, "manifest": str(question.out / "manifest.csv")}


def _check_grid(geometry: Mapping[str, Any], wanted: str | None) -> None:
    """Raise ConfigError, which lists the model's grids, for another one."""
    if wanted is not None:
        try:
            named_grid(grids_of(geometry), wanted)
        except ValueError as error:
            raise ConfigError([f"--grid: {error}"]) from None


def model_folder(model: str, tracking_uri: str | None) -> Path:
    """The folder that the user named, or the one behind a name in the registry. Raises UsageError."""
    if not model.startswith("models:/"):
        return Path(model)
    if tracking_uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UsageError(
            f"{model}: expected the registry that holds it, found none; give --workspace FOLDER of the experiment "
            "or --tracking-uri URI"
        )
    return resolve(model, tracking_uri)


def _row(request: Request) -> list[Any]:
    """All of a request that decides its scan, as JSON."""
    mask = None if request.mask is None else stamp(request.mask)
    variation = request.variation
    varied = variation and [variation.bend, variation.rotation.tolist(), variation.draws.tolist()]
    return [request.case, dict(request.conditions), request.seed, mask, varied, list(map(stamp, request.others))]


def _settings(
    question: Question, declaration: Mapping[str, Mapping[str, Any]], provenance: Mapping[str, Any]
) -> Generate:
    by = provenance["profile"]["by"]
    fixed: dict[str, str | float] = {}
    counts: dict[str, int] = {}
    grid = question.grid
    for text in question.conditions:
        name, equals, value = text.partition("=")
        if not equals or name not in declaration:
            raise ConfigError(
                [
                    f"--condition {text}: expected NAME=VALUE with NAME one of {', '.join(declaration)}{nearest(name, declaration)}"
                ]
            )
        kind = declaration[name]["kind"]
        wanted, colon, number = value.rpartition(":")
        counting = kind == "category" and bool(colon) and number.isdigit()
        if name in fixed or (counts and name == by and not counting) or wanted in counts:
            raise ConfigError(
                [f"--condition {text}: expected {name} to be asked for once, found it before; leave one out"]
            )
        if counting:
            if name != by:
                raise ConfigError([f"--condition {text}: expected counts for {by} alone, found {name}"])
            counts[wanted] = int(number)
        elif kind == "number":
            if (found := finite(value)) is None:
                raise ConfigError([f"--condition {text}: expected a number, found {value!r}"])
            fixed[name] = found
        elif kind == "geometry":
            grid = value
        elif kind == "mask":
            raise ConfigError([f"--condition {text}: a mask is given with --masks FOLDER"])
        else:
            fixed[name] = value
    if counts and not sum(counts.values()):
        raise ConfigError(["--condition: expected a count above 0, found none; leave out what is not wanted"])
    if question.count and counts:
        raise ConfigError(["--count: expected either a number of scans or counts per value, found both; leave one out"])
    base: dict[str, Any] = {
        "count": question.count or (sum(counts.values()) or DEFAULT_COUNT),
        "conditions": fixed,
        "counts": counts,
        "sampling": provenance["sampling"],
        "vary_masks": {"mix": 0, "rotate_degrees": 0, "bend": 0},
    }
    if grid is not None:
        base["grid"] = grid
    settings = validated(Generate, base, question.overrides, strip="generate")
    mistakes = []
    if question.count and settings.count != question.count:
        mistakes.append("--count: expected one number of scans, found another in --set count; leave one out")
    if settings.ratio_of_training is not None:
        mistakes.append("ratio_of_training: a model does not hold its training scans; give --count instead")
    mistakes += [
        f"conditions.{key}: expected one of {', '.join(declaration)}{nearest(key, declaration)}"
        for key in settings.conditions
        if key not in declaration
    ]
    if mistakes:
        raise ConfigError(mistakes)
    return settings


def _rows_again(
    question: Question, declaration: Mapping[str, Mapping[str, Any]], name: str
) -> tuple[list[Request], Sampling, Precision]:
    """The requests that the rows of a synthetic manifest were made from, and how. Raises CohortError for another model's."""
    place = question.again or Path()
    if (
        question.overrides
        or question.conditions
        or question.count
        or question.masks
        or question.grid
        or question.seed is not None
    ):
        raise UsageError(
            "--again makes scans exactly as their rows say: leave out --set, --condition, --count, --grid, --masks, --seed"
        )
    if not place.is_file():
        raise UsageError(f"{place}: expected the manifest.csv of a synthetic dataset, found none")
    every = manifest_rows(place)
    needed = {"case", "seed", "sampler", "evaluations", "guidance", "model", "mask"}
    if missing := sorted(needed - set(every[0] if every else [])):
        raise CohortError(f"{place}: expected the column {missing[0]} of a synthetic manifest, found none")
    rows = [row for row in every if not question.cases or row["case"] in question.cases]
    absent = sorted(set(question.cases) - {row["case"] for row in rows})
    if absent or not rows:
        found = f"not all of them ({absent[0]} is missing)" if rows else "none of them"
        raise CohortError(f"{place}: expected the cases that were asked for, found {found}; look at its column `case`")
    names = [row["case"] for row in rows]
    if len(set(names)) < len(names) or not all(SAFE_NAME.fullmatch(name) for name in names):
        raise CohortError(
            f"{place}: expected a name of its own for every case, of letters, digits, dots, dashes and underscores, found "
            "others; take the manifest as it was written"
        )
    if not all(row["seed"].isdigit() for row in rows):
        raise CohortError(
            f"{place}: expected whole numbers in the column `seed`, found others; a spreadsheet rounds them: take the manifest "
            "as it was written"
        )
    kinds = {tuple(row.get(name, "") for name in HOW) for row in rows}
    if len(kinds) > 1:
        raise CohortError(
            f"{place}: expected rows of one model and one sampling, found {len(kinds)}; choose with --case"
        )
    sampler, evaluations, guidance, precision, model = kinds.pop()
    if model != name:
        raise CohortError(f"{place}: expected rows made by this model ({name}), found those of {model}")
    try:
        sampling = Sampling.from_texts(sampler, evaluations, guidance)
        computed: Precision = TypeAdapter(Precision).validate_python(precision or "auto")
    except ValueError:
        raise CohortError(
            f"{place}: expected a sampler, evaluations, guidance and precision as `generate` writes them, found something else; "
            "take the manifest as it was written"
        ) from None
    requests = [
        Request(
            row["case"],
            row_conditions(row, declaration),
            place.parent / row["mask"] if row["mask"] else None,
            int(row["seed"]),
        )
        for row in rows
    ]
    return requests, sampling, computed
