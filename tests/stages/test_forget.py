"""A patient is forgotten: everything of theirs is found and deleted, the models are named, and a run goes on without."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify.linking import Link, LinkingTable
from medsynth.imaging.nifti import read_nifti
from medsynth.stages import forget as forgetting
from medsynth.stages.forgotten import forgotten_patients, read_forgotten

Call = Callable[..., Any]


def rows(workspace: Path, stage: str = "prepare") -> list[dict[str, str]]:
    with (workspace / stage / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def patient_in(workspace: Path, split: str) -> dict[str, str]:
    return next(row for row in rows(workspace) if row["split"] == split)


def raw_id(workspace: Path, pseudonym: str) -> str:
    """The patient ID behind a pseudonym, by the cohort's table."""
    key = SecretKey.load(workspace / "secrets" / "deidentify.key")
    with (workspace / "source" / "cohort.csv").open(newline="", encoding="utf-8") as stream:
        return next(
            row["patient"]
            for row in csv.DictReader(stream)
            if key.pseudonym("patient", row["patient"], "P") == pseudonym
        )


def voxels(path: Path) -> np.ndarray:
    return np.asarray(read_nifti(path))


def everything(workspace: Path) -> dict[str, bytes]:
    return {
        path.relative_to(workspace).as_posix(): path.read_bytes()
        for path in sorted(workspace.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def traces(workspace: Path, *names: str) -> list[str]:
    """Files that say one of the names, by name or content."""
    return [
        path
        for path, data in everything(workspace).items()
        if path != "forgotten.json" and any(name in path or name.encode() in data for name in names)
    ]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_nothing_of_a_patient_is_left(split: str, workspace: Path, medsynth: Call) -> None:
    row = patient_in(workspace, split)
    image = (workspace / "prepare" / row["image"]).read_bytes()
    before = len(rows(workspace))
    outcome = medsynth(
        "forget", "--patient", raw_id(workspace, row["patient"]), "--workspace", workspace, "--yes", "--json"
    )
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert not traces(workspace, row["patient"], row["case"])
    assert all(image[352:] not in data for data in everything(workspace).values())
    assert len(rows(workspace)) == before - 1
    assert not any((workspace / name).exists() for name in ("evaluation", "latents", "source"))
    assert not [
        path for path in everything(workspace) if path.startswith("artifacts/") and path.endswith(("png", "html"))
    ]
    trained = told["trained with this patient"]
    if split == "test":
        assert trained == []
    else:
        word = {"train": "trained with", "validation": "validation"}[split]
        assert [line.split(":")[0] for line in trained[:2]] == ["autoencoder/model", "denoiser/model"]
        assert trained[2].startswith("models:/tiny/1")
        assert all(word in line for line in trained)
        assert "medsynth run" in told["to do"][-1]
    assert (workspace / "denoiser" / "model").exists()
    (record,) = read_forgotten(workspace)
    assert record.pseudonym == row["patient"]
    assert record.finished
    assert list(record.models) == trained


def test_a_run_goes_on_without_the_patient(workspace: Path, medsynth: Call, run_tiny: Call) -> None:
    row, before = patient_in(workspace, "train"), len(rows(workspace))
    assert medsynth("forget", "--pseudonym", row["patient"], "--workspace", workspace, "--yes").code == 0
    plan = medsynth("run", workspace / "pipeline.yaml", "--workspace", workspace, "--dry-run", "--json")
    planned = json.loads(plan.out)["plan"]
    assert all(line.startswith("run") for line in planned.values())
    assert "forgotten patients changed" in planned["prepare"]
    run_tiny(workspace)
    assert row["patient"] not in {one["patient"] for one in rows(workspace)}
    assert len(rows(workspace)) == before - 1
    assert not traces(workspace, row["patient"])
    assert (workspace / "evaluation" / "report.html").exists()
    denoiser = json.loads((workspace / "denoiser" / "stage.json").read_text())
    prepared = json.loads((workspace / "prepare" / "stage.json").read_text())["digest"]
    assert denoiser["fingerprint"]["stage prepare"] == prepared
    again = medsynth("run", workspace / "pipeline.yaml", "--workspace", workspace, "--dry-run", "--json")
    assert all(line.startswith("skip") for line in json.loads(again.out)["plan"].values())
    # The first version may have been trained with the patient, the second was not.
    told = medsynth(
        "forget",
        "--pseudonym",
        patient_in(workspace, "train")["patient"],
        "--workspace",
        workspace,
        "--dry-run",
        "--json",
    )
    models = json.loads(told.out)["trained with this patient"]
    assert "earlier preparation" in next(line for line in models if line.startswith("models:/tiny/1"))
    assert "trained with" in next(line for line in models if line.startswith("models:/tiny/2"))


def test_a_synthetic_scan_on_a_patient_s_mask_goes(workspace: Path, medsynth: Call) -> None:
    masks = {
        row["case"]: voxels(workspace / "synthetic" / row["mask"])
        for row in rows(workspace, "synthetic")
        if row["mask"]
    }
    assert masks
    training = [row for row in rows(workspace) if row["split"] == "train"]
    used = [
        row
        for row in training
        if any(np.array_equal(voxels(workspace / "prepare" / row["mask"]), mask) for mask in masks.values())
    ]
    assert 0 < len(used) < len(training)
    unused = next(row for row in training if row not in used)
    plain = ("--workspace", workspace, "--yes", "--json")
    told = json.loads(medsynth("forget", "--pseudonym", unused["patient"], *plain).out)
    assert (workspace / "synthetic").exists()
    assert "synthetic/" not in told["deleted"]
    told = json.loads(medsynth("forget", "--pseudonym", used[0]["patient"], *plain).out)
    assert not (workspace / "synthetic").exists()
    assert "synthetic/" in told["deleted"]
    assert any("stand on a mask" in line for line in told["to do"])


def test_a_dry_run_lists_and_changes_nothing(workspace: Path, medsynth: Call) -> None:
    row = patient_in(workspace, "train")
    before = everything(workspace)
    outcome = medsynth("forget", "--pseudonym", row["patient"], "--workspace", workspace, "--dry-run", "--json")
    assert outcome.code == 0
    listed = json.loads(outcome.out)["would delete"]
    assert {f"prepare/{row['image']}", f"prepare/{row['mask']}", "latents/", "evaluation/"} <= set(listed)
    assert everything(workspace) == before


def test_reconstructions_of_a_patient_are_cut_out(workspace: Path, medsynth: Call) -> None:
    validation = [row for row in rows(workspace) if row["split"] == "validation"]
    path = workspace / "autoencoder" / "reconstructions.npy"
    before = np.load(path)
    assert medsynth("forget", "--pseudonym", validation[1]["patient"], "--workspace", workspace, "--yes").code == 0
    assert np.array_equal(np.load(path), np.delete(before, 1, axis=0))


def test_a_call_that_was_killed_is_finished_by_the_same_call(
    workspace: Path, medsynth: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = patient_in(workspace, "train")
    call = ("forget", "--pseudonym", row["patient"], "--workspace", workspace, "--yes", "--json")
    planned = json.loads(medsynth(*call[:-2], "--dry-run", "--json").out)["would delete"]
    honest, steps = forgetting._remove_folder, 0

    def die(path: Path) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise KeyboardInterrupt
        honest(path)

    monkeypatch.setattr(forgetting, "_remove_folder", die)
    assert medsynth(*call).code == 5
    monkeypatch.undo()
    assert forgotten_patients(workspace) == {row["patient"]}
    assert read_forgotten(workspace)[0].finished is None
    assert medsynth(*call).code == 0
    assert not traces(workspace, row["patient"], row["case"])
    (record,) = read_forgotten(workspace)
    assert record.finished
    assert set(record.deleted) >= set(planned)
    assert {line.split(":")[0] for line in record.models} >= {"autoencoder/model", "denoiser/model"}


def test_who_is_not_there(workspace: Path, tmp_path: Path, medsynth: Call) -> None:
    before = everything(workspace)
    assert medsynth("forget", "--patient", "nobody", "--workspace", workspace, "--yes").code == 3
    assert medsynth("forget", "--pseudonym", "P0", "--workspace", workspace, "--yes").code == 3
    assert medsynth("forget", "--pseudonym", "P0", "--patient", "x", "--workspace", workspace, "--yes").code == 2
    assert medsynth("forget", "--workspace", workspace, "--yes").code == 2
    assert medsynth("forget", "--patient", "x", "--workspace", workspace).code == 2
    assert medsynth("forget", "--patient", "x", "--workspace", tmp_path / "none", "--yes").code == 2
    assert not (tmp_path / "none").exists()
    assert everything(workspace) == before


def test_the_linking_table_forgets_too(workspace: Path, medsynth: Call, tmp_path: Path) -> None:
    row, other = patient_in(workspace, "train"), patient_in(workspace, "test")
    key = SecretKey.load(workspace / "secrets" / "deidentify.key")
    place = tmp_path / "links" / "table"
    table = LinkingTable.open(place, key)
    for pseudonym in (row["patient"], other["patient"]):
        table.add_link(Link(pseudonym, patient_id="77"))
    settings = workspace / "pipeline.yaml"
    settings.write_text(settings.read_text().replace("linking_table: null", f"linking_table: {place}"))
    assert medsynth("forget", "--pseudonym", row["patient"], "--workspace", workspace, "--yes").code == 0
    assert [link.pseudonym for link in LinkingTable.load(place, key)] == [other["patient"]]


def test_pseudonyms_of_pseudonyms_are_followed(workspace: Path, medsynth: Call) -> None:
    """A cohort of de-identified files: its patients' IDs are pseudonyms already."""
    row = patient_in(workspace, "test")
    key = SecretKey.load(workspace / "secrets" / "deidentify.key")
    first = key.pseudonym("patient", "hospital-4711", "P")
    second = key.pseudonym("patient", first, "P")
    manifest = workspace / "prepare" / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(row["patient"], second))
    outcome = medsynth("forget", "--patient", "hospital-4711", "--workspace", workspace, "--dry-run", "--json")
    assert json.loads(outcome.out)["patient"] == second


def test_the_last_patient_takes_the_whole_stage(workspace: Path, medsynth: Call) -> None:
    manifest = workspace / "prepare" / "manifest.csv"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:2]))
    patient = rows(workspace)[0]["patient"]
    assert medsynth("forget", "--pseudonym", patient, "--workspace", workspace, "--yes").code == 0
    assert not (workspace / "prepare").exists()
    assert forgotten_patients(workspace) == {patient}


def test_an_unfinished_stage_goes_with_who_is_in_the_cohort_alone(workspace: Path, medsynth: Call) -> None:
    """A first `prepare` that was killed left files and no manifest."""
    patient = patient_in(workspace, "train")["patient"]
    identifier = raw_id(workspace, patient)
    (workspace / "prepare").rename(workspace / ".prepare.partial")
    (workspace / ".prepare.partial" / "stage.json").unlink()
    (workspace / ".prepare.partial" / "manifest.csv").unlink()
    for name in ("latents", "evaluation"):
        shutil.rmtree(workspace / name)
    assert medsynth("forget", "--patient", identifier, "--workspace", workspace, "--yes").code == 0
    assert not (workspace / ".prepare.partial").exists()
    assert forgotten_patients(workspace) == {patient}
