"""`medsynth export`: nnU-Net, BIDS and Croissant, from synthetic and prepared datasets written here by hand."""

from __future__ import annotations

import csv
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medsynth.cohort.manifest import Case, Manifest
from medsynth.config.cohort import CategoryCondition, MaskCondition, NumberCondition
from medsynth.digests import file_sha256
from medsynth.errors import CohortError, DataError, StorageError, UsageError
from medsynth.imaging.nifti import read_nifti, write_nifti
from medsynth.imaging.scan import make_scan, same_grid
from medsynth.stages.export import nnunet
from medsynth.stages.export.collect import collect, entries_of, labels_of, read_dataset
from medsynth.stages.export.run import export

AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
DECLARED = {
    "diagnosis": CategoryCondition(kind="category", values=("benign", "malignant")),
    "grade": CategoryCondition(kind="category", values=("1", "2")),
    "diameter_mm": NumberCondition(kind="number", range=(1, 40), unit="mm"),
    "nodule": MaskCondition(kind="mask", labels={"nodule": 2, "wall": 7}),
}
LABELS = {"nodule": 2, "wall": 7}
GENERATION = {"model": "tiny@abc", "seed": "12", "sampler": "flow_heun", "evaluations": "30", "guidance": "1"}


def write(folder: Path, splits: list[str], *, origin: str, modality: str = "CT", masks: bool = True) -> Path:
    """A dataset with one case per entry of `splits`; the first two real cases are one patient's."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    cases = []
    for number, split in enumerate(splits):
        generator = np.random.default_rng(number)
        name = f"S{number:05d}" if origin == "synthetic" else f"C{number:03d}"
        end = "_synthetic.nii.gz" if origin == "synthetic" else ".nii"
        scan = make_scan(
            generator.integers(-900, 300, (6, 7, 8)).astype(np.int16), AFFINE, modality=modality, unit="HU"
        )
        mask = same_grid(scan, generator.choice(np.array([0, 2, 7], np.uint8), (6, 7, 8)))
        write_nifti(scan, folder / "images" / f"{name}{end}")
        if masks:
            write_nifti(mask, folder / "masks" / f"{name}{end}")
        cases.append(
            Case(
                case=name,
                patient=name if origin == "synthetic" else f"P{max(number, 1):03d}",
                origin=origin,
                split=split,
                image=f"images/{name}{end}",
                mask=f"masks/{name}{end}" if masks else "",
                modality=modality,
                shape=(6, 7, 8),
                spacing_mm=(1.5, 1.5, 3.0),
                sha256=file_sha256(folder / "images" / f"{name}{end}"),
                mask_sha256=file_sha256(folder / "masks" / f"{name}{end}") if masks else "",
                intensity_low=-1000.0,
                intensity_high=400.0,
                conditions={
                    "diagnosis": ("benign", "malignant")[number % 2],
                    "grade": "1",
                    "diameter_mm": 9.0 + number,
                },
                generation=GENERATION if origin == "synthetic" else {},
            )
        )
    Manifest(folder, tuple(cases), DECLARED).write(folder / "manifest.csv")
    return folder


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    folder = write(tmp_path / "work" / "synthetic", ["synthetic"] * 4, origin="synthetic")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **LABELS}}))
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    splits = ["train"] * 3 + ["validation"] * 3 + ["test"] * 2
    folder = write(tmp_path / "cohort" / "prepare", splits, origin="real")
    (folder.parent / "pipeline.yaml").write_text(
        f"conditions: {{nodule: {{kind: mask, labels: {json.dumps(LABELS)}}}}}\n"
    )
    return folder


def table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter=delimiter))


def test_nnunet_has_a_label_for_every_image_on_its_grid(synthetic: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "Dataset501_Lung"
    assert export(synthetic, "nnunet", out, real=prepared)["real"] == 8
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["name"] == "Dataset501_Lung"
    assert dataset["labels"] == {"background": 0, "nodule": 1, "wall": 2}
    assert dataset["channel_names"] == {"0": "CT"}
    for part, count in (("Tr", 10), ("Ts", 2)):
        images = sorted(path.name for path in (out / f"images{part}").iterdir())
        labels = sorted(path.name for path in (out / f"labels{part}").iterdir())
        assert len(images) == count
        assert [name.replace("_0000.nii.gz", ".nii.gz") for name in images] == labels
        for name in labels:
            image = nibabel.load(out / f"images{part}" / name.replace(".nii.gz", "_0000.nii.gz"))
            label = nibabel.load(out / f"labels{part}" / name)
            assert image.shape == label.shape
            np.testing.assert_array_equal(image.affine, label.affine)
            assert set(np.unique(label.dataobj)) == {0, 1, 2}
    assert dataset["numTraining"] == 10
    original = read_nifti(prepared / "masks" / "C003.nii").as_tensor().numpy()
    renumbered = np.asarray(nibabel.load(out / "labelsTr" / "C003.nii.gz").dataobj)
    np.testing.assert_array_equal(np.array([0, 2, 7])[renumbered], original[0])


def test_no_fold_validates_on_a_synthetic_case_or_on_a_patient_it_trains_on(
    synthetic: Path, prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "Dataset501_Lung"
    export(synthetic, "nnunet", out, real=prepared)
    patients = {row["case"]: row["patient"] for row in table(prepared / "manifest.csv")}
    splits = {row["case"]: row["split"] for row in table(prepared / "manifest.csv")}
    folds = json.loads((out / "splits_final.json").read_text())
    present = {path.name.removesuffix(".nii.gz") for path in (out / "labelsTr").iterdir()}
    assert len(folds) == 3
    for fold in folds:
        assert not any("synthetic" in name for name in fold["val"])
        assert sum("synthetic" in name for name in fold["train"]) == 4
        assert set(fold["train"]) | set(fold["val"]) == present
        judging = {patients[name] for name in fold["val"]}
        assert judging
        assert not judging & {patients[name] for name in fold["train"] if name in patients}
        assert {splits[name] for name in fold["val"]} == {"validation"}
    assert len({name for fold in folds for name in fold["val"]}) == 3


def test_several_scans_of_a_patient_stay_in_one_fold(tmp_path: Path) -> None:
    folder = write(tmp_path / "p", ["validation"] * 4 + ["train"], origin="real")
    found = nnunet.folds(entries_of([read_dataset(folder)]))
    assert sorted(fold["val"] for fold in found) == [["C000", "C001"], ["C002"], ["C003"]]


def test_synthetic_scans_alone_get_no_folds(synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "Dataset502_Alone"
    export(synthetic, "nnunet", out)
    assert not (out / "splits_final.json").exists()
    assert "fold `all`" in (out / "README.md").read_text()
    assert all("_synthetic" in path.name for part in ("imagesTr", "labelsTr") for path in (out / part).iterdir())


def test_bids_names_sidecars_and_participants(synthetic: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "bids"
    export(synthetic, "bids", out, real=prepared)
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "medsynth"
    people = table(out / "participants.tsv", "\t")
    assert {row["participant_id"] for row in people} == {path.name for path in out.glob("sub-*")}
    for row in people:
        assert row["participant_id"].startswith("sub-synthetic") == (row["origin"] == "synthetic")
    scans = list(out.rglob("*_ct.nii.gz"))
    assert len(scans) == 12
    for path in scans:
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["Synthetic"] == ("desc-synthetic" in path.name) == ("sub-synthetic" in path.name)
        assert path.with_name(path.name.replace("_ct.nii.gz", "_dseg.nii.gz")).exists()
        assert path.name.startswith(path.parts[-3])
    first = json.loads((out / "sub-syntheticS00001/ct/sub-syntheticS00001_desc-synthetic_ct.json").read_text())
    assert first["Conditions"] == {"diagnosis": "malignant", "grade": "1", "diameter_mm": 10.0}
    assert first["Generation"] == GENERATION
    assert len(list((out / "sub-P001" / "ct").glob("*_run-*_ct.nii.gz"))) == 2
    names = {row["index"]: row["name"] for row in table(out / "desc-synthetic_dseg.tsv", "\t")}
    assert names == {"0": "background", "2": "nodule", "7": "wall"}


def test_bids_has_no_suffix_for_mr_of_unknown_contrast(tmp_path: Path) -> None:
    folder = write(tmp_path / "mr", ["synthetic"], origin="synthetic", modality="MR", masks=False)
    export(folder, "bids", tmp_path / "out")
    assert (tmp_path / "out/sub-syntheticS00000/anat/sub-syntheticS00000_desc-synthetic_MR.nii.gz").exists()
    assert "*_MR.*" in (tmp_path / "out" / ".bidsignore").read_text()
    assert not list((tmp_path / "out").rglob("*T1w*"))


def test_croissant_is_accepted_without_a_network(
    synthetic: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="needs mlcroissant")
    out = tmp_path / "croissant"
    export(synthetic, "croissant", out, real=prepared)

    def offline(*arguments: Any, **more: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", offline)
    found = mlcroissant.Dataset(jsonld=out / "metadata.json")
    assert not found.metadata.ctx.issues.errors
    records = list(found.records("synthetic_cases"))
    assert [record["synthetic_cases/case"] for record in records] == [b"S00000", b"S00001", b"S00002", b"S00003"]
    assert records[2]["synthetic_cases/diameter_mm"] == 11.0
    assert len(list(found.records("real_cases"))) == 8
    described = {
        entry["contentUrl"]: entry["sha256"]
        for entry in json.loads((out / "metadata.json").read_text())["distribution"]
    }
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert set(described) == present - {"metadata.json", "README.md"}
    assert all(file_sha256(out / name) == digest for name, digest in described.items())
    assert read_dataset(out / "synthetic").entries


@pytest.mark.parametrize("layout", ["bids", "croissant"])
def test_the_datasheet_tells_synthetic_from_real(layout: Any, synthetic: Path, prepared: Path, tmp_path: Path) -> None:
    export(synthetic, layout, tmp_path / "mixed", real=prepared)
    export(prepared, layout, tmp_path / "real")
    export(synthetic, layout, tmp_path / "synthetic")
    mixed, real, alone = ((tmp_path / name / "README.md").read_text() for name in ("mixed", "real", "synthetic"))
    for title in (
        "Motivation",
        "Composition",
        "Collection",
        "Uses",
        "Evidence and limits",
        "Distribution and maintenance",
    ):
        assert f"## {title}" in mixed
    assert "4 scans are synthetic" in mixed
    assert "8 scans are of real patients" in mixed
    assert "SYNTHETIC" not in real
    assert "real patients" not in alone
    assert "tiny@abc" in alone
    assert "is not known" in alone
    evidence = {
        "benefit": {"verdict": {"outcome": "no benefit", "reasons": ["It moved nothing."]}},
        "privacy": {
            "spaces": [{"space": "radiomics", "nominal": 0.05, "closer": {"value": 0.02, "low": 0.0, "high": 0.1}}],
            "masks": {"space": "masks", "nominal": 0.05, "closer": {"value": 0.31, "low": 0.2, "high": 0.4}},
        },
    }
    (synthetic.parent / "evaluation").mkdir()
    (synthetic.parent / "evaluation" / "evidence.json").write_text(json.dumps(evidence))
    export(synthetic, layout, tmp_path / "judged")
    judged = (tmp_path / "judged" / "README.md").read_text()
    assert "no benefit. It moved nothing." in judged
    assert "2.0%" in judged
    assert "31.0% of the masks" in judged


def test_evidence_in_which_parts_could_not_be_measured_is_no_obstacle(synthetic: Path, tmp_path: Path) -> None:
    (synthetic.parent / "evaluation").mkdir()
    evidence = {"benefit": None, "privacy": None, "absent": {"privacy": "too few scans"}}
    (synthetic.parent / "evaluation" / "evidence.json").write_text(json.dumps(evidence))
    export(synthetic, "nnunet", tmp_path / "Dataset001_few")
    assert "no proof of privacy" in (tmp_path / "Dataset001_few" / "README.md").read_text()


def test_labels_are_those_of_the_dataset_the_pipeline_or_the_voxels(synthetic: Path, prepared: Path) -> None:
    assert labels_of([read_dataset(synthetic)]) == labels_of([read_dataset(prepared)]) == LABELS
    (synthetic / "dataset.json").unlink()
    assert labels_of([read_dataset(synthetic)]) == {"label_2": 2, "label_7": 7}


def test_columns_keep_their_kind(synthetic: Path) -> None:
    conditions = read_dataset(synthetic).entries[0].case.conditions
    assert conditions == {"diagnosis": "benign", "grade": "1", "diameter_mm": 9.0}


def _spoil(synthetic: Path) -> None:
    path = next((synthetic / "images").iterdir())
    path.write_bytes(path.read_bytes()[:-1])


def _unmask(synthetic: Path) -> None:
    shutil.rmtree(synthetic)
    write(synthetic, ["synthetic"], origin="synthetic", masks=False)


def _rename(synthetic: Path) -> None:
    (synthetic / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 2, "wall": 7}}))


def _other_modality(synthetic: Path) -> None:
    shutil.rmtree(synthetic)
    write(synthetic, ["synthetic"], origin="synthetic", modality="MR")


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        (_spoil, DataError, "altered"),
        (_unmask, DataError, "mask for every case"),
        (_rename, DataError, "same labels"),
        (_other_modality, DataError, "one modality"),
        (lambda folder: (folder / "manifest.csv").unlink(), UsageError, "manifest.csv"),
        (lambda folder: (folder / "manifest.csv").write_text("a,b\n1,2\n"), CohortError, "manifest"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    spoil: Callable[[Path], Any], kind: type[Exception], text: str, synthetic: Path, prepared: Path, tmp_path: Path
) -> None:
    spoil(synthetic)
    (tmp_path / "out").mkdir()
    with pytest.raises(kind, match=text):
        export(synthetic, "nnunet", tmp_path / "out" / "Dataset501_Lung", real=prepared)
    assert list((tmp_path / "out").iterdir()) == []


def test_wrong_places_are_refused(synthetic: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="DatasetNNN_NAME"):
        export(synthetic, "nnunet", tmp_path / "lung")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        export(synthetic, "bids", prepared)
    with pytest.raises(UsageError, match="--real"):
        collect(prepared, synthetic)
    with pytest.raises(UsageError, match="--real"):
        collect(synthetic, synthetic)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can be made"):
        export(synthetic, "bids", tmp_path / "file" / "out")
    unjudged = write(tmp_path / "unjudged", ["train", "train"], origin="real")
    with pytest.raises(CohortError, match="validation"):
        export(unjudged, "nnunet", tmp_path / "Dataset501_Lung")


def test_a_full_disk_leaves_nothing_and_the_next_call_succeeds(
    synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    copy, calls = shutil.copyfile, 0

    def failing(source: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", failing)
    with pytest.raises(StorageError):
        export(synthetic, "croissant", tmp_path / "out" / "set")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / ".set.export" / "left").mkdir(parents=True)
    export(synthetic, "croissant", tmp_path / "out" / "set")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["set"]
    assert not (tmp_path / "out" / "set" / "left").exists()


def test_the_verb(medsynth: Any, synthetic: Path, prepared: Path, tmp_path: Path) -> None:
    arguments = ("export", synthetic, "--layout", "bids", "--real", prepared, "--json")
    outcome = medsynth(*arguments, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == {"out": str(tmp_path / "out"), "layout": "bids", "synthetic": 4, "real": 8}
    assert medsynth(*arguments, "--out", tmp_path / "out").code == 2
    assert medsynth("export", synthetic, "--layout", "zip", "--out", tmp_path / "zip").code == 2
