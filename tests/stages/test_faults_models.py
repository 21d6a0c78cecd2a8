"""Model folders that are none, were changed, or are newer than this program; and questions a model cannot answer."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

WEIGHTS = "denoiser/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "denoiser" / "model", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def generate(tmp_path: Path, medsynth: Any) -> Any:
    def call(model: object, *more: object) -> Any:
        return medsynth("generate", "--model", model, "--out", tmp_path / "out", "--count", 1, "-q", *more)

    return call


def nothing_made(tmp_path: Path) -> bool:
    return not [path for path in tmp_path.iterdir() if "out" in path.name]


def flip_a_bit(model: Path) -> None:
    data = bytearray((model / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (model / WEIGHTS).write_bytes(data)


def cut_weights(model: Path) -> None:
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:-100])


def lose_weights(model: Path) -> None:
    (model / WEIGHTS).unlink()


def edit_geometry(model: Path) -> None:
    text = (model / "geometry.json").read_text()
    (model / "geometry.json").write_text(text.replace('"CT"', '"MR"'))


def add_a_pickle(model: Path) -> None:
    (model / "denoiser" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")


def newer_format(model: Path) -> None:
    sums = json.loads((model / "checksums.json").read_text())
    sums["format_version"] = 99
    (model / "checksums.json").write_text(json.dumps(sums))


def no_checksums(model: Path) -> None:
    (model / "checksums.json").unlink()


def checksums_cut_short(model: Path) -> None:
    (model / "checksums.json").write_text('{"format": ')


def lead_outside(model: Path) -> None:
    sums = json.loads((model / "checksums.json").read_text())
    sums["files"]["../secret.json"] = "0" * 64
    (model / "checksums.json").write_text(json.dumps(sums))


SPOILT = [
    (flip_a_bit, f"{WEIGHTS} of the model folder was changed"),
    (cut_weights, f"{WEIGHTS} of the model folder was changed"),
    (lose_weights, f"the model folder lacks {WEIGHTS}"),
    (edit_geometry, "geometry.json of the model folder was changed"),
    (add_a_pickle, "which is not part of the model"),
    (newer_format, "found format 99; update with"),
    (no_checksums, "expected a model folder"),
    (checksums_cut_short, "is not JSON"),
    (lead_outside, "names a file outside"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
def test_a_spoilt_model_is_not_used(spoil: Any, message: str, model: Path, tmp_path: Path, generate: Any) -> None:
    spoil(model)
    outcome = generate(model)
    assert outcome.code == 3
    assert len(outcome.err.splitlines()) == 1
    assert message in outcome.err
    assert nothing_made(tmp_path)


def test_the_wrong_folder(finished: Path, tmp_path: Path, generate: Any) -> None:
    for folder in (tmp_path / "nowhere", finished / "denoiser", finished / "autoencoder" / "model", tmp_path):
        outcome = generate(folder)
        assert outcome.code == 3
        assert len(outcome.err.splitlines()) == 1
        assert "expected a model folder" in outcome.err
    assert nothing_made(tmp_path)


def test_a_stage_does_not_use_a_spoilt_model_either(workspace: Path, tiny_file: Path, medsynth: Any) -> None:
    flip_a_bit(workspace / "denoiser" / "model")
    outcome = medsynth("generate", tiny_file, "--workspace", workspace, "--force", "-q")
    assert outcome.code == 3
    assert len(outcome.err.splitlines()) == 1
    assert "was changed after it was saved" in outcome.err
    assert (workspace / "synthetic" / "stage.json").exists()  # the earlier result stays


def test_spoilt_results_of_earlier_stages(workspace: Path, tiny_file: Path, medsynth: Any) -> None:
    """A prepared scan, a latent and the autoencoder's weights that were altered are found where they are used."""
    with (workspace / "prepare" / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        image = workspace / "prepare" / next(row["image"] for row in csv.DictReader(stream) if row["split"] == "train")
    whole = image.read_bytes()
    image.write_bytes(whole[:-64])
    weights = workspace / "autoencoder" / "model" / "diffusion_pytorch_model.safetensors"
    latents = workspace / "latents" / "train" / "latents.npy"
    for stage, prepare in (
        ("autoencoder", lambda: None),
        ("encode", lambda: (image.write_bytes(whole), weights.write_bytes(weights.read_bytes()[:-64]))),
        ("denoiser", lambda: latents.write_bytes(latents.read_bytes()[:-64])),
    ):
        prepare()
        outcome = medsynth(stage, tiny_file, "--workspace", workspace, "--force", "-q")
        assert outcome.code == 3, (stage, outcome.err)
        assert len(outcome.err.splitlines()) == 1


def test_an_output_folder_that_exists(finished: Path, tmp_path: Path, generate: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    outcome = generate(finished / "denoiser" / "model")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_an_output_folder_that_cannot_be_made(finished: Path, tmp_path: Path, medsynth: Any) -> None:
    (tmp_path / "file").write_text("taken")
    ask = ("generate", "--model", finished / "denoiser" / "model", "--count", 1, "-q", "--out")
    for place in (tmp_path / "file" / "out", Path("/proc/medsynth/out")):
        outcome = medsynth(*ask, place)
        assert outcome.code == 2
        assert len(outcome.err.splitlines()) == 1


QUESTIONS = [
    (["--condition", "diagnosis=malignnat"], 2, "malignant"),
    (["--condition", "diagnosys=malignant"], 2, "diagnosis"),
    (["--condition", "diagnosis"], 2, "expected NAME=VALUE"),
    (["--condition", "diameter_mm=wide"], 2, "expected a number"),
    (["--condition", "diameter_mm=400"], 2, "400"),
    (["--condition", "nodule=1"], 2, "--masks"),
    (["--set", "sampling.evaluatoins=3"], 2, "evaluations"),
    (["--set", "sampling.sampler=flow_eulr"], 2, "flow_euler"),
    (["--masks", "nowhere"], 3, "expected mask files"),
    (["--again", "nowhere.csv"], 2, "leave out"),
    (["--device", "cuda:99"], 2, "device"),
    (["--condition", "diameter_mm=nan"], 2, "expected a number"),
    (["--condition", "diagnosis=malignant:0"], 2, "above 0"),
    (["--condition", "diagnosis=benign", "--condition", "diagnosis=malignant:2"], 2, "asked for once"),
    (["--condition", "diagnosis=benign", "--condition", "diagnosis=malignant"], 2, "asked for once"),
    (["--count", "5", "--condition", "diagnosis=malignant:2"], 2, "leave one out"),
    (["--count", "5", "--set", "count=3"], 2, "leave one out"),
    (["--set", "conditions.diagnose=malignant"], 2, "did you mean diagnosis?"),
    (["--set", "ratio_of_training=2"], 2, "--count"),
    (["--set", "sampling.guidance={diagnos: 2}"], 2, "did you mean diagnosis?"),
    (["--set", "by=diameter_mm"], 2, "expected a category"),
    (["--set", "by=age"], 2, "expected a category"),
    (["--case", "S00000"], 2, "--again"),
    (["--force"], 2, "never overwrites"),
]


@pytest.mark.parametrize(("more", "code", "message"), QUESTIONS, ids=[" ".join(more) for more, _, _ in QUESTIONS])
def test_a_question_the_model_cannot_answer(
    more: list[str], code: int, message: str, finished: Path, tmp_path: Path, generate: Any
) -> None:
    outcome = generate(finished / "denoiser" / "model", *more)
    assert outcome.code == code, outcome.err
    assert 1 <= len(outcome.err.splitlines()) <= 2
    assert message in outcome.err
    assert nothing_made(tmp_path)


def test_masks_that_do_not_fit(finished: Path, tmp_path: Path, generate: Any) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    shutil.copy(next((finished / "source" / "masks").iterdir()), masks / "KOWALCZYK.nii.gz")  # not of the model's box
    outcome = generate(finished / "denoiser" / "model", "--masks", masks)
    assert outcome.code == 3
    assert len(outcome.err.splitlines()) == 1
    assert "as the model's box" in outcome.err
    assert "KOWALCZYK" not in outcome.err
    assert not (tmp_path / "out").exists()
    broken = masks / "KOWALCZYK.nii.gz"
    broken.write_bytes(broken.read_bytes()[:60])
    shutil.rmtree(tmp_path / ".out.partial", ignore_errors=True)
    outcome = generate(finished / "denoiser" / "model", "--masks", masks)
    assert outcome.code == 3
    assert len(outcome.err.splitlines()) == 1


def test_a_model_that_is_in_no_registry(finished: Path, tmp_path: Path, generate: Any) -> None:
    for name, more in (
        ("models:/tiny@candidat", ["--workspace", finished]),
        ("models:/tinny@candidate", ["--workspace", finished]),
        ("models:/tiny@candidate", []),
        ("models:/tiny@candidate", ["--workspace", tmp_path / "nowhere"]),
    ):
        outcome = generate(name, *more)
        assert outcome.code == 2, outcome.err
        assert 1 <= len(outcome.err.splitlines()) <= 2
    assert nothing_made(tmp_path)
    assert not (tmp_path / "nowhere").exists()


def test_a_tampered_model_in_the_registry(workspace: Path, tmp_path: Path, generate: Any) -> None:
    for weights in (workspace / "artifacts").rglob(WEIGHTS):
        flip_a_bit(weights.parents[1])
    outcome = generate("models:/tiny@candidate", "--workspace", workspace)
    assert outcome.code == 3
    assert len(outcome.err.splitlines()) == 1
    assert "was changed" in outcome.err
    assert nothing_made(tmp_path)


def test_a_step_that_does_not_fit_the_memory_is_told_with_what_helps(
    workspace: Path, tiny_file: Path, medsynth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("medsynth.stages.denoiser.train_denoiser", too_large)
    outcome = medsynth("denoiser", tiny_file, "--workspace", workspace, "--force", "-q")
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert "denoiser.training.batch_size" in line and "checkpointing" in line
    assert (workspace / "denoiser" / "stage.json").exists(), "what was there before stays"


def test_a_damaged_record_of_a_stage_is_told(workspace: Path, tiny_file: Path, medsynth: Any) -> None:
    (workspace / "denoiser" / "stage.json").write_text('{"digest": ')
    outcome = medsynth("denoiser", tiny_file, "--workspace", workspace, "--dry-run")
    assert outcome.code == 3
    assert len(outcome.errors) == 1
    assert "found it damaged" in outcome.err
