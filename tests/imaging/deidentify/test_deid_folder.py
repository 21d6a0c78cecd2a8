"""Folders: whole, resumable, the same whatever the number of workers, and silent about names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pydicom
import pytest
from planted_headers import file_bytes, plain, planted
from pydicom.dataset import Dataset

from medsynth.errors import DataError, PrivacyError, UsageError
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.deidentify import folder as folder_module
from medsynth.imaging.deidentify.folder import FolderReport, deidentify_folder
from medsynth.imaging.deidentify.journal import JOURNAL, Journal, Outcome


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    return SecretKey.load_or_create(tmp_path / "secrets" / "key.hex")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two patients with three slices each; and a text file, a refused image, a copy, a clash and a cut file."""
    root = tmp_path / "SURNAME Kaminska"
    for patient in ("CT", "MR"):
        dataset, _ = planted(patient)
        dataset.PatientID = f"{patient}-PERSON"
        for slice_number in range(3):
            dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.99.{patient == 'CT':d}.{slice_number + 1}"
            dataset.InstanceNumber = slice_number + 1
            save(dataset, root / patient / f"KAMINSKA_{slice_number}.dcm")
    (root / "readme.txt").write_text("hello")
    (root / "zcopy.dcm").write_bytes((root / "CT" / "KAMINSKA_0.dcm").read_bytes())
    clash = pydicom.dcmread(root / "MR" / "KAMINSKA_0.dcm")
    clash.InstanceNumber = 77
    save(clash, root / "zclash.dcm")
    burned = plain("CT")
    burned.BurnedInAnnotation = "YES"
    save(burned, root / "burned.dcm")
    (root / "cut.dcm").write_bytes(file_bytes(plain("CT"))[:300])
    return root


def save(dataset: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_bytes(dataset, b"KAMINSKA".ljust(128, b"\0")))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != JOURNAL
    }


def kinds(report: FolderReport) -> dict[str, str]:
    return {entry.path.name: entry.kind for entry in report.left_out}


def test_a_mixed_folder_gives_what_can_be_given(source: Path, key: SecretKey, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = deidentify_folder(source, out, key)
    assert (report.found, report.written, report.patients) == (11, 6, 2)
    assert kinds(report) == {
        "readme.txt": "unreadable",
        "burned.dcm": "refused",
        "cut.dcm": "unreadable",
        "zcopy.dcm": "duplicate",
        "zclash.dcm": "unreadable",
    }
    assert "KAMINSKA" not in json.dumps({**report.summary(), "audit": ""}).upper()
    with pytest.raises(PrivacyError, match="1 of 11 files") as caught:
        report.raise_if_refused()
    written = tree(out)
    audit = json.loads(written.pop("deidentification.json"))
    assert audit["files_written"] == 6
    assert audit["files_left_out"]["refused"]
    assert audit["residual_search"] == {"files_searched": 6, "files_withheld": 0}
    assert audit["attributes"]["PatientID"]["pseudonym"] == 6
    journal = (out / JOURNAL).read_text()
    for text in (str(caught.value), journal, json.dumps(audit), *written):
        assert "KAMINSKA" not in text.upper()
    for name, data in written.items():
        assert b"LEAK" not in data.upper()
        assert b"KAMINSKA" not in data.upper()
        dataset = pydicom.dcmread(out / name)
        assert name == f"{dataset.PatientID}/{dataset.SeriesInstanceUID}/{dataset.SOPInstanceUID}.dcm"
    original = pydicom.dcmread(source / "MR" / "KAMINSKA_2.dcm")
    result = pydicom.dcmread(out / f"{Deidentifier(key).patient('MR-PERSON')}" / _find(out, original, key))
    assert result.PixelData == original.PixelData[: len(result.PixelData)]


def _find(out: Path, original: Dataset, key: SecretKey) -> str:
    return f"{key.uid(original.SeriesInstanceUID)}/{key.uid(original.SOPInstanceUID)}.dcm"


def test_workers_do_not_change_a_byte(source: Path, key: SecretKey, tmp_path: Path) -> None:
    alone = deidentify_folder(source, tmp_path / "one", key, workers=1)
    together = deidentify_folder(source, tmp_path / "two", key, workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert alone.left_out == together.left_out


@pytest.mark.parametrize("stop_after", [0, 1, 4, 8])
def test_an_interrupted_run_continues_to_the_same_end(
    stop_after: int, source: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = deidentify_folder(source, tmp_path / "whole", key)
    record = Journal.record
    seen: list[str] = []

    def dies(self: Journal, token: str, outcome: Outcome) -> None:
        if len(seen) == stop_after:
            raise KeyboardInterrupt  # after the file has got its name, before the journal knows
        seen.append(token)
        record(self, token, outcome)

    out = tmp_path / "out"
    monkeypatch.setattr(Journal, "record", dies)
    with pytest.raises(KeyboardInterrupt):
        deidentify_folder(source, out, key)
    monkeypatch.setattr(Journal, "record", record)
    assert not (out / "deidentification.json").exists()
    if seen:
        with (out / JOURNAL).open("a") as file:
            file.write('{"file": "cut sh')  # as a kill in the middle of a line leaves it
    done = deidentify_folder(source, out, key)
    assert tree(out) == tree(tmp_path / "whole")
    assert (done.written, done.left_out, done.attributes) == (whole.written, whole.left_out, whole.attributes)


def test_a_finished_folder_is_not_done_again(
    source: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = deidentify_folder(source, tmp_path / "out", key)

    def never(*arguments: object) -> Outcome:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(folder_module, "_process", never)
    assert deidentify_folder(source, tmp_path / "out", key) == first


def test_a_leak_is_withheld(source: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Deidentifier.dataset

    def leaky(self: Deidentifier, dataset: Dataset) -> Dataset:
        clean = real(self, dataset)
        if dataset.InstanceNumber == 2:
            clean.ProtocolName = f"for {dataset.AccessionNumber}"
        return clean

    monkeypatch.setattr(Deidentifier, "dataset", leaky)
    report = deidentify_folder(source, tmp_path / "out", key)
    withheld = [entry for entry in report.left_out if entry.kind == "withheld"]
    assert len(withheld) == 2
    assert "AccessionNumber" in withheld[0].reason
    assert "LEAK" not in withheld[0].reason
    assert b"LEAK" not in b"".join(tree(tmp_path / "out").values())
    with pytest.raises(PrivacyError):
        report.raise_if_refused()


def test_places_that_would_mix_are_refused(source: Path, key: SecretKey, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(source)
    for out in (source, source / "inside", source.parent, link / "inside"):
        with pytest.raises(UsageError, match="apart from the input"):
            deidentify_folder(source, out, key)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="other things"):
        deidentify_folder(source, foreign, key)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="found none"):
        deidentify_folder(tmp_path / "nowhere", tmp_path / "out", key)


def test_another_key_does_not_continue(source: Path, key: SecretKey, tmp_path: Path) -> None:
    deidentify_folder(source, tmp_path / "out", key)
    with pytest.raises(UsageError, match="same key"):
        deidentify_folder(source, tmp_path / "out", SecretKey(bytes(32)))


def test_nothing_to_write_is_an_error(key: SecretKey, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    with pytest.raises(DataError, match="holds no file"):
        deidentify_folder(source, tmp_path / "out1", key)
    (source / "fake.dcm").write_text("this is text")
    with pytest.raises(DataError, match="no DICOM file"):
        deidentify_folder(source, tmp_path / "out2", key)
    burned = plain("CT")
    burned.BurnedInAnnotation = "YES"
    save(burned, source / "b.dcm")
    with pytest.raises(PrivacyError, match="BurnedInAnnotation"):
        deidentify_folder(source, tmp_path / "out3", key)


def test_a_full_disk_is_not_hidden(
    source: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        deidentify_folder(source, tmp_path / "out", key)
    monkeypatch.undo()
    assert deidentify_folder(source, tmp_path / "out", key).written == 6


def test_a_key_without_a_file_cannot_be_shared_among_workers(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="loaded from a file"):
        deidentify_folder(source, tmp_path / "out", SecretKey(bytes(32)), workers=2)
