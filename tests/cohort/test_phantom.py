"""The phantom cohort: true DICOM, invented people, and a diagnosis that shows in shape and texture, not in size."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, RLELossless
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medsynth.cohort.phantom import PHANTOM_CONDITIONS, PhantomPatient, phantom_patient, write_phantom_cohort
from medsynth.cohort.phantom_anatomy import draw_anatomy
from medsynth.cohort.phantom_nodule import DIAMETER_MM, draw_diameters, draw_nodule, fibonacci_sphere
from medsynth.cohort.phantom_render import render
from medsynth.cohort.source import read_sources
from medsynth.config.cohort import CsvCohort
from medsynth.errors import DataError
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.read import read_mask, read_scan
from medsynth.imaging.scan import spacing_mm
from medsynth.seeding import numpy_generator

SEED = 7
PATIENTS = 6


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_cohort(tmp_path_factory.mktemp("phantom") / "cohort", PATIENTS, SEED)


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_writes_the_same_bytes_and_patients_do_not_depend_on_their_number(
    cohort: Path, tmp_path: Path
) -> None:
    smaller = content(write_phantom_cohort(tmp_path / "smaller", 2, SEED).parent)
    whole = content(cohort.parent)
    for name, digest in smaller.items():
        assert name in ("cohort.csv", "phantom.json") or whole[name] == digest
    assert len(smaller) > 50
    rows = cohort.read_text().splitlines()
    assert (tmp_path / "smaller" / "cohort.csv").read_text().splitlines() == rows[:3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["smaller"]  # nothing half-written is left beside it


def test_another_seed_is_another_cohort() -> None:
    first, second = phantom_patient(1, 0), phantom_patient(2, 0)
    assert first.identity.patient_id != second.identity.patient_id
    assert first.rendered.hu.shape != second.rendered.hu.shape or not np.array_equal(
        first.rendered.hu, second.rendered.hu
    )


def test_a_finished_cohort_is_kept_and_another_one_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    folder.mkdir()
    table = write_phantom_cohort(folder, 1, SEED)  # an empty folder will do
    before, written = content(folder), table.stat().st_mtime_ns
    assert write_phantom_cohort(folder, 1, SEED).stat().st_mtime_ns == written
    write_phantom_cohort(folder, 1, SEED + 1)
    assert content(folder) != before
    write_phantom_cohort(folder, 1, SEED)
    assert content(folder) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cohort"]


def test_a_folder_with_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for folder in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(DataError, match="new or empty folder"):
            write_phantom_cohort(folder, 1, SEED)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unfinished_cohort_does_not_look_like_one(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Interrupting:
        def task(self, label: str, total: int) -> Interrupting:
            return self

        def __enter__(self) -> object:
            def advance(done: int) -> None:
                raise Stop

            return advance

        def __exit__(self, *details: object) -> None:
            return None

    with pytest.raises(Stop):
        write_phantom_cohort(tmp_path / "cohort", 3, SEED, Interrupting())
    assert not (tmp_path / "cohort").exists()
    write_phantom_cohort(tmp_path / "cohort", 1, SEED)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cohort"]


def test_series_are_valid_ct_images(cohort: Path) -> None:
    syntaxes, instances, studies = set(), set(), set()
    for folder in sorted((cohort.parent / "series").iterdir()):
        slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        assert len({s.SeriesInstanceUID for s in slices}) == len({s.StudyInstanceUID for s in slices}) == 1
        studies.add(slices[0].StudyInstanceUID)
        positions = np.array([[float(v) for v in s.ImagePositionPatient] for s in slices])
        steps = np.diff(positions[:, 2])
        assert np.ptp(steps) < 1e-3 and 1.5 <= abs(steps[0]) <= 2.0
        assert [s.InstanceNumber for s in slices] == list(range(1, len(slices) + 1))
        for s in slices:
            assert s.SOPClassUID == s.file_meta.MediaStorageSOPClassUID == CTImageStorage
            assert s.SOPInstanceUID == s.file_meta.MediaStorageSOPInstanceUID
            for uid in (s.SOPInstanceUID, s.SeriesInstanceUID, s.StudyInstanceUID, s.FrameOfReferenceUID):
                assert UID(uid).is_valid and uid.startswith("2.25.")
            assert s.RescaleIntercept == -1024 and s.RescaleSlope == 1 and s.SyntheticData == "YES"
            instances.add(s.SOPInstanceUID)
        syntaxes.add(slices[0].file_meta.TransferSyntaxUID)
        stored = slices[0].pixel_array
        assert stored.dtype == np.uint16 and stored.max() <= 4095
    assert syntaxes == {ExplicitVRLittleEndian, RLELossless}
    assert len(studies) == PATIENTS
    assert len(instances) == sum(1 for _ in (cohort.parent / "series").rglob("*.dcm"))


def test_headers_hold_what_must_not_get_out(cohort: Path) -> None:
    """The planted identity stands in plain attributes, a sequence, free text and private tags."""
    with cohort.open() as stream:
        patients = [row["patient"] for row in csv.DictReader(stream)]
    assert len(set(patients)) == PATIENTS
    for patient, folder in zip(patients, sorted((cohort.parent / "series").iterdir()), strict=True):
        header = pydicom.dcmread(next(folder.iterdir()))
        assert header.PatientID == patient
        family = str(header.PatientName).split("^")[0]
        assert family in header.PatientComments and family in header.RequestAttributesSequence[0][0x0032, 0x1060].value
        assert header[0x0033, 0x1001].value == header.PatientName
        assert header[0x0033, 0x1003].value[0].PatientName == header.PatientName
        for keyword in ("PatientBirthDate", "InstitutionName", "ReferringPhysicianName", "AccessionNumber"):
            assert header[keyword].value
        # Neither folder nor file is called by a name or number of the patient.
        assert patient not in str(folder) and family not in str(folder)


def test_images_and_masks_are_on_one_grid_and_read_as_ct(cohort: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    deidentifier = Deidentifier(SecretKey.load_or_create(secrets / "key"))
    cases = read_sources(CsvCohort(kind="csv", csv=str(cohort)), PHANTOM_CONDITIONS)
    assert len(cases) == PATIENTS
    for number, case in enumerate(cases):
        made = phantom_patient(SEED, number)
        scan = read_scan(case.image, deidentifier=deidentifier)
        assert case.mask is not None
        mask = read_mask(case.mask, scan)
        inside, hu = mask.numpy() > 0, scan.numpy().astype(np.float64)
        assert inside.sum() == made.rendered.mask.sum()
        # The same voxels are marked: the mean inside is the rendered one, to the rounding of the stored integers.
        assert hu[inside].mean() == pytest.approx(made.rendered.hu[made.rendered.mask].mean(), abs=0.5)
        assert hu.min() >= -1024 and hu.max() > 600
        np.testing.assert_allclose(sorted(spacing_mm(scan)), sorted(made.placement.spacing_mm), rtol=1e-6)
        assert all(n * s >= 48 for n, s in zip(scan.shape[1:], spacing_mm(scan), strict=True))
        # The centre of the mask in the world, from the file and from the drawing.
        image = nibabel.load(case.mask)
        assert image.header["descrip"].item() == b"" and len(image.header.extensions) == 0
        index = np.argwhere(np.asarray(image.dataobj) > 0).mean(0)
        drawn = np.argwhere(made.rendered.mask).mean(0) * made.placement.spacing_mm + made.placement.origin_mm
        np.testing.assert_allclose(image.affine[:3, :3] @ index + image.affine[:3, 3], drawn * [-1, -1, 1], atol=1e-2)


def test_every_four_patients_hold_each_pair_of_diagnosis_and_sex() -> None:
    for block in range(3):
        pairs = {(p.diagnosis, p.sex) for p in (phantom_patient(SEED, 4 * block + place) for place in range(4))}
        assert len(pairs) == 4


@pytest.mark.parametrize("malignant", [False, True])
def test_every_shape_has_the_volume_of_its_diameter(malignant: bool) -> None:
    """A star-shaped body's volume is the integral of r^3 / 3 over the sphere."""
    directions = fibonacci_sphere(20_000)
    for number in range(20):
        nodule = draw_nodule(numpy_generator(0, number), malignant=malignant, typical_mm=4.5 + 0.8 * number)
        radius = nodule.scale_mm * nodule.relief(directions).astype(np.float64)
        volume = 4 * np.pi / 3 * (radius**3).mean()
        assert volume == pytest.approx(np.pi / 6 * nodule.diameter_mm**3, rel=0.02)
        assert DIAMETER_MM[0] <= nodule.diameter_mm <= DIAMETER_MM[1]
        assert radius.max() <= nodule.reach_mm


def test_the_nodule_lies_free_in_the_lung() -> None:
    """No rib, muscle or liver under the mask: a nodule without calcium holds nothing brighter than soft tissue."""
    checked = 0
    for number in range(24):
        anatomy = draw_anatomy(
            numpy_generator(3, number), malignant=number % 2 == 0, female=True, typical_mm=6.0 + number / 2
        )
        body = anatomy.nodule.surface_mm() + anatomy.nodule_centre
        assert anatomy.wall.depth_mm(*body.T).max() < -0.5
        rendered = render(anatomy, numpy_generator(4, number))
        if not anatomy.nodule.calcium:
            assert np.percentile(rendered.hu[rendered.mask], 99) < 200
            checked += 1
        edge = np.ones(rendered.mask.shape, bool)
        edge[1:-1, 1:-1, 1:-1] = False
        assert rendered.mask.any() and not (rendered.mask & edge).any()
    assert checked > 12


def test_diameters_fill_the_range() -> None:
    diameters = draw_diameters(numpy_generator(0), 5000)
    assert diameters.min() > DIAMETER_MM[0] and diameters.max() < DIAMETER_MM[1]
    # A beta(1.5, 1.9) variable has mean 1.5 / 3.4.
    assert diameters.mean() == pytest.approx(5 + 15 * 1.5 / 3.4, abs=0.2)


def test_tissues_have_plausible_densities() -> None:
    hu = np.concatenate([phantom_patient(SEED, number).rendered.hu.ravel() for number in range(8)])
    histogram, edges = np.histogram(hu, bins=np.arange(-1100, 400, 25))

    def peak(low: float, high: float) -> float:
        chosen = (edges[:-1] >= low) & (edges[:-1] < high)
        return float(edges[:-1][chosen][np.argmax(histogram[chosen])] + 12.5)

    assert peak(-950, -700) == pytest.approx(-855, abs=30)
    assert peak(-40, 200) == pytest.approx(50, abs=30)
    assert 0.3 < ((hu > -950) & (hu < -700)).mean() < 0.7
    assert 0.02 < ((hu > -150) & (hu < -60)).mean() < 0.2
    assert 0.005 < (hu > 250).mean() < 0.1


def radiomics(patient: PhantomPatient) -> list[float]:
    """Shape and texture of a nodule, none of which measures size: sphericity, reach, and densities in and around it."""
    hu, mask, spacing = patient.rendered.hu, patient.rendered.mask, np.array(patient.placement.spacing_mm)
    voxel = float(spacing.prod())
    volume = mask.sum() * voxel
    faces = sum(np.abs(np.diff(mask.astype(int), axis=axis)).sum() * voxel / spacing[axis] for axis in range(3))
    points = np.argwhere(mask) * spacing
    reach = np.linalg.norm(points - points.mean(0), axis=1).max()
    shell = ndimage.binary_dilation(mask, iterations=2) & ~mask
    return [
        np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / faces,
        reach / (3 * volume / 4 / np.pi) ** (1 / 3),
        float(hu[mask].mean()),
        float(hu[mask].std()),
        float(hu[shell].mean()),
    ]


@pytest.fixture(scope="module")
def many() -> tuple[
    NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]
]:
    """Features, volumes, whether malignant, whether female, share of fat: of 200 patients."""
    rows = []
    for number in range(200):
        patient = phantom_patient(SEED, number)
        volume = patient.rendered.mask.sum() * np.prod(patient.placement.spacing_mm)
        fat = ((patient.rendered.hu > -160) & (patient.rendered.hu < -50)).mean()
        rows.append((radiomics(patient), volume, patient.diagnosis == "malignant", patient.sex == "F", fat))
    features, volume, malignant, female, fat = zip(*rows, strict=True)
    return np.array(features), np.array(volume), np.array(malignant), np.array(female), np.array(fat)


@pytest.mark.slow
def test_diagnosis_shows_in_shape_and_texture_and_not_in_size(many: tuple) -> None:
    """200 patients: the standard error of an AUC of one half is 0.04, and less for the balanced volumes."""
    features, volume, malignant, female, fat = many
    assert malignant.sum() == female.sum() == 100
    assert abs(roc_auc_score(malignant, volume) - 0.5) < 0.05
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(classifier, features, malignant, cv=folds, method="predict_proba")[:, 1]
    assert 0.84 < roc_auc_score(malignant, scores) < 0.96

    assert 0.65 < roc_auc_score(female, fat) < 0.95
    assert abs(roc_auc_score(malignant, fat) - 0.5) < 0.1
    assert abs(roc_auc_score(female, scores) - 0.5) < 0.1
