"""Masks of training patients are not handed on as they are, unless the user says so."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from medsynth.config.generate import Generate
from medsynth.diffusion.model_folder import load_model
from medsynth.errors import DataError
from medsynth.progress import Silent
from medsynth.stages.ask import Question, answer
from medsynth.stages.background import ahead
from medsynth.stages.files import read_json
from medsynth.stages.given_masks import given_masks
from medsynth.stages.request import MaskSource, draw_requests
from medsynth.stages.scans import mask_reader

DECLARATION = {"lesion": {"kind": "mask", "labels": {"lesion": 1}}}
PROFILE = {"by": None, "values": {"": {"share": 1.0}}}


def masks_of(manifest: Path, split: str | None = None) -> list[NDArray[np.uint8]]:
    with manifest.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if split in (None, row["split"])]
    return [np.asarray(nibabel.load(manifest.parent / row["mask"]).dataobj, np.uint8) for row in rows]


def test_a_pipeline_asks_with_masks_that_no_training_patient_has(finished: Path) -> None:
    training = masks_of(finished / "prepare" / "manifest.csv", "train")
    synthetic = masks_of(finished / "synthetic" / "manifest.csv")
    volumes = {int((mask > 0).sum()) for mask in training}
    assert all(int((mask > 0).sum()) in volumes for mask in synthetic)
    own = [mask for mask in synthetic if any(np.array_equal(mask, other) for other in training)]
    assert len(own) < len(synthetic)
    assert all((mask > 0).sum() < 128 for mask in own)  # few voxels have few shapes
    assert "shapes of several" in (finished / "synthetic" / "README.md").read_text()


def test_masks_that_a_user_gives_are_taken_as_they_are_unless_asked_otherwise(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    x, y, z = np.ogrid[:16, :16, :16]
    drawn = (((x - 8) / 6) ** 2 + ((y - 8) / 4) ** 2 + ((z - 7) / 3) ** 2 <= 1).astype(np.uint8)
    nibabel.Nifti1Image(drawn, np.diag([3.0, 3, 3, 1])).to_filename(folder / "a.nii.gz")
    said: list[str] = []
    few = ("sampling.evaluations=2",)
    for name, overrides in (("same", few), ("varied", (*few, "vary_masks.bend=0.2"))):
        model = str(finished / "denoiser" / "model")
        question = Question(model=model, out=tmp_path / name, count=1, masks=folder, overrides=overrides)
        answer(question, dry_run=False, progress=Silent(), say=said.append)
    (same,), (varied,) = (masks_of(tmp_path / name / "manifest.csv") for name in ("same", "varied"))
    assert np.array_equal(same, drawn)
    assert not np.array_equal(varied, drawn) and varied.sum() == drawn.sum()
    assert len(said) == 1 and "as they are" in said[0]
    assert "unchanged" in (tmp_path / "same" / "README.md").read_text()
    assert "shapes of several" in (tmp_path / "varied" / "README.md").read_text()


def test_each_scan_has_a_variation_of_its_own_and_the_same_each_time() -> None:
    masks = [MaskSource(Path("a.nii.gz"), {})]
    once, again = (draw_requests(Generate(), DECLARATION, PROFILE, masks, count=2, seed=1) for _ in range(2))
    variations = [request.variation for request in once]
    assert all(variation is not None for variation in variations)
    assert not np.array_equal(variations[0].rotation, variations[1].rotation)  # type: ignore[union-attr]
    for request, other in zip(once, again, strict=True):
        assert np.array_equal(request.variation.phases, other.variation.phases)  # type: ignore[union-attr]


@pytest.mark.parametrize("masks", [[], [MaskSource(Path("a.nii.gz"), {})]])
def test_without_a_mask_or_a_wish_nothing_is_varied(masks: list[MaskSource]) -> None:
    still = Generate.model_validate({"vary_masks": {"mix": 0, "rotate_degrees": 0, "bend": 0}})
    settings = still if masks else Generate()
    (request,) = draw_requests(settings, DECLARATION, PROFILE, masks, count=1, seed=1)
    assert request.variation is None


def sources(*rows: tuple[str, str, str | None]) -> list[MaskSource]:
    """Name, diagnosis and patient of each."""
    return [MaskSource(Path(f"{name}.nii.gz"), {"diagnosis": told, "age": 50.0}, who) for name, told, who in rows]


def test_a_mask_is_mixed_with_those_of_other_patients_of_its_kind() -> None:
    masks = sources(("a", "benign", "p"), ("b", "benign", "q"), ("c", "benign", "q"), ("d", "benign", "p"))
    masks += sources(("e", "malignant", "r"), ("f", "benign", "s"), ("g", "benign", None), ("h", "benign", None))
    owners = {str(source.path): source.patient or str(source.path) for source in masks}
    kinds = {str(source.path): source.conditions["diagnosis"] for source in masks}
    requests = draw_requests(Generate(), DECLARATION, PROFILE, masks, count=40, seed=1)
    for request in requests:
        everybody = [str(path) for path in (request.mask, *request.others)]
        assert {kinds[name] for name in everybody} == {kinds[everybody[0]]}
        assert len({owners[name] for name in everybody}) == len(everybody)
        assert len(request.others) == (0 if kinds[everybody[0]] == "malignant" else 4)
        assert request.variation is not None
    assert len({request.others for request in requests}) > 20
    few = Generate.model_validate({"vary_masks": {"mix": 3}})
    assert {len(r.others) for r in draw_requests(few, DECLARATION, PROFILE, masks, count=40, seed=1)} == {0, 2}


def test_without_mixing_others_are_left_alone() -> None:
    masks = sources(("a", "benign", "p"), ("b", "benign", "q"), ("c", "benign", "r"))
    bent = Generate.model_validate({"vary_masks": {"mix": 0}})
    for request in draw_requests(bent, DECLARATION, PROFILE, masks, count=5, seed=1):
        assert request.variation is not None and request.others == ()


@pytest.mark.parametrize("mix", [1, 2, -1, 65])
def test_a_number_of_shapes_that_have_no_mixture_is_refused(mix: int) -> None:
    with pytest.raises(ValueError, match="mix"):
        Generate.model_validate({"vary_masks": {"mix": mix}})


def test_a_mask_that_cannot_be_mixed_in_is_told_before_anything_is_written(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    ball = (np.linalg.norm(np.indices((16, 16, 16)) - 7.5, axis=0) < 5).astype(np.uint8)
    for name, value in (("a", 1), ("b", 1), ("c", 7)):
        nibabel.Nifti1Image(ball * np.uint8(value), np.diag([3.0, 3, 3, 1])).to_filename(folder / f"{name}.nii.gz")
    overrides = ("sampling.evaluations=2", "vary_masks.mix=3")
    question = Question(
        model=str(finished / "denoiser" / "model"), out=tmp_path / "out", count=1, masks=folder, overrides=overrides
    )
    with pytest.raises(DataError, match="no values but 0 and 1"):
        answer(question, dry_run=False, progress=Silent(), say=lambda _: None)
    assert not (tmp_path / "out").exists()


def test_masks_made_by_several_threads_are_those_made_one_after_another(finished: Path) -> None:
    pipeline = load_model(finished / "denoiser" / "model")
    manifest = finished / "prepare" / "manifest.csv"
    masks = given_masks(manifest, pipeline.condition_declaration, lambda _: None)
    profile = read_json(finished / "denoiser" / "model" / "provenance.json")["profile"]
    requests = draw_requests(Generate(), pipeline.condition_declaration, profile, masks, count=12, seed=3)
    assert any(request.others for request in requests)
    one, several = (list(ahead(mask_reader(pipeline), requests, threads)) for threads in (0, 4))
    for first, second in zip(one, several, strict=True):
        assert first is not None and second is not None
        assert np.array_equal(np.asarray(first), np.asarray(second))
