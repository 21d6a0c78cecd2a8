"""Scans of people who do not exist, with names that must never come back in a message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

CT, MR, CAPTURE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
ROWS, COLUMNS = 10, 8
TELLING = (
    *("zqfamily", "zqgiven", "zqpatient", "zqaccession", "zqstudy", "zqhospital", "zqfile", "zqother", "zqtext"),
    *("19340506", "1934-05-06", "20190711", "1.2.826.0.1.3680043.97"),
)
"""What no message may hold, in lower case: values of the headers and names of files."""
Edit = Callable[[Dataset, int], None]


def image(place: int = 0, modality: str = "CT") -> Dataset:
    """Slice `place` of a small regular series; a chest, so that nobody looks for a face."""
    dataset = Dataset()
    dataset.SOPClassUID = CT if modality == "CT" else MR
    dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.97.1.{place + 1}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.97.2", "1.2.826.0.1.3680043.97.3"
    dataset.FrameOfReferenceUID = "1.2.826.0.1.3680043.97.4"
    dataset.PatientName, dataset.PatientID = "Zqfamily^Zqgiven", "ZQPATIENT77"
    dataset.PatientBirthDate, dataset.StudyDate = "19340506", "20190711"
    dataset.AccessionNumber, dataset.StudyDescription = "ZQACCESSION", "Zqstudy"
    dataset.InstitutionName, dataset.Modality = "Zqhospital", modality
    dataset.ImageType, dataset.BodyPartExamined = ["ORIGINAL", "PRIMARY", "AXIAL"], "CHEST"
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.PatientPosition = 3, place + 1, "HFS"
    dataset.ImagePositionPatient = [-30.0, 12.0, 100.0 + 2.5 * place]
    dataset.ImageOrientationPatient, dataset.PixelSpacing, dataset.SliceThickness = [1, 0, 0, 0, 1, 0], [0.8, 0.5], 2.5
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    if modality == "MR":
        dataset.EchoTime, dataset.RepetitionTime, dataset.RescaleType = 3.5, 2300, "US"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    samples = np.random.default_rng(place).integers(0, 4000, ROWS * COLUMNS).astype("<u2")
    dataset.PixelData = samples.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def save(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a dataset as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, count: int = 6, edit: Edit | None = None, modality: str = "CT") -> list[Path]:
    """A series of `count` slices, each changed by `edit(dataset, place)`."""
    paths = []
    for place in range(count):
        dataset = image(place, modality)
        if edit is not None:
            edit(dataset, place)
        paths.append(save(dataset, folder / f"ZQFILE{place:03d}.dcm"))
    return paths


def edited(edit: Edit, count: int = 6, modality: str = "CT") -> Callable[[Path], None]:
    """A folder `scans` with a series that is changed slice by slice."""
    return lambda root: _unit(series(root / "scans", count, edit, modality))


def changed(count: int = 6, modality: str = "CT", **values: object) -> Callable[[Path], None]:
    """A folder `scans` with a series whose slices all have these values."""

    def edit(dataset: Dataset, place: int) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return edited(edit, count, modality)


def document(sop_class: str, **values: object) -> Callable[[Path], None]:
    """A folder `scans` with one object that is no image."""

    def build(root: Path) -> None:
        dataset = image()
        for keyword in (
            "PixelData",
            "Rows",
            "Columns",
            "BitsAllocated",
            "BitsStored",
            "HighBit",
            "PixelRepresentation",
        ):
            delattr(dataset, keyword)
        dataset.SOPClassUID = sop_class
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        save(dataset, root / "scans" / "ZQFILE.dcm")

    return build


def volume(shape: Sequence[int] = (6, 7, 8), kind: str = "int16") -> nibabel.Nifti1Image:
    """A NIfTI volume."""
    voxels = np.random.default_rng(5).integers(0, 1000, shape).astype(kind)
    affine = np.diag([1.5, 1.5, 3.0, 1.0])
    made = nibabel.Nifti1Image(voxels, affine)
    made.set_sform(affine, code="scanner")
    made.set_qform(affine, code="scanner")
    return made


def nifti(change: Callable[[nibabel.Nifti1Image], nibabel.Nifti1Image | None]) -> Callable[[Path], None]:
    """A folder `scans` with one NIfTI file, changed before it is written."""

    def build(root: Path) -> None:
        (root / "scans").mkdir()
        made = volume()
        nibabel.save(change(made) or made, root / "scans" / "ZQFILE.nii.gz")

    return build


def patched(offset: int, value: bytes, *, cut: int | None = None) -> Callable[[Path], None]:
    """A folder `scans` with one NIfTI file, some bytes of it written over, or cut short."""

    def build(root: Path) -> None:
        (root / "scans").mkdir()
        path = root / "scans" / "ZQFILE.nii"
        nibabel.save(volume(), path)
        raw = bytearray(path.read_bytes())
        raw[offset : offset + len(value)] = value
        path.write_bytes(bytes(raw[:cut]))

    return build


def both(*builds: Callable[[Path], None]) -> Callable[[Path], None]:
    """One after the other in the same folder."""

    def build(root: Path) -> None:
        for one in builds:
            one(root)

    return build


def _unit(_: object) -> None:
    """For expressions whose value does not matter."""
