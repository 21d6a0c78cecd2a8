from __future__ import annotations

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import rotation

from medsynth.errors import DataError, GeometryError, UnreadableError
from medsynth.imaging.grid import resample
from medsynth.imaging.nifti import read_nifti, write_nifti
from medsynth.imaging.read import read_mask
from medsynth.imaging.scan import affine_of, make_scan


def oblique_affine(spacing=(0.7, 0.8, 2.5), origin=(-12.0, 34.0, 56.0)):
    affine = np.eye(4)
    affine[:3, :3] = rotation(0.2, -0.3, 0.4) * np.array(spacing)
    affine[:3, 3] = origin
    return affine


def volume(dtype, shape=(5, 6, 4)):
    values = np.random.default_rng(1).integers(0, 200, shape)
    return values.astype(dtype)


def save(path, voxels, affine=None):
    nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine).to_filename(path)
    return path


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_what_is_written_is_what_is_read(tmp_path, name, dtype):
    scan = make_scan(volume(dtype) - (100 if dtype != np.uint8 else 0), oblique_affine(), modality="CT", unit="HU")
    write_nifti(scan, tmp_path / name)
    back = read_nifti(tmp_path / name, modality="CT")
    assert np.array_equal(np.asarray(back), np.asarray(scan))
    assert back.dtype == scan.dtype
    assert np.allclose(affine_of(back), affine_of(scan), atol=1e-5)
    assert back.meta["unit"] == "HU"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_written_header_is_new_and_complete(tmp_path):
    scan = make_scan(volume(np.int16), oblique_affine(), modality="CT", unit="HU")
    scan.meta["PatientName"] = "Nora"
    write_nifti(scan, tmp_path / "a.nii.gz", description="SYNTHETIC")
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header["descrip"].item() == b"SYNTHETIC"
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    assert np.allclose(header.get_sform(), header.get_qform(), atol=1e-5)
    assert not header.extensions
    plain = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    assert b"Nora" not in plain


def test_equal_scans_give_equal_bytes_whatever_the_name_and_time(tmp_path):
    scan = make_scan(volume(np.int16), oblique_affine(), modality="CT", unit="HU")
    write_nifti(scan, tmp_path / "nora.nii.gz")
    write_nifti(scan, tmp_path / "b.nii.gz")
    written = (tmp_path / "nora.nii.gz").read_bytes()
    assert written == (tmp_path / "b.nii.gz").read_bytes()
    assert written[4:8] == bytes(4)
    assert b"nora" not in written


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    scan = make_scan(volume(np.int16), np.eye(4), modality="", unit="")
    (tmp_path / "a.nii").write_bytes(b"before")

    def full(self, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", full)
    with pytest.raises(OSError, match="No space"):
        write_nifti(scan, tmp_path / "a.nii")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]
    assert (tmp_path / "a.nii").read_bytes() == b"before"


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(DataError, match="int16, uint8, float32, found float64"):
        write_nifti(
            make_scan(torch.zeros(2, 2, 2, dtype=torch.float64), np.eye(4), modality="", unit=""), tmp_path / "a.nii"
        )
    with pytest.raises(DataError, match="found 2"):
        write_nifti(make_scan(torch.zeros(2, 2, 2, 2), np.eye(4), modality="", unit=""), tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"\.nii or \.nii\.gz"):
        write_nifti(make_scan(torch.zeros(2, 2, 2), np.eye(4), modality="", unit=""), tmp_path / "a.img")


@pytest.mark.parametrize(
    ("given", "read"),
    [(np.uint8, np.uint8), (np.int32, np.int16), (np.uint16, np.int16), (np.float64, np.float32), (np.int8, np.int16)],
)
def test_types_shrink_only_where_that_is_exact(tmp_path, given, read):
    voxels = volume(given) // (2 if given == np.int8 else 1)
    scan = read_nifti(save(tmp_path / "a.nii", voxels))
    assert np.asarray(scan).dtype == read
    assert np.array_equal(np.asarray(scan)[0], voxels)


def test_large_integers_and_scaled_ones_become_float32(tmp_path):
    voxels = volume(np.int32)
    voxels[0, 0, 0] = 1_700_000
    assert np.array_equal(np.asarray(read_nifti(save(tmp_path / "a.nii", voxels)))[0], voxels.astype(np.float32))
    image = nib.Nifti1Image(volume(np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, -3.0)
    image.to_filename(tmp_path / "b.nii")
    stored = np.asanyarray(nib.load(tmp_path / "b.nii").dataobj.get_unscaled())
    assert np.allclose(np.asarray(read_nifti(tmp_path / "b.nii"))[0], stored * 0.5 - 3.0)


def test_a_last_axis_of_one_is_dropped(tmp_path):
    voxels = volume(np.int16)
    assert np.array_equal(np.asarray(read_nifti(save(tmp_path / "a.nii", voxels[..., None])))[0], voxels)


def test_units_of_the_header_are_honoured(tmp_path):
    image = nib.Nifti1Image(volume(np.int16), np.diag([0.001, 0.002, 0.003, 1.0]))
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "a.nii")
    assert np.allclose(affine_of(read_nifti(tmp_path / "a.nii")), np.diag([1, 2, 3, 1]))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
def test_truncated_files_are_unreadable(tmp_path, name, share):
    path = save(tmp_path / name, np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadableError, match="again"):
        read_nifti(path)


def test_other_bytes_are_unreadable(tmp_path):
    (tmp_path / "a.nii.gz").write_text("plain words")
    (tmp_path / "b.nii").write_text("plain words " * 100)
    for name in ("a.nii.gz", "b.nii"):
        with pytest.raises(UnreadableError, match="not a NIfTI file"):
            read_nifti(tmp_path / name)
    with pytest.raises(UnreadableError, match="check the path"):
        read_nifti(tmp_path / "missing.nii")


def test_what_is_no_volume_of_real_numbers_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"\(5, 6, 4, 3\); write one file per volume"):
        read_nifti(save(tmp_path / "a.nii", volume(np.int16, (5, 6, 4, 3))))
    with pytest.raises(DataError, match=r"one 3-D volume, found the shape \(5, 6\)"):
        read_nifti(save(tmp_path / "b.nii", volume(np.int16, (5, 6))))
    with pytest.raises(DataError, match="found complex"):
        read_nifti(save(tmp_path / "c.nii", volume(np.complex64)))
    colour = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DataError, match="found colour"):
        read_nifti(save(tmp_path / "d.nii", colour))
    broken = volume(np.float32)
    broken[0, 0, :2] = np.nan, np.inf
    with pytest.raises(DataError, match="found 2 that are NaN or infinite"):
        read_nifti(save(tmp_path / "e.nii", broken))


def test_headers_without_a_trustworthy_place_are_refused(tmp_path):
    with pytest.raises(GeometryError, match="neither sform nor qform"):
        formless = nib.Nifti1Image(volume(np.int16), None)
        formless.to_filename(tmp_path / "a.nii")
        read_nifti(tmp_path / "a.nii")
    zero = save(tmp_path / "b.nii", volume(np.int16))
    raw = bytearray(zero.read_bytes())
    raw[80:84] = np.float32(0).tobytes()
    zero.write_bytes(raw)
    with pytest.raises(GeometryError, match="found 0 x 1 x 1 mm"):
        read_nifti(zero)
    raw[80:84] = np.float32(2).tobytes()
    zero.write_bytes(raw)
    with pytest.raises(GeometryError, match="two voxel sizes, 2 x 1 x 1 mm and"):
        read_nifti(zero)
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    with pytest.raises(GeometryError, match="shear"):
        read_nifti(save(tmp_path / "c.nii", volume(np.int16), sheared))


def test_two_forms_must_place_the_volume_alike(tmp_path):
    image = nib.Nifti1Image(volume(np.int16), oblique_affine())
    image.set_sform(oblique_affine(), code="scanner")
    image.set_qform(oblique_affine(), code="scanner")
    image.to_filename(tmp_path / "a.nii")
    assert np.allclose(affine_of(read_nifti(tmp_path / "a.nii")), oblique_affine(), atol=1e-5)
    image.set_qform(oblique_affine(origin=(-12.0, 44.0, 56.0)), code="scanner")
    image.to_filename(tmp_path / "b.nii")
    with pytest.raises(GeometryError, match=r"up to 10 mm apart; set the code of the wrong one to 0"):
        read_nifti(tmp_path / "b.nii")
    image.set_qform(oblique_affine(), code="unknown")
    image.to_filename(tmp_path / "c.nii")
    assert np.allclose(affine_of(read_nifti(tmp_path / "c.nii")), oblique_affine(), atol=1e-5)
    flipped = nib.Nifti1Image(volume(np.int16), oblique_affine())
    flipped.set_sform(oblique_affine() @ np.diag([-1.0, 1, 1, 1]), code="aligned")
    flipped.set_qform(oblique_affine(), code="scanner")
    flipped.to_filename(tmp_path / "d.nii.gz")
    with pytest.raises(GeometryError, match="mm apart"):
        read_nifti(tmp_path / "d.nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_2_reads_like_nifti_1(tmp_path, name):
    nib.Nifti2Image(volume(np.int16), oblique_affine()).to_filename(tmp_path / name)
    scan = read_nifti(tmp_path / name)
    assert np.array_equal(np.asarray(scan)[0], volume(np.int16))
    assert np.allclose(affine_of(scan), oblique_affine())


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("sizes", [(6, 6, 4), (5, 6, 32000), (32000, 32000, 32000)])
def test_dimensions_that_claim_more_voxels_than_there_are_take_no_memory(tmp_path, name, sizes):
    save(tmp_path / "a.nii", volume(np.int16))
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[42:48] = np.array(sizes, np.int16).tobytes()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else bytes(raw))
    tracemalloc.start()
    with pytest.raises(UnreadableError, match=r"too short for them|too early"):
        read_nifti(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20


def test_names_of_files_stay_out_of_messages(tmp_path):
    (tmp_path / "Nobody_Nora.nii.gz").write_text("plain words")
    with pytest.raises(UnreadableError) as raised:
        read_nifti(tmp_path / "Nobody_Nora.nii.gz")
    assert "Nora" not in str(raised.value)


def like():
    return make_scan(volume(np.int16), oblique_affine(), modality="CT", unit="HU")


def test_a_mask_in_another_axis_order_is_turned_voxel_for_voxel(tmp_path):
    labels = np.random.default_rng(2).integers(0, 4, (5, 6, 4)).astype(np.uint8)
    affine = oblique_affine()
    flip = np.diag([-1.0, 1.0, -1.0, 1.0])
    flip[:3, 3] = [4, 0, 3]
    turned = labels[::-1, :, ::-1].transpose(1, 0, 2)
    swap = np.eye(4)[:, [1, 0, 2, 3]]
    save(tmp_path / "mask.nii.gz", turned, affine @ flip @ swap)
    mask = read_mask(tmp_path / "mask.nii.gz", like())
    assert mask.dtype == torch.uint8
    assert np.array_equal(np.asarray(mask)[0], labels)
    assert np.allclose(affine_of(mask), affine, atol=1e-5)


def test_a_mask_whose_spacing_differs_by_a_rounding_error_is_resampled_to_the_same_grid(tmp_path):
    """5 voxels of 0.7 mm at 1 mm are 3.5, of which one affine's error makes 3 and the other's 4."""
    scan = make_scan(volume(np.int16), np.diag([0.7 * (1 - 1e-7), 0.7, 0.7, 1.0]), modality="CT", unit="HU")
    labels = np.zeros((5, 6, 4), np.uint8)
    mask = read_mask(save(tmp_path / "mask.nii", labels, np.diag([0.7 * (1 + 1e-7), 0.7, 0.7, 1.0])), scan)
    image, resampled = resample(scan, (1.0, 1.0, 1.0), "linear"), resample(mask, (1.0, 1.0, 1.0), "nearest")
    assert image.shape == resampled.shape
    assert np.array_equal(affine_of(image), affine_of(resampled))


def test_masks_on_another_grid_are_refused(tmp_path):
    labels = volume(np.uint8)
    moved = oblique_affine(origin=(-12.0, 34.01, 56.0))
    with pytest.raises(GeometryError, match=r"up to 0\.01 mm away"):
        read_mask(save(tmp_path / "a.nii", labels, moved), like())
    with pytest.raises(GeometryError, match=r"size \(5, 6, 4\), found \(5, 6, 5\)"):
        read_mask(save(tmp_path / "b.nii", volume(np.uint8, (5, 6, 5)), oblique_affine()), like())


def test_masks_hold_whole_numbers(tmp_path):
    whole = read_mask(save(tmp_path / "a.nii", volume(np.float32), oblique_affine()), like())
    assert np.array_equal(np.asarray(whole)[0], volume(np.uint8))
    for number, voxels in enumerate([volume(np.float32) + 0.5, volume(np.int16) - 100, volume(np.int16) + 100]):
        with pytest.raises(DataError, match="whole numbers from 0 to 254"):
            read_mask(save(tmp_path / f"{number}.nii", voxels, oblique_affine()), like())
