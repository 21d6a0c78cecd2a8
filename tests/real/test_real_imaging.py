from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsynth.config.deidentify import Deidentify
from medsynth.errors import GeometryError
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.grid import resample, to_ras
from medsynth.imaging.index import index_folder
from medsynth.imaging.nifti import read_nifti
from medsynth.imaging.read import read_mask, read_scan
from medsynth.imaging.scan import affine_of, grid_distance_mm, resampled_of, spacing_mm

DATA = Path(os.environ.get("MEDSYNTH_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (DATA / "dicom").is_dir(), reason="no real scans: set MEDSYNTH_DATA to their folder"),
]


@pytest.fixture(scope="module")
def deidentifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secrets")
    folder.chmod(0o700)
    return Deidentifier(SecretKey.load_or_create(folder / "key"), Deidentify(accept_faces=True))


@pytest.fixture(scope="module")
def abdomen(deidentifier):
    return read_scan(DATA / "dicom" / "ct_abdomen_j2k", deidentifier=deidentifier)


@pytest.fixture(scope="module")
def head(deidentifier):
    return read_scan(DATA / "dicom" / "mr_t1_head", deidentifier=deidentifier)


def test_the_abdomen_has_its_size_spacing_orientation_and_hounsfield_units(abdomen):
    assert tuple(abdomen.shape) == (1, 512, 512, 20)
    assert spacing_mm(abdomen) == pytest.approx((0.9765625, 0.9765625, 2.0))
    assert nib.aff2axcodes(affine_of(abdomen)) == ("L", "P", "S")
    voxels = np.asarray(abdomen)
    assert voxels.dtype == np.int16
    assert (voxels.min(), voxels.max()) == (-1024, 1839)
    assert set(abdomen.meta) == {"modality", "unit", "affine", "space"}


def test_its_segmentation_lies_on_the_same_grid_and_on_the_organs(abdomen):
    mask = np.asarray(read_mask(DATA / "dicom" / "ct_abdomen_j2k_segmentation.nii.gz", abdomen))
    voxels = np.asarray(abdomen)
    liver = voxels[mask == 5]
    assert liver.size > 10_000
    assert 40 < np.median(liver) < 160
    # The same mask mirrored left to right no longer fits the liver: the axis order was right.
    assert voxels[np.flip(mask, axis=1) == 5].std() > 2 * liver.std()


def test_the_head_has_its_size_spacing_and_slight_tilt_to_the_axes(head):
    assert tuple(head.shape) == (1, 274, 384, 96)
    assert spacing_mm(head) == pytest.approx((0.69998783, 0.66666669, 0.66666669), abs=1e-6)
    turned = to_ras(head)
    assert nib.aff2axcodes(affine_of(turned)) == ("R", "A", "S")
    directions = affine_of(turned)[:3, :3] / spacing_mm(turned)
    assert np.degrees(np.arccos(directions[2, 2])) == pytest.approx(7.7, abs=0.1)
    assert head.meta["unit"] == "a.u."


@pytest.mark.parametrize("name", ["ct_abdomen_j2k", "mr_t1_head"])
def test_dcm2niix_agrees_in_every_voxel_and_its_place(tmp_path, name, abdomen, head):
    tool = shutil.which("dcm2niix") or shutil.which("dcm2niix", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("dcm2niix is not installed")
    subprocess.run([tool, "-z", "n", "-b", "n", "-f", "judge", "-o", tmp_path, DATA / "dicom" / name], check=True)
    judge = to_ras(read_nifti(next(tmp_path.glob("judge*.nii"))))
    ours = to_ras(abdomen if name.startswith("ct") else head)
    assert np.array_equal(np.asarray(ours), np.asarray(judge))
    assert spacing_mm(ours) == pytest.approx(spacing_mm(judge), abs=1e-3)
    # dcm2niix writes positions in float32: the farthest corner of the head moves by that much.
    assert grid_distance_mm(tuple(ours.shape[1:]), affine_of(ours), affine_of(judge)) < 1e-3 * max(ours.shape)
    assert np.allclose(affine_of(ours), affine_of(judge), atol=1e-3)


def test_the_irregular_head_is_refused_with_gaps_and_tilt(deidentifier):
    with pytest.raises(GeometryError, match=r"1\.14 to 7\.38 mm.*between slices.*tilt of 18\.5 degrees"):
        read_scan(DATA / "dicom" / "ct_head_irregular", deidentifier=deidentifier)


def test_the_irregular_head_is_resampled_on_request(deidentifier):
    scan = read_scan(DATA / "dicom" / "ct_head_irregular", deidentifier=deidentifier, irregular="resample")
    assert resampled_of(scan).startswith("gantry tilt of 18.5 degrees undone; gaps of 1.14 to 7.38 mm")
    voxels = np.asarray(scan)[0]
    assert voxels.shape[0] == 512
    assert voxels.shape[1] > 512  # the tilt moved the slices along their columns
    # Bone lies over the bone of the next slice best as it is, and worse the more the slices are moved along their columns.
    bone = voxels[:, :, 15:] > 300
    below, above = bone[:, :, :-1], bone[:, :, 1:]
    overlaps = [np.count_nonzero(below & np.roll(above, shift, axis=1)) for shift in (-6, -3, 0, 3, 6)]
    assert overlaps[0] < overlaps[1] < overlaps[2] > overlaps[3] > overlaps[4]


def test_the_index_tells_the_good_from_the_bad(deidentifier):
    rows = {row.image.name: row for row in index_folder(DATA / "dicom", deidentifier=deidentifier)}
    assert {name for name, row in rows.items() if row.usable} == {"ct_abdomen_j2k", "mr_t1_head"}
    assert rows["ct_abdomen_j2k"].mask == DATA / "dicom" / "ct_abdomen_j2k_segmentation.nii.gz"
    assert rows["ct_abdomen_j2k"].slices == 20
    assert rows["ct_abdomen_j2k"].patient == ""
    assert rows["mr_t1_head"].patient == deidentifier.patient("02")
    assert "tilt of 18.5 degrees" in rows["ct_head_irregular"].reason


def test_resampling_keeps_organs_where_they_are(abdomen):
    """Centres of organs in mm and their mean HU stay when image and mask go to a grid of 3 mm."""
    mask = read_mask(DATA / "dicom" / "ct_abdomen_j2k_segmentation.nii.gz", abdomen)
    coarse = resample(to_ras(abdomen), (3.0, 3.0, 2.0), "linear")
    coarse_mask = resample(to_ras(mask), (3.0, 3.0, 2.0), "nearest")
    for label in (5, 1):
        fine = _centre_mm(mask, label)
        assert np.abs(_centre_mm(coarse_mask, label) - fine).max() < 0.5
        before = np.asarray(abdomen)[np.asarray(mask) == label].mean()
        assert np.asarray(coarse)[np.asarray(coarse_mask) == label].mean() == pytest.approx(before, abs=4.0)


def _centre_mm(mask, label):
    places = np.argwhere(np.asarray(mask)[0] == label).mean(0)
    return (affine_of(mask) @ [*places, 1.0])[:3]


@pytest.mark.parametrize("folder", ["lidc_nodules", "hippocampus"])
def test_every_kind_of_header_among_the_crops_reads(folder):
    images = sorted((DATA / folder / "images").glob("*.nii.gz"))
    for image in images[:: max(1, len(images) // 20)]:
        scan = read_nifti(image)
        mask = read_mask(DATA / folder / "masks" / image.name, scan)
        assert np.asarray(mask).any()
