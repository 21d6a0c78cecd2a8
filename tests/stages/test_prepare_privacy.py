"""What `prepare` sees of patients stays in memory: the second look, the linking table, the key's other users."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml
from ward import DICOM_ROWS, SURNAME, Ward, leaks

from medsynth.cohort.manifest import Manifest
from medsynth.cohort.source import SourceCase
from medsynth.config.pipeline import Pipeline
from medsynth.errors import PrivacyError
from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify.guard import PixelGuard
from medsynth.imaging.deidentify.linking import Link, LinkingTable
from medsynth.stages import one_case, prepare
from medsynth.stages.second_look import SecondLook
from medsynth.stages.witness import Seen

Call = Callable[..., Any]

LOOK = {"kowalczyk": "PatientName", "jadwiga": "PatientName", "jadwigakowalczyk": "PatientName", "max": "PatientName"}
LOOK |= {
    "max low": "PatientName",
    "low": "PatientName",
    "köhler": "PatientName",
    "77-4711": "PatientID",
    "4711470": "PatientID",
}
SEEN = Seen(LOOK, {(1958, 3, 2): "PatientBirthDate"})


def prepared(medsynth: Call, ward: Ward, workspace: Path, *more: str) -> Any:
    return medsynth("prepare", ward.pipeline, "--workspace", workspace, *more)


def look(pipeline: Pipeline) -> SecondLook:
    found = SecondLook([], pipeline)
    found.remember(SEEN)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "row 3: KOWALCZYK is here",
        "file of Kowalczyk_Jadwiga.nii",
        "no 77-4711 in it",
        "number 4711470",
        "born 02.03.1958",
        "born 1958-03-02",
        "K\u00f6hler",
        json.dumps("K\u00f6hler"),
        "K%C3%B6hler",
        "MAX^LOW max low",
    ],
)
def test_a_patient_in_a_line_is_found_and_not_repeated(line: str, tiny: Pipeline) -> None:
    with pytest.raises(PrivacyError, match="Patient") as caught:
        look(tiny).check_lines(["everything is well", line])
    said = str(caught.value).lower()
    assert all(value not in said for value in LOOK)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "line", ["", "low and high", "0.4711470", "14711470", "maximal", "2026-03-02", "row 7: left out: no mask"]
)
def test_what_merely_looks_alike_is_not_taken_for_a_patient(line: str, tiny: Pipeline) -> None:
    look(tiny).check_lines([line])


def test_words_that_all_patients_share_name_nobody(tmp_path: Path, tiny: Pipeline) -> None:
    rows = [
        SourceCase(n, f"hippocampus-{n:06d}", tmp_path / f"p{n}" / "volume.nii.gz", None, None, None, {})
        for n in range(1, 4)
    ]
    found = SecondLook(rows, tiny)
    found.check_lines(["hippocampus volume"])
    with pytest.raises(PrivacyError, match="column patient"):
        found.check_lines(["hippocampus-000002"])


def test_every_value_is_found_wherever_it_stands(tiny: Pipeline) -> None:
    """The quick look by three bytes never hides what a plain search would find."""
    words = ["alpha", "be-ta", "x/y z", "łódź", "müller"]
    values = {f"{word}{number}": f"Keyword{number}" for number, word in enumerate(words * 8)}
    found = SecondLook([], tiny)
    found.remember(Seen(dict(values)))
    for value, keyword in values.items():
        with pytest.raises(PrivacyError, match=rf"{keyword}\b"):
            found.check_lines([f"some text [{value}] and more"])


def test_a_name_that_the_program_uses_itself_is_no_hit(finished: Path, tiny: Pipeline) -> None:
    """There are people called Case, Page, Low, Max and Train."""
    names = (
        "case",
        "low",
        "max",
        "train",
        "model",
        "seed",
        "box",
        "sample",
        "value",
        "steps",
        "benign",
        "kid",
        "random",
        "code",
    )
    found = SecondLook([], tiny)
    found.remember(Seen(dict.fromkeys(names, "PatientName")))
    found.check_stage(finished / "prepare")
    found.check_workspace(finished)
    found.remember(Seen({"case low": "PatientName"}))
    with pytest.raises(PrivacyError, match="PatientName in a message"):
        found.check_lines(["row 7 is of case low"])


@pytest.mark.parametrize(("value", "found"), [("mask", False), ("mask17", True)])
def test_a_run_that_begins_with_a_number_makes_no_name_of_the_word_before(
    value: str, found: bool, tmp_path: Path, tiny: Pipeline
) -> None:
    """A file named mask17, and a setting that is a mask in a run of MLflow that begins with 17."""
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE runs (run_uuid TEXT)")
        database.execute("CREATE TABLE params (key TEXT, value TEXT, run_uuid TEXT)")
        run = "17733166e43043fbae2efcad9ca6e8c9"
        database.execute("INSERT INTO runs VALUES (?)", [run])
        database.execute("INSERT INTO params VALUES ('kind', ?, ?)", [value, run])
    row = SourceCase(1, "4711-0815", tmp_path / "mask17.nii.gz", None, None, None, {})
    look = SecondLook([row], tiny)
    with pytest.raises(PrivacyError, match=r"cohort's paths in mlflow\.db") if found else nullcontext():
        look.check_workspace(tmp_path)


def test_nothing_of_the_patient_is_shown_by_what_workers_return() -> None:
    assert all(value not in f"{SEEN!r} {SEEN}".lower() for value in LOOK)
    assert pickle.loads(pickle.dumps(SEEN)) == SEEN


def test_a_cohort_full_of_names_is_prepared_and_looked_through(medsynth: Call, ward: Ward, tmp_path: Path) -> None:
    outcome = prepared(medsynth, ward, tmp_path / "w", "--set", f"prepare.linking_table={tmp_path / 'links' / 'table'}")
    assert outcome.code == 0, outcome.err
    names = ward.identities()
    assert not leaks(names, outcome.out, outcome.err, folder=tmp_path / "w" / "prepare")
    assert not leaks(names, folder=tmp_path / "links")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f" {text} ")


SPOILT: dict[str, Callable[[Path, str], object]] = {
    "a file of a stage": lambda folder, name: put(folder / "more.json", json.dumps({"who": name})),
    "a name of a file": lambda folder, name: put(folder / f"{name}.txt", ""),
    "the head of an image": lambda folder, name: put(folder / "images" / "x.nii", name),
    "the log": lambda folder, name: put(folder.parent / "events.jsonl", name),
    "MLflow's database": lambda folder, name: put(folder.parent / "mlflow.db", name),
    "the name of an artifact": lambda folder, name: put(folder.parent / "artifacts" / f"{name}.txt", name),
    "an artifact": lambda folder, name: put(folder.parent / "artifacts" / "1" / "x.txt", name),
}


def header_name(ward: Ward) -> str:
    """The family name in the headers of the first scan."""
    path = next(path for path in sorted(ward.image(0).rglob("*")) if path.is_file())
    return str(pydicom.dcmread(path, stop_before_pixels=True).PatientName.family_name)


@pytest.mark.parametrize("where", SPOILT)
@pytest.mark.parametrize("whose", ["header", "table"])
def test_a_planted_leak_stops_the_run_and_nothing_is_published(
    where: str, whose: str, medsynth: Call, ward: Ward, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward.keep(6)
    value = header_name(ward) if whose == "header" else ward.rows()[5]["patient"]
    honest = prepare._write_refused

    def write(path: Path, refused: Any) -> None:
        honest(path, refused)
        SPOILT[where](path.parent, value)

    monkeypatch.setattr(prepare, "_write_refused", write)
    outcome = prepared(medsynth, ward, fresh)
    assert outcome.code == 4
    assert "expected nothing of a patient" in outcome.errors[0]
    assert not leaks({value.lower()}, outcome.out, outcome.err)
    assert not (fresh / "prepare").exists()
    assert not (fresh / ".prepare.partial").exists()


def test_a_header_value_in_a_case_s_file_stops_the_run(
    medsynth: Call, ward: Ward, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward.keep(6)
    number = sorted(ward.identities())[-1]
    honest = one_case.write_nifti

    def write(scan: Any, path: Path, *, description: str) -> None:
        honest(scan, path, description=f"by {SURNAME.title()} {number}"[:79])

    monkeypatch.setattr(one_case, "write_nifti", write)
    outcome = prepared(medsynth, ward, fresh)
    assert outcome.code == 4
    assert not leaks(ward.identities(), outcome.out, outcome.err)
    assert not (fresh / "prepare").exists()
    assert not list((fresh / ".prepare.partial" / "images").iterdir())


def test_a_reason_that_names_a_patient_is_never_said(
    medsynth: Call, ward: Ward, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_case, "_without_names", lambda reason, source: f"{reason} of {source.patient}")
    ward.image(5).write_bytes(b"no scan")
    outcome = prepared(medsynth, ward, fresh)
    assert outcome.code == 4
    assert not leaks({SURNAME.lower()}, outcome.out, outcome.err)


def test_the_linking_table_leads_back_and_reidentify_reads_it(medsynth: Call, ward: Ward, fresh: Path) -> None:
    table = ward.folder / "table"
    outcome = prepared(medsynth, ward, fresh, "--set", f"prepare.linking_table={table}")
    assert outcome.code == 0, outcome.err
    key_file = fresh / "secrets" / "deidentify.key"
    key = SecretKey.load(key_file)
    with (fresh / "prepare" / "manifest.csv").open() as stream:
        patients = {row["patient"] for row in csv.DictReader(stream)}
    assert {link.pseudonym for link in LinkingTable.load(table, key)} == patients
    for number, row in enumerate(ward.rows()):
        pseudonym = key.pseudonym("patient", row["patient"], "P")
        called = ("reidentify", pseudonym, "--linking-table", table, "--key-file", key_file, "--json")
        found = json.loads(medsynth(*called).out)[pseudonym].values()
        assert row["patient"] in {link["patient_id"] for link in found}
        assert any(link["name"] for link in found) == (number in DICOM_ROWS)
        if number in DICOM_ROWS:
            study = next(link for link in found if link["study_uid"])
            by_study = medsynth("reidentify", study["new_study_uid"], *called[2:])
            assert study["name"] in by_study.out
            assert study["name"] not in by_study.err
    back = medsynth("reidentify", "--patient", ward.rows()[0]["patient"], "--key-file", key_file, "--json")
    assert set(json.loads(back.out).values()) <= patients


def test_reidentify_says_what_is_wrong(medsynth: Call, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    key, other = SecretKey.load_or_create(folder / "key"), folder / "other"
    SecretKey.load_or_create(other)
    table = LinkingTable.open(folder / "table", key)
    table.add_link(Link("P1", patient_id="77"))
    options = ("--linking-table", folder / "table", "--key-file", folder / "key")
    assert medsynth("reidentify", "P1", *options).code == 0
    assert medsynth("reidentify", "P1", "P2", *options).code == 3
    assert medsynth("reidentify", "P1", "--linking-table", folder / "table", "--key-file", other).code == 4
    assert medsynth("reidentify", "P1", "--linking-table", folder / "none", "--key-file", folder / "key").code == 2
    assert medsynth("reidentify", "P1", "--key-file", folder / "key").code == 2
    assert medsynth("reidentify", "P1", "--linking-table", folder / "table").code == 2
    assert medsynth("reidentify", "P1", "--linking-table", folder / "table", "--key-file", folder / "none").code == 2
    assert not (folder / "none").exists()
    assert medsynth("reidentify", *options).code == 2
    assert medsynth("reidentify", "P1", "--patient", "x", *options).code == 2
    (folder / "table").write_bytes((folder / "table").read_bytes()[:-9] + b"AAAAAAA=\n")
    assert medsynth("reidentify", "P1", *options).code == 4


def test_manifests_of_earlier_versions_are_still_read(tiny: Any, finished: Path, tmp_path: Path) -> None:
    path = finished / "prepare" / "manifest.csv"
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    earlier = tmp_path / "manifest.csv"
    with earlier.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [name for name in rows[0] if name != "resampled"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert Manifest.read(earlier, tiny.conditions).cases == Manifest.read(path, tiny.conditions).cases
    assert rows[0]["resampled"] == ""


BLACK_OUT = """
import sys, nibabel
scan = nibabel.load(sys.argv[1])
voxels = scan.get_fdata()
voxels[..., : voxels.shape[2] // 2] = -1000
nibabel.save(nibabel.Nifti1Image(voxels.astype("int16"), scan.affine), sys.argv[2])
"""


def test_a_face_is_removed_before_anything_is_written(
    medsynth: Call, ward: Ward, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward.keep(6)
    monkeypatch.setattr(PixelGuard, "suspects_face", lambda self, source: True)
    program = tmp_path / "deface.py"
    program.write_text(BLACK_OUT)
    settings = yaml.safe_load(ward.pipeline.read_text())
    settings["deidentify"] = {
        "options": ["clean_recognizable_visual_features"],
        "face_command": [sys.executable, str(program), "{input}", "{output}"],
    }
    plain, defaced = tmp_path / "plain", fresh
    shutil.copytree(fresh, plain)
    assert prepared(medsynth, ward, plain, "--set", "deidentify.accept_faces=true").code == 0
    ward.pipeline.write_text(yaml.safe_dump(settings))
    (defaced / "secrets").mkdir(mode=0o700)
    shutil.copy(plain / "secrets" / "deidentify.key", defaced / "secrets" / "deidentify.key")
    assert prepared(medsynth, ward, defaced).code == 0
    key = SecretKey.load(plain / "secrets" / "deidentify.key")
    for number, row in enumerate(ward.rows()):
        name = f"{key.pseudonym('case', row['patient'] + chr(31) + str(number + 2), 'C')}.nii"
        same = (plain / "prepare" / "images" / name).read_bytes() == (
            defaced / "prepare" / "images" / name
        ).read_bytes()
        assert same == (number not in DICOM_ROWS)


def test_an_irregular_series_is_left_out_or_resampled_and_marked(medsynth: Call, ward: Ward, fresh: Path) -> None:
    ward.keep(6)
    slices = sorted(
        (path for path in ward.image(0).rglob("*") if path.is_file()),
        key=lambda path: float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]),
    )
    slices[len(slices) // 2].unlink()
    assert prepared(medsynth, ward, fresh).code == 3
    assert prepared(medsynth, ward, fresh, "--set", "prepare.irregular=resample").code == 0
    with (fresh / "prepare" / "manifest.csv").open() as stream:
        marked = [row["resampled"] for row in csv.DictReader(stream)]
    assert len(marked) == 6
    assert len([text for text in marked if text]) == 1
