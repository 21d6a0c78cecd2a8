"""What a user hands to a trained model: masks of any orientation, manifests that a spreadsheet has touched, other requests."""

from __future__ import annotations

import csv
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from medsynth.config.generate import Generate as GenerateSettings
from medsynth.errors import ConfigError
from medsynth.stages.request import draw_requests

Generate = Callable[..., Any]
BOX, SPACING = (16, 16, 16), (3.0, 3.0, 3.0)


@pytest.fixture
def generate(finished: Path, tmp_path: Path, medsynth: Any) -> Generate:
    def call(*more: object) -> Any:
        model = finished / "denoiser" / "model"
        return medsynth("generate", "--model", model, "--out", tmp_path / "out", *more)

    return call


def outline() -> np.ndarray:
    """A block that lies off the middle along every axis."""
    mask = np.zeros(BOX, np.float32)
    mask[3:7, 5:12, 9:11] = 1
    return mask


def write(path: Path, voxels: np.ndarray, codes: str = "RAS", spacing_mm: tuple[float, ...] = SPACING) -> Path:
    """A mask that covers the same places whatever the order and direction of its axes."""
    affine = np.diag([*spacing_mm, 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    path.parent.mkdir(exist_ok=True)
    turned = apply_orientation(voxels, turn)
    nibabel.save(nibabel.Nifti1Image(turned, affine @ inv_ornt_aff(turn, voxels.shape)), path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PIR"])
def test_a_mask_is_turned_to_the_models_axes(codes: str, tmp_path: Path, generate: Generate) -> None:
    write(tmp_path / "masks" / "one.nii.gz", outline(), codes)
    outcome = generate("--masks", tmp_path / "masks", "--count", 1)
    assert outcome.code == 0, outcome.err
    (path,) = (tmp_path / "out" / "masks").iterdir()
    made = nibabel.load(path)
    assert nibabel.aff2axcodes(made.affine) == ("R", "A", "S")
    assert np.array_equal(np.asarray(made.dataobj), outline())


@pytest.mark.parametrize(
    ("mask", "spacing_mm", "message"),
    [
        (outline(), (1.5, 1.5, 1.5), "voxels of 3 x 3 x 3 mm"),
        (outline() * 0.5, SPACING, "such as 0.5"),
        (outline() * 2, SPACING, "such as 2"),
        (outline() * 257, SPACING, "such as 257"),
        (np.full(BOX, 255.0, np.float32), SPACING, "such as 255"),
    ],
)
def test_a_mask_that_means_something_else_is_refused_before_anything_is_made(
    mask: np.ndarray, spacing_mm: tuple[float, ...], message: str, tmp_path: Path, generate: Generate
) -> None:
    write(tmp_path / "masks" / "KOWALCZYK.nii.gz", mask, spacing_mm=spacing_mm)
    for more in ([], ["--dry-run"]):
        outcome = generate("--masks", tmp_path / "masks", "--count", 1, *more)
        assert outcome.code == 3, outcome.err
        assert message in outcome.err
        assert "KOWALCZYK" not in outcome.err
    assert not list(tmp_path.glob("*out*"))


def test_an_empty_mask_is_pointed_out_and_one_file_is_enough(tmp_path: Path, generate: Generate) -> None:
    outcome = generate("--masks", write(tmp_path / "masks" / "one.nii.gz", 0 * outline()), "--count", 1)
    assert outcome.code == 0, outcome.err
    assert "1 of the masks are empty" in outcome.err


def test_masks_of_validation_and_test_patients_are_left_aside(
    finished: Path, tmp_path: Path, generate: Generate
) -> None:
    manifest = finished / "prepare" / "manifest.csv"
    with manifest.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    held_out = sum(row["split"] != "train" for row in rows)
    outcome = generate("--masks", manifest, "--count", 24)
    assert outcome.code == 0, outcome.err
    assert f"{held_out} masks of validation and test patients are left aside" in outcome.err
    read = {row["case"]: np.asarray(nibabel.load(manifest.parent / row["mask"]).dataobj) for row in rows}
    known = [read[row["case"]] for row in rows if row["split"] == "train"]
    kept = [read[row["case"]] for row in rows if row["split"] != "train"]
    for path in (tmp_path / "out" / "masks").iterdir():
        made = np.asarray(nibabel.load(path).dataobj)
        assert any(np.array_equal(made, one) for one in known)
        assert not any(np.array_equal(made, one) for one in kept)


def changed(finished: Path, folder: Path, change: Callable[[dict[str, str]], dict[str, str]], **dialect: str) -> Path:
    """The synthetic dataset with other rows in its manifest."""
    shutil.copytree(finished / "synthetic", folder)
    path = folder / "manifest.csv"
    with path.open(newline="") as stream:
        rows = [change(row) for row in csv.DictReader(stream)]
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]), **dialect)  # type: ignore[arg-type]
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {**row, "case": f"../../{row['case']}"}, "a name of its own"),
        (lambda row: {**row, "case": "S1"}, "a name of its own"),
        (lambda row: {**row, "seed": "4.50385E+18"}, "whole numbers in the column `seed`"),
        (lambda row: {**row, "seed": ""}, "whole numbers in the column `seed`"),
        (lambda row: {name: cell for name, cell in row.items() if name != "mask"}, "expected the column mask"),
        (lambda row: {**row, "diameter_mm": "wide"}, "expected a number"),
    ],
)
def test_a_manifest_that_was_changed_is_refused_and_nothing_is_written_elsewhere(
    change: Any, message: str, finished: Path, tmp_path: Path, generate: Generate
) -> None:
    path = changed(finished, tmp_path / "set", change)
    before = set(tmp_path.parent.rglob("*"))
    outcome = generate("--again", path)
    assert outcome.code == 3, outcome.err
    assert message in outcome.err
    assert set(tmp_path.parent.rglob("*")) == before


def test_a_manifest_with_semicolons_is_read(finished: Path, tmp_path: Path, generate: Generate) -> None:
    path = changed(
        finished,
        tmp_path / "set",
        lambda row: {**row, "diameter_mm": row["diameter_mm"].replace(".", ",")},
        delimiter=";",
    )
    outcome = generate("--again", path, "--case", "S00001")
    assert outcome.code == 0, outcome.err
    ours, theirs = (next((place / "images").glob("S00001*")) for place in (tmp_path / "out", finished / "synthetic"))
    assert np.array_equal(np.asarray(nibabel.load(ours).dataobj), np.asarray(nibabel.load(theirs).dataobj))
    outcome = generate("--again", path, "--case", "S00001", "--case", "S99999", "--out", tmp_path / "other")
    assert outcome.code == 3
    assert "S99999 is missing" in outcome.err


def test_two_calls_for_one_folder_do_not_meet(tmp_path: Path, generate: Generate) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    with (partial / ".lock").open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        outcome = generate("--count", 1)
    assert outcome.code == 5
    assert "another call" in outcome.err
    assert generate("--count", 1).code == 0
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_refused_request_does_not_stand_in_the_way_of_the_next(tmp_path: Path, generate: Generate) -> None:
    assert generate("--count", 1, "--condition", "diameter_mm=400").code == 2
    assert generate("--count", 1, "--condition", "diameter_mm=20").code == 0


PIPELINE_ALONE = [
    "--count=3",
    "--condition=diagnosis=benign",
    "--masks=x",
    "--out=x",
    "--again=x",
    "--case=S0",
    "--tracking-uri=x",
]


@pytest.mark.parametrize("option", PIPELINE_ALONE)
def test_a_pipeline_takes_no_option_that_it_would_ignore(option: str, tiny_file: Path, medsynth: Any) -> None:
    outcome = medsynth("generate", tiny_file, "--dry-run", option)
    assert outcome.code == 2
    assert option.partition("=")[0] in outcome.err


DECLARATION = {
    "diagnosis": {"kind": "category", "values": ["benign", "malignant"], "dropout": 0.1},
    "sex": {"kind": "category", "values": ["F", "M"], "dropout": 0.1},
    "diameter_mm": {"kind": "number", "range": [1.0, 40.0], "unit": "mm", "dropout": 0.1},
}
PROFILE = {
    "by": "diagnosis",
    "values": {
        "benign": {"share": 0.75, "sex": {"F": 1.0}, "diameter_mm": [5.0] * 11},
        "malignant": {"share": 0.25, "sex": {"F": 0.2, "M": 0.8}, "diameter_mm": [30.0] * 11},
    },
}


def test_any_category_can_be_balanced_and_draws_what_goes_with_it() -> None:
    even = draw_requests(GenerateSettings(by="sex"), DECLARATION, PROFILE, [], count=600, seed=2)
    told = [request.conditions for request in even]
    assert [one["sex"] for one in told[:4]] == ["F", "M", "F", "M"]
    assert {one["diameter_mm"] for one in told if one["sex"] == "M"} == {30.0}  # only the malignant ones are male
    among = [one["diameter_mm"] == 5.0 for one in told if one["sex"] == "F"]
    assert np.mean(among) == pytest.approx(0.75 / 0.8, abs=0.05)
    training = draw_requests(
        GenerateSettings(by="sex", balance="as_training"), DECLARATION, PROFILE, [], count=2000, seed=2
    )
    assert np.mean([request.conditions["sex"] == "M" for request in training]) == pytest.approx(0.2, abs=0.03)
    with pytest.raises(ConfigError, match="expected a category"):
        draw_requests(GenerateSettings(by="diameter_mm"), DECLARATION, PROFILE, [], count=2, seed=2)
