"""One scan in: read, de-identify, one grid, one box, one file. Runs in worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from medsynth.cohort.derive import mask_volume_mm3
from medsynth.cohort.grids import choose_grid
from medsynth.cohort.integrity import pixel_digest
from medsynth.cohort.manifest import Case
from medsynth.cohort.medmnist import MedmnistCase
from medsynth.cohort.source import SourceCase
from medsynth.config.cohort import Prepare
from medsynth.config.deidentify import Deidentify
from medsynth.config.grid import Grid
from medsynth.digests import file_sha256
from medsynth.errors import DataError, RefusedError
from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify.faces import deface_scan
from medsynth.imaging.grid import crop_or_pad, resample, to_ras
from medsynth.imaging.intensity import IntensityRule
from medsynth.imaging.nifti import is_nifti, write_nifti
from medsynth.imaging.read import read_mask, read_scan
from medsynth.imaging.scan import Scan, make_scan, resampled_of, same_grid, spacing_mm
from medsynth.progress import Advance
from medsynth.stages.witness import Seen, Witness

NEIGHBOURHOOD = 1.5
"""How many times the size of its mask a box that is centred on it should have, where there are boxes to choose from."""
POOL_PAYS_FROM = 200
"""Cases from which worker processes, each of which imports everything first, are faster than going on alone."""


@dataclass(frozen=True)
class Job:
    """One case to prepare; everything a worker process needs."""

    source: SourceCase | MedmnistCase
    case: str
    patient: str
    folder: Path
    prepare: Prepare
    deidentify: Deidentify
    key_path: Path
    mask_labels: tuple[int, ...] | None
    geometry_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Ready:
    """What a worker hands back: facts, and what it saw of the patient, which stays in memory."""

    case: Case
    pixels: str
    mask_volume_mm3: float | None
    seen: Seen = field(default_factory=Seen)


@dataclass(frozen=True)
class Refused:
    """A case that was left out: the row of the cohort's table, and why."""

    row: int
    reason: str
    seen: Seen = field(default_factory=Seen)


@dataclass(frozen=True)
class Leaking:
    """A case in whose files a value of its headers still stands: attributes, and never what."""

    row: int
    keywords: tuple[str, ...]


Outcome = Ready | Refused | Leaking


def prepare_cases(jobs: list[Job], workers: int, advance: Advance) -> Iterator[Outcome]:
    """The outcome of each job, in order; in processes where that pays."""
    if workers == 1 or len(jobs) < POOL_PAYS_FROM:
        for job in jobs:
            yield _prepare_guarded(job)
            advance(1)
        return
    with _quiet_processes(min(workers, os.cpu_count() or 1)) as pool:
        for outcome in pool.map(_prepare_guarded, jobs, chunksize=4):
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


def _prepare_guarded(job: Job) -> Outcome:
    witness = Witness(
        SecretKey.load(job.key_path), job.deidentify, linked_as=job.patient if job.prepare.linking_table else None
    )
    try:
        ready = _prepare_one(job, witness)
    except (DataError, RefusedError) as error:
        return Refused(job.source.row, _without_names(str(error), job.source), witness.seen)
    files = [job.folder / name for name in (ready.case.image, ready.case.mask) if name]
    leaks = witness.leaks(files)
    if leaks:
        for path in files:
            path.unlink()
        return Leaking(job.source.row, tuple(sorted(leaks)))
    return replace(ready, seen=witness.seen)


def _without_names(reason: str, source: SourceCase | MedmnistCase) -> str:
    """A reason that names no file: hospitals name files after patients, and the row already says which one it is."""
    if isinstance(source, SourceCase):
        for path, word in ((source.mask, "the mask"), (source.image, "the image")):
            if path is not None:
                reason = reason.replace(str(path), word)
                reason = reason.replace(path.name, word) if is_nifti(path) else reason
    return reason


def _prepare_one(job: Job, witness: Witness) -> Ready:
    prepare, image_path = job.prepare, job.folder / "images" / f"{job.case}.nii"
    scan, mask = _read(job, witness)
    resampled = resampled_of(scan)
    scan, mask = to_ras(scan), None if mask is None else to_ras(mask)
    pixels = pixel_digest(scan)
    rule = IntensityRule.from_settings(prepare.intensity)
    limits = rule.limits(scan)
    grid = _grid(prepare, scan, mask)
    scan = resample(scan, grid.spacing_mm, "linear")
    volume_mm3 = None
    if mask is not None:
        mask = resample(mask, grid.spacing_mm, "nearest")
        volume_mm3 = mask_volume_mm3(mask, spacing_mm(mask))
    centre = _centre_mm(mask) if prepare.centre == "mask" and mask is not None else None
    scan = crop_or_pad(scan, grid.box, centre_mm=centre, pad=prepare.pad, value=limits[0])
    integral = scan.meta["unit"] == "HU"
    stored = np.asarray(scan, dtype=np.float32)
    if integral:
        stored = np.clip(np.rint(stored), -32768, 32767).astype(np.int16)
    write_nifti(same_grid(scan, stored), image_path, description="prepared by medsynth")
    mask_name = ""
    if mask is not None:
        mask = crop_or_pad(mask, grid.box, centre_mm=centre, pad="constant", value=0)
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
        shape=grid.box,
        spacing_mm=grid.spacing_mm,
        sha256=file_sha256(image_path),
        mask_sha256=file_sha256(job.folder / mask_name) if mask_name else "",
        intensity_low=limits[0],
        intensity_high=limits[1],
        conditions={},
        generation={},
        resampled=resampled,
    )
    return Ready(case, pixels, volume_mm3)


def _read(job: Job, witness: Witness) -> tuple[Scan, Scan | None]:
    source = job.source
    if isinstance(source, MedmnistCase):
        spacing = job.geometry_mm or (1.0, 1.0, 1.0)
        return make_scan(source.voxels, np.diag([*spacing, 1.0]), modality="OT", unit="arbitrary"), None
    # A window in HU says that the cohort is CT; a NIfTI file cannot say so itself.
    modality = "CT" if job.prepare.intensity.kind == "hu_window" else source.modality
    if source.modality not in (None, modality):
        raise DataError(
            f"expected CT, because prepare.intensity is a window in HU, found {source.modality} in the table; correct either"
        )
    scan = read_scan(
        source.image,
        deidentifier=witness,
        series_uid=source.series,
        modality=modality,
        irregular=job.prepare.irregular,
    )
    if witness.saw_face and job.deidentify.face_command is not None:
        scan = deface_scan(scan, job.deidentify.face_command)
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


def _grid(prepare: Prepare, scan: Scan, mask: Scan | None) -> Grid:
    """The grid for a scan whose axes are those of the world: by its spacing, and by what of it is to be seen."""
    grids = prepare.every_grid()
    if len(grids) == 1:
        return grids[0]
    steps = spacing_mm(scan)
    seen: Sequence[float] = scan.shape[1:]
    if prepare.centre == "mask" and mask is not None:
        low, high = _bounds(mask)
        seen = [NEIGHBOURHOOD * float(size) for size in high - low + 1]
    return choose_grid(grids, steps, [size * step for size, step in zip(seen, steps, strict=True)])


def _centre_mm(mask: Scan) -> tuple[float, float, float]:
    """Centre of the mask's bounding box, in RAS millimetres."""
    low, high = _bounds(mask)
    middle = (low + high) / 2
    x, y, z = (np.asarray(mask.affine) @ [*middle, 1.0])[:3]
    return float(x), float(y), float(z)


def _bounds(mask: Scan) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel [3] of the mask along each axis."""
    places = np.argwhere(np.asarray(mask)[0] > 0)
    if not len(places):
        raise DataError(
            "expected a mask with at least one voxel to centre on, found an empty one; draw it or use centre: volume"
        )
    return places.min(0), places.max(0)
