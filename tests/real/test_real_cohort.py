"""Real cohorts: a table of 722 lung nodules of 390 patients, and a folder of 196 hippocampi."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsynth.cohort.derive import derive_conditions, mask_volume_mm3
from medsynth.cohort.integrity import find_duplicates, pixel_digest
from medsynth.cohort.source import read_sources
from medsynth.cohort.split import SPLITS, assign_splits
from medsynth.config.cohort import (
    CategoryCondition,
    CsvCohort,
    FolderCohort,
    MaskCondition,
    NumberCondition,
    Split,
)
from medsynth.errors import CohortError

DATA = Path(os.environ.get("MEDSYNTH_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real scans at {DATA}; set MEDSYNTH_DATA to their folder"),
]

NODULES = {
    "malignancy": CategoryCondition(kind="category", values=("benign", "malignant")),
    "diameter_mm": NumberCondition(kind="number", range=(3.0, 40.0), unit="mm"),
}


def nodule_table() -> CsvCohort:
    return CsvCohort(kind="csv", csv=str(DATA / "lidc_nodules" / "nodules.csv"))


def test_the_nodule_table_splits_by_patient_with_even_malignancy() -> None:
    cases = read_sources(nodule_table(), NODULES)
    assert len(cases) == 722 and cases[0].row == 2 and cases[-1].row == 723
    labels = Counter(case.conditions["malignancy"] for case in cases)
    assert labels == {"benign": 475, "malignant": 247}
    patients = [case.patient for case in cases]
    strata = [str(case.conditions["malignancy"]) for case in cases]
    found = assign_splits(patients, strata, [None] * len(cases), Split(stratify="malignancy"), 0)
    assert len(found) == 390
    assert Counter(found.values()) == {"train": 273, "validation": 59, "test": 58}

    any_malignant: dict[str, bool] = defaultdict(bool)
    for case in cases:
        any_malignant[case.patient] |= case.conditions["malignancy"] == "malignant"
    share = sum(any_malignant.values()) / 390
    for name in SPLITS:
        members = [patient for patient, split in found.items() if split == name]
        assert sum(any_malignant[p] for p in members) / len(members) == pytest.approx(share, abs=0.03)


def test_a_range_too_narrow_is_reported_with_all_its_rows() -> None:
    narrow = {**NODULES, "diameter_mm": NumberCondition(kind="number", range=(5.0, 20.0), unit="mm")}
    with pytest.raises(CohortError) as caught:
        read_sources(nodule_table(), narrow)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("nodules.csv rows 2-") and "expected 5 to 20 mm" in line and "LIDC" not in line


def test_hippocampi_have_masks_sizes_and_no_copies() -> None:
    conditions = {
        "size": CategoryCondition(kind="category", values=("small", "large"), derive="mask_volume"),
        "mask": MaskCondition(kind="mask", labels={"anterior": 1, "posterior": 2}),
    }
    folder = DATA / "hippocampus"
    settings = FolderCohort(kind="folder", images=str(folder / "images"), masks=str(folder / "masks"))
    cases = read_sources(settings, conditions)
    assert len(cases) == len({case.patient for case in cases}) == 196
    found = assign_splits([c.patient for c in cases], [None] * 196, [None] * 196, Split(), 3)
    splits = [found[case.patient] for case in cases]
    volumes, digests = [], []
    for case in cases:
        assert case.mask is not None
        mask = nibabel.load(case.mask)
        volumes.append(mask_volume_mm3(np.asarray(mask.dataobj), mask.header.get_zooms()[:3]))
        digests.append((f"row {case.row}", case.patient, pixel_digest(np.asarray(nibabel.load(case.image).dataobj))))
    assert min(volumes) > 1000 and max(volumes) < 8000
    sizes = [row["size"] for row in derive_conditions(conditions, volumes, splits)]
    training = Counter(size for size, split in zip(sizes, splits, strict=True) if split == "train")
    assert abs(training["small"] - training["large"]) <= 1
    assert find_duplicates(digests) == []
