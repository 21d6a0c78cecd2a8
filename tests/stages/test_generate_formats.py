"""`medsynth generate --format`: DICOM beside NIfTI or alone, again, and after a kill."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from child import Children, Strike

from medsynth.errors import CohortError, DataError, UsageError
from medsynth.imaging.dicom import find_series
from medsynth.imaging.nifti import read_nifti
from medsynth.imaging.synthetic.segmentation import read_segmentation
from medsynth.progress import Silent
from medsynth.stages.ask import Question, answer
from medsynth.stages.export.collect import read_dataset

FAST = ("sampling.evaluations=2", "sampling.sampler=flow_euler")


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Children:
    return Children(tmp_path_factory.mktemp("streams"))


def ask(finished: Path, out: Path, **more: Any) -> list[dict[str, str]]:
    question = {"masks": finished / "synthetic" / "manifest.csv", "count": 3, "seed": 5, "overrides": FAST, **more}
    answer(
        Question(model=str(finished / "denoiser" / "model"), out=out, **question),
        dry_run=False, progress=Silent(), say=print,
    )  # fmt: skip
    return rows(out)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def volume(folder: Path) -> np.ndarray:
    """HU [slices, rows, columns], by pydicom alone."""
    found = [pydicom.dcmread(path) for path in folder.iterdir()]
    found.sort(key=lambda image: float(image.ImagePositionPatient[2]))
    return np.stack([image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept) for image in found])


def test_both_hold_the_same_scan_and_mask(finished: Path, tmp_path: Path) -> None:
    labels = {"nodule": 1}
    for row in ask(finished, tmp_path / "out", format="both"):
        folder = tmp_path / "out" / "dicom" / f"{row['case']}_synthetic"
        scan, mask = read_nifti(tmp_path / "out" / row["image"]), read_nifti(tmp_path / "out" / row["mask"])
        # RAS to slices from feet to head, each seen from the feet: x and y run the other way.
        turned = scan.as_tensor()[0].numpy()[::-1, ::-1].transpose(2, 1, 0)
        np.testing.assert_array_equal(volume(folder / "image"), turned)
        back = read_segmentation(folder / "mask" / f"{row['case']}_synthetic_mask.dcm", labels, like=mask)
        np.testing.assert_array_equal(back.as_tensor().numpy(), mask.as_tensor().numpy())
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert all((tmp_path / "out" / entry["dicom"] / "image").is_dir() for entry in described["training"])


def test_half_precision_moves_voxels_a_little(finished: Path, tmp_path: Path) -> None:
    usual, half = ask(finished, tmp_path / "usual"), tmp_path / "half"
    rounded = ask(finished, half, overrides=(*FAST, "precision=bf16"))
    for before, after in zip(usual, rounded, strict=True):
        assert before["seed"] == after["seed"]
        scans = [read_nifti(tmp_path / "usual" / before["image"]), read_nifti(half / after["image"])]
        apart = np.abs(np.subtract(*(scan.as_tensor().numpy().astype(float) for scan in scans)))
        assert 0 < apart.max() < 100 and apart.mean() < 10


def test_what_rows_were_computed_in_is_used_again(finished: Path, tmp_path: Path) -> None:
    usual = ask(finished, tmp_path / "usual")
    found = ask(finished, tmp_path / "half", overrides=(*FAST, "precision=bf16"))
    assert {row["precision"] for row in found} == {"bf16"} and {row["precision"] for row in usual} == {"fp32"}
    manifest = tmp_path / "half" / "manifest.csv"
    again = {"again": manifest, "masks": None, "count": None, "seed": None, "overrides": ()}
    assert ask(finished, tmp_path / "again", **again) == found
    written = manifest.read_text()
    manifest.write_text(written.replace(",bf16\n", ",fp8\n"))
    with pytest.raises(CohortError, match="guidance and precision as `generate` writes them"):
        ask(finished, tmp_path / "unknown", **again)
    # An earlier version, whose rows do not say it.
    manifest.write_text(written.replace(",precision\n", "\n").replace(",bf16\n", "\n"))
    older = ask(finished, tmp_path / "older", **again)
    assert [row["sha256"] for row in older] == [row["sha256"] for row in usual]


def test_dicom_alone_and_again_from_its_rows(finished: Path, tmp_path: Path) -> None:
    found = ask(finished, tmp_path / "dicom", format="dicom")
    assert not list((tmp_path / "dicom").rglob("*.nii*"))
    assert all((tmp_path / "dicom" / row[name]).exists() for row in found for name in ("image", "mask"))
    both = ask(finished, tmp_path / "both", format="both")
    assert [row["seed"] for row in both] == [row["seed"] for row in found]
    assert files(tmp_path / "both" / "dicom") == files(tmp_path / "dicom" / "dicom")
    # The masks are read from the segmentations.
    again = {"again": tmp_path / "dicom" / "manifest.csv", "masks": None, "count": None, "seed": None, "overrides": ()}
    ask(finished, tmp_path / "again", format="dicom", **again)
    assert files(tmp_path / "again") == {
        name: data.replace(b'"name": "dicom"', b'"name": "again"') for name, data in files(tmp_path / "dicom").items()
    }
    with pytest.raises(DataError, match="--format nifti or both"):
        read_dataset(tmp_path / "dicom")


def test_guidance_stands_in_every_row_and_is_used_again(finished: Path, tmp_path: Path) -> None:
    guidance = ("sampling.guidance=3.3", "sampling.guidance_interval=[0.2, 0.9]", "sampling.guidance_rescale=0.7")
    found = ask(finished, tmp_path / "out", overrides=(*FAST, *guidance))
    assert {row["guidance"] for row in found} == {"3.3; interval 0.2 0.9; rescale 0.7"}
    again = {"again": tmp_path / "out" / "manifest.csv", "masks": None, "count": None, "seed": None, "overrides": ()}
    assert ask(finished, tmp_path / "again", **again) == found
    unguided = ask(finished, tmp_path / "unguided")
    assert all(one["sha256"] != other["sha256"] for one, other in zip(found, unguided, strict=True))
    damaged = (tmp_path / "out" / "manifest.csv").read_text().replace("rescale 0.7", "rescale much")
    (tmp_path / "out" / "manifest.csv").write_text(damaged)
    with pytest.raises(CohortError, match="sampler, evaluations, guidance and precision as `generate` writes them"):
        ask(finished, tmp_path / "third", **again)


def test_each_scan_is_a_study_and_a_patient_of_its_own(finished: Path, tmp_path: Path) -> None:
    ask(finished, tmp_path / "out", format="dicom", masks=None)
    assert not list((tmp_path / "out").rglob("mask"))
    found = find_series(tmp_path / "out" / "dicom")
    assert len(found.series) == 3
    assert not found.skipped
    headers = [pydicom.dcmread(series.files[0], stop_before_pixels=True) for series in found.series]
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({header[keyword].value for header in headers}) == 3


@pytest.mark.slow
def test_killed_within_a_series_it_goes_on_to_the_same_files(finished: Path, tmp_path: Path, child: Children) -> None:
    """In the second scan's fourth slice; sixteen images and a mask come before it."""
    out, arguments = tmp_path / "out", ["--model", finished / "denoiser" / "model", "--count", 3, "--seed", 5]
    arguments += ["--masks", finished / "synthetic" / "manifest.csv", "--format", "both"]
    arguments += [text for one in FAST for text in ("--set", one)]
    reference = tmp_path / "reference" / "out"
    reference.parent.mkdir()
    ask(finished, reference, format="both")
    strike = Strike("medsynth.imaging.synthetic.study:_save", 17 + 4, after=True)
    killed = child("generate", *arguments, "--out", out, strike=strike)
    assert killed.code == -signal.SIGKILL, killed.err
    assert not out.exists()
    partial = tmp_path / ".out.partial" / "dicom"
    whole = [path for path in partial.iterdir() if not path.name.startswith(".")]
    assert [len(list((path / "image").iterdir())) for path in whole] == [16]
    assert [path.name for path in partial.glob(".*")] == [".S00001_synthetic.writing"]
    again = child("generate", *arguments, "--out", out, "-q")
    assert again.code == 0, again.err
    assert files(out) == files(reference)


@pytest.mark.parametrize("form", ["dicom", "png"])
def test_a_pipeline_needs_its_nifti_files(form: str, tiny_file: Path, medsynth: Any) -> None:
    outcome = medsynth("generate", tiny_file, "--format", form)
    assert outcome.code == 2
    assert "nifti" in outcome.err
    setting = medsynth("config", "show", tiny_file, "--set", f"generate.format={form}")
    assert setting.code == 2
    assert "generate.format" in setting.err


def test_the_setting_reaches_the_stage(tiny_file: Path, medsynth: Any, finished: Path) -> None:
    plan = medsynth("generate", tiny_file, "--workspace", finished, "--format", "both", "--dry-run", "--json")
    assert json.loads(plan.out)["plan"]["generate"].startswith("run")
    plan = medsynth("generate", tiny_file, "--workspace", finished, "--format", "nifti", "--dry-run", "--json")
    assert json.loads(plan.out)["plan"]["generate"].startswith("skip")


def test_a_model_of_neither_ct_nor_mr_is_refused_before_anything_is_written(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import medsynth.stages.ask as module

    load = module.load_model

    def of_another_modality(folder: Path) -> Any:
        pipeline = load(folder)
        pipeline.geometry["modality"] = "OT"
        return pipeline

    monkeypatch.setattr(module, "load_model", of_another_modality)
    with pytest.raises(DataError, match="CT or MR"):
        ask(finished, tmp_path / "out", format="dicom")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError):
        ask(finished, finished / "synthetic", format="nifti")
