"""Scans with identities in them, as bytes of DICOM files: what a ward's PACS holds."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pydicom
from orthanc import PASSWORD
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

ROOT = "1.2.826.0.1.3680043.99.77"
SIZE = 16
PLANTED = ("Zwyczajewska", "Grzymislawa", "PID-7731-X", "PID-9942-Y", "ACC-55501", "Szpital-Ujazdow", ROOT, "19530817")
"""Texts that may stand nowhere but in the PACS."""


@dataclass(frozen=True)
class Slices:
    """One series of the ward."""

    patient: str
    name: str
    study: int
    series: int
    modality: str
    count: int
    compressed: bool = False


WARD = (
    Slices("PID-7731-X", "Zwyczajewska^Anna", 1, 1, "CT", 90),
    Slices("PID-7731-X", "Zwyczajewska^Anna", 1, 2, "MR", 50, compressed=True),
    Slices("PID-9942-Y", "Nowak^Grzymislawa", 2, 3, "CT", 60),
)
INSTANCES = sum(series.count for series in WARD)


def dataset_of(slices: Slices, number: int) -> Dataset:
    """One slice, with names in the header."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage if slices.modality == "CT" else MRImageStorage
    dataset.SOPInstanceUID = f"{ROOT}.{slices.study}.{slices.series}.{number}"
    dataset.StudyInstanceUID = f"{ROOT}.{slices.study}"
    dataset.SeriesInstanceUID = f"{ROOT}.{slices.study}.{slices.series}"
    dataset.FrameOfReferenceUID = f"{ROOT}.{slices.study}.0"
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = slices.patient, slices.name, "19530817"
    dataset.PatientSex, dataset.AccessionNumber, dataset.StudyID = "F", "ACC-55501", "S1"
    dataset.StudyDate, dataset.StudyTime = "20190405", "0101"
    dataset.InstitutionName, dataset.ReferringPhysicianName = "Szpital-Ujazdow", "Zwyczajewska^Ewa"
    dataset.StudyDescription = "Zwyczajewska asked for this"
    dataset.Modality, dataset.Manufacturer = slices.modality, "SIEMENS"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if slices.modality == "CT" else ["ORIGINAL", "PRIMARY", "M"]
    dataset.SeriesNumber, dataset.InstanceNumber = slices.series, number
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2.5 * number], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 2.5
    dataset.PatientPosition, dataset.BodyPartExamined = "HFS", "CHEST"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = SIZE
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    if slices.modality == "CT":
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.KVP = -1024, 1, "120"
    else:
        dataset.EchoTime, dataset.RepetitionTime, dataset.ScanningSequence = 3.5, 2300, "GR"
        dataset.SequenceVariant, dataset.ScanOptions, dataset.MRAcquisitionType = "SP", "PFP", "3D"
    voxels = np.random.default_rng(number).integers(0, 4096, (SIZE, SIZE), dtype=np.uint16)
    dataset.PixelData = voxels.tobytes()
    with_meta(dataset)
    if slices.compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    return dataset


def with_meta(dataset: Dataset) -> Dataset:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def report(slices: Slices) -> Dataset:
    """A structured report in the same study: text about a patient, which nobody asked for."""
    dataset = dataset_of(Slices(slices.patient, slices.name, slices.study, 9, "CT", 1), 1)
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, keyword)
    dataset.SOPClassUID, dataset.Modality = BasicTextSRStorage, "SR"
    return with_meta(dataset)


def synthetic(series: int, number: int) -> Dataset:
    """A slice that says of itself that it is nobody's."""
    dataset = dataset_of(Slices("SYNTH-1", "SYNTHETIC^PATIENT", 5, series, "CT", 1), number)
    base = "2.25.3300112233"
    dataset.SOPInstanceUID = f"{base}.{series}.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{base}.9", f"{base}.9.{series}"
    dataset.SyntheticData, dataset.InstitutionName, dataset.StudyDescription = "YES", "", ""
    return with_meta(dataset)


def capture() -> Dataset:
    """A secondary capture that claims to be synthetic."""
    dataset = synthetic(8, 1)
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    return with_meta(dataset)


def encoded(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def ward() -> list[bytes]:
    """Every instance of the ward."""
    return [encoded(dataset_of(series, number)) for series in WARD for number in range(1, series.count + 1)]


def silent(*texts: str) -> None:
    """Assert that texts name no patient and no password."""
    for text in texts:
        for secret in (*PLANTED, PASSWORD):
            assert secret.lower() not in text.lower()
