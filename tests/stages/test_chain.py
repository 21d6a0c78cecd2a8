"""The whole chain on sixteen phantoms: what lies in the workspace afterwards, and that it is true."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from medsynth.config.denoiser import DiffusionObjective, Watch
from medsynth.config.pipeline import Pipeline
from medsynth.stages.base import plan
from medsynth.stages.chain import STAGES
from medsynth.stages.workspace import Workspace

FOLDERS = ("prepare", "autoencoder", "latents", "denoiser", "synthetic", "evaluation", "registry")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_stage_left_its_folder_and_its_record(finished: Path) -> None:
    for name in FOLDERS:
        record = json.loads((finished / name / "stage.json").read_text())
        assert record["digest"]
        assert record["fingerprint"]["code"]
    assert not list(finished.glob(".*.partial"))
    assert (finished / "secrets").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (finished / "secrets").iterdir())


def test_a_second_run_does_nothing(finished: Path, tiny: Pipeline) -> None:
    assert [line.stage.name for line in plan(STAGES, tiny, Workspace(finished)) if line.run] == []


def test_a_changed_setting_redoes_what_depends_on_it(finished: Path, tiny: Pipeline) -> None:
    changed = tiny.model_copy(
        update={"denoiser": tiny.denoiser.model_copy(update={"objective": DiffusionObjective(kind="v")})}
    )
    generate = tiny.model_copy(update={"generate": tiny.generate.model_copy(update={"count": 9})})
    with_seed = tiny.model_copy(update={"seed": 4})

    def redone(pipeline: Pipeline) -> list[str]:
        return [line.stage.name for line in plan(STAGES, pipeline, Workspace(finished)) if line.run]

    def told(**training: Any) -> Pipeline:
        update = {
            "training": tiny.denoiser.training.model_copy(update=training),
            "latents": "disk",
            "watch": Watch(every=0),
        }
        other = {"training": tiny.autoencoder.training.model_copy(update=training)}
        parts = {
            "denoiser": tiny.denoiser.model_copy(update=update),
            "autoencoder": tiny.autoencoder.model_copy(update=other),
        }
        return tiny.model_copy(update=parts)

    assert (
        redone(told(compile=True, replay=False, log_every=3, checkpoint_minutes=1.0)) == []
    )  # the weights stay the same
    assert "autoencoder" in redone(told(learning_rate=1e-5))
    assert redone(changed) == ["denoiser", "generate", "evaluate", "register"]
    assert redone(generate) == ["generate", "evaluate", "register"]
    assert redone(with_seed) == [stage.name for stage in STAGES]


def test_splits_are_by_patient_and_hold_both_diagnoses(finished: Path) -> None:
    found = rows(finished / "prepare" / "manifest.csv")
    splits = {(row["patient"], row["split"]) for row in found}
    assert len(splits) == len({patient for patient, _ in splits})
    for split in ("train", "validation", "test"):
        assert len({row["diagnosis"] for row in found if row["split"] == split}) == 2


def test_only_training_and_validation_were_encoded(finished: Path) -> None:
    by_case = {row["case"]: row["split"] for row in rows(finished / "prepare" / "manifest.csv")}
    for split in ("train", "validation"):
        store = json.loads((finished / "latents" / split / "store.json").read_text())
        assert {by_case[case["case"]] for case in store["cases"]} == {split}


def test_synthetic_scans_say_what_they_are_and_have_their_geometry(finished: Path) -> None:
    found = rows(finished / "synthetic" / "manifest.csv")
    assert Counter(row["diagnosis"] for row in found) == {"benign": 4, "malignant": 4}
    for row in found:
        assert row["origin"] == "synthetic"
        assert "synthetic" in row["image"]
        image = nibabel.load(finished / "synthetic" / row["image"])
        assert b"SYNTHETIC" in image.header["descrip"].tobytes()
        assert image.shape == (16, 16, 16)
        np.testing.assert_allclose(image.header.get_zooms(), 3)
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        voxels = np.asarray(image.dataobj)
        assert voxels.dtype == np.int16
        assert voxels.min() >= -1000
        assert voxels.max() <= 400
        mask = nibabel.load(finished / "synthetic" / row["mask"])
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}
    dataset = json.loads((finished / "synthetic" / "dataset.json").read_text())
    assert dataset["synthetic"] is True
    assert dataset["numTraining"] == len(dataset["training"]) == 8
    assert all((finished / "synthetic" / entry["image"]).exists() for entry in dataset["training"])
    assert "not patients" in (finished / "synthetic" / "README.md").read_text()


def test_the_saved_model_generates_in_three_lines(finished: Path) -> None:
    from medsynth import LatentVolumePipeline

    pipe = LatentVolumePipeline.from_pretrained(finished / "denoiser" / "model")
    scan = pipe({"diagnosis": "malignant"}, count=1, seeds=[5], sampler="flow_euler", evaluations=2).scans[0]
    assert tuple(scan.shape) == (1, 16, 16, 16)
    assert torch.isfinite(torch.as_tensor(np.asarray(scan, np.float32))).all()


def test_one_file_again_from_its_row_has_the_same_voxels(finished: Path, tmp_path: Path) -> None:
    from medsynth.progress import Silent
    from medsynth.stages.ask import Question, answer

    manifest = finished / "synthetic" / "manifest.csv"
    wanted = rows(manifest)[5]
    question = Question(
        model=str(finished / "denoiser" / "model"), out=tmp_path / "again", again=manifest, cases=(wanted["case"],)
    )
    answer(question, dry_run=False, progress=Silent(), say=print)
    (again,) = rows(tmp_path / "again" / "manifest.csv")
    assert again["sha256"] == wanted["sha256"]
    assert (tmp_path / "again" / again["image"]).read_bytes() == (finished / "synthetic" / wanted["image"]).read_bytes()


def test_generate_from_the_registry_and_by_count_of_each(finished: Path, tmp_path: Path) -> None:
    from medsynth.progress import Silent
    from medsynth.stages.ask import Question, answer

    question = Question(
        model="models:/tiny@candidate",
        out=tmp_path / "out",
        conditions=("diagnosis=malignant:2", "diagnosis=benign:1", "diameter_mm=9"),
        tracking_uri=f"sqlite:///{finished / 'mlflow.db'}",
        overrides=("sampling.evaluations=2",),
    )
    answer(question, dry_run=False, progress=Silent(), say=print)
    found = rows(tmp_path / "out" / "manifest.csv")
    assert Counter(row["diagnosis"] for row in found) == {"malignant": 2, "benign": 1}
    assert {float(row["diameter_mm"]) for row in found} == {9.0}
    assert not (tmp_path / "out" / "masks").exists()


def test_no_identity_leaves_prepare(finished: Path) -> None:
    """Every invented identity of the phantoms' headers, searched for in every byte outside `source`."""
    import pydicom

    secrets: set[str] = set()
    for path in (finished / "source").rglob("*"):
        if path.is_file() and path.suffix in ("", ".dcm"):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            secrets |= {str(header.PatientID), str(header.StudyInstanceUID), str(header.AccessionNumber)}
            secrets |= {part for part in re.split(r"[\^= ]", str(header.PatientName)) if len(part) > 4}
    assert len(secrets) > 30
    needles = [secret.encode() for secret in secrets if secret]
    for path in finished.rglob("*"):
        if path.is_file() and "source" not in path.relative_to(finished).parts and "secrets" not in path.parts:
            data = path.read_bytes().lower()
            hits = [needle for needle in needles if needle.lower() in data]
            assert not hits, f"{path.relative_to(finished)} holds an identity"


def test_nothing_in_mlflow_names_a_folder_of_this_machine(finished: Path) -> None:
    import sqlite3

    dump = "\n".join(sqlite3.connect(finished / "mlflow.db").iterdump())
    for line in dump.splitlines():
        if str(Path.home()) in line and Path.home() != Path("/"):
            pytest.fail(line[:200])
    for path in (finished / "artifacts").rglob("*"):
        if path.is_file() and path.suffix in (".json", ".yaml", ".csv", ".txt", ".html", ".py"):
            assert str(finished.parent) not in path.read_text(errors="replace"), path


def test_the_report_holds_the_verdict_and_the_pictures(finished: Path) -> None:
    page = (finished / "evaluation" / "report.html").read_text(encoding="utf-8")
    evidence = json.loads((finished / "evaluation" / "evidence.json").read_text())
    assert evidence["benefit"]["verdict"]["outcome"] in ("benefit", "no benefit", "inconclusive")
    assert page.count("data:image/png;base64,") >= 3
    assert "anonymous" not in page.lower()
    assert not re.search(r'(?:src|href)="https?:', page)


def test_the_same_seed_gives_the_same_workspace(finished: Path, tmp_path: Path, run_tiny: Callable[..., Any]) -> None:
    """Up to the denoiser from nothing, but with the key of the first run: the same manifest and the same weights."""
    again = tmp_path / "again"
    again.mkdir()
    run_tiny(again, f"prepare.key_file={finished / 'secrets' / 'deidentify.key'}", only="prepare")
    first, second = (folder / "prepare" / "manifest.csv" for folder in (finished, again))
    assert first.read_text() == second.read_text()
    run_tiny(again, f"prepare.key_file={finished / 'secrets' / 'deidentify.key'}", only="autoencoder")
    weights = "autoencoder/model/diffusion_pytorch_model.safetensors"
    assert (finished / weights).read_bytes() == (again / weights).read_bytes()
