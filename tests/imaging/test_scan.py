from __future__ import annotations

import numpy as np
import pytest
import torch

from medsynth.errors import DataError, GeometryError
from medsynth.imaging.scan import affine_of, check_affine, make_scan, same_grid, shear_degrees, spacing_mm, world_mm


def test_a_scan_holds_its_voxels_its_affine_and_two_words():
    affine = np.diag([2.0, -3.0, 4.0, 1.0])
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    scan = make_scan(voxels, affine, modality="CT", unit="HU")
    assert scan.shape == (1, 2, 3, 4)
    assert scan.dtype == torch.int16
    assert np.array_equal(np.asarray(scan)[0], voxels)
    assert np.array_equal(affine_of(scan), affine)
    assert set(scan.meta) == {"modality", "unit", "affine", "space"}
    assert spacing_mm(scan) == (2.0, 3.0, 4.0)


def test_meta_of_another_scan_never_travels_along():
    scan = make_scan(np.zeros((2, 2, 2), np.float32), np.eye(4), modality="MR", unit="a.u.")
    scan.meta["PatientName"] = "Nora"
    assert "PatientName" not in make_scan(scan, np.eye(4), modality="MR", unit="a.u.").meta
    assert "PatientName" not in same_grid(scan, scan).meta


def test_same_grid_keeps_the_grid_and_checks_the_size():
    scan = make_scan(np.zeros((2, 3, 4), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]), modality="CT", unit="HU")
    other = same_grid(scan, torch.ones(3, 2, 3, 4), unit="a.u.")
    assert other.shape == (3, 2, 3, 4)
    assert other.meta["modality"] == "CT"
    assert other.meta["unit"] == "a.u."
    assert np.array_equal(affine_of(other), affine_of(scan))
    with pytest.raises(GeometryError, match=r"grid of \(2, 3, 4\), found \(2, 4, 3\)"):
        same_grid(scan, torch.ones(2, 4, 3))


@pytest.mark.parametrize("shape", [(3, 4), (0, 3, 4), (1, 1, 2, 3, 4)])
def test_voxels_must_be_one_volume(shape):
    with pytest.raises(DataError, match="no empty axis"):
        make_scan(np.zeros(shape, np.float32), np.eye(4), modality="", unit="")


def test_affines_that_are_no_regular_grid_are_refused():
    tilted = np.eye(4)
    tilted[1, 2] = np.tan(np.radians(10.0))
    assert shear_degrees(tilted) == pytest.approx(10.0)
    with pytest.raises(GeometryError, match=r"shear of 10\.0 degrees"):
        check_affine(tilted)
    with pytest.raises(GeometryError, match="found 1 x 0 x 1 mm"):
        check_affine(np.diag([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(GeometryError, match="finite 4 x 4"):
        check_affine(np.full((4, 4), np.nan))
    with pytest.raises(GeometryError, match="finite 4 x 4"):
        check_affine(np.eye(3))


def test_world_positions_follow_the_affine():
    affine = np.array([[0, 2.0, 0, 5], [-1.0, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    assert world_mm(affine, [[1, 2, 3], [0, 0, 0]]).tolist() == [[9, 5, 16], [5, 6, 7]]
