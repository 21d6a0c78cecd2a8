"""`medsynth prepare` on real scans: DICOM of every kind at hand, LIDC crops, hippocampus crops."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsynth.cli import app, guarded

DATA = Path(os.environ.get("MEDSYNTH_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real scans at {DATA}; MEDSYNTH_DATA names their folder"),
]

DICOM = """\
name: mixed
deidentify: {accept_faces: true}
cohort: {kind: csv, csv: cohort.csv}
prepare:
  spacing_mm: [3, 3, 3]
  box: [128, 128, 96]
  intensity: {kind: percentiles, low: 0, high: 100}
tracking: {system_metrics: false}
"""


def prepare(pipeline: str, workspace: Path, *more: str) -> int:
    arguments = ["prepare", pipeline, "--workspace", str(workspace), "--quiet", *more]
    return guarded(lambda: app(args=arguments, standalone_mode=False), verbose=0)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_ct_and_mr_come_through_and_the_irregular_series_is_refused_with_its_reason(tmp_path: Path) -> None:
    folders = ("ct_abdomen_j2k", "mr_t1_head", "ct_head_irregular")
    lines = ["patient,image,split", *(f"p{n},{DATA / 'dicom' / name},train" for n, name in enumerate(folders))]
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "mixed.yaml").write_text(DICOM)
    assert prepare(str(tmp_path / "mixed.yaml"), tmp_path / "w") == 3
    found = {row["modality"]: row for row in rows(tmp_path / "w" / "prepare" / "manifest.csv")}
    assert set(found) == {"CT", "MR"}
    (refused,) = rows(tmp_path / "w" / "prepare" / "left_out.csv")
    assert refused["row"] == "4"
    assert "7.38 mm" in refused["reason"]

    ct = nibabel.load(tmp_path / "w" / "prepare" / found["CT"]["image"])
    assert nibabel.aff2axcodes(ct.affine) == ("R", "A", "S")
    np.testing.assert_allclose(ct.header.get_zooms(), 3)
    voxels = np.asarray(ct.dataobj)
    assert voxels.dtype == np.int16
    assert voxels.min() >= -1024
    soft = voxels[(voxels > -150) & (voxels < 250)]
    assert 0 < np.median(soft) < 100, "an abdomen is mostly soft tissue near water"
    segmentation = nibabel.load(DATA / "dicom" / "ct_abdomen_j2k_segmentation.nii.gz")
    centre = np.asarray(segmentation.affine) @ [*(np.array(segmentation.shape[:3]) - 1) / 2, 1]
    np.testing.assert_allclose(ct.affine @ [*(np.array(ct.shape) - 1) / 2, 1], centre, atol=1.51)

    mr = nibabel.load(tmp_path / "w" / "prepare" / found["MR"]["image"])
    assert mr.shape == (128, 128, 96)
    assert nibabel.aff2axcodes(mr.affine) == ("R", "A", "S")


def test_the_irregular_series_is_resampled_where_that_is_asked_for_and_the_manifest_says_so(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text(f"patient,image,split\np1,{DATA / 'dicom' / 'ct_head_irregular'},train\n")
    (tmp_path / "mixed.yaml").write_text(DICOM)
    assert prepare(str(tmp_path / "mixed.yaml"), tmp_path / "w", "--set", "prepare.irregular=resample") == 0
    (row,) = rows(tmp_path / "w" / "prepare" / "manifest.csv")
    assert "18.5 degrees" in row["resampled"]


def test_heads_are_left_out_unless_faces_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text(
        f"patient,image,split\np1,{DATA / 'dicom' / 'ct_abdomen_j2k'},train\np2,{DATA / 'dicom' / 'mr_t1_head'},train\n"
    )
    (tmp_path / "mixed.yaml").write_text(DICOM)
    assert prepare(str(tmp_path / "mixed.yaml"), tmp_path / "w", "--set", "deidentify.accept_faces=false") == 3
    (refused,) = rows(tmp_path / "w" / "prepare" / "left_out.csv")
    assert refused["row"] == "3"
    assert "face" in refused["reason"]


def test_a_hu_window_refuses_the_mr_series(tmp_path: Path) -> None:
    lines = [
        "patient,image,split",
        f"p1,{DATA / 'dicom' / 'ct_abdomen_j2k'},train",
        f"p2,{DATA / 'dicom' / 'mr_t1_head'},train",
    ]
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    text = DICOM.replace("{kind: percentiles, low: 0, high: 100}", "{kind: hu_window}")
    (tmp_path / "mixed.yaml").write_text(text)
    assert prepare(str(tmp_path / "mixed.yaml"), tmp_path / "w") == 3
    (kept,) = rows(tmp_path / "w" / "prepare" / "manifest.csv")
    assert kept["modality"] == "CT"


def test_lidc_crops_come_to_one_box_by_patient(tmp_path: Path) -> None:
    table = (DATA / "lidc_nodules" / "nodules.csv").read_text().splitlines()
    head, body = table[0].split(","), table[1:61]
    small = [",".join(head), *body]
    (tmp_path / "few.csv").write_text("\n".join(small) + "\n")
    overrides = [
        f"cohort.csv={tmp_path / 'few.csv'}",
        f"cohort.root={DATA / 'lidc_nodules'}",
        "tracking.system_metrics=false",
    ]
    assert prepare("lidc_nodules", tmp_path / "w", *(part for o in overrides for part in ("--set", o))) == 0
    found = rows(tmp_path / "w" / "prepare" / "manifest.csv")
    assert len(found) == 60
    assert {row["shape"] for row in found} == {"32x32x16"}
    assert len({(row["patient"], row["split"]) for row in found}) == len({row["patient"] for row in found})
    assert not any("LIDC" in row["case"] + row["patient"] + row["image"] for row in found)
    for row in found:
        mask = np.asarray(nibabel.load(tmp_path / "w" / "prepare" / row["mask"]).dataobj)
        places = np.argwhere(mask > 0)
        middle = (places.min(0) + places.max(0)) / 2
        inside = (places.min(0) > 0).all() and (places.max(0) < np.array(mask.shape) - 1).all()
        if inside:
            np.testing.assert_allclose(middle, (np.array(mask.shape) - 1) / 2, atol=1.01)


def test_hippocampus_sizes_are_split_at_the_training_median(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSYNTH_DATA", str(DATA))
    assert prepare("hippocampus", tmp_path / "w", "--set", "tracking.system_metrics=false") == 0
    found = rows(tmp_path / "w" / "prepare" / "manifest.csv")
    volumes = {
        row["case"]: int((np.asarray(nibabel.load(tmp_path / "w" / "prepare" / row["mask"]).dataobj) > 0).sum())
        for row in found
    }
    assert max(volumes[r["case"]] for r in found if r["size"] == "small") < min(
        volumes[r["case"]] for r in found if r["size"] == "large"
    )
    training = [row for row in found if row["split"] == "train"]
    small = sum(row["size"] == "small" for row in training)
    lowest = min(volumes[row["case"]] for row in training if row["size"] == "large")
    as_large = sum(volumes[row["case"]] == lowest for row in training)
    assert small <= len(training) // 2 <= small + as_large, (
        "the median is the smallest of the large, and may not be alone"
    )
    rule = json.loads((tmp_path / "w" / "prepare" / "intensity.json").read_text())
    low, high = rule["reference"]
    assert low < high
