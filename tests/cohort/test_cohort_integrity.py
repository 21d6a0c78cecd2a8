"""The same pixels under two names are found, whatever the header says."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medsynth.cohort.derive import derive_conditions, mask_volume_mm3, split_at_training_median
from medsynth.cohort.integrity import find_duplicates, pixel_digest
from medsynth.config.cohort import CategoryCondition, NumberCondition
from medsynth.errors import CohortError

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def test_the_digest_depends_on_pixels_only(tmp_path: Path) -> None:
    expected = pixel_digest(VOXELS)
    for kind in (np.int16, np.int32, np.float32, np.float64, ">i2"):
        assert pixel_digest(VOXELS.astype(kind)) == expected
    assert pixel_digest(torch.from_numpy(VOXELS)[None]) == expected
    assert pixel_digest(np.asfortranarray(VOXELS)) == expected
    assert pixel_digest(VOXELS[::-1][::-1]) == expected
    assert pixel_digest(np.float32(VOXELS) * np.float32(-1) * np.float32(-1)) == expected
    zeros = np.zeros((2, 2, 2), np.float32)
    assert pixel_digest(zeros) == pixel_digest(-zeros)

    for name, affine in (("anna.nii", np.eye(4)), ("bert.nii.gz", np.diag([2.0, 3, 4, 1]))):
        header = nibabel.Nifti1Header()
        header["descrip"] = name.encode()
        nibabel.save(nibabel.Nifti1Image(VOXELS, affine, header), tmp_path / name)
        assert pixel_digest(np.asarray(nibabel.load(tmp_path / name).dataobj)) == expected


def test_the_digest_sees_every_change_of_a_pixel() -> None:
    digests = {pixel_digest(VOXELS), pixel_digest(VOXELS[::-1]), pixel_digest(VOXELS.reshape(6, 5, 7))}
    for index in np.ndindex(2, 2, 2):
        other = VOXELS.copy()
        other[index] += 1
        digests.add(pixel_digest(other))
    assert len(digests) == 11


def test_duplicates_within_and_across_patients() -> None:
    rows = [
        ("c1", "p1", "x"),
        ("c2", "p2", "y"),
        ("c3", "p1", "x"),
        ("c4", "p3", "y"),
        ("c5", "p4", "z"),
        ("c6", "p1", "x"),
    ]
    within, across = find_duplicates(rows)
    assert within.cases == ("c1", "c3", "c6") and not within.across_patients and within.surplus == ("c3", "c6")
    assert across.patients == ("p2", "p3") and across.across_patients
    assert find_duplicates(rows[:2]) == []


def test_mask_volume_counts_millimetres() -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[:2], mask[3, 0, 0] = 1, 2
    assert mask_volume_mm3(mask, (0.5, 2.0, 3.0)) == pytest.approx(33 * 3.0)
    assert mask_volume_mm3(torch.from_numpy(mask)[None], (1, 1, 1), labels=[2]) == 1.0
    assert mask_volume_mm3(mask, (1, 1, 1), labels=[7]) == 0.0


def test_only_the_training_split_places_the_median() -> None:
    splits = ["train"] * 4 + ["validation", "test"]
    labels, median = split_at_training_median([1.0, 2.0, 4.0, 8.0, 3.0, 2.9], splits, ("small", "large"))
    assert median == 3.0
    assert labels == ["small", "small", "large", "large", "large", "small"]
    moved, same = split_at_training_median([1.0, 2.0, 4.0, 8.0, 300.0, -50.0], splits, ("small", "large"))
    assert same == median and moved[:4] == labels[:4]
    with pytest.raises(CohortError, match="both sides"):
        split_at_training_median([5.0, 5.0, 9.0, 1.0], ["train", "train", "train", "test"], ("small", "large"))
    with pytest.raises(CohortError, match="found none"):
        split_at_training_median([5.0], ["test"], ("small", "large"))


def test_derived_conditions_of_a_declaration() -> None:
    conditions = {
        "size": CategoryCondition(kind="category", values=("small", "large"), derive="mask_volume"),
        "sex": CategoryCondition(kind="category", values=("F", "M")),
        "age": NumberCondition(kind="number", range=(0.0, 100.0)),
    }
    assert derive_conditions(conditions, [1.0, 9.0], ["train", "train"]) == [{"size": "small"}, {"size": "large"}]
    assert derive_conditions({}, [1.0, 9.0], ["train", "train"]) == [{}, {}]
