"""`medsynth deidentify` as a user calls it: settings, exit codes, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from planted_headers import file_bytes, plain, planted
from pydicom.dataset import Dataset

from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify.linking import LinkingTable
from medsynth.imaging.deidentify.store import Store

Medsynth = Callable[..., Any]
OFF = ("--set", "ocr=off", "--workers", "1")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "KAMINSKA"
    folder.mkdir()
    for number in range(3):
        dataset, _ = planted("CT")
        dataset.PatientID, dataset.InstanceNumber = "KAMINSKA-1", number + 1
        dataset.StudyDate, dataset.DeviceSerialNumber = "20190405", "SN-4433"
        dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.99.31.{number}"
        add(folder, f"{number}.dcm", dataset)
    return folder


def add(folder: Path, name: str, dataset: Dataset) -> None:
    (folder / name).write_bytes(file_bytes(dataset))


def images(out: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(out.rglob("*.dcm"))]


def test_strict_is_the_default(medsynth: Medsynth, scans: Path, tmp_path: Path) -> None:
    done = medsynth("deidentify", scans, "--out", tmp_path / "out", *OFF, "--json")
    assert (done.code, done.errors) == (0, [])
    result = json.loads(done.out)
    assert (result["files"], result["written"], result["patients"]) == (3, 3, 1)
    assert Path(result["key"]) == tmp_path / "out.key"
    assert Path(result["report"]).exists()
    assert "KAMINSKA" not in done.out.replace(str(tmp_path), "") + done.err
    for dataset in images(tmp_path / "out"):
        assert not dataset.get("StudyDate")
        assert "DeviceSerialNumber" not in dataset


def test_profiles_and_single_settings(medsynth: Medsynth, scans: Path, tmp_path: Path) -> None:
    done = medsynth("deidentify", scans, "--out", tmp_path / "one", "--profile", "longitudinal", *OFF)
    assert done.code == 0
    dates = {dataset.StudyDate for dataset in images(tmp_path / "one")}
    assert len(dates) == 1
    assert dates.isdisjoint({"", "20190405"})
    done = medsynth(
        "deidentify",
        scans,
        "--out",
        tmp_path / "two",
        *OFF,
        "--set",
        "options=[retain_full_dates, retain_device_identity]",
    )
    assert done.code == 0
    for dataset in images(tmp_path / "two"):
        assert (dataset.StudyDate, dataset.DeviceSerialNumber) == ("20190405", "SN-4433")
    own = tmp_path / "own.yaml"
    own.write_text("options: [retain_full_dates]\nocr: off\n")
    assert medsynth("deidentify", scans, "--out", tmp_path / "three", "--profile", own).code == 0
    assert {dataset.StudyDate for dataset in images(tmp_path / "three")} == {"20190405"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--profile", "stict"), "did you mean strict"),
        (("--set", "options=[retain_dates]"), "retain_dates"),
        (("--set", "faces=true"), "faces"),
        (("--set", "options=[retain_full_dates, retain_modified_dates]"), "expected one of"),
    ],
)
def test_mistakes_in_settings_are_told_before_anything_is_done(
    arguments: tuple[str, ...], words: str, medsynth: Medsynth, scans: Path, tmp_path: Path
) -> None:
    done = medsynth("deidentify", scans, "--out", tmp_path / "out", *arguments)
    assert done.code == 2
    assert words in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["KAMINSKA"]


def test_exit_codes(medsynth: Medsynth, scans: Path, tmp_path: Path) -> None:
    (scans / "notes.txt").write_text("of Kaminska")
    (scans / "copy.dcm").write_bytes((scans / "1.dcm").read_bytes())
    assert medsynth("deidentify", scans, "--out", tmp_path / "out0", *OFF).code == 0
    (scans / "cut.dcm").write_bytes((scans / "1.dcm").read_bytes()[:-100])
    done = medsynth("deidentify", scans, "--out", tmp_path / "out3", *OFF, "--json")
    assert done.code == 3
    assert "1 of 6 files were left out as damaged" in done.errors[0]
    assert json.loads(done.out)["written"] == 3, "the others are written, and counted"
    burned = plain("CT")
    burned.BurnedInAnnotation = "YES"
    add(scans, "burned.dcm", burned)
    done = medsynth("deidentify", scans, "--out", tmp_path / "out4", *OFF)
    assert done.code == 4
    assert "1 of 7 files were left out by a privacy rule" in done.errors[0]
    assert len(images(tmp_path / "out4")) == 3
    assert "kaminska" not in (done.err + done.out).replace(str(tmp_path), "").lower()
    assert medsynth("deidentify", scans, "--out", scans / "inside", *OFF).code == 2
    assert medsynth("deidentify", tmp_path / "nowhere", "--out", tmp_path / "out", *OFF).code == 2
    (tmp_path / "empty").mkdir()
    assert medsynth("deidentify", tmp_path / "empty", "--out", tmp_path / "out", *OFF).code == 3
    key = SecretKey.load(tmp_path / "out0.key")
    with Store.open(tmp_path / "held", key):
        done = medsynth("deidentify", scans, "--out", tmp_path / "held", "--key-file", tmp_path / "out0.key", *OFF)
    assert done.code == 5
    (tmp_path / "out0.key").chmod(0o644)
    assert medsynth("deidentify", scans, "--out", tmp_path / "out0", *OFF).code == 4


def test_a_dry_run_leaves_nothing(medsynth: Medsynth, scans: Path, tmp_path: Path) -> None:
    done = medsynth("deidentify", scans, "--out", tmp_path / "out", *OFF, "--dry-run", "--json")
    assert done.code == 0
    assert json.loads(done.out) == {"dry_run": True, "files": 3, "written": 3, "patients": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["KAMINSKA"]
    burned = plain("CT")
    burned.BurnedInAnnotation = "YES"
    add(scans, "burned.dcm", burned)
    assert medsynth("deidentify", scans, "--out", tmp_path / "out", *OFF, "--dry-run").code == 4


def test_a_linking_table_is_kept_only_on_request(medsynth: Medsynth, scans: Path, tmp_path: Path) -> None:
    table = tmp_path / "private" / "links"
    done = medsynth("deidentify", scans, "--out", tmp_path / "out", *OFF, "--linking-table", table)
    assert done.code == 0
    (link,) = LinkingTable.load(table, SecretKey.load(tmp_path / "out.key"))
    assert link.patient_id == "KAMINSKA-1"
    assert {dataset.PatientID for dataset in images(tmp_path / "out")} == {link.pseudonym}
    assert b"KAMINSKA" not in table.read_bytes()


@pytest.mark.parametrize("option", ["--linking-table", "--key-file"])
def test_secrets_are_not_put_into_what_is_passed_on(
    option: str, medsynth: Medsynth, scans: Path, tmp_path: Path
) -> None:
    done = medsynth("deidentify", scans, "--out", tmp_path / "out", *OFF, option, tmp_path / "out" / "secret")
    assert done.code == 2
    assert "apart from the output folder" in done.err
    assert not (tmp_path / "out").exists()
