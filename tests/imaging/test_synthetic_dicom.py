"""Synthetic scans as DICOM: what is written comes back, says what it is, and satisfies judges that know the standard."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from dicom_series import AsItIs, rotation

from medsynth.errors import DataError, GeometryError, UnreadableError
from medsynth.imaging.dicom import find_series, read_series
from medsynth.imaging.grid import in_axis_order_of
from medsynth.imaging.index import index_folder
from medsynth.imaging.read import read_scan
from medsynth.imaging.scan import Scan, affine_of, make_scan, same_grid, world_mm
from medsynth.imaging.synthetic import study
from medsynth.imaging.synthetic.header import Origin, Uids
from medsynth.imaging.synthetic.segmentation import read_segmentation
from medsynth.imaging.synthetic.slices import slices_of, stored
from medsynth.imaging.synthetic.study import write_study

LABELS = {"wall": 5, "nodule": 1}
SHAPE = (12, 14, 10)
DCM2NIIX = shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def placed(
    *angles: float, spacing: tuple[float, ...] = (0.7, 0.8, 2.5), flips: tuple[int, ...] = (1, 1, 1)
) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(*angles) @ np.diag(np.array(spacing) * flips)
    affine[:3, 3] = [10.123, -20.4, 33.3]
    return affine


GRIDS = {
    "model box": np.array([[3.0, 0, 0, -16.5], [0, 3, 0, -19.5], [0, 0, 3, -13.5], [0, 0, 0, 1]]),
    "oblique": placed(0.3, -0.2, 0.5),
    "left-handed": placed(0.1, 0.1, -0.1, flips=(1, -1, 1)),
    "sagittal": placed(0.05, 0.02, 0.0, spacing=(4.0, 0.9, 0.9)),
    "coronal": placed(0.0, 0.0, 0.1, spacing=(0.9, 4.0, 0.9), flips=(-1, 1, -1)),
}


def scan_of(kind: str, affine: np.ndarray, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Scan:
    generator = np.random.default_rng(seed)
    if kind == "MR float":
        voxels = generator.normal(900, 300, shape).astype(np.float32)
    elif kind == "MR":
        voxels = generator.integers(0, 1500, shape).astype(np.int16)
    else:
        voxels = generator.integers(-1024, 3071, shape).astype(np.int16)
    return make_scan(voxels, affine, modality=kind[:2], unit="HU" if kind == "CT" else "a.u.")


def mask_on(scan: Scan) -> Scan:
    mask = np.zeros(tuple(scan.shape[1:]), np.uint8)
    mask[2:5, 3:6, 1:4] = 1
    mask[6:8, 3:9, 4:5] = 5
    return same_grid(scan, mask)


def origin(case: str = "S00001", seed: int = 7) -> Origin:
    return Origin(case, "tiny@0123456789abcdef", seed, "sampler flow_heun, 30 evaluations", {"diagnosis": "malignant"})


def read_back(folder: Path) -> Scan:
    (series,) = find_series(folder / "image").series
    return read_series(series, AsItIs())


def images(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted((folder / "image").iterdir())]


@pytest.mark.parametrize("grid", GRIDS)
def test_ct_comes_back_voxel_for_voxel_where_it_was(grid: str, tmp_path: Path) -> None:
    scan = scan_of("CT", GRIDS[grid])
    write_study(scan, tmp_path / "study", origin())
    back = in_axis_order_of(read_back(tmp_path / "study"), scan)
    np.testing.assert_array_equal(back.as_tensor().numpy(), scan.as_tensor().numpy())
    np.testing.assert_allclose(affine_of(back), affine_of(scan), atol=1e-9)
    assert back.meta["unit"] == "HU"


@pytest.mark.parametrize("grid", GRIDS)
def test_slices_are_turned_as_a_viewer_shows_them(grid: str) -> None:
    scan = scan_of("CT", GRIDS[grid])
    slices = slices_of(scan)
    columns, rows, across = (slices.affine[:3, axis] / np.linalg.norm(slices.affine[:3, axis]) for axis in range(3))
    np.testing.assert_allclose(np.cross(columns, rows), across, atol=1e-9)
    wanted = {"sagittal": ([0, 1, 0], [0, 0, -1]), "coronal": ([1, 0, 0], [0, 0, -1])}.get(grid, ([1, 0, 0], [0, 1, 0]))
    assert columns @ wanted[0] > 0.7
    assert rows @ wanted[1] > 0.7
    # Any voxel, by its index on the slices and by its index in the scan, lies at the same place with the same value.
    cut = slices.cut(scan)
    level, row, column = 3, 5, 4
    lps = slices.affine @ [column, row, level, 1]
    index = np.linalg.solve(affine_of(scan), lps * [-1, -1, 1, 1])[:3]
    np.testing.assert_allclose(index, index.round(), atol=1e-9)
    x, y, z = index.round().astype(int)
    assert cut[level, row, column] == scan[0, x, y, z]


@pytest.mark.skipif(DCM2NIIX is None, reason="needs dcm2niix (PyPI: dcm2niix)")
@pytest.mark.parametrize(
    ("kind", "grid"), [("CT", "model box"), ("CT", "oblique"), ("MR", "oblique"), ("CT", "sagittal")]
)
def test_dcm2niix_reads_the_same(kind: str, grid: str, tmp_path: Path) -> None:
    scan = scan_of(kind, GRIDS[grid])
    write_study(scan, tmp_path / "study", origin())
    subprocess.run(
        [DCM2NIIX, "-z", "n", "-b", "n", "-f", "back", "-o", tmp_path, tmp_path / "study" / "image"],
        check=True, capture_output=True,
    )  # fmt: skip
    found = nibabel.as_closest_canonical(nibabel.load(tmp_path / "back.nii"))
    truth = nibabel.as_closest_canonical(nibabel.Nifti1Image(scan.as_tensor()[0].numpy(), affine_of(scan)))
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(truth.dataobj))
    corners = np.array([[0, 0, 0], np.array(truth.shape) - 1])
    np.testing.assert_allclose(world_mm(found.affine, corners), world_mm(truth.affine, corners), atol=1e-3)


def test_float_mr_is_within_the_error_that_the_header_states(tmp_path: Path) -> None:
    scan = scan_of("MR float", GRIDS["oblique"])
    write_study(scan, tmp_path / "study", origin())
    back = in_axis_order_of(read_back(tmp_path / "study"), scan)
    error = float(re.search(r"within ([0-9.e-]+)\.", images(tmp_path / "study")[0].DerivationDescription)[1])
    assert error == 0.5
    assert np.abs(back.as_tensor().numpy() - scan.as_tensor().numpy()).max() <= error


def test_narrow_mr_has_a_real_world_mapping_that_gives_its_values_back(tmp_path: Path) -> None:
    voxels = np.random.default_rng(3).random(SHAPE).astype(np.float32) * 4 - 1
    scan = make_scan(voxels, GRIDS["model box"], modality="MR", unit="a.u.")
    write_study(scan, tmp_path / "study", origin())
    found = images(tmp_path / "study")
    mapping = found[0].RealWorldValueMappingSequence[0]
    assert "RescaleSlope" not in found[0]
    volume = np.stack([image.pixel_array for image in found])
    values = volume * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
    error = np.abs(values - slices_of(scan).cut(scan)).max()
    assert 0 < error <= mapping.RealWorldValueSlope / 2 + 1e-9
    assert mapping.RealWorldValueSlope == 0.001
    centre, width = float(found[0].WindowCenter), float(found[0].WindowWidth)
    assert np.percentile(volume, 1) == pytest.approx(centre - width / 2, abs=1)


def test_ct_with_fractions_is_rescaled(tmp_path: Path) -> None:
    voxels = np.random.default_rng(3).random(SHAPE).astype(np.float32) * 10
    scan = make_scan(voxels, GRIDS["model box"], modality="CT", unit="HU")
    write_study(scan, tmp_path / "study", origin())
    back = in_axis_order_of(read_back(tmp_path / "study"), scan)
    np.testing.assert_allclose(back.as_tensor().numpy(), scan.as_tensor().numpy(), atol=0.00051)


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        ([-32768, 32767], True),
        ([0, 65535], True),
        ([40000, 100000], True),
        ([0.0, 1.0, 7.0], True),
        ([0.25, 0.25], True),
        ([0.1, 3.3e-5], False),
        ([-1e6, 2.5e6 + 0.5], False),
        ([123456.25, 123456.75], False),
        ([0.5, 2000.25], False),
    ],
)
def test_stored_integers_give_intensities_back_within_the_error(values: list[float], exact: bool) -> None:
    given = np.array(values, np.float64)
    found = stored(given)
    assert found.values.dtype.itemsize == 2
    error = np.abs(found.values * found.slope + found.intercept - given).max()
    assert error <= found.largest_error + 1e-12 * np.abs(given).max()
    assert (found.largest_error == 0) == exact
    assert found.largest_error <= max(np.ptp(given), 1e-30) / 2000 + (1 if exact else 0)


@pytest.mark.parametrize("kind", ["CT", "MR"])
@pytest.mark.parametrize("grid", ["model box", "oblique", "left-handed", "sagittal"])
def test_the_mask_is_a_segmentation_on_the_same_grid(kind: str, grid: str, tmp_path: Path) -> None:
    scan = scan_of(kind, GRIDS[grid])
    mask = mask_on(scan)
    write_study(scan, tmp_path / "study", origin(), mask=mask, labels=LABELS)
    (path,) = (tmp_path / "study" / "mask").iterdir()
    back = read_segmentation(path, LABELS, like=scan)
    np.testing.assert_array_equal(back.as_tensor().numpy(), mask.as_tensor().numpy())
    np.testing.assert_allclose(affine_of(back), affine_of(scan), atol=1e-9)

    found = highdicom.seg.segread(path)
    headers = images(tmp_path / "study")
    numbered = found.get_pixels_by_source_instance([image.SOPInstanceUID for image in headers], combine_segments=True)
    order = {0: 0, 1: 1, 5: 2}
    np.testing.assert_array_equal(numbered, np.vectorize(order.get)(slices_of(scan).cut(mask)))
    assert [found.get_segment_description(n).segment_label for n in (1, 2)] == ["nodule", "wall"]
    first = headers[0]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate"):
        assert found[keyword].value == first[keyword].value
    assert found.SeriesInstanceUID != first.SeriesInstanceUID


def test_an_empty_mask_keeps_its_grid(tmp_path: Path) -> None:
    scan = scan_of("CT", GRIDS["oblique"])
    empty = same_grid(scan, np.zeros(SHAPE, np.uint8))
    write_study(scan, tmp_path / "study", origin(), mask=empty, labels=LABELS)
    (path,) = (tmp_path / "study" / "mask").iterdir()
    assert not read_segmentation(path, LABELS, like=scan).as_tensor().any()


@pytest.mark.parametrize("kind", ["CT", "MR"])
def test_every_object_says_that_it_is_synthetic(kind: str, tmp_path: Path) -> None:
    scan = scan_of(kind, GRIDS["model box"])
    write_study(scan, tmp_path / "study", origin(), mask=mask_on(scan), labels=LABELS)
    (mask,) = (pydicom.dcmread(path) for path in (tmp_path / "study" / "mask").iterdir())
    for found in (*images(tmp_path / "study"), mask):
        assert found.SyntheticData == "YES"
        assert found.ImageType[0] == "DERIVED"
        assert found.SeriesDescription == "SYNTHETIC - NOT A PATIENT"
        assert found.Manufacturer == "Synthetic (medsynth)"
        assert str(found.PatientName) == "SYNTHETIC^S00001"
        assert found.PatientID.startswith("SYNTHETIC-")
        assert found.PatientBirthDate == ""
        (equipment,) = found.ContributingEquipmentSequence
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109100"
        for part in ("tiny@0123456789abcdef", "seed 7", "flow_heun"):
            assert part in equipment.ContributionDescription
        dates = {element.value for element in found.iterall() if element.VR in ("DA", "DT") and element.value}
        assert dates <= {"19000101"}
        uids = {str(element.value) for element in found.iterall() if element.VR == "UI" and element.VM == 1}
        assert all(re.fullmatch(r"1\.2\.840\.10008\.[0-9.]+|2\.25\.[1-9][0-9]{0,38}", uid) for uid in uids), uids
        assert max(map(len, uids)) <= 64
    for found in images(tmp_path / "study"):
        assert list(found.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert "diagnosis=malignant" in found.DerivationDescription
    assert all("synthetic" in path.name for path in (tmp_path / "study").rglob("*.dcm"))


def test_a_synthetic_series_is_nothing_to_train_on(tmp_path: Path) -> None:
    write_study(scan_of("CT", GRIDS["model box"]), tmp_path / "S1", origin())
    (row,) = index_folder(tmp_path / "S1")
    assert not row.usable
    assert "synthetic" in row.reason
    with pytest.raises(DataError, match="found synthetic ones"):
        read_scan(tmp_path / "S1", deidentifier=AsItIs())


def test_writing_again_gives_the_same_bytes_and_anything_else_other_uids(tmp_path: Path) -> None:
    scan = scan_of("CT", GRIDS["oblique"])
    for name in ("first", "second"):
        write_study(scan, tmp_path / name, origin(), mask=mask_on(scan), labels=LABELS)
    first, second = (sorted((tmp_path / name).rglob("*.dcm")) for name in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]

    datasets = [pydicom.dcmread(path) for path in first]
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == len(datasets) == SHAPE[2] + 1
    moved = make_scan(scan.as_tensor(), placed(0.3, -0.2, 0.51), modality="CT", unit="HU")
    brighter = same_grid(scan, scan.as_tensor() + 1)
    identities = [
        Uids.of(one, said).make("study")
        for one, said in (
            (scan, origin()), (scan, origin(seed=8)), (scan, origin("S00002")), (moved, origin()), (brighter, origin()),
        )
    ]  # fmt: skip
    assert len(set(identities)) == 5


def complaints(*command: object) -> list[str]:
    """What a validator says, without what follows from (0008,001C) being younger than the tool."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    younger = ("0x0008,0x001c", "this is a Standard Extended SOP Class")
    return [line for line in lines if not any(text in line for text in younger) and line not in IODS]


IODS = ("CTImage", "MRImage", "Segmentation")


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dciodvfy on the PATH (Debian: dicom3tools)")
@pytest.mark.parametrize("kind", ["CT", "MR", "MR float"])
@pytest.mark.parametrize("grid", ["model box", "oblique", "coronal"])
def test_the_validators_find_nothing(kind: str, grid: str, tmp_path: Path) -> None:
    scan = scan_of(kind, GRIDS[grid])
    write_study(scan, tmp_path / "study", origin(), mask=mask_on(scan), labels=LABELS)
    files = sorted((tmp_path / "study").rglob("*.dcm"))
    assert len(files) == SHAPE[slices_of(scan).axes[0]] + 1
    for path in (files[0], files[-2], files[-1]):
        assert complaints("dciodvfy", path) == []
    assert complaints("dcentvfy", *files) == []


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dciodvfy on the PATH (Debian: dicom3tools)")
def test_the_validator_does_find_a_fault(tmp_path: Path) -> None:
    write_study(scan_of("CT", GRIDS["model box"]), tmp_path / "study", origin())
    image = images(tmp_path / "study")[0]
    del image.ImageOrientationPatient
    image.save_as(tmp_path / "broken.dcm")
    assert any("ImageOrientationPatient" in line for line in complaints("dciodvfy", tmp_path / "broken.dcm"))


def test_a_disk_that_fills_up_leaves_no_half_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = scan_of("CT", GRIDS["model box"])
    calls = 0
    save = study._save

    def failing(dataset: pydicom.Dataset, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(28, "as a test wants it")
        save(dataset, path)

    monkeypatch.setattr(study, "_save", failing)
    with pytest.raises(OSError, match="as a test wants it"):
        write_study(scan, tmp_path / "study", origin())
    assert list(tmp_path.iterdir()) == []
    write_study(scan, tmp_path / "study", origin())
    assert len(images(tmp_path / "study")) == SHAPE[2]


def test_what_a_killed_call_left_is_replaced(tmp_path: Path) -> None:
    for left in (".study.writing", "study"):
        (tmp_path / left / "image").mkdir(parents=True)
        (tmp_path / left / "image" / "S00001_synthetic_9999.dcm").write_bytes(b"half")
    write_study(scan_of("CT", GRIDS["model box"]), tmp_path / "study", origin())
    assert [path.name for path in tmp_path.iterdir()] == ["study"]
    assert len(images(tmp_path / "study")) == SHAPE[2]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    scan = scan_of("CT", GRIDS["model box"])
    sheared = GRIDS["model box"].copy()
    sheared[0, 1] = 0.01
    refused = [
        (make_scan(scan.as_tensor(), GRIDS["model box"], modality="", unit=""), {}, DataError, "CT or MR"),
        (same_grid(scan, scan.as_tensor().repeat(2, 1, 1, 1)), {}, DataError, "one channel"),
        (make_scan(scan.as_tensor(), sheared, modality="CT", unit="HU"), {}, GeometryError, "perpendicular"),
        (scan, {"mask": mask_on(scan_of("CT", GRIDS["oblique"]))}, GeometryError, "grid"),
        (scan, {"mask": mask_on(scan), "labels": {"nodule": 1}}, DataError, "name"),
    ]  # fmt: skip
    for number, (one, more, kind, text) in enumerate(refused):
        with pytest.raises(kind, match=text):
            write_study(one, tmp_path / f"{number}", origin(), **more)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="case"):
        write_study(scan, tmp_path / "x", origin("S\\1"))
    (tmp_path / "text.dcm").write_text("no segmentation")
    with pytest.raises(UnreadableError, match="segmentation"):
        read_segmentation(tmp_path / "text.dcm", LABELS)
    write_study(scan, tmp_path / "study", origin(), mask=mask_on(scan), labels=LABELS)
    (path,) = (tmp_path / "study" / "mask").iterdir()
    with pytest.raises(DataError, match="segments"):
        read_segmentation(path, {"nodule": 1})
    with pytest.raises(UnreadableError):
        read_segmentation(next((tmp_path / "study" / "image").iterdir()), LABELS)
