"""What is wrong with scans and tables, told through the command line: exit code, one or two lines, nothing half-written,
nobody named."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from ward import DICOM_ROWS, PATIENTS, Ward, leaks

DICOM, NIFTI = DICOM_ROWS[1], DICOM_ROWS.stop + 1
Spoil = Callable[[Ward], None]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def whole(workspace: Path) -> bool:
    """Whether nothing half-written can be taken for a result: each stage's folder is whole or not there."""
    folders = [path for path in workspace.iterdir() if path.is_dir() and not path.name.startswith(".")]
    stages = [path for path in folders if path.name not in ("secrets", "artifacts", "source")]
    strays = [path for path in workspace.rglob("*") if path.name.endswith((".part", ".tmp"))]
    return all((path / "stage.json").exists() for path in stages) and not strays


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """The same NIfTI file with other voxels."""
    image = nibabel.load(path)
    voxels = change(np.asarray(image.dataobj))
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)


# --- scans that cannot be used: each is left out, the others go through -----------------------------------------------


def text_named_dcm(ward: Ward) -> None:
    folder = ward.image(DICOM)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "IM0001.dcm").write_text("these are not the scans of KOWALCZYK JADWIGA")


def empty_folder(ward: Ward) -> None:
    shutil.rmtree(ward.image(DICOM))
    ward.image(DICOM).mkdir()


def truncated_dicom(ward: Ward) -> None:
    path = sorted(ward.image(DICOM).iterdir())[7]
    path.write_bytes(path.read_bytes()[:-200])


def header_cut_short(ward: Ward) -> None:
    path = sorted(ward.image(DICOM).iterdir())[7]
    path.write_bytes(path.read_bytes()[:700])


def missing_slice(ward: Ward) -> None:
    sorted(ward.image(DICOM).iterdir())[7].unlink()


def truncated_nifti(ward: Ward) -> None:
    path = ward.image(NIFTI)
    path.write_bytes(path.read_bytes()[:-3000])


def not_gzip(ward: Ward) -> None:
    ward.image(NIFTI).write_bytes(b"KOWALCZYK JADWIGA, this is no gzip file" * 20)


def header_alone(ward: Ward) -> None:
    raw = gzip.decompress(ward.image(NIFTI).read_bytes())
    ward.image(NIFTI).write_bytes(gzip.compress(raw[:352]))


def empty_file(ward: Ward) -> None:
    ward.image(NIFTI).write_bytes(b"")


def four_axes(ward: Ward) -> None:
    rewrite(ward.image(NIFTI), lambda voxels: np.stack([voxels, voxels], axis=-1))


def nan_voxels(ward: Ward) -> None:
    def spoil(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(np.float32)
        voxels[3, 4, 5] = np.nan
        return voxels

    rewrite(ward.image(NIFTI), spoil)


def constant_volume(ward: Ward) -> None:
    rewrite(ward.image(NIFTI), lambda voxels: np.full_like(voxels, 40))


def mask_of_another_shape(ward: Ward) -> None:
    rewrite(ward.mask(NIFTI), lambda voxels: voxels[:-2])


def mask_elsewhere(ward: Ward) -> None:
    image = nibabel.load(ward.mask(NIFTI))
    affine = image.affine.copy()
    affine[:3, 3] += 20
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), ward.mask(NIFTI))


def mask_with_an_unknown_label(ward: Ward) -> None:
    rewrite(ward.mask(NIFTI), lambda voxels: voxels * 7)


def truncated_mask(ward: Ward) -> None:
    path = ward.mask(NIFTI)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_SCANS: list[tuple[Spoil, int, str]] = [
    (text_named_dcm, DICOM, "not a DICOM file"),
    (empty_folder, DICOM, "the folder is empty"),
    (truncated_dicom, DICOM, "ends before its pixels do"),
    (header_cut_short, DICOM, "damaged"),
    (missing_slice, DICOM, "expected equal gaps"),
    (truncated_nifti, NIFTI, "end too early or are damaged"),
    (not_gzip, NIFTI, "not a NIfTI file"),
    (header_alone, NIFTI, "found a file too short for them"),
    (empty_file, NIFTI, "not a NIfTI file"),
    (four_axes, NIFTI, "expected one 3-D volume"),
    (nan_voxels, NIFTI, "1 that are NaN or infinite"),
    (constant_volume, NIFTI, "the same value in every voxel"),
    (mask_of_another_shape, NIFTI, "expected a mask of the scan's size"),
    (mask_elsewhere, NIFTI, "expected a mask on the scan's grid"),
    (mask_with_an_unknown_label, NIFTI, "found [7]"),
    (truncated_mask, NIFTI, "damaged"),
]


@pytest.mark.parametrize(("spoil", "row", "reason"), BAD_SCANS, ids=[spoil.__name__ for spoil, _, _ in BAD_SCANS])
def test_a_bad_scan_is_left_out_with_its_reason(
    spoil: Spoil, row: int, reason: str, ward: Ward, fresh: Path, medsynth: Any
) -> None:
    names = ward.identities()
    spoil(ward)
    outcome = medsynth("prepare", ward.pipeline, "--workspace", fresh)
    assert outcome.code == 3, outcome.err
    assert len(outcome.errors) == 1
    assert "cases left out: 1;" in outcome.errors[0]
    (left_out,) = rows_of(fresh / "prepare" / "left_out.csv")
    assert left_out["row"] == str(row + 2)  # as an editor counts, with the first line
    assert reason in left_out["reason"]
    assert left_out["reason"] in outcome.err
    assert "\n" not in left_out["reason"]
    assert len(rows_of(fresh / "prepare" / "manifest.csv")) == PATIENTS - 1
    assert len(list((fresh / "prepare" / "images").iterdir())) == PATIENTS - 1
    assert whole(fresh)
    assert not leaks(names, outcome.out, outcome.err, folder=fresh)


def test_on_bad_case_stop_stops(ward: Ward, fresh: Path, medsynth: Any) -> None:
    names = ward.identities()
    nan_voxels(ward)
    outcome = medsynth("prepare", ward.pipeline, "--workspace", fresh, "--set", "prepare.on_bad_case=stop", "-q")
    assert outcome.code == 3
    assert len(outcome.err.splitlines()) == 1
    assert f"row {NIFTI + 2}" in outcome.err
    assert not (fresh / "prepare").exists()
    assert whole(fresh)
    assert not leaks(names, outcome.out, outcome.err, folder=fresh)


def test_no_usable_scan_at_all(ward: Ward, fresh: Path, medsynth: Any) -> None:
    names = ward.identities()
    for path in ward.folder.rglob("*"):
        if path.is_file() and (path.suffix == ".dcm" or path.name.endswith(".nii.gz")):
            path.write_bytes(b"")
    outcome = medsynth("prepare", ward.pipeline, "--workspace", fresh, "-q")
    assert outcome.code == 3
    assert len(outcome.err.splitlines()) == 1
    assert "expected at least one usable case, found none of 8" in outcome.err
    assert not (fresh / "prepare").exists()
    assert not leaks(names, outcome.out, outcome.err, folder=fresh)


@pytest.mark.slow
def test_run_goes_on_to_the_end_without_the_bad_scan(ward: Ward, fresh: Path, medsynth: Any) -> None:
    names = ward.identities()
    truncated_dicom(ward)
    outcome = medsynth("run", ward.pipeline, "--workspace", fresh, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["stages"]["prepare"]["refused"] == 1
    assert (fresh / "registry" / "stage.json").exists()
    assert f"row {DICOM + 2}: left out" in outcome.err
    assert whole(fresh)
    assert not leaks(names, outcome.out, outcome.err, folder=fresh)


# --- tables that contradict themselves: nothing is begun ---------------------------------------------------------------


def patient_in_two_splits(ward: Ward) -> None:
    for row, split in enumerate(("train", "test")):
        ward.change(row, patient=ward.rows()[0]["patient"], split=split)


def unknown_value(ward: Ward) -> None:
    ward.change(2, diagnosis="malignnat")


def empty_cell(ward: Ward) -> None:
    ward.change(2, diagnosis="")


def empty_patient(ward: Ward) -> None:
    ward.change(2, patient="")


def single_class(ward: Ward) -> None:
    for row in range(PATIENTS):
        ward.change(row, diagnosis="benign")


def number_out_of_range(ward: Ward) -> None:
    ward.change(2, diameter_mm="4000")


def missing_image(ward: Ward) -> None:
    shutil.rmtree(ward.image(DICOM))


def missing_mask(ward: Ward) -> None:
    ward.mask(NIFTI).unlink()


def missing_column(ward: Ward) -> None:
    ward.write([{("diagnose" if k == "diagnosis" else k): v for k, v in row.items()} for row in ward.rows()])


def no_table(ward: Ward) -> None:
    ward.table.unlink()


def no_rows(ward: Ward) -> None:
    ward.table.write_text(ward.table.read_text().splitlines()[0] + "\n")


def binary_table(ward: Ward) -> None:
    ward.table.write_bytes(b"PK\x03\x04\x00\x00KOWALCZYK JADWIGA\x00")


BAD_TABLES: list[tuple[Spoil, str]] = [
    (patient_in_two_splits, "rows 2-3: split: one patient is in test and train"),
    (unknown_value, "row 4: diagnosis: expected benign or malignant, found another word (nearest: malignant)"),
    (empty_cell, "row 4: diagnosis: the cell is empty"),
    (empty_patient, "row 4: patient: the cell is empty"),
    (single_class, "all rows hold the same value"),
    (number_out_of_range, "row 4: diameter_mm: expected 1 to 40 mm, found a number outside"),
    (missing_image, f"row {DICOM + 2}: image: no such file or folder"),
    (missing_mask, f"row {NIFTI + 2}: mask: no such file or folder"),
    (missing_column, "column diagnosis is missing (nearest: diagnose)"),
    (no_table, "expected a CSV file, found nothing"),
    (no_rows, "found no usable row"),
    (binary_table, "found binary content"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_TABLES, ids=[spoil.__name__ for spoil, _ in BAD_TABLES])
@pytest.mark.parametrize("verb", ["prepare", "run"])
def test_a_wrong_table_is_told_before_any_work(
    verb: str, spoil: Spoil, message: str, ward: Ward, tmp_path: Path, medsynth: Any
) -> None:
    names = ward.identities()
    spoil(ward)
    workspace = tmp_path / "workspace"
    outcome = medsynth(verb, ward.pipeline, "--workspace", workspace)
    assert outcome.code == 3
    assert 1 <= len(outcome.err.splitlines()) <= 2
    assert message in outcome.err
    assert sorted(path.name for path in workspace.iterdir()) == [".lock", "pipeline.yaml", "secrets"]
    assert not leaks(names, outcome.out, outcome.err, folder=workspace)


def test_all_mistakes_of_a_table_come_at_once(ward: Ward, tmp_path: Path, medsynth: Any) -> None:
    unknown_value(ward)
    number_out_of_range(ward)
    missing_image(ward)
    outcome = medsynth("prepare", ward.pipeline, "--workspace", tmp_path / "workspace", "-q")
    assert outcome.code == 3
    assert len(outcome.errors) == 3


def test_a_cohort_of_three_cases(ward: Ward, fresh: Path, medsynth: Any) -> None:
    """Three patients can be shared out, but one training case cannot hold both diagnoses: told, and not trained on."""
    names = ward.identities()
    ward.keep(3)
    outcome = medsynth("run", ward.pipeline, "--workspace", fresh, "-q")
    assert outcome.code == 3, outcome.err
    assert 1 <= len(outcome.err.splitlines()) <= 2
    assert "diagnosis" in outcome.err
    assert not (fresh / "prepare").exists()
    assert whole(fresh)
    assert not leaks(names, outcome.out, outcome.err, folder=fresh)


@pytest.mark.slow
def test_three_cases_without_conditions_come_to_an_honest_end(ward: Ward, fresh: Path, medsynth: Any) -> None:
    """One case in each split is enough to run and too little to measure anything: said so, and the model no champion."""
    text = re.sub(r"conditions:.*?prepare:", "prepare:", ward.pipeline.read_text(), flags=re.DOTALL)
    ward.pipeline.write_text(text.replace(", stratify: diagnosis", ""))
    ward.keep(3)
    outcome = medsynth("run", ward.pipeline, "--workspace", fresh, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["stages"]["register"]["aliases"] == "candidate"
    for section in ("fidelity", "privacy", "benefit", "condition"):
        assert f"{section}: not measured" in outcome.err


def test_a_cohort_of_two_cases(ward: Ward, fresh: Path, medsynth: Any) -> None:
    ward.write([ward.rows()[row] for row in (0, 2)])
    outcome = medsynth("run", ward.pipeline, "--workspace", fresh, "-q")
    assert outcome.code == 3
    assert len(outcome.err.splitlines()) == 1
    assert whole(fresh)


def test_a_missing_folder_and_an_empty_one(ward: Ward, tmp_path: Path, medsynth: Any) -> None:
    pipeline = ward.folder / "folder.yaml"
    pipeline.write_text("name: tiny\ncohort: {kind: folder, images: scans}\n")
    for expected in ("found nothing", "found none"):
        outcome = medsynth("prepare", pipeline, "--workspace", tmp_path / "workspace", "-q")
        assert outcome.code == 3
        assert len(outcome.err.splitlines()) == 1
        assert expected in outcome.err
        (ward.folder / "scans").mkdir(exist_ok=True)


def test_the_same_pixels_of_two_patients_are_found(ward: Ward, fresh: Path, medsynth: Any) -> None:
    shutil.copy(ward.image(NIFTI), ward.image(NIFTI + 1))
    shutil.copy(ward.mask(NIFTI), ward.mask(NIFTI + 1))
    outcome = medsynth("prepare", ward.pipeline, "--workspace", fresh)
    assert outcome.code == 0, outcome.err
    assert "of different patients have the same pixels" in outcome.err
    assert len(rows_of(fresh / "prepare" / "manifest.csv")) == PATIENTS - 1
    assert not leaks(ward.identities(), outcome.out, outcome.err, folder=fresh)
