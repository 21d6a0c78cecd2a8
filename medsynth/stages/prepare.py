"""Scans in: read, de-identify, one grid, one box, duplicates, split, manifest."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from medsynth.cohort.integrity import find_duplicates, pixel_digest
from medsynth.cohort.manifest import Case, Manifest
from medsynth.cohort.medmnist import MedmnistCase, read_medmnist
from medsynth.cohort.phantom import write_phantom_cohort
from medsynth.cohort.source import SourceCase, read_sources
from medsynth.cohort.split import assign_splits
from medsynth.config.base import plain
from medsynth.config.cohort import CategoryCondition, CsvCohort, FolderCohort, MedmnistCohort, PhantomCohort, Prepare
from medsynth.config.pipeline import Pipeline
from medsynth.errors import CohortError, DataError, RefusedError
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.grid import crop_or_pad, resample, to_ras
from medsynth.imaging.intensity import IntensityRule
from medsynth.imaging.nifti import write_nifti
from medsynth.imaging.read import read_mask, read_scan
from medsynth.imaging.scan import Scan, make_scan, same_grid, spacing_mm
from medsynth.progress import Advance
from medsynth.stages.base import Context, Stage, StageResult
from medsynth.stages.files import digest, file_digest, write_json, write_text

PHANTOM_FOLDER = "source"


@dataclass(frozen=True)
class _Job:
    """One case to prepare; everything a worker process needs."""

    source: SourceCase | MedmnistCase
    case: str
    patient: str
    folder: Path
    prepare: Prepare
    key_path: Path
    mask_labels: tuple[int, ...] | None
    geometry_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class _Ready:
    """What a worker hands back: facts and no identifier."""

    case: Case
    pixels: str
    mask_volume_mm3: float | None


@dataclass(frozen=True)
class _Refused:
    row: int
    reason: str


def run(context: Context, folder: Path) -> StageResult:
    """Prepare every case of the cohort. Raises CohortError, DataError or PrivacyError."""
    pipeline = context.pipeline
    key_path = key_file(context)
    key = SecretKey.load_or_create(key_path)
    sources = _sources(context)
    jobs = _jobs(pipeline, sources, key, key_path, folder)
    with context.progress.task("preparing scans", len(jobs)) as advance:
        outcomes = list(_map(_prepare_guarded, jobs, pipeline.prepare.workers, advance))
    refused = [outcome for outcome in outcomes if isinstance(outcome, _Refused)]
    ready = [outcome for outcome in outcomes if isinstance(outcome, _Ready)]
    for item in refused:
        context.say(f"row {item.row}: left out: {item.reason}")
    if refused and pipeline.prepare.on_bad_case == "stop":
        raise DataError(
            f"{len(refused)} of {len(jobs)} cases cannot be used, the first: row {refused[0].row}: {refused[0].reason}"
        )
    if not ready:
        raise CohortError(
            f"expected at least one usable case, found none of {len(jobs)}; the first: {refused[0].reason}"
        )
    ready, duplicates = _without_duplicates(context, ready, folder)
    cases = _with_conditions(pipeline, _with_splits(context, ready, sources, key), ready)
    manifest = Manifest(folder, tuple(sorted(cases, key=lambda case: case.case)), pipeline.conditions)
    manifest.write(folder / "manifest.csv")
    rule = _rule_with_reference(pipeline, manifest)
    write_json(folder / "intensity.json", rule.to_json())
    _write_refused(folder / "left_out.csv", refused)
    summary = _summary(manifest, refused, duplicates)
    write_json(folder / "summary.json", summary)
    context.tracker.dataset(f"{pipeline.name}-prepared", manifest.digest())
    context.tracker.artifact(folder / "summary.json")
    return StageResult(summary, refused=len(refused))


def key_file(context: Context) -> Path:
    """Where the secret of this workspace is."""
    given = context.pipeline.prepare.key_file
    return Path(given) if given else context.workspace.secrets / "deidentify.key"


def _sources(context: Context) -> Sequence[SourceCase | MedmnistCase]:
    pipeline, cohort = context.pipeline, context.pipeline.cohort
    if isinstance(cohort, MedmnistCohort):
        return list(read_medmnist(cohort, pipeline.conditions))
    if isinstance(cohort, PhantomCohort):
        folder = context.workspace.path / PHANTOM_FOLDER
        table = write_phantom_cohort(folder, cohort.patients, pipeline.seed, context.progress)
        cohort = CsvCohort(kind="csv", csv=str(table))
    return read_sources(cohort, pipeline.conditions)


def _jobs(
    pipeline: Pipeline, sources: Sequence[SourceCase | MedmnistCase], key: SecretKey, key_path: Path, folder: Path
) -> list[_Job]:
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    mask = pipeline.mask()
    wants_mask = mask is not None or any(
        isinstance(c, CategoryCondition) and c.derive == "mask_volume" for c in pipeline.conditions.values()
    )
    labels = tuple(mask[1].labels.values()) if mask else ()
    cohort = pipeline.cohort
    return [
        _Job(
            source=source,
            case=key.pseudonym("case", f"{source.patient}\x1f{source.row}", "C"),
            patient=key.pseudonym("patient", source.patient, "P"),
            folder=folder,
            prepare=pipeline.prepare,
            key_path=key_path,
            mask_labels=labels if wants_mask or _has_mask(source) else None,
            geometry_mm=cohort.spacing_mm if isinstance(cohort, MedmnistCohort) else None,
        )
        for source in sources
    ]


def _has_mask(source: SourceCase | MedmnistCase) -> bool:
    return isinstance(source, SourceCase) and source.mask is not None


def _map(work: Any, jobs: list[_Job], workers: int, advance: Advance) -> Iterator[Any]:
    """`work` over the jobs in order, in processes where that pays."""
    if workers == 1 or len(jobs) < 16:
        for job in jobs:
            yield work(job)
            advance(1)
        return
    with _quiet_processes(min(workers, os.cpu_count() or 1)) as pool:
        for outcome in pool.map(work, jobs, chunksize=4):
            yield outcome
            advance(1)


@contextmanager
def _quiet_processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _prepare_guarded(job: _Job) -> _Ready | _Refused:
    try:
        return _prepare_one(job)
    except (DataError, RefusedError) as error:
        return _Refused(job.source.row, str(error))


def _prepare_one(job: _Job) -> _Ready:
    prepare, image_path = job.prepare, job.folder / "images" / f"{job.case}.nii"
    scan, mask = _read(job)
    pixels = pixel_digest(scan)
    scan, mask = to_ras(scan), None if mask is None else to_ras(mask)
    rule = IntensityRule.from_settings(prepare.intensity)
    if rule.kind == "hu_window" and scan.meta["unit"] != "HU":
        raise DataError(
            f"expected CT in HU for an hu_window, found {scan.meta['modality']}; use intensity kind percentiles"
        )
    limits = rule.limits(scan)
    scan = resample(scan, prepare.spacing_mm, "linear")
    volume_mm3 = None
    if mask is not None:
        mask = resample(mask, prepare.spacing_mm, "nearest")
        volume_mm3 = float(np.prod(spacing_mm(mask)) * float((mask > 0).sum()))
    centre = _centre_mm(mask) if prepare.centre == "mask" and mask is not None else None
    scan = crop_or_pad(scan, prepare.box, centre_mm=centre, pad=prepare.pad, value=limits[0])
    integral = scan.meta["unit"] == "HU"
    stored = np.asarray(scan, dtype=np.float32)
    if integral:
        stored = np.clip(np.rint(stored), -32768, 32767).astype(np.int16)
    write_nifti(same_grid(scan, stored), image_path, description="prepared by medsynth")
    mask_name = ""
    if mask is not None:
        mask = crop_or_pad(mask, prepare.box, centre_mm=centre, pad="constant", value=0)
        mask_name = f"masks/{job.case}.nii"
        write_nifti(
            same_grid(mask, np.asarray(mask, dtype=np.uint8)), job.folder / mask_name, description="mask by medsynth"
        )
    case = Case(
        case=job.case,
        patient=job.patient,
        origin="real",
        split="",
        image=f"images/{job.case}.nii",
        mask=mask_name,
        modality=str(scan.meta["modality"]),
        shape=prepare.box,
        spacing_mm=prepare.spacing_mm,
        sha256=file_digest(image_path),
        intensity_low=limits[0],
        intensity_high=limits[1],
        conditions={},
        generation={},
    )
    return _Ready(case, pixels, volume_mm3)


def _read(job: _Job) -> tuple[Scan, Scan | None]:
    source = job.source
    if isinstance(source, MedmnistCase):
        spacing = job.geometry_mm or (1.0, 1.0, 1.0)
        return make_scan(source.voxels, np.diag([*spacing, 1.0]), modality="OT", unit="arbitrary"), None
    deidentifier = Deidentifier(SecretKey.load_or_create(job.key_path))
    scan = read_scan(source.image, deidentifier=deidentifier, series_uid=source.series, modality=source.modality)
    if not bool(np.isfinite(np.asarray(scan)).all()):
        raise DataError("expected finite voxels, found NaN or infinity; repair the scan or leave the case out")
    if job.mask_labels is None:
        return scan, None
    if source.mask is None:
        raise DataError("expected a mask for every case, found none in this row; fill the column `mask`")
    mask = read_mask(source.mask, scan)
    if job.mask_labels:
        unknown = set(np.unique(np.asarray(mask)).tolist()) - {0, *job.mask_labels}
        if unknown:
            raise DataError(
                f"expected the mask values 0 and {sorted(job.mask_labels)}, found {sorted(unknown)}; declare them under "
                "the mask condition's labels"
            )
    return scan, mask


def _centre_mm(mask: Scan) -> tuple[float, float, float]:
    """Centre of the mask's bounding box, in RAS millimetres."""
    places = np.argwhere(np.asarray(mask)[0] > 0)
    if not len(places):
        raise DataError(
            "expected a mask with at least one voxel to centre on, found an empty one; draw it or use centre: volume"
        )
    middle = (places.min(0) + places.max(0)) / 2
    x, y, z = (np.asarray(mask.affine) @ [*middle, 1.0])[:3]
    return float(x), float(y), float(z)


def _without_duplicates(context: Context, ready: list[_Ready], folder: Path) -> tuple[list[_Ready], int]:
    groups = find_duplicates([(item.case.case, item.case.patient, item.pixels) for item in ready])
    drop: set[str] = set()
    for group in groups:
        across = " of different patients" if group.across_patients else ""
        context.say(
            f"{len(group.cases)} cases{across} have the same pixels: {', '.join(group.cases)}; the first is kept"
        )
        drop.update(group.cases[1:])
    if groups and context.pipeline.prepare.duplicates == "stop":
        raise CohortError(
            f"expected different scans, found {len(groups)} groups with the same pixels; remove the copies"
        )
    for name in drop:
        (folder / "images" / f"{name}.nii").unlink()
        (folder / "masks" / f"{name}.nii").unlink(missing_ok=True)
    return [item for item in ready if item.case.case not in drop], len(drop)


def _with_splits(
    context: Context, ready: list[_Ready], sources: Sequence[SourceCase | MedmnistCase], key: SecretKey
) -> list[Case]:
    pipeline = context.pipeline
    by_case = {key.pseudonym("case", f"{s.patient}\x1f{s.row}", "C"): s for s in sources}
    stratify = pipeline.prepare.split.stratify
    found = [by_case[item.case.case] for item in ready]
    derived = stratify is not None and getattr(pipeline.conditions[stratify], "derive", None) is not None
    strata = [None if stratify is None or derived else str(source.conditions.get(stratify)) for source in found]
    splits = assign_splits(
        [item.case.patient for item in ready],
        strata,
        [source.split for source in found],
        pipeline.prepare.split,
        pipeline.seed,
    )
    return [
        replace(item.case, split=splits[item.case.patient], conditions=dict(source.conditions))
        for item, source in zip(ready, found, strict=True)
    ]


def _with_conditions(pipeline: Pipeline, cases: list[Case], ready: list[_Ready]) -> list[Case]:
    """Conditions that come from the mask, by thresholds of the training split alone."""
    volumes = {item.case.case: item.mask_volume_mm3 for item in ready}
    for name, condition in pipeline.conditions.items():
        if not (isinstance(condition, CategoryCondition) and condition.derive == "mask_volume"):
            continue
        known = [v for case in cases if case.split == "train" and (v := volumes[case.case]) is not None]
        if not known:
            raise CohortError(f"{name}: expected training cases with masks to derive it from, found none")
        threshold = float(np.median(known))
        small, large = condition.values
        cases = [
            replace(
                case, conditions={**case.conditions, name: large if (volumes[case.case] or 0.0) >= threshold else small}
            )
            for case in cases
        ]
    return cases


def _rule_with_reference(pipeline: Pipeline, manifest: Manifest) -> IntensityRule:
    """The rule, with the training split's typical limits, by which synthetic scans get their unit back."""
    rule = IntensityRule.from_settings(pipeline.prepare.intensity)
    training = [(case.intensity_low, case.intensity_high) for case in manifest.cases if case.split == "train"]
    return rule.with_reference(training or [(case.intensity_low, case.intensity_high) for case in manifest.cases])


def _write_refused(path: Path, refused: list[_Refused]) -> None:
    import io

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["row", "reason"])
    writer.writerows([item.row, item.reason] for item in refused)
    write_text(path, text.getvalue())


def _summary(manifest: Manifest, refused: list[_Refused], duplicates: int) -> dict[str, Any]:
    summary: dict[str, Any] = {"cases": len(manifest.cases), "left_out": len(refused), "duplicates": duplicates}
    summary["patients"] = len({case.patient for case in manifest.cases})
    for name in ("train", "validation", "test"):
        summary[name] = sum(case.split == name for case in manifest.cases)
    summary["manifest"] = manifest.digest()
    return summary


def _external(pipeline: Pipeline) -> Any:
    """Digest of the input files by name, size and time of change: reading a whole archive to see that it is the same
    would take as long as preparing it."""
    cohort = pipeline.cohort
    if isinstance(cohort, PhantomCohort):
        return None
    if isinstance(cohort, CsvCohort):
        try:
            sources = read_sources(cohort, pipeline.conditions)
        except DataError:
            return "unreadable"
        files = [Path(cohort.csv), *(p for s in sources for p in (s.image, s.mask) if p is not None)]
    elif isinstance(cohort, FolderCohort):
        folders = [Path(name) for name in (cohort.images, cohort.masks) if name]
        files = [path for folder in folders for path in sorted(folder.rglob("*"))]
    else:
        files = [Path(cohort.npz)]
    return digest([_stamp(path) for path in files])


def _stamp(path: Path) -> list[Any]:
    if path.is_dir():
        return [_stamp(entry) for entry in sorted(path.rglob("*")) if entry.is_file()]
    try:
        found = path.stat()
    except OSError:
        return [str(path), None]
    return [str(path), found.st_size, found.st_mtime_ns]


STAGE = Stage(
    name="prepare",
    needs=(),
    settings=lambda pipeline: [
        plain(pipeline.cohort),
        {name: plain(condition) for name, condition in pipeline.conditions.items()},
        plain(pipeline.prepare),
    ],
    run=run,
    sources=_external,
)
