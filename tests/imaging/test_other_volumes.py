"""NRRD and MetaImage by SimpleITK; an independent writer, and headers with what they must say taken out."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from dicom_series import AsItIs, rotation

from medsynth.errors import DataError, GeometryError, UnreadableError, UsageError
from medsynth.imaging import formats
from medsynth.imaging.index import index_folder
from medsynth.imaging.nifti import read_nifti
from medsynth.imaging.read import read_mask, read_scan
from medsynth.imaging.scan import affine_of

sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (medsynth-diffusion[formats])")

NAMES = ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"]


def write(path, voxels=None, *, compressed=False):
    values = np.random.default_rng(1).integers(-1000, 2000, (4, 6, 5)).astype(np.int16) if voxels is None else voxels
    image = sitk.GetImageFromArray(values)
    if image.GetDimension() == 3:
        image.SetSpacing((0.7, 0.8, 2.5))
        image.SetOrigin((-12.0, 34.0, 56.0))
        image.SetDirection(rotation(0.2, -0.3, 0.4).ravel().tolist())
    sitk.WriteImage(image, str(path), compressed)
    return path


def read(path, **chosen):
    return read_scan(path, deidentifier=AsItIs(), **chosen)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compressed", [False, True])
def test_voxels_and_places_are_those_of_the_same_volume_as_nifti(tmp_path, name, compressed):
    path = write(tmp_path / name, compressed=compressed)
    judge = read_nifti(write(tmp_path / "judge.nii.gz"))
    scan = read(path, modality="CT")
    assert np.array_equal(np.asarray(scan), np.asarray(judge))
    assert np.allclose(affine_of(scan), affine_of(judge), atol=1e-4)
    assert (scan.dtype, scan.meta["unit"]) == (judge.dtype, "HU")


def test_they_are_rows_of_the_index_and_serve_as_masks(tmp_path):
    write(tmp_path / "a.mha")
    write(tmp_path / "a_mask.nrrd", np.random.default_rng(2).integers(0, 3, (4, 6, 5)).astype(np.uint8))
    (row,) = index_folder(tmp_path)
    assert (row.usable, row.shape, row.mask) == (True, (5, 6, 4), tmp_path / "a_mask.nrrd")
    assert row.spacing_mm == pytest.approx((0.7, 0.8, 2.5))
    mask = read_mask(row.mask, read(row.image))
    assert set(np.unique(np.asarray(mask))) == {0, 1, 2}


@pytest.mark.parametrize(
    ("name", "line", "kind"),
    [
        ("a.nrrd", b"space: left-posterior-superior\n", GeometryError),
        ("a.nrrd", b"space directions:", GeometryError),
        ("a.mha", b"ElementSpacing", GeometryError),
        ("a.mha", b"TransformMatrix", GeometryError),
        ("a.mha", b"Offset", GeometryError),
    ],
)
def test_headers_that_do_not_say_where_the_volume_lies_are_refused(tmp_path, name, line, kind):
    path = write(tmp_path / name)
    raw = path.read_bytes()
    assert line in raw
    path.write_bytes(raw.replace(line, b"Comment" + line[len(b"Comment") :], 1))
    with pytest.raises(kind, match="convert it from DICOM again"):
        read(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_unreadable(tmp_path, name, share):
    path = write(tmp_path / name)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(DataError):
        read(path)


def test_what_is_no_volume_of_real_numbers_is_refused(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((4, 6, 5, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "colour.mha"))
    with pytest.raises(DataError, match="one real number per voxel"):
        read(tmp_path / "colour.mha")
    sitk.WriteImage(
        sitk.GetImageFromArray(np.zeros((2, 4, 6, 5), np.int16), isVector=False), str(tmp_path / "four.mha")
    )
    with pytest.raises(DataError, match="4 axes"):
        read(tmp_path / "four.mha")


def test_sizes_that_lie_take_no_memory(tmp_path):
    path = write(tmp_path / "a.mha")
    path.write_bytes(path.read_bytes().replace(b"DimSize = 5 6 4", b"DimSize = 50000 60000 4000"))
    with pytest.raises(UnreadableError, match="too short"):
        read(path)


def test_voxels_in_a_file_elsewhere_are_not_fetched(tmp_path):
    path = write(tmp_path / "a.mhd")
    (tmp_path / "inside").mkdir()
    path = path.rename(tmp_path / "inside" / "a.mhd")
    path.write_text(path.read_text().replace("ElementDataFile = a.raw", "ElementDataFile = ../a.raw"))
    with pytest.raises(UnreadableError, match="beside the header"):
        read(path)


def test_without_the_package_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.nrrd")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'medsynth-diffusion\[formats\]'"):
        read(path)
    (row,) = index_folder(tmp_path)
    assert not row.usable
    assert "pip install" in row.reason
    assert formats.is_other_volume(path)
