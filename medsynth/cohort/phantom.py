"""The phantom cohort: patients that never lived, as a hospital would hand them over.

Each patient is a thorax-like CT around one lung nodule, stored as a true DICOM series under an invented identity, with a
mask of the nodule and a row in `cohort.csv`. Diagnosis shows in the nodule's shape and texture and never in its size;
sex shows in the thickness of the fat. Patient k is the same however many patients are asked for.
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medsynth import __version__
from medsynth.cohort.phantom_anatomy import draw_anatomy
from medsynth.cohort.phantom_dicom import Identity, Placement, draw_identity, write_series
from medsynth.cohort.phantom_nodule import draw_diameters
from medsynth.cohort.phantom_render import Rendered, render
from medsynth.config.cohort import CategoryCondition, Condition, MaskCondition, NumberCondition
from medsynth.errors import DataError
from medsynth.imaging.nifti import write_nifti
from medsynth.imaging.scan import make_scan
from medsynth.progress import Progress, Silent
from medsynth.seeding import numpy_generator

PHANTOM_CONDITIONS: dict[str, Condition] = {
    "diagnosis": CategoryCondition(kind="category", values=("benign", "malignant")),
    "diameter_mm": NumberCondition(kind="number", range=(4.0, 21.0), unit="mm"),
    "sex": CategoryCondition(kind="category", values=("F", "M")),
    "nodule": MaskCondition(kind="mask", labels={"nodule": 1}),
}
"""What a phantom cohort's table can be steered by."""

RECIPE_FILE = "phantom.json"
COLUMNS = ("patient", "image", "mask", "diagnosis", "diameter_mm", "sex")


@dataclass(frozen=True)
class PhantomPatient:
    """One phantom patient in memory: HU and mask on the grid [X, Y, Z] that `placement` puts into the patient."""

    number: int
    identity: Identity
    diagnosis: str
    diameter_mm: float
    sex: str
    placement: Placement
    rendered: Rendered


def phantom_patient(seed: int, number: int) -> PhantomPatient:
    """Patient `number` of the cohort that `seed` stands for.

    Each run of four patients holds every pair of diagnosis and sex once, in an order of its own, and its two diagnoses
    share a typical diameter for each sex: small cohorts are balanced too, and size tells nothing by accident.
    """
    block, place = divmod(number, 4)
    shared = numpy_generator(seed, "phantom", "block", block)
    pair = int(shared.permutation(4)[place])
    malignant, female = bool(pair & 1), bool(pair & 2)
    typical_mm = float(draw_diameters(shared, 2)[int(female)])
    sex = "F" if female else "M"
    anatomy = draw_anatomy(
        numpy_generator(seed, "phantom", number, "anatomy"), malignant=malignant, female=female, typical_mm=typical_mm
    )
    rendered = render(anatomy, numpy_generator(seed, "phantom", number, "texture"))
    generator = numpy_generator(seed, "phantom", number, "identity")
    identity = draw_identity(generator, number, sex)
    # Somewhere plausible in the scanner: the left lung lies at positive x.
    middle = np.array([80.0 if anatomy.left else -80.0, -10.0, -140.0]) + generator.uniform(-30, 30, 3)
    extent = (np.array(anatomy.grid.shape) - 1) * anatomy.grid.spacing_mm
    x, y, z = (round(float(value), 3) for value in middle - extent / 2)
    return PhantomPatient(
        number=number,
        identity=identity,
        diagnosis="malignant" if malignant else "benign",
        diameter_mm=anatomy.nodule.diameter_mm,
        sex=sex,
        placement=Placement(anatomy.grid.spacing_mm, (x, y, z)),
        rendered=rendered,
    )


def write_phantom_cohort(folder: Path, patients: int, seed: int, progress: Progress | None = None) -> Path:
    """Write a cohort of `patients` into `folder` and return the path of its `cohort.csv`.

    The folder appears whole or not at all. Where it already holds this cohort, nothing is written; another phantom
    cohort is replaced. Raises DataError where it holds anything else.
    """
    recipe = json.dumps({"patients": patients, "seed": seed, "version": __version__})
    found = _recipe(folder)
    if found == recipe:
        return folder / "cohort.csv"
    if found is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"expected a new or empty folder for the phantom cohort, found {folder} in use; choose another")
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    (partial / "masks").mkdir(parents=True)
    with (
        (partial / "cohort.csv").open("w", newline="", encoding="utf-8") as stream,
        (progress or Silent()).task("phantom patients", patients) as advance,
    ):
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for number in range(patients):
            table.writerow(_write_patient(partial, phantom_patient(seed, number), seed))
            advance(1)
    (partial / RECIPE_FILE).write_text(recipe, encoding="utf-8")
    if found is not None:
        folder.replace(old)
    partial.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder / "cohort.csv"


def _recipe(folder: Path) -> str | None:
    """What the phantom cohort in `folder` was made from; None where there is none."""
    path = folder / RECIPE_FILE
    return path.read_text(encoding="utf-8") if path.is_file() and (folder / "cohort.csv").is_file() else None


def _write_patient(folder: Path, patient: PhantomPatient, seed: int) -> tuple[str | float, ...]:
    """Write one patient's series and mask; return the row of the table."""
    image, mask = f"series/{patient.number:05d}", f"masks/{patient.number:05d}.nii.gz"
    write_series(
        folder / image, patient.rendered.hu, patient.placement, patient.identity, seed=seed, number=patient.number
    )
    voxels = torch.from_numpy(patient.rendered.mask.astype(np.uint8))
    write_nifti(make_scan(voxels, patient.placement.affine_ras(), modality="SEG", unit="label"), folder / mask)
    return patient.identity.patient_id, image, mask, patient.diagnosis, patient.diameter_mm, patient.sex
