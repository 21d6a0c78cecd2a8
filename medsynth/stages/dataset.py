"""A synthetic dataset on disk: scans, masks, manifest, dataset.json and a README that says what it is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medsynth import __version__
from medsynth.cohort.manifest import MANIFEST, Case, Manifest
from medsynth.config.cohort import CategoryCondition, Condition, MaskCondition, NumberCondition
from medsynth.config.generate import Sampling, ScanFormat
from medsynth.diffusion.batch_size import BatchSize
from medsynth.diffusion.geometry import grids_of
from medsynth.diffusion.pipeline import LatentVolumePipeline
from medsynth.errors import ModelFolderError
from medsynth.imaging.intensity import IntensityRule
from medsynth.imaging.scan import Scan
from medsynth.imaging.synthetic.header import DESCRIPTION, Origin
from medsynth.imaging.synthetic.study import check_writable
from medsynth.models.conditions import mask_labels
from medsynth.progress import Progress
from medsynth.stages.background import Background, Watching
from medsynth.stages.files import digest, read_json, write_json, write_text
from medsynth.stages.request import Request
from medsynth.stages.scans import generate_all
from medsynth.stages.synthetic_case import DICOM_FOLDER, dicom_study, write_case

WRITERS_FOR_A_DEVICE = 3
"""Threads that write: compressing 256^3 noisy voxels takes a core 0.8 s, and an H200 makes such a volume in 0.4 s."""


def model_identity(folder: Path) -> str:
    """What rows of synthetic manifests call a model: its pipeline's name and a digest of its files. Raises ModelFolderError
    where the model does not say where it comes from.
    """
    provenance = read_json(folder / "provenance.json")
    missing = [name for name in ("pipeline", "profile", "sampling") if name not in provenance]
    if missing:
        raise ModelFolderError(
            f"provenance.json of the model folder: expected {', '.join(missing)}, found none; save the model with the "
            "provenance that the denoiser stage gives it"
        )
    return f"{provenance['pipeline']}@{digest(read_json(folder / 'checksums.json'))}"


def write_dataset(
    pipeline: LatentVolumePipeline,
    requests: Sequence[Request],
    sampling: Sampling,
    folder: Path,
    *,
    model: str,
    batch_size: BatchSize,
    progress: Progress,
    declared: Mapping[str, Condition] | None = None,
    form: ScanFormat = "nifti",
) -> Manifest:
    """Generate what is not there yet and describe the whole.

    Files are written while the next scans are computed. Every scan leaves a row in `rows/` once its files are whole, so
    that a run that was killed goes on with the scans that have none. Raises DataError, before anything is generated,
    where DICOM is asked for and has no object for the model's scans.
    """
    if form != "nifti":
        check_writable(pipeline.geometry["modality"])
    conditions = declared or declared_conditions(pipeline.condition_declaration)
    if (folder / MANIFEST).exists():  # it comes last: an earlier call has generated everything
        manifest = Manifest.read(folder / MANIFEST, conditions)
    else:
        _generate(pipeline, requests, sampling, folder, model, batch_size, progress, form)
        cases = tuple(_case(read_json(folder / "rows" / f"{request.case}.json")) for request in requests)
        manifest = Manifest(folder, cases, conditions)
        manifest.write(folder / MANIFEST)
    _describe(folder, manifest, pipeline, sampling, model, varied_masks=any(request.variation for request in requests))
    shutil.rmtree(folder / "rows", ignore_errors=True)
    if form != "dicom" and (folder / "masks").exists() and not any((folder / "masks").iterdir()):
        (folder / "masks").rmdir()
    return manifest


def _generate(
    pipeline: LatentVolumePipeline,
    requests: Sequence[Request],
    sampling: Sampling,
    folder: Path,
    model: str,
    batch_size: BatchSize,
    progress: Progress,
    form: ScanFormat,
) -> None:
    """The files and the row of every scan that has no row yet."""
    for name in ("rows",) if form == "dicom" else ("images", "masks", "rows"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    todo = [request for request in requests if not (folder / "rows" / f"{request.case}.json").exists()]
    write = partial(_write, folder=folder, sampling=sampling, model=model, form=form, pipeline=pipeline)
    writers = WRITERS_FOR_A_DEVICE if pipeline.fills_a_device else 1
    with Background(writers) as background, progress.task("generating scans", len(requests)) as advance:
        advance(len(requests) - len(todo))
        # Closed here also after an error: what it shares among batches must be gone before anybody generates again.
        with closing(
            generate_all(pipeline, todo, sampling, batch_size, in_all=requests, progress=Watching(background))
        ) as finished:
            for request, scan, mask in finished:
                background.do(partial(write, request, scan, mask))
                advance(1)


def _write(
    request: Request,
    scan: Scan,
    mask: Scan | None,
    *,
    folder: Path,
    sampling: Sampling,
    model: str,
    form: ScanFormat,
    pipeline: LatentVolumePipeline,
) -> None:
    """A scan's files, and its row once they are whole."""
    limits = IntensityRule.from_json(pipeline.intensity).model_limits()
    origin = Origin(request.case, model, request.seed, _sampling_text(sampling), request.conditions)
    labels = mask_labels(pipeline.condition_declaration)
    files = write_case(folder, scan, mask, origin, form=form, labels=labels, limits=limits)
    _write_row(request, scan, files, sampling, folder, model, pipeline.computes_in, limits)


def _write_row(
    request: Request,
    scan: Scan,
    files: Mapping[str, Any],
    sampling: Sampling,
    folder: Path,
    model: str,
    precision: str,
    limits: tuple[float, float],
) -> None:
    row = {
        "case": request.case,
        **files,
        "modality": scan.meta["modality"],
        "shape": [int(n) for n in scan.shape[1:]],
        "spacing_mm": [float(s) for s in np.linalg.norm(np.asarray(scan.affine)[:3, :3], axis=0)],
        "conditions": dict(request.conditions),
        "generation": {
            "model": model,
            "seed": str(request.seed),
            "sampler": sampling.sampler,
            "evaluations": str(sampling.evaluations),
            "guidance": sampling.guidance_text,
            "precision": precision,
        },
        "limits": list(limits),
    }
    write_json(folder / "rows" / f"{request.case}.json", row)


def _sampling_text(sampling: Sampling) -> str:
    return f"sampler {sampling.sampler}, {sampling.evaluations} evaluations, guidance {sampling.guidance_text}"


def _case(row: Mapping[str, Any]) -> Case:
    low, high = row["limits"]
    return Case(
        case=row["case"],
        patient=row["case"],
        origin="synthetic",
        split="synthetic",
        image=row["image"],
        mask=row["mask"],
        modality=row["modality"],
        shape=tuple(row["shape"]),
        spacing_mm=tuple(row["spacing_mm"]),
        sha256=row["sha256"],
        mask_sha256=row["mask_sha256"],
        intensity_low=low,
        intensity_high=high,
        conditions=row["conditions"],
        generation=row["generation"],
    )


def declared_conditions(declaration: Mapping[str, Mapping[str, Any]]) -> dict[str, Condition]:
    """A model's declaration as settings, for reading and writing manifests, where the grid has columns of its own."""
    kinds: dict[str, type[CategoryCondition | NumberCondition | MaskCondition]] = {
        "category": CategoryCondition,
        "number": NumberCondition,
        "mask": MaskCondition,
    }
    return {
        name: kinds[entry["kind"]].model_validate(_tuples(entry))
        for name, entry in declaration.items()
        if entry["kind"] in kinds
    }


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def _sizes(geometry: Mapping[str, Any]) -> str:
    return " or ".join(f"{list(grid.box)} voxels of {list(grid.spacing_mm)} mm" for grid in grids_of(geometry))


def _describe(
    folder: Path,
    manifest: Manifest,
    pipeline: LatentVolumePipeline,
    sampling: Sampling,
    model: str,
    *,
    varied_masks: bool,
) -> None:
    declaration, geometry = pipeline.condition_declaration, pipeline.geometry
    masked = [case for case in manifest.cases if case.mask]
    has_dicom, has_nifti = ((folder / name).is_dir() for name in (DICOM_FOLDER, "images"))
    pairs: list[Any] = [
        {
            "image": f"./{case.image}",
            **({"label": f"./{case.mask}"} if case.mask else {}),
            **({"dicom": f"./{dicom_study(case.case)}"} if has_dicom else {}),
            "synthetic": True,
            **case.conditions,
        }
        for case in manifest.cases
    ]
    write_json(
        folder / "dataset.json",
        {
            "name": folder.name.removeprefix(".").removesuffix(".partial"),
            "description": f"{DESCRIPTION}. Synthetic scans generated by medsynth {__version__}.",
            "synthetic": True,
            "tensorImageSize": "3D",
            "modality": {"0": geometry["modality"]},
            "channel_names": {"0": geometry["modality"]},
            "labels": {"background": 0, **(mask_labels(declaration) if masked else {})},
            "file_ending": ".nii.gz" if has_nifti else ".dcm",
            "numTraining": len(manifest.cases),
            "numTest": 0,
            "training": pairs,
            "validation": [],
            "test": [],
        },
    )
    lines = [
        "# Synthetic scans: not patients",
        "",
        f"{len(manifest.cases)} scans made by medsynth {__version__} with the model `{model}`. No scan here was taken of anybody.",
        "They were generated by a model that was trained on scans of real patients, and may resemble them: see the privacy",
        "section of the model's report before passing them on. They are for research, not for diagnosis.",
        "",
        f"- Modality {geometry['modality']}, intensities in {geometry['unit']}, {_sizes(geometry)}, RAS.",
        f"- {_sampling_text(sampling).capitalize()}.",
        "- `manifest.csv` holds one row per scan with the conditions that were asked for and the seed: the same model and row",
        "  give the same voxels again (`medsynth generate --again manifest.csv`).",
        "- `dataset.json` lists image and label pairs for MONAI and nnU-Net. Keep synthetic scans out of validation and test sets.",
        *(_about_masks(varied_masks) if masked else []),
        *(
            [
                "- `dicom/` holds one study per scan, marked as synthetic in every header: `image/` the series, `mask/` the",
                "  segmentation of the mask.",
            ]
            if has_dicom
            else []
        ),
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))


def _about_masks(varied: bool) -> list[str]:
    if varied:
        return [
            "- Masks were changed before they were asked for, so that none is a patient's own outline: the shapes of several were",
            "  mixed, or one was turned and bent at random. How close they still are to the outlines that they came from is in the",
            "  privacy section too.",
        ]
    return [
        "- Masks are the ones that were given, unchanged. Where those are patients' outlines, whoever gets this dataset gets",
        "  them.",
    ]
