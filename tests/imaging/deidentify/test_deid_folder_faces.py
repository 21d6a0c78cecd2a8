"""Heads in a folder: their series are worked on whole, after all other files, and refused whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from planted_headers import file_bytes, planted
from pydicom.dataset import Dataset

from medsynth.config.deidentify import Deidentify
from medsynth.errors import DataError, PrivacyError, UsageError
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.deidentify.folder import deidentify_folder, rehearse_folder
from medsynth.imaging.deidentify.instance import deidentify_series
from medsynth.imaging.deidentify.residual import identifying_values, scan_folder

FRONT_TO_ZERO = """
import sys
import nibabel as nib
import numpy as np
image = nib.load(sys.argv[1])
data = np.asanyarray(image.dataobj).copy()
data[:, : data.shape[1] // 3] = 0
nib.save(nib.Nifti1Image(data, image.affine), sys.argv[2])
"""
FAILS = "import sys; sys.exit('of HOLLENSTEIN')"


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    return SecretKey.load_or_create(tmp_path / "secrets" / "key.hex")


def settings(tmp_path: Path, work: str = FRONT_TO_ZERO) -> Deidentify:
    script = tmp_path / "deface.py"
    script.write_text(work)
    command = (sys.executable, str(script), "{input}", "{output}")
    return Deidentify(options=("clean_recognizable_visual_features",), face_command=command, ocr="off")


def head_slice(series: int, place: int) -> Dataset:
    dataset, _ = planted("CT")
    dataset.PatientID = f"HEADS-{series}"
    dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.99.20.{series}"
    dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.99.21.{series}.{place}"
    dataset.BodyPartExamined, dataset.InstanceNumber = "HEAD", place + 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PixelSpacing, dataset.SliceThickness = [15, 15], 10
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-90, -120, 10 * place]
    del dataset.ModalityLUTSequence
    dataset.Rows, dataset.Columns = 16, 12
    dataset.PixelData = (np.arange(16 * 12, dtype="<u2") + 1000).tobytes()
    for tag in [element.tag for element in dataset if element.tag.group in range(0x6000, 0x6020)]:
        del dataset[tag]
    return dataset


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two head series, mixed with a chest; the slices of the first lie in two folders, and one lies there twice."""
    root = tmp_path / "HOLLENSTEIN"
    for series, place in [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)]:
        path = root / ("a" if place < 2 else "b") / f"{place}{series}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_bytes(head_slice(series, place)))
    (root / "b" / "copy.dcm").write_bytes((root / "a" / "00.dcm").read_bytes())
    chest, _ = planted("CT")
    (root / "chest.dcm").write_bytes(file_bytes(chest))
    return root


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_faces_are_removed_series_by_series(workers: int, source: Path, key: SecretKey, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = deidentify_folder(source, out, key, settings(tmp_path), workers=workers)
    assert (report.found, report.written, report.count("duplicate")) == (10, 9, 1)
    report.raise_if_incomplete()
    heads = [dataset for dataset in map(pydicom.dcmread, out.rglob("*.dcm")) if dataset.BodyPartExamined == "HEAD"]
    assert len(heads) == 8
    for dataset in heads:
        assert dataset.RecognizableVisualFeatures == "NO"
        assert "113102" in [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence]
        before = np.arange(16 * 12).reshape(16, 12) + 1000
        front = slice(0, 16 // 3)
        assert (dataset.pixel_array[front] == 1024).all(), "0 HU"
        assert (dataset.pixel_array[16 // 3 :] == before[16 // 3 :]).all()
    for series in (0, 1):
        assert scan_folder(identifying_values(head_slice(series, 0)), out) == []
    assert json.loads((out / "deidentification.json").read_text())["faces"] == "removed"


def test_the_next_run_has_nothing_to_do(source: Path, key: SecretKey, tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    first = deidentify_folder(source, tmp_path / "out", key, chosen)
    Path(chosen.face_command[1]).write_text(FAILS)  # type: ignore[index]
    again = deidentify_folder(source, tmp_path / "out", key, chosen)
    assert (again.summary(), again.left_out) == (first.summary(), first.left_out)


def test_a_series_that_fails_is_refused_whole(source: Path, key: SecretKey, tmp_path: Path) -> None:
    (source / "a" / "10.dcm").unlink()
    (source / "a" / "11.dcm").unlink()
    (source / "b" / "13.dcm").unlink(missing_ok=True)
    (source / "b" / "21.dcm").write_bytes(file_bytes(_moved(head_slice(1, 2), 37.0)))
    report = deidentify_folder(source, tmp_path / "out", key, settings(tmp_path))
    refused = [entry for entry in report.left_out if entry.kind == "refused"]
    written = {dataset.SeriesInstanceUID for dataset in map(pydicom.dcmread, (tmp_path / "out").rglob("*.dcm"))}
    assert len(refused) == report.count("refused") > 0
    assert all(entry.reason.startswith("its faces could not be removed: ") for entry in refused)
    for series, slices in ((0, "0"), (1, "1")):
        uid = key.uid(f"1.2.826.0.1.3680043.99.20.{series}")
        failed = {entry.path.name[1] == slices for entry in refused}
        assert (uid in written) != (True in failed), "written whole or refused whole"
    with pytest.raises(PrivacyError):
        report.raise_if_incomplete()


def _moved(dataset: Dataset, z: float) -> Dataset:
    dataset.ImagePositionPatient = [-90, -120, z]
    return dataset


def test_a_command_that_fails_leaves_nothing_of_the_heads(source: Path, key: SecretKey, tmp_path: Path) -> None:
    report = deidentify_folder(source, tmp_path / "out", key, settings(tmp_path, FAILS))
    assert (report.written, report.count("refused")) == (1, 9)
    assert "HOLLENSTEIN" not in json.dumps([entry.reason for entry in report.left_out]).upper()
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1


def test_a_program_that_is_missing_ends_the_run(source: Path, key: SecretKey, tmp_path: Path) -> None:
    missing = Deidentify(
        options=("clean_recognizable_visual_features",),
        face_command=("no-such-program", "{input}", "{output}"),
        ocr="off",
    )
    with pytest.raises(UsageError):
        deidentify_folder(source, tmp_path / "out", key, missing)
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1, "what is done is kept"


def test_a_leak_in_one_slice_withholds_the_series(
    source: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Deidentifier.dataset

    def leaky(self: Deidentifier, dataset: Dataset) -> Dataset:
        clean = real(self, dataset)
        if str(dataset.SOPInstanceUID).endswith("21.1.2"):
            clean.ProtocolName = f"for {dataset.AccessionNumber}"
        return clean

    monkeypatch.setattr(Deidentifier, "dataset", leaky)
    report = deidentify_folder(source, tmp_path / "out", key, settings(tmp_path))
    assert (report.written, report.count("withheld")) == (5, 4)
    uid = key.uid("1.2.826.0.1.3680043.99.20.1")
    assert not [path for path in (tmp_path / "out").rglob("*.dcm") if path.parent.name == uid]


def test_a_rehearsal_removes_faces_too(source: Path, key: SecretKey, tmp_path: Path) -> None:
    report = rehearse_folder(source, key, settings(tmp_path))
    assert (report.written, report.count("duplicate")) == (9, 1)


def test_a_series_in_memory(key: SecretKey, tmp_path: Path) -> None:
    """As the pull from a PACS uses it."""
    deidentifier = Deidentifier(key, settings(tmp_path))
    originals = [head_slice(0, place) for place in range(4)]
    done = deidentify_series(originals, deidentifier)
    assert [instance.series for instance in done] == [done[0].series] * 4
    assert len({instance.name for instance in done}) == 4
    with pytest.raises(DataError):
        deidentify_series(originals[:1], deidentifier)
    with pytest.raises(PrivacyError, match="face_command"):
        deidentify_series(originals, Deidentifier(key, Deidentify(ocr="off")))
