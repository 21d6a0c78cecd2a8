"""The search for what is left: it finds values however they are written, and does not cry wolf."""

from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from planted_headers import file_bytes, plain
from pydicom.dataset import Dataset

from medsynth.errors import UnreadableError
from medsynth.imaging.deidentify.residual import Hit, Identifiers, identifying_values, scan_bytes, scan_folder


@pytest.fixture
def values() -> Identifiers:
    dataset = plain("CT")
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "Kowalczyk-Nowak^Lea=山田^太郎"
    dataset.PatientID = "4711-0815-AB"
    dataset.AccessionNumber = "1234567"
    dataset.PatientBirthDate = "19610203"
    dataset.StudyDescription = "Chest followup for Grzegorz"
    return identifying_values(pydicom.dcmread(BytesIO(file_bytes(dataset))))


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ("seen: KOWALCZYK", "PatientName"),
        ("kowalczyk_nowak", "PatientName"),
        ("for lea.", "PatientName"),
        ("born 1961-02-03", "PatientBirthDate"),
        ("born 03.02.1961", "PatientBirthDate"),
        ("born 03/02/1961", "PatientBirthDate"),
        ("x 02/03/1961 x", "PatientBirthDate"),
        ("(19610203)", "PatientBirthDate"),
        ("id=4711-0815-ab;", "PatientID"),
        ("acc 1234567", "AccessionNumber"),
        ("note by GRZEGORZ", "StudyDescription"),
        ("uid 1.2.826.0.1.3680043.99.1.2 here", "StudyInstanceUID"),
    ],
)
def test_a_value_is_found_in_any_way_of_writing(text: str, keyword: str, values: Identifiers) -> None:
    assert keyword in scan_bytes(values, text.encode())
    if len(text) > 12:
        assert keyword in values.found_in(text.encode("utf-16-le"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "shift_jis", "gb18030"])
def test_other_scripts_are_found(encoding: str, values: Identifiers) -> None:
    assert values.found_in("氏名 山田 様".encode(encoding)) == {"PatientName"}


@pytest.mark.parametrize(
    "text",
    [
        "CHEST",
        "followed",
        "Kowalczykowa",
        "ORIGINAL PRIMARY AXIAL",
        "cleared",
        "91234567",
        "0.1234567",
        "1234567.5",
        "Siemens",
        "120",
    ],
)
def test_ordinary_words_and_parts_of_numbers_are_not(text: str, values: Identifiers) -> None:
    assert scan_bytes(values, f"x {text} y".encode()) == set()


def test_neither_repr_nor_hits_show_a_value(values: Identifiers) -> None:
    assert "kowalczyk" not in repr(values).lower()
    assert len(values) > 10
    assert repr(len(values)) in repr(values)


def test_values_of_private_and_unknown_elements_count() -> None:
    dataset = plain("MR")
    block = dataset.private_block(0x0029, "VENDOR HEADER", create=True)
    block.add_new(0x10, "OB", b"\0\1\2Przybylski\0\0" * 3 + b"\0")
    item = Dataset()
    item.PatientComments = "Schoenberger"
    block.add_new(0x11, "SQ", [item])
    values = identifying_values(pydicom.dcmread(BytesIO(file_bytes(dataset))))
    assert "Przybylski" in values
    assert "Schoenberger" in values


def test_files_of_every_kind_are_searched(tmp_path: Path, values: Identifiers) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    nibabel.save(image, tmp_path / "clean.nii.gz")
    image.header["descrip"] = b"scan of Lea"
    nibabel.save(image, tmp_path / "bad.nii.gz")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "cohort.csv").write_text("patient\nKowalczyk\n")
    (tmp_path / "19610203.txt").write_text("nothing")
    (tmp_path / "log.txt.gz").write_bytes(gzip.compress(b"acc 1234567"))
    (tmp_path / "weights.bin").write_bytes(b"\0" * 64 + b"4711-0815-AB" + b"\0" * 64)
    assert scan_folder(values, tmp_path) == [
        Hit("19610203.txt", "PatientBirthDate"),
        Hit("bad.nii.gz", "PatientName"),
        Hit("log.txt.gz", "AccessionNumber"),
        Hit("sub/cohort.csv", "PatientName"),
        Hit("weights.bin", "PatientID"),
    ]


def test_random_voxels_give_no_alarm(tmp_path: Path, values: Identifiers) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels.reshape(128, 128, 64), np.eye(4)), tmp_path / "noise.nii")
    assert scan_folder(values, tmp_path) == []


def test_a_damaged_gz_is_an_error(tmp_path: Path, values: Identifiers) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 1000)[:-20])
    with pytest.raises(UnreadableError, match="file 1"):
        scan_folder(values, tmp_path)
