"""Heads are told from other scans, and a command takes the face out of a series and nothing else."""

from __future__ import annotations

import stat
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from burned_in import copy_of, image, item, reread, write_enhanced, write_series
from planted_headers import plain
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from medsynth.config.deidentify import Deidentify
from medsynth.errors import DataError, GeometryError, PrivacyError, UsageError
from medsynth.imaging.deidentify import faces
from medsynth.imaging.deidentify.faces import deface_scan, deface_series
from medsynth.imaging.deidentify.guard import PixelGuard
from medsynth.imaging.scan import make_scan

FRONT_TO_ZERO = "data[:, : data.shape[1] // 3] = 0"
SCRIPT = """
import sys
import nibabel as nib
import numpy as np
image = nib.load(sys.argv[1])
data, affine = np.asanyarray(image.dataobj).copy(), image.affine
print("HOLLENSTEIN", sys.argv[1])
print("HOLLENSTEIN", file=sys.stderr)
{work}
nib.save(nib.Nifti1Image(data, affine), sys.argv[2])
"""


def head(
    modality: str = "CT", *, rows: int = 256, columns: int = 256, spacing: float = 0.9, **values: object
) -> Dataset:
    dataset = plain(modality)
    for keyword in ("BodyPartExamined", "StudyDescription", "SeriesDescription"):
        if keyword in dataset:
            del dataset[keyword]
    dataset.Rows, dataset.Columns, dataset.PixelSpacing = rows, columns, [spacing, spacing]
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def region(value: str, scheme: str = "SCT", meaning: str = "") -> Sequence:
    return Sequence([item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)])


HEADS = {
    "body part": head(BodyPartExamined="HEAD"),
    "joined body part": head(BodyPartExamined="HEADNECK", spacing=1.8),
    "code": head(AnatomicRegionSequence=region("69536005")),
    "old code": head(AnatomicRegionSequence=region("T-D1100", "SRT")),
    "meaning": head(AnatomicRegionSequence=region("99", "99LOCAL", "Brain")),
    "series": head(SeriesDescription="SAG T1 BRAIN", spacing=1.5),
    "protocol": head(ProtocolName="Schädel nativ", SpecificCharacterSet="ISO_IR 100", spacing=1.5),
    "study": head(StudyDescription="MRI orbits", spacing=1.5),
    "nothing known, size of a head": head("MR"),
    "nothing known but the sequence": head("MR", SeriesDescription="t1_mprage_sag"),
    "no spacing": head(BodyPartExamined="SKULL", PixelSpacing=None),
    "contradiction": head(BodyPartExamined="CHEST", SeriesDescription="Head 5mm"),
    "the header says so": head(BodyPartExamined="CHEST", RecognizableVisualFeatures="YES"),
    "whole body": head(BodyPartExamined="WHOLEBODY", spacing=2.0),
    "neck": head(BodyPartExamined="NECK"),
}
OTHERS = {
    "chest": head(BodyPartExamined="CHEST"),
    "abdomen": head(BodyPartExamined="ABDOMEN"),
    "knee by series": head("MR", SeriesDescription="PD fs sag Knie"),
    "prostate by study": head("MR", StudyDescription="MR Prostate"),
    "femoral head": head("MR", SeriesDescription="femoral head cor", BodyPartExamined="HIP"),
    "head coil": head("MR", SeriesDescription="head coil test", BodyPartExamined="KNEE"),
    "study of several parts": head(BodyPartExamined="CHEST", StudyDescription="CT head chest abdomen", spacing=1.5),
    "chest with a word of the head, too large for one": head(
        BodyPartExamined="CHEST", SeriesDescription="neck", spacing=1.9
    ),
    "temporal bone": head(BodyPartExamined="HEAD", spacing=0.3),
    "nothing known, size of a body": head(spacing=1.8),
    "nothing known, size of a hand": head(spacing=0.35),
    "the header denies": head(BodyPartExamined="HEAD", RecognizableVisualFeatures="NO"),
    "nothing known, no spacing": head(PixelSpacing=None),
}


@pytest.mark.parametrize("dataset", HEADS.values(), ids=HEADS)
def test_heads_count(dataset: Dataset) -> None:
    assert PixelGuard(Deidentify()).suspects_face(reread(dataset))


@pytest.mark.parametrize("dataset", OTHERS.values(), ids=OTHERS)
def test_other_scans_do_not(dataset: Dataset) -> None:
    assert not PixelGuard(Deidentify()).suspects_face(reread(dataset))


@pytest.mark.parametrize(("gap", "counts"), [(2.0, True), (9.0, False)])
def test_frames_that_reach_further_than_a_head_are_none(tmp_path: Path, gap: float, counts: bool) -> None:
    write_enhanced(tmp_path / "one.dcm", np.zeros((50, 8, 8), dtype=np.uint16), gap=gap)
    dataset = pydicom.dcmread(tmp_path / "one.dcm")
    dataset.Rows = dataset.Columns = 256
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.9, 0.9]
    assert PixelGuard(Deidentify()).suspects_face(dataset) is counts


def test_a_head_is_refused_unless_somebody_says_otherwise() -> None:
    source = HEADS["body part"]
    with pytest.raises(PrivacyError, match=r"face_command.*accept_faces: true"):
        PixelGuard(Deidentify()).check(source)
    assert PixelGuard(Deidentify(accept_faces=True)).check(source) == ()
    by_command = Deidentify(
        options=("clean_recognizable_visual_features",), face_command=("strip", "{input}", "{output}")
    )
    assert PixelGuard(by_command).check(source) == ()


def test_accepted_faces_do_not_accept_text() -> None:
    source = image(BodyPartExamined="HEAD", BurnedInAnnotation="YES")
    with pytest.raises(PrivacyError, match="burned-in"):
        PixelGuard(Deidentify(accept_faces=True, ocr="off")).check(source)


@pytest.fixture
def command(tmp_path: Path):
    def make(work: str) -> tuple[str, ...]:
        path = tmp_path / "fake_deface.py"
        path.write_text(SCRIPT.format(work=work))
        return (sys.executable, str(path), "{input}", "{output}")

    return make


@pytest.fixture
def scan():
    voxels = np.random.default_rng(0).integers(1, 900, (18, 24, 14)).astype(np.int16)
    return make_scan(voxels, np.diag([-0.9, -0.8, 2.0, 1.0]), modality="CT", unit="HU")


def test_changed_voxels_are_taken_over_and_others_stay(scan, command) -> None:
    result = deface_scan(scan, command(FRONT_TO_ZERO + "; data = data.astype('f4') + 1e-3"))
    assert result.dtype == scan.dtype
    assert not np.any(result[0, :, :8].numpy())
    assert np.array_equal(result[0, :, 8:].numpy(), scan[0, :, 8:].numpy())


def test_the_folder_is_private_and_gone_afterwards(scan, command, tmp_path: Path, capfd) -> None:
    note = tmp_path / "note.txt"
    work = f"import os; open({str(note)!r}, 'w').write(os.getcwd() + ' ' + oct(os.stat('.').st_mode)); {FRONT_TO_ZERO}"
    deface_scan(scan, command(work))
    folder, mode = note.read_text().split()
    assert int(mode, 8) & 0o777 == stat.S_IRWXU
    assert not Path(folder).exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("work", "kind", "text"),
    [
        ("sys.exit(7)", PrivacyError, "exit code 0, found 7"),
        ("raise SystemExit('HOLLENSTEIN')", PrivacyError, "found 1"),
        ("pass", PrivacyError, "next to no voxel changed"),
        ("data[0, 0, 0] = 9 + data[0, 0, 0] * 0", PrivacyError, "next to no voxel changed"),
        (FRONT_TO_ZERO + "; data = data[:, :-1]", GeometryError, r"keep the grid \(18, 24, 14\)"),
        (FRONT_TO_ZERO + "; affine[0, 3] += 1", GeometryError, "1 mm off"),
        (FRONT_TO_ZERO + "; data = data[::-1]; affine[0, 0] *= -1", GeometryError, "mm off"),
        ("data = data * np.nan", DataError, "finite"),
        ("open(sys.argv[2], 'w').write('x'); sys.exit(0)", DataError, "NIfTI"),
        ("sys.exit(0)", PrivacyError, "no file"),
    ],
)
def test_a_command_that_does_not_do_its_work_is_refused(
    work: str,
    kind: type[Exception],
    text: str,
    scan,
    command,
    capfd,
) -> None:
    with pytest.raises(kind, match=text) as caught:
        deface_scan(scan, command(work))
    assert "HOLLENSTEIN" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_command_that_hangs_is_stopped_with_its_children(scan, tmp_path: Path) -> None:
    note = tmp_path / "child.txt"
    path = tmp_path / "hang.py"
    path.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(PrivacyError, match="within 3 s"):
        deface_scan(scan, (sys.executable, str(path), "{input}", "{output}"), time_limit_s=3)
    status, deadline = Path(f"/proc/{note.read_text()}/stat"), time.monotonic() + 60
    while runs(status) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(status)


def runs(status: Path) -> bool:
    """Whether the process of a /proc/N/stat file is there and not waiting to be collected."""
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_program_that_is_not_there_is_a_mistake_in_the_settings(scan) -> None:
    with pytest.raises(UsageError, match="face_command"):
        deface_scan(scan, ("/no/such/program", "{input}", "{output}"))


def test_no_shell_reads_the_command(scan, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError):
        deface_scan(
            scan, (sys.executable, "-c", "import sys; sys.exit(3)", f"{{input}}; touch {tmp_path}/made", "{output}")
        )
    assert not (tmp_path / "made").exists()


def marked(path: Path) -> Dataset:
    dataset = pydicom.dcmread(path)
    dataset.DeidentificationMethod = "medsynth 0, PS3.15 2026c Basic Profile"
    dataset.DeidentificationMethodCodeSequence = region("113100", "DCM", "Basic Application Confidentiality Profile")
    return dataset


@pytest.mark.parametrize(
    ("modality", "rescale", "compress"),
    [
        ("CT", (1, -1024), None),
        ("CT", (1, -1024), RLELossless),
        ("CT", (2, -50), JPEG2000Lossless),
        ("MR", (1.7, 0.3), None),
    ],
)
def test_a_series_loses_its_front_and_no_other_bit(
    tmp_path: Path,
    command,
    modality: str,
    rescale: tuple[float, float],
    compress: str | None,
) -> None:
    stored = np.random.default_rng(4).integers(700, 3000, (5, 72, 68)).astype(np.uint16)
    paths = write_series(tmp_path / "series", stored, modality=modality, rescale=rescale, compress=compress)
    datasets = [marked(path) for path in reversed(paths)]
    before = [dataset.pixel_array.copy() for dataset in datasets]
    value = np.float32(rescale[1] + rescale[0] * 5)
    result = [reread(one) for one in deface_series(datasets, command(f"data[:, :24] = {value}"))]
    for new, old, dataset in zip(result, before, datasets, strict=True):
        assert (new.pixel_array[:24] == 5).all()
        assert np.array_equal(new.pixel_array[24:], old[24:])
        assert new.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert new.RecognizableVisualFeatures == "NO"
        assert [code.CodeValue for code in new.DeidentificationMethodCodeSequence] == ["113100", "113102"]
        assert new.DeidentificationMethodCodeSequence[1].CodeMeaning == "Clean Recognizable Visual Features Option"
        assert len(new.DeidentificationMethod) == 2
        assert new.SOPInstanceUID == dataset.SOPInstanceUID
        assert np.array_equal(dataset.pixel_array, old)
        assert "RecognizableVisualFeatures" not in dataset


def test_frames_of_one_object_lose_their_front(tmp_path: Path, command) -> None:
    stored = np.random.default_rng(4).integers(700, 3000, (5, 12, 10)).astype(np.uint16)
    write_enhanced(tmp_path / "one.dcm", stored)
    dataset = marked(tmp_path / "one.dcm")
    (result,) = deface_series([dataset], command("data[:, :4] = -1"))
    after = reread(result).pixel_array
    assert not np.any(after[:, :4])
    assert np.array_equal(after[:, 4:], dataset.pixel_array[:, 4:])


def test_values_beyond_the_bits_stop_at_their_limits(tmp_path: Path, command) -> None:
    stored = np.random.default_rng(4).integers(700, 3000, (4, 12, 10)).astype(np.uint16)
    paths = write_series(tmp_path / "series", stored)
    result = deface_series([marked(path) for path in paths], command("data[:, :4] = -30000"))
    assert all(not np.any(one.pixel_array[:4]) for one in result)


def test_a_series_that_is_no_volume_is_refused(tmp_path: Path, command) -> None:
    paths = write_series(tmp_path / "series", np.ones((5, 12, 10), dtype=np.uint16), places=[0, 1, 2, 5, 6])
    with pytest.raises(GeometryError):
        deface_series([marked(path) for path in paths], command(FRONT_TO_ZERO))


def test_one_hour_is_the_limit() -> None:
    assert faces.TIME_LIMIT_S == 3600


def test_a_copy_shares_nothing_that_changes() -> None:
    source = image()
    clean = copy_of(source)
    PixelGuard(Deidentify(options=("clean_pixel_data",), ocr="off")).clean(source, clean, ())
    assert "BurnedInAnnotation" not in source
