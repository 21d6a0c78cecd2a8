"""Scans in: read, de-identify, one grid, one box, duplicates, split, manifest."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsynth.cohort.derive import derive_conditions
from medsynth.cohort.integrity import find_duplicates
from medsynth.cohort.manifest import Case, Manifest
from medsynth.cohort.medmnist import MedmnistCase, read_medmnist
from medsynth.cohort.phantom import write_phantom_cohort
from medsynth.cohort.source import SourceCase, read_sources
from medsynth.cohort.split import assign_splits
from medsynth.config.base import plain
from medsynth.config.cohort import CategoryCondition, CsvCohort, FolderCohort, MedmnistCohort, PhantomCohort
from medsynth.config.pipeline import Pipeline
from medsynth.errors import CohortError, DataError, PrivacyError
from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify.linking import Link, LinkingTable
from medsynth.imaging.intensity import IntensityRule
from medsynth.stages.base import Context, Stage, StageResult
from medsynth.stages.files import digest, stamp, write_json, write_text
from medsynth.stages.forgotten import forgotten_patients
from medsynth.stages.one_case import Job, Leaking, Ready, Refused, prepare_cases
from medsynth.stages.second_look import SecondLook

PHANTOM_FOLDER = "source"


def run(context: Context, folder: Path) -> StageResult:
    """Prepare every case of the cohort. Raises CohortError, DataError or PrivacyError."""
    pipeline = context.pipeline
    key_path = key_file(context)
    key = SecretKey.load_or_create(key_path)
    sources = _without_forgotten(context, _sources(context), key)
    jobs = _jobs(pipeline, sources, key, key_path, folder)
    look = SecondLook(sources, pipeline)
    table = LinkingTable.open(Path(pipeline.prepare.linking_table), key) if pipeline.prepare.linking_table else None
    refused, ready = _outcomes(context, jobs, look, table)
    lines = [f"row {item.row}: left out: {item.reason}" for item in refused]
    look.check_lines(lines)
    for line in lines:
        context.say(line)
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
    if any(case.split == "train" for case in manifest.cases):
        manifest.check_training_values()
    rule = _rule_with_reference(pipeline, manifest)
    write_json(folder / "intensity.json", rule.to_json())
    _write_refused(folder / "left_out.csv", refused)
    summary = _summary(manifest, refused, duplicates)
    if len(pipeline.prepare.every_grid()) > 1:
        summary["grids"] = _per_grid(context, manifest)
    write_json(folder / "summary.json", summary)
    try:
        look.check_stage(folder)
        look.check_workspace(context.workspace.path)
    except PrivacyError:
        shutil.rmtree(folder)  # nothing of it may stay, not even as a draft
        raise
    context.tracker.dataset(f"{pipeline.name}-prepared", manifest.digest())
    context.tracker.artifact(folder / "summary.json")
    return StageResult(summary, refused=len(refused))


def key_file(context: Context) -> Path:
    """Where the secret of this workspace is."""
    given = context.pipeline.prepare.key_file
    return Path(given) if given else context.workspace.secrets / "deidentify.key"


def _without_forgotten(
    context: Context, sources: Sequence[SourceCase | MedmnistCase], key: SecretKey
) -> list[SourceCase | MedmnistCase]:
    """The cohort without those whom `medsynth forget` took out of this workspace, although it may still hold them."""
    forgotten = forgotten_patients(context.workspace.path)
    kept = [source for source in sources if key.pseudonym("patient", source.patient, "P") not in forgotten]
    if len(kept) < len(sources):
        context.say(f"{len(sources) - len(kept)} rows of patients who were forgotten are left out")
    if not kept:
        raise CohortError("expected patients in the cohort, found only some who were forgotten; add others")
    return kept


def _outcomes(
    context: Context, jobs: list[Job], look: SecondLook, table: LinkingTable | None
) -> tuple[list[Refused], list[Ready]]:
    """All cases, prepared or refused. Raises PrivacyError where one would leave with a value of its headers."""
    refused: list[Refused] = []
    ready: list[Ready] = []
    with context.progress.task("preparing scans", len(jobs)) as advance:
        for job, outcome in zip(jobs, prepare_cases(jobs, context.pipeline.prepare.workers, advance), strict=True):
            if isinstance(outcome, Leaking):
                raise PrivacyError(
                    f"row {outcome.row}: expected nothing of its headers in what was prepared, found a value of "
                    f"{', '.join(outcome.keywords)}; the files were deleted and nothing was published: report it"
                )
            look.remember(outcome.seen)
            if isinstance(outcome, Refused):
                refused.append(outcome)
                continue
            ready.append(outcome)
            if table is not None and isinstance(job.source, SourceCase):
                _link(table, job, outcome.seen.links)
    return refused, ready


def _link(table: LinkingTable, job: Job, links: tuple[Link, ...]) -> None:
    """Who a prepared case belongs to: by its headers, and by the cohort's table where that says something else."""
    for link in links:
        table.add_link(link)
    if job.source.patient not in {link.patient_id for link in links}:
        table.add_link(Link(job.patient, patient_id=job.source.patient))


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
) -> list[Job]:
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    mask = pipeline.mask()
    wants_mask = mask is not None or any(
        isinstance(c, CategoryCondition) and c.derive == "mask_volume" for c in pipeline.conditions.values()
    )
    labels = tuple(mask[1].labels.values()) if mask else ()
    cohort = pipeline.cohort
    return [
        Job(
            source=source,
            case=key.pseudonym("case", f"{source.patient}\x1f{source.row}", "C"),
            patient=key.pseudonym("patient", source.patient, "P"),
            folder=folder,
            prepare=pipeline.prepare,
            deidentify=pipeline.deidentify,
            key_path=key_path,
            mask_labels=labels if wants_mask or _has_mask(source) else None,
            geometry_mm=cohort.spacing_mm if isinstance(cohort, MedmnistCohort) else None,
        )
        for source in sources
    ]


def _has_mask(source: SourceCase | MedmnistCase) -> bool:
    return isinstance(source, SourceCase) and source.mask is not None


def _without_duplicates(context: Context, ready: list[Ready], folder: Path) -> tuple[list[Ready], int]:
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
    context: Context, ready: list[Ready], sources: Sequence[SourceCase | MedmnistCase], key: SecretKey
) -> list[Case]:
    pipeline = context.pipeline
    by_case = {key.pseudonym("case", f"{s.patient}\x1f{s.row}", "C"): s for s in sources}
    stratify = pipeline.prepare.split.stratify
    found = [by_case[item.case.case] for item in ready]
    derived = stratify is not None and getattr(pipeline.conditions[stratify], "derive", None) is not None
    strata = [
        None if stratify is None or derived else str(_conditions(pipeline, source).get(stratify)) for source in found
    ]
    splits = assign_splits(
        [item.case.patient for item in ready],
        strata,
        [source.split for source in found],
        pipeline.prepare.split,
        pipeline.seed,
    )
    return [
        replace(item.case, split=splits[item.case.patient], conditions=_conditions(pipeline, source))
        for item, source in zip(ready, found, strict=True)
    ]


def _conditions(pipeline: Pipeline, source: SourceCase | MedmnistCase) -> dict[str, str | float | None]:
    """What the cohort says of a case."""
    if isinstance(source, SourceCase):
        return dict(source.conditions)
    name = pipeline.cohort.label if isinstance(pipeline.cohort, MedmnistCohort) else ""
    return {name: source.label} if name in pipeline.conditions else {}


def _with_conditions(pipeline: Pipeline, cases: list[Case], ready: list[Ready]) -> list[Case]:
    """Conditions that are measured on the mask, by thresholds of the training split alone."""
    volumes = [0.0 if item.mask_volume_mm3 is None else item.mask_volume_mm3 for item in ready]
    derived = derive_conditions(pipeline.conditions, volumes, [case.split for case in cases])
    return [replace(case, conditions={**case.conditions, **more}) for case, more in zip(cases, derived, strict=True)]


def _rule_with_reference(pipeline: Pipeline, manifest: Manifest) -> IntensityRule:
    """The rule, with the training split's typical limits, by which synthetic scans get their unit back."""
    rule = IntensityRule.from_settings(pipeline.prepare.intensity)
    training = [(case.intensity_low, case.intensity_high) for case in manifest.cases if case.split == "train"]
    return rule.with_reference(training or [(case.intensity_low, case.intensity_high) for case in manifest.cases])


def _write_refused(path: Path, refused: list[Refused]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["row", "reason"])
    writer.writerows([item.row, item.reason] for item in refused)
    write_text(path, text.getvalue())


def _summary(manifest: Manifest, refused: list[Refused], duplicates: int) -> dict[str, Any]:
    summary: dict[str, Any] = {"cases": len(manifest.cases), "left_out": len(refused), "duplicates": duplicates}
    summary["patients"] = len({case.patient for case in manifest.cases})
    for name in ("train", "validation", "test"):
        summary[name] = sum(case.split == name for case in manifest.cases)
    summary["manifest"] = manifest.digest()
    return summary


def _per_grid(context: Context, manifest: Manifest) -> dict[str, int]:
    """How many cases lie on each grid; a grid that training does not see is said."""
    cases: dict[str, int] = {}
    for grid in context.pipeline.prepare.every_grid():
        splits = [case.split for case in manifest.cases if grid.fits(case.shape, case.spacing_mm)]
        cases[str(grid)] = len(splits)
        if "train" not in splits:
            context.say(f"grid {grid}: no scan of the training split lies on it; the generator will not know it")
    return cases


def _external(pipeline: Pipeline) -> Any:
    """Digest of the input files by name, size and time of change: reading a whole archive to see that it is the same
    would take as long as preparing it. Raises what `read_sources` does, so that a wrong table is told before any work.
    """
    cohort = pipeline.cohort
    if isinstance(cohort, PhantomCohort):
        return None
    if isinstance(cohort, CsvCohort | FolderCohort):
        sources = read_sources(cohort, pipeline.conditions)
        table = [Path(cohort.csv)] if isinstance(cohort, CsvCohort) else []
        files = [*table, *(path for source in sources for path in (source.image, source.mask) if path is not None)]
    else:
        files = [Path(cohort.npz)]
    return digest([stamp(path) for path in files])


def _as_column(condition: dict[str, Any]) -> dict[str, Any]:
    """What a condition means for the manifest; how the generator is steered by it is the denoiser's matter."""
    return {key: value for key, value in condition.items() if key not in ("dropout", "steer")}


STAGE = Stage(
    name="prepare",
    needs=(),
    settings=lambda pipeline: [
        plain(pipeline.cohort),
        {name: _as_column(plain(condition)) for name, condition in pipeline.conditions.items()},
        plain(pipeline.prepare),
        plain(pipeline.deidentify),
    ],
    run=run,
    sources=_external,
)
