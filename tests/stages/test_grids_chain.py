"""The whole chain on scans of two kinds, thin and thick slices, each on its own grid."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from ward import LITTLE_EVIDENCE

from medsynth.config.load import load_pipeline
from medsynth.console import Screen
from medsynth.errors import ConfigError, DataError
from medsynth.progress import Silent
from medsynth.stages.ask import Question, answer
from medsynth.stages.base import plan
from medsynth.stages.chain import STAGES
from medsynth.stages.forget import forget
from medsynth.stages.workspace import Workspace
from medsynth.verbs import run_pipeline

THIN, THICK = "16x16x16@1x1x1", "16x16x8@1x1x3"
TWO_GRIDS = (
    """\
name: grids
seed: 5
cohort: {kind: csv, csv: cohort.csv}
conditions:
  size: {kind: category, values: [small, large]}
  ball: {kind: mask, labels: {ball: 1}, dropout: 0.2}
prepare:
  grids: [{box: [16, 16, 16], spacing_mm: [1, 1, 1]}, {box: [16, 16, 8], spacing_mm: [1, 1, 3]}]
  intensity: {kind: percentiles}
autoencoder:
  network: {downsampling: 2, latent_channels: 2, width: 8, blocks: 1}
  training: {steps: 6, batch_size: 2, warmup_steps: 1, validate_every: 3, log_every: 2}
denoiser:
  network: {widths: [16], blocks: 1, head_channels: 8, mask_channels: 4}
  training: {steps: 8, batch_size: 2, warmup_steps: 1, validate_every: 4, log_every: 2}
generate:
  count: 24
  by: size
  sampling: {sampler: flow_euler, evaluations: 2, guidance: 2.0}
"""
    + LITTLE_EVIDENCE
)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def grid_of(row: dict[str, str]) -> str:
    return f"{row['shape']}@{row['spacing_mm'].replace('.0', '')}"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of twenty scans of a ball in the middle, every third of them in thick slices and a little off its grid."""
    folder = tmp_path_factory.mktemp("hospital")
    generator = np.random.default_rng(0)
    lines = ["patient,image,mask,split,size"]
    for number in range(20):
        thick, large = number % 3 == 2, number % 2
        shape, spacing = ((15, 16, 9), (1.0, 1.1, 2.7)) if thick else ((18, 17, 16), (0.9, 1.0, 1.0))
        places = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
        distance = np.sqrt(sum(place**2 for place in np.meshgrid(*places, indexing="ij")))
        inside = distance < (6 if large else 4)
        voxels = np.where(inside, 100.0, 20.0) + generator.normal(0, 5, shape)
        for name, array in (("image", voxels.astype(np.float32)), ("mask", inside.astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), folder / f"{name}{number}.nii")
        split = "train" if number < 12 else "validation" if number < 16 else "test"
        lines.append(f"Q{number:03d}X,image{number}.nii,mask{number}.nii,{split},{('small', 'large')[large]}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "grids.yaml").write_text(TWO_GRIDS, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(hospital: Path) -> Path:
    """A workspace in which every stage is done. Look, do not touch."""
    folder = hospital / "runs"
    run_pipeline(load_pipeline(str(hospital / "grids.yaml")), folder, None, force=False, screen=Screen(quiet=True))
    return folder


def ask(done: Path, out: Path, **asked: Any) -> list[dict[str, str]]:
    question = Question(model=str(done / "denoiser" / "model"), out=out, **asked)
    answer(question, dry_run=False, progress=Silent(), say=lambda line: None)
    return rows(out / "manifest.csv")


def test_each_scan_lies_on_the_grid_of_its_kind(done: Path) -> None:
    found = rows(done / "prepare" / "manifest.csv")
    assert Counter(map(grid_of, found)) == {THIN: 14, THICK: 6}
    for row in found:
        image = nibabel.load(done / "prepare" / row["image"])
        assert "x".join(map(str, image.shape)) == row["shape"]
        assert nibabel.load(done / "prepare" / row["mask"]).shape == image.shape
    summary = json.loads((done / "prepare" / "summary.json").read_text())
    assert summary["grids"] == {THIN: 14, THICK: 6}


def test_latents_are_kept_by_grid_and_know_theirs(done: Path) -> None:
    for split, counts in (("train", {THIN: 8, THICK: 4}), ("validation", {THIN: 3, THICK: 1})):
        assert {path.name for path in (done / "latents" / split).iterdir()} == {THIN, THICK}
        for grid, count in counts.items():
            store = json.loads((done / "latents" / split / grid / "store.json").read_text())
            assert [row["grid"] for row in store["rows"]] == [grid] * count


def test_the_model_says_its_grids_and_their_shares(done: Path) -> None:
    model = done / "denoiser" / "model"
    geometry = json.loads((model / "geometry.json").read_text())
    assert [entry["box"] for entry in geometry["grids"]] == [[16, 16, 16], [16, 16, 8]]
    assert "box" not in geometry
    assert json.loads((model / "conditions.json").read_text())["grid"]["grids"] == [THIN, THICK]
    profile = json.loads((model / "provenance.json").read_text())["profile"]
    for entry in profile["values"].values():
        assert entry["grid"] == pytest.approx({THIN: 2 / 3, THICK: 1 / 3})


def test_synthetic_scans_lie_on_the_grids_of_their_masks(done: Path) -> None:
    found = rows(done / "synthetic" / "manifest.csv")
    grids = Counter(map(grid_of, found))
    assert set(grids) == {THIN, THICK} and grids.total() == 24
    for row in found:
        image, mask = (nibabel.load(done / "synthetic" / row[name]) for name in ("image", "mask"))
        assert "x".join(map(str, image.shape)) == row["shape"]
        np.testing.assert_allclose(image.header.get_zooms(), [float(mm) for mm in row["spacing_mm"].split("x")])
        centre = image.affine @ [*((np.array(image.shape) - 1) / 2), 1]
        np.testing.assert_allclose(centre[:3], 0, atol=1e-6)
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert mask.shape == image.shape
    assert f"or {[16, 16, 8]} voxels of {[1.0, 1.0, 3.0]} mm" in (done / "synthetic" / "README.md").read_text()


def test_all_are_judged_on_one_grid(done: Path) -> None:
    evidence = json.loads((done / "evaluation" / "evidence.json").read_text())
    assert evidence["counts"] == {"train": 12, "validation": 4, "test": 4, "synthetic": 24}
    assert (done / "evaluation" / "report.html").stat().st_size > 10_000
    shown = np.load(done / "autoencoder" / "reconstructions.npy")
    assert shown.shape == (4, 2, 16, 16, 24)  # the larger box along z is the thick one's: 8 x 3 mm
    padded = [bool((scan[..., :4] == -1).all() and (scan[..., 20:] == -1).all()) for scan in shown[:, 0]]
    assert sum(padded) == 3 and all((scan[..., 4:20] != -1).any() for scan in shown[:, 0])


def test_a_second_run_does_nothing(hospital: Path, done: Path) -> None:
    pipeline = load_pipeline(str(hospital / "grids.yaml"))
    assert [line.stage.name for line in plan(STAGES, pipeline, Workspace(done)) if line.run] == []


def test_a_scan_of_each_grid_comes_again_from_its_row(done: Path, tmp_path: Path) -> None:
    manifest = done / "synthetic" / "manifest.csv"
    first = {grid_of(row): row for row in rows(manifest)}
    again = ask(done, tmp_path / "again", again=manifest, cases=tuple(row["case"] for row in first.values()))
    assert {grid_of(row): row["sha256"] for row in again} == {grid: row["sha256"] for grid, row in first.items()}


def test_a_grid_is_drawn_as_in_training_or_by_request(done: Path, tmp_path: Path) -> None:
    free = Counter(map(grid_of, ask(done, tmp_path / "free", count=24, seed=1)))
    assert set(free) == {THIN, THICK} and free[THIN] > free[THICK]
    wanted = ask(done, tmp_path / "thick", count=3, grid="16x16x8@1x1x3.0")
    assert list(map(grid_of, wanted)) == [THICK] * 3
    with pytest.raises(ConfigError) as caught:
        ask(done, tmp_path / "none", count=1, grid="16x16x8@1x1x5")
    assert f"--grid: expected one of {THIN}, {THICK} (voxels@mm), found '16x16x8@1x1x5'" in caught.value.mistakes[0]


def test_guidance_cannot_go_further_toward_a_grid(done: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"guidance: expected one of the conditions size, ball, found 'grid'"):
        ask(done, tmp_path / "out", count=1, overrides=("sampling.guidance={grid: 2}",))


def test_masks_decide_the_grid_and_must_lie_on_a_known_one(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    thick = next(row for row in rows(done / "prepare" / "manifest.csv") if grid_of(row) == THICK)
    shutil.copy(done / "prepare" / thick["mask"], folder / "one.nii")
    assert list(map(grid_of, ask(done, tmp_path / "out", count=2, masks=folder))) == [THICK] * 2
    by_manifest = ask(done, tmp_path / "rows", count=4, masks=done / "prepare" / "manifest.csv", grid=THIN)
    assert list(map(grid_of, by_manifest)) == [THIN] * 4 and all(row["mask"] for row in by_manifest)
    with pytest.raises(ConfigError, match=r"expected a mask of a case with .*grid=16x16x16@1x1x1, found none"):
        ask(done, tmp_path / "clash", count=1, masks=folder, grid=THIN)
    nibabel.save(nibabel.Nifti1Image(np.ones((16, 16, 8), np.uint8), np.diag([1, 1, 2, 1])), folder / "Meier.nii")
    with pytest.raises(
        DataError, match=r"mask 1: expected one on a grid of the model .* found \[16, 16, 8\]"
    ) as caught:
        ask(done, tmp_path / "none", count=1, masks=folder)
    assert "Meier" not in str(caught.value)


def test_a_patient_is_forgotten_with_the_latents_of_every_grid(hospital: Path, done: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(done, copy)
    before = np.load(copy / "autoencoder" / "reconstructions.npy")
    told = forget(copy, patient="Q013X", pseudonym=None, dry_run=False)
    assert not (copy / "latents").exists() and not (copy / "evaluation").exists()
    after = np.load(copy / "autoencoder" / "reconstructions.npy")
    assert len(after) == len(before) - 1
    assert len(rows(copy / "prepare" / "manifest.csv")) == 19
    assert told["deleted"]
