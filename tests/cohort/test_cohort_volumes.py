"""Prepared files as tensors: in memory and mapped, the same numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medsynth.cohort.manifest import Case, Manifest
from medsynth.cohort.volumes import load_mask, load_volume, load_volumes
from medsynth.config.cohort import HuWindow
from medsynth.digests import file_sha256
from medsynth.errors import CohortError, UnreadableError
from medsynth.imaging.intensity import IntensityRule

RULE = IntensityRule.from_settings(HuWindow(kind="hu_window", low=-1000.0, high=400.0))


@pytest.fixture
def prepared(tmp_path: Path) -> Manifest:
    generator = np.random.default_rng(0)
    cases = []
    for number in range(5):
        voxels = generator.integers(-1200, 600, (4, 5, 6)).astype(np.int16)
        mask = (voxels > 0).astype(np.uint8)
        for name, array in (("image", voxels), ("mask", mask)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}{number}.nii")
        path = tmp_path / f"image{number}.nii"
        cases.append(
            Case(
                f"C{number}",
                f"P{number}",
                "real",
                "train",
                path.name,
                f"mask{number}.nii",
                "CT",
                (4, 5, 6),
                (1.0, 1.0, 1.0),
                file_sha256(path),
                -1000.0,
                400.0,
                {},
            )
        )
    return Manifest(tmp_path, tuple(cases), {})


def test_one_volume_against_the_formula(prepared: Manifest) -> None:
    case = prepared.cases[0]
    raw = np.asarray(nibabel.load(prepared.image_path(case)).dataobj).astype(np.float64)
    volume = load_volume(prepared, case, RULE)
    assert volume.shape == (1, 4, 5, 6) and volume.dtype == torch.float32 and type(volume) is torch.Tensor
    np.testing.assert_allclose(volume[0], np.clip((raw + 1000) / 700 - 1, -1, 1), atol=1e-6)
    mask = load_mask(prepared, case)
    assert mask.dtype == torch.uint8
    np.testing.assert_array_equal(mask[0], raw > 0)


def test_each_case_is_normalised_by_its_own_limits(prepared: Manifest) -> None:
    case = dataclasses.replace(prepared.cases[0], intensity_low=0.0, intensity_high=200.0)
    raw = np.asarray(nibabel.load(prepared.image_path(case)).dataobj)
    volume = load_volume(prepared, case, RULE)[0].numpy()
    np.testing.assert_array_equal(volume == -1, raw <= 0)
    np.testing.assert_array_equal(volume == 1, raw >= 200)


def test_mapped_volumes_equal_those_in_memory_and_leave_no_file(prepared: Manifest, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    memory = load_volumes(prepared, RULE)
    mapped = load_volumes(prepared, RULE, in_memory=False, cache=cache)
    assert memory.volumes.shape == mapped.volumes.shape == (5, 1, 4, 5, 6) and len(memory) == 5
    assert torch.equal(memory.volumes, mapped.volumes)
    assert memory.masks is not None and mapped.masks is not None
    assert torch.equal(memory.masks, mapped.masks) and mapped.masks.dtype == torch.uint8
    assert list(cache.iterdir()) == []
    assert torch.equal(memory.volumes[3], load_volume(prepared, prepared.cases[3], RULE))
    assert memory.cases == prepared.cases


def test_sets_that_do_not_fit_together(prepared: Manifest) -> None:
    bare = tuple(dataclasses.replace(case, mask="") for case in prepared.cases)
    assert load_volumes(dataclasses.replace(prepared, cases=bare), RULE).masks is None
    with pytest.raises(CohortError, match="for all cases or for none, found 4 of 5"):
        load_volumes(dataclasses.replace(prepared, cases=(bare[0], *prepared.cases[1:])), RULE)
    other = dataclasses.replace(prepared.cases[0], shape=(9, 9, 9))
    with pytest.raises(CohortError, match="found 2 sizes"):
        load_volumes(dataclasses.replace(prepared, cases=(other, *prepared.cases[1:])), RULE)
    with pytest.raises(UnreadableError, match="expected a mask"):
        load_mask(prepared, bare[0])


def test_broken_files_are_named_by_case(prepared: Manifest) -> None:
    case = prepared.cases[2]
    path = prepared.image_path(case)
    for damage in (path.read_bytes()[:400], b"", b"text"):
        path.write_bytes(damage)
        with pytest.raises(UnreadableError, match=r"case C2: expected the file image2\.nii"):
            load_volume(prepared, case, RULE)
    path.unlink()
    with pytest.raises(UnreadableError, match="case C2"):
        load_volume(prepared, case, RULE)
    with pytest.raises(UnreadableError, match=r"\(4, 5, 7\), found \(4, 5, 6\)"):
        load_volume(prepared, dataclasses.replace(prepared.cases[0], shape=(4, 5, 7)), RULE)
