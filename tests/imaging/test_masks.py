from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_series import MR, stored_values, write_series

from medsynth.imaging.describe import NAMES, description_class
from medsynth.imaging.index import LONE_MASK, OTHER_GRID, index_folder, write_index
from medsynth.imaging.masks import images_of, looks_like_mask, stem_of


def volume(path, shape=(4, 5, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)).to_filename(path)
    return path


@pytest.mark.parametrize(
    ("mask", "image"),
    [
        ("a_seg.nii.gz", "a.nii.gz"),
        ("a-Mask.nii", "a.nii.gz"),
        ("a.label.nii.gz", "a.nii"),
        ("labels/a.nii.gz", "images/a.nii.gz"),
        ("labelsTr/a.nii.gz", "imagesTr/a_0000.nii.gz"),
        ("masks/a.nii.gz", "a.nii.gz"),
        ("masks/a_mask.nii.gz", "images/a.nii.gz"),
    ],
)
def test_a_mask_is_put_beside_the_image_of_its_name(tmp_path, mask, image):
    volume(tmp_path / mask)
    volume(tmp_path / image)
    volume(tmp_path / "b.nii.gz")
    rows = index_folder(tmp_path)
    assert {row.image: row.mask for row in rows} == {
        tmp_path / image: tmp_path / mask,
        tmp_path / "b.nii.gz": None,
    }
    write_index(rows, tmp_path / "cohort.csv")
    with (tmp_path / "cohort.csv").open(newline="") as file:
        assert {row["image"]: row["mask"] for row in csv.DictReader(file)} == {image: mask, "b.nii.gz": ""}


def test_the_image_may_be_a_folder_with_a_series(tmp_path):
    write_series(tmp_path / "ct", stored_values(4))
    mask = volume(tmp_path / "ct_segmentation.nii.gz", (7, 5, 4))
    (row,) = index_folder(tmp_path)
    assert row.mask == mask


def test_a_mask_without_one_clear_image_is_a_row_that_is_not_usable(tmp_path):
    volume(tmp_path / "a.nii.gz")
    volume(tmp_path / "a_seg.nii.gz")
    volume(tmp_path / "a_mask.nii.gz")
    volume(tmp_path / "lonely_seg.nii.gz")
    volume(tmp_path / "c.nii.gz")
    volume(tmp_path / "c_seg.nii.gz", (4, 5, 7))
    rows = {row.image.name: row for row in index_folder(tmp_path)}
    assert rows["a.nii.gz"].mask is None
    assert {rows[name].reason for name in ("a_seg.nii.gz", "a_mask.nii.gz", "lonely_seg.nii.gz")} == {LONE_MASK}
    assert rows["c_seg.nii.gz"].reason == OTHER_GRID
    assert {name for name, row in rows.items() if row.usable} == {"a.nii.gz", "c.nii.gz"}


def test_names_alone_decide_and_words_stand_alone():
    assert looks_like_mask(Path("x/a_seg.nii"))
    assert looks_like_mask(Path("masks/a.nii"))
    assert not looks_like_mask(Path("x/segment.nii"))
    assert not looks_like_mask(Path("x/mask.nii"))  # of nothing
    assert not looks_like_mask(Path("masked/a.nii"))
    assert stem_of(Path("x/a.b.nii.gz")) == "a.b"
    assert images_of([Path("labels/a.nii")], [Path("one/a.nii"), Path("two/a.nii")]) == {Path("labels/a.nii"): None}


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        ((b"ORIGINAL\\PRIMARY\\LOCALIZER", b"", b""), "localizer"),
        ((b"ORIGINAL\\PRIMARY\\M", b"AX T1 MPRAGE", b""), "t1"),
        ((b"ORIGINAL\\PRIMARY\\M", b"t2_tse_tra", b""), "t2"),
        ((b"ORIGINAL\\PRIMARY", b"T2W FLAIR cor", b""), "flair"),
        ((b"DERIVED\\PRIMARY\\ADC", b"ep2d diff", b""), "adc"),
        ((b"ORIGINAL\\PRIMARY\\DIFFUSION", b"", b""), "dwi"),
        ((b"", b"", b"TOF_3D_multi-slab"), "angiography"),
        ((b"", b"ax t2* gre", b""), "t2star"),
        ((b"DERIVED\\SECONDARY\\AXIAL", b"", b"Abdomen"), "axial"),
        ((b"DERIVED\\SECONDARY", b"", b"Abdomen"), "derived"),
        ((b"ORIGINAL\\PRIMARY", b"Nora's head", b""), "other"),
        ((b"\xff\xfe", b"\xe4rzte", b""), "other"),
    ],
)
def test_a_description_becomes_one_word_of_a_small_set(texts, name):
    assert description_class(*texts) == name
    assert name in NAMES


def test_the_index_names_the_class_and_never_the_description(tmp_path):
    def describe(dataset, k):
        dataset.SeriesDescription = "t2 of Nora Nobody"

    write_series(tmp_path / "mr", stored_values(4), kind=MR, edit=describe)
    rows = index_folder(tmp_path / "mr")
    assert rows[0].description == "t2"
    write_index(rows, tmp_path / "cohort.csv")
    assert "Nora" not in (tmp_path / "cohort.csv").read_text()
