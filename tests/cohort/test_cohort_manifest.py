"""The manifest says the same after a round trip, refuses what it must, and is written whole."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest

from medsynth.cohort.manifest import GENERATION, Case, Manifest
from medsynth.config.cohort import CategoryCondition, MaskCondition, NumberCondition
from medsynth.errors import CohortError, DataError, UnreadableError

CONDITIONS = {
    "diagnosis": CategoryCondition(kind="category", values=("benign", "malignant")),
    "diameter_mm": NumberCondition(kind="number", range=(3.0, 40.0), unit="mm"),
    "nodule": MaskCondition(kind="mask", labels={"nodule": 1}),
}
SPLIT_OF = ("train", "train", "validation", "test")


def case(number: int, **changes: Any) -> Case:
    plain = Case(
        case=f"C{number:04d}",
        patient=f"P{number:04d}",
        origin="real",
        split=SPLIT_OF[number % 4],
        image=f"images/C{number:04d}.nii",
        mask=f"masks/C{number:04d}.nii",
        modality="CT",
        shape=(4, 5, 6),
        spacing_mm=(1 / 3, 0.1 + 0.2, 2.5),
        sha256=hashlib.sha256(str(number).encode()).hexdigest(),
        intensity_low=-1000.0,
        intensity_high=1e-3 + number,
        conditions={"diagnosis": ("benign", "malignant")[number % 2], "diameter_mm": 4 + number / 7},
        mask_sha256="0" * 64,
    )
    return dataclasses.replace(plain, **changes)


def manifest(folder: Path, *cases: Case) -> Manifest:
    return Manifest(folder, cases or tuple(case(i) for i in range(8)), CONDITIONS)


def synthetic(number: int, **changes: Any) -> Case:
    how = {"model": "m1", "seed": str(2**62 + number), "sampler": "flow_heun", "evaluations": "30", "guidance": "1.5"}
    how |= {"precision": "bf16"} if number % 2 else {}  # earlier versions did not write it
    return case(number, **{"origin": "synthetic", "patient": "", "split": "train", "generation": how, **changes})


def test_round_trip_is_exact(tmp_path: Path) -> None:
    unknown = case(9, conditions={"diagnosis": None, "diameter_mm": None}, mask="", mask_sha256="")
    before = manifest(tmp_path, *(case(i) for i in range(8)), unknown)
    before.write(tmp_path / "manifest.csv")
    assert Manifest.read(tmp_path / "manifest.csv", CONDITIONS) == before
    made = manifest(tmp_path, synthetic(1), synthetic(2, split="synthetic", patient="S1"))
    made.write(tmp_path / "made.csv")
    assert Manifest.read(tmp_path / "made.csv", CONDITIONS) == made
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_real_manifests_have_no_generation_columns_and_masks_no_column(tmp_path: Path) -> None:
    manifest(tmp_path).write(tmp_path / "manifest.csv")
    header = (tmp_path / "manifest.csv").read_text().splitlines()[0].split(",")
    assert header[:8] == ["case", "patient", "origin", "split", "image", "mask", "diagnosis", "diameter_mm"]
    assert not set(header) & {*GENERATION, "nodule"}


def test_digest_ignores_order_and_folder_and_nothing_else(tmp_path: Path) -> None:
    plain = manifest(tmp_path)
    moved = Manifest(tmp_path / "elsewhere", plain.cases[::-1], CONDITIONS)
    assert moved.digest() == plain.digest()
    digests = {plain.digest()}
    for change in (
        {"split": "test"},
        {"sha256": "f" * 64},
        {"mask_sha256": "f" * 64},
        {"spacing_mm": (1.0, 1.0, 1.0)},
        {"intensity_high": 1.0000000000000002},
        {"conditions": {"diagnosis": "benign", "diameter_mm": 4.000000000000001}},
    ):
        digests.add(manifest(tmp_path, case(0, **change), *plain.cases[1:]).digest())
    assert len(digests) == 7


def test_splits_and_paths(tmp_path: Path) -> None:
    whole = manifest(tmp_path)
    assert [c.case for c in whole.split("validation").cases] == ["C0002", "C0006"]
    assert whole.image_path(whole.cases[0]) == tmp_path / "images" / "C0000.nii"
    assert whole.mask_path(case(1, mask="")) is None
    with pytest.raises(CohortError, match="split test, found none"):
        manifest(tmp_path, case(0)).split("test")


def test_verify_finds_missing_and_altered_files(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    cases = []
    for number in range(4):
        content = f"voxels {number}".encode()
        (tmp_path / "images" / f"C{number:04d}.nii").write_bytes(content)
        cases.append(case(number, sha256=hashlib.sha256(content).hexdigest(), mask="", mask_sha256=""))
    manifest(tmp_path, *cases).verify()
    (tmp_path / "images" / "C0001.nii").write_bytes(b"voxels 2")
    (tmp_path / "images" / "C0003.nii").unlink()
    with pytest.raises(DataError, match=r"1 missing \(C0003\), 1 altered \(C0001\)"):
        manifest(tmp_path, *cases).verify()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"case": "a/b"}, "case: expected letters"),
        ({"patient": ""}, "patient: the pseudonym is missing"),
        ({"origin": "fake"}, "origin: expected real or synthetic"),
        ({"split": "val"}, "split: expected train, validation, test"),
        ({"image": "/etc/passwd"}, "image: expected a path inside"),
        ({"image": "../out.nii"}, "image: expected a path inside"),
        ({"mask": "a\\b.nii"}, "mask: expected a path inside"),
        ({"shape": (0, 1, 1)}, "shape: expected"),
        ({"spacing_mm": (1.0, -1.0, 1.0)}, "spacing_mm: expected"),
        ({"sha256": "abc"}, "sha256: expected"),
        ({"intensity_low": 5.0, "intensity_high": 5.0}, "intensity_low must be below"),
        ({"generation": {"seed": "1"}}, "generation columns belong"),
        (
            {"conditions": {"diagnosis": "malignat"}},
            r"diagnosis: expected one of benign, malignant \(nearest: malignant\)",
        ),
        ({"conditions": {"diameter_mm": 41.0}}, "diameter_mm: expected a number from 3 to 40"),
        ({"conditions": {"diameter_mm": "5"}}, "diameter_mm: expected a number from 3 to 40"),
    ],
)
def test_what_no_row_may_say(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(CohortError, match=f"m.csv row 3: {expected}"):
        manifest(tmp_path, case(0), case(1, **changes)).write(tmp_path / "m.csv")
    assert list(tmp_path.iterdir()) == []


def test_what_no_manifest_may_say(tmp_path: Path) -> None:
    def refused(match: str, *cases: Case) -> None:
        with pytest.raises(CohortError, match=match):
            manifest(tmp_path, *cases).write(tmp_path / "m.csv")

    refused("row 3: case: the name stands in an earlier row", case(0), case(1, case="C0000"))
    refused("row 4: split: an earlier row has this patient", case(0), case(1), case(2, patient="P0000"))
    refused("real and synthetic cases must not share", case(0), synthetic(1))
    refused("split: expected train, synthetic for a synthetic case", synthetic(0, split="test"))
    refused("expected model, seed", synthetic(0, generation={"seed": "3"}))
    with pytest.raises(CohortError, match="at least one case"):
        Manifest(tmp_path, (), CONDITIONS).write(tmp_path / "m.csv")
    clash = {"modality": CategoryCondition(kind="category", values=("CT", "MR"))}
    with pytest.raises(CohortError, match="modality is a column of the manifest"):
        Manifest(tmp_path, (case(0, conditions={}),), clash).write(tmp_path / "m.csv")


def test_reading_reports_every_mistake_at_once(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    manifest(tmp_path).write(path)
    rows = path.read_text().splitlines()
    rows[2] = rows[2].replace("4x5x6", "4x5")
    rows[4] = rows[4].replace("-1000.0", "low").replace("4x5x6", "4xax6")
    path.write_text("\n".join(rows))
    with pytest.raises(CohortError) as caught:
        Manifest.read(path, CONDITIONS)
    assert str(caught.value).splitlines() == [
        "manifest.csv rows 3, 5: shape: expected three numbers joined by x",
        "manifest.csv row 5: intensity_low: expected a number",
    ]
    path.write_text(path.read_text().replace("modality", "modalty", 1))
    with pytest.raises(CohortError, match=r"column modality is missing \(nearest: modalty\)[^$]*modalty is not one of"):
        Manifest.read(path, CONDITIONS)
    with pytest.raises(UnreadableError):
        Manifest.read(tmp_path / "none.csv", CONDITIONS)


def test_a_condition_that_the_manifest_lacks_is_reported(tmp_path: Path) -> None:
    manifest(tmp_path).write(tmp_path / "manifest.csv")
    with pytest.raises(CohortError, match="column sex is missing"):
        Manifest.read(
            tmp_path / "manifest.csv", {**CONDITIONS, "sex": CategoryCondition(kind="category", values=("F", "M"))}
        )


def test_a_full_disk_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.csv"
    manifest(tmp_path).write(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        manifest(tmp_path, case(0)).write(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.csv"]


def test_training_must_hold_every_value(tmp_path: Path) -> None:
    manifest(tmp_path).check_training_values()
    lone = manifest(tmp_path, case(0), case(2), case(3))  # malignant only in the test split
    with pytest.raises(CohortError, match="diagnosis: expected cases of every value, found none of malignant"):
        lone.check_training_values()
