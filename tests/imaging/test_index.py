from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest
from dicom_series import MR, AsItIs, stored_values, write_enhanced, write_series

from medsynth.errors import UnreadableError
from medsynth.imaging.index import COLUMNS, index_folder, write_index
from medsynth.imaging.read import read_scan
from medsynth.imaging.scan import spacing_mm


def cohort(folder):
    write_series(folder / "ct", stored_values(4), uid="1.2.1")
    write_series(folder / "mr", stored_values(5), uid="1.2.2", kind=MR)
    gap = write_series(folder / "gap", stored_values(6), uid="1.2.3")
    gap[2].unlink()
    write_enhanced(folder / "enhanced.dcm", stored_values(3))
    (folder / "words.dcm").write_text("plain words")
    nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([1.0, 2.0, 3.0, 1.0])).to_filename(folder / "a.nii.gz")
    nib.Nifti1Image(np.zeros((4, 5, 6, 7), np.int16), np.eye(4)).to_filename(folder / "b.nii.gz")


def test_one_row_per_series_and_file_with_its_geometry_or_its_fault(tmp_path):
    cohort(tmp_path)
    rows = {row.image.name: row for row in index_folder(tmp_path, deidentifier=AsItIs())}
    assert set(rows) == {"ct", "mr", "gap", "enhanced.dcm", "a.nii.gz", "b.nii.gz"}
    assert {name for name, row in rows.items() if row.usable} == {"ct", "mr", "enhanced.dcm", "a.nii.gz"}
    assert (rows["ct"].modality, rows["ct"].shape, rows["ct"].slices) == ("CT", (7, 5, 4), 4)
    assert rows["ct"].spacing_mm == pytest.approx((0.5, 0.8, 2.0))
    assert rows["ct"].patient == "P-13"
    assert "4.00 mm between slices" in rows["gap"].reason
    assert rows["gap"].slices == 5
    assert rows["enhanced.dcm"].shape == (7, 5, 3)
    assert rows["a.nii.gz"].spacing_mm == (1.0, 2.0, 3.0)
    assert rows["a.nii.gz"].patient == ""
    assert "one file per volume" in rows["b.nii.gz"].reason


def test_usable_rows_read_as_the_index_says(tmp_path):
    cohort(tmp_path)
    for row in index_folder(tmp_path):
        if row.usable:
            scan = read_scan(row.image, deidentifier=AsItIs(), series_uid=row.series)
            assert tuple(scan.shape[1:]) == row.shape
            assert spacing_mm(scan) == pytest.approx(row.spacing_mm)


def test_without_a_key_patients_are_numbered(tmp_path):
    def other(dataset, k):
        dataset.PatientID = "INVENTED-42"

    def nobody(dataset, k):
        dataset.PatientID = ""

    write_series(tmp_path / "a", stored_values(4), uid="1.2.1")
    write_series(tmp_path / "b", stored_values(4), uid="1.2.2", edit=other)
    write_series(tmp_path / "c", stored_values(4), uid="1.2.3")
    write_series(tmp_path / "d", stored_values(4), uid="1.2.4", edit=nobody)
    assert [row.patient for row in index_folder(tmp_path)] == ["P1", "P2", "P1", ""]


def test_the_table_is_ready_for_labels_and_names_nobody(tmp_path):
    cohort(tmp_path / "data")
    write_index(index_folder(tmp_path / "data"), tmp_path / "cohort.csv")
    text = (tmp_path / "cohort.csv").read_text()
    assert "INVENTED" not in text
    assert "Nora" not in text
    with (tmp_path / "cohort.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == (list(COLUMNS))
    by_image = {row["image"]: row for row in rows}
    assert by_image["data/ct"]["shape"] == "7x5x4"
    assert by_image["data/ct"]["spacing_mm"] == "0.5x0.8x2"
    assert by_image["data/ct"]["series"] == "1.2.1"
    assert (by_image["data/gap"]["usable"], by_image["data/ct"]["usable"]) == ("no", "yes")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_series_that_could_not_be_found_again_is_not_usable(tmp_path):
    write_series(tmp_path, stored_values(4), uid="", prefix="a")
    write_series(tmp_path, stored_values(4), uid="1.2.9", prefix="b")
    rows = {row.series: row for row in index_folder(tmp_path)}
    assert "folder of its own" in rows[""].reason
    assert rows["1.2.9"].usable


def test_a_folder_without_scans_says_so(tmp_path):
    with pytest.raises(UnreadableError, match="found none"):
        index_folder(tmp_path)
    with pytest.raises(UnreadableError, match="check the path"):
        index_folder(tmp_path / "missing")
