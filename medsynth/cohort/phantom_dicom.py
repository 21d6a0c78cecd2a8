"""Phantom patients as single-frame CT series (PS3.3 A.3, CT Image Storage) with the headers of a busy hospital.

Every name, number and place is invented, and put wherever real archives leak them: plain attributes, nested sequences,
free text and private tags. A pipeline that de-identifies this cohort completely has been tried on the real thing.
"""

from __future__ import annotations

import datetime
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

from medsynth.seeding import derive, numpy_generator

_FAMILY = "Achterberg Brandvold Castellane Dunmorrow Ekelunden Fairweather Gruberova Hollenstein Ibarrondo Jankovitz"
_FAMILY += " Kvistgaard Lindenmoor Montreval Nakagiri Oyelarin Pettersholm Quintavalle Rosengarth Szymborek Thackeral"
FAMILY_NAMES = tuple(_FAMILY.split())
GIVEN_NAMES = {
    "F": (
        "Adelina",
        "Birgitta",
        "Carlotta",
        "Dagmar",
        "Eleonora",
        "Folake",
        "Griselda",
        "Hanneke",
        "Ingeborg",
        "Jorunn",
    ),
    "M": ("Ambrose", "Bertil", "Cornelis", "Dietmar", "Emeka", "Fredrik", "Gunther", "Hiroshi", "Ignacio", "Joachim"),
}
HOSPITALS = (
    ("Fjordhaven Teaching Hospital", "12 Harbour Lane, Fjordhaven"),
    ("Sankt Ansgar Klinikum", "Lindenallee 4, Ansgarstadt"),
    ("Ospedale di Montelupo Alto", "Via dei Cipressi 71, Montelupo Alto"),
)
STREETS = ("Mill Road", "Kastanienweg", "Rua das Flores", "Elm Terrace", "Storgatan")
PRIVATE_CREATOR = "INVENTED WORKLIST 1.0"
RESCALE_INTERCEPT = -1024


@dataclass(frozen=True)
class Identity:
    """Who a phantom patient claims to be, and the examination's circumstances."""

    patient_id: str
    family: str
    given: str
    sex: str
    birth: datetime.date
    examined: datetime.datetime
    hospital: str
    hospital_address: str
    address: str
    phone: str
    physician: str
    operator: str
    accession: str
    device: str

    @property
    def name(self) -> str:
        """The patient's name as DICOM writes it."""
        return f"{self.family}^{self.given}"


def draw_identity(generator: np.random.Generator, number: int, sex: str) -> Identity:
    """An invented identity; the patient's number in the cohort keeps the ID unique."""

    def pick(options: tuple[Any, ...]) -> Any:
        return options[int(generator.integers(len(options)))]

    hospital, hospital_address = pick(HOSPITALS)
    examined = datetime.datetime(2021, 1, 4, 7, 30) + datetime.timedelta(
        days=int(generator.integers(0, 1400)), seconds=int(generator.integers(0, 36_000))
    )
    return Identity(
        patient_id=f"H{int(generator.integers(100, 1000))}-{number:06d}",
        family=pick(FAMILY_NAMES),
        given=pick(GIVEN_NAMES[sex]),
        sex=sex,
        birth=examined.date() - datetime.timedelta(days=int(generator.integers(45 * 365, 82 * 365))),
        examined=examined,
        hospital=hospital,
        hospital_address=hospital_address,
        address=f"{int(generator.integers(1, 200))} {pick(STREETS)}",
        phone=f"+00 555 {int(generator.integers(10**6, 10**7))}",
        physician=f"{pick(FAMILY_NAMES)}^{pick(GIVEN_NAMES['F'])}^^Dr.",
        operator=f"{pick(FAMILY_NAMES)}^{pick(GIVEN_NAMES['M'])}",
        accession=f"A{int(generator.integers(10**8, 10**9))}",
        device=f"SN{int(generator.integers(10**5, 10**6))}",
    )


def invented_uid(seed: int, *names: str | int) -> str:
    """A UID of the form that PS3.5 B.2 derives from a UUID: `2.25.` and a 128-bit number."""
    digest = hashlib.sha256(f"{derive(seed, 'uid', *names)}".encode()).digest()
    # The bits that mark a UUID of version 4, variant 1.
    number = int.from_bytes(digest[:16], "big") & ~(0xF << 76) & ~(0x3 << 62) | (0x4 << 76) | (0x2 << 62)
    return f"2.25.{number}"


@dataclass(frozen=True)
class Placement:
    """Where the voxels [X, Y, Z] are in DICOM's patient space, with axes along x, y and z."""

    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    """Centre of voxel (0, 0, 0)."""

    def affine_ras(self) -> NDArray[np.float64]:
        """Voxel index to RAS millimetres: DICOM's x and y change sign."""
        flip = np.array([-1.0, -1.0, 1.0])
        affine = np.eye(4)
        affine[:3, :3] = np.diag(flip * self.spacing_mm)
        affine[:3, 3] = flip * self.origin_mm
        return affine


def write_series(
    folder: Path, hu: NDArray[np.float32], placement: Placement, identity: Identity, *, seed: int, number: int
) -> None:
    """Write HU [X, Y, Z] as one CT series, a file per slice; the first patient and every fourth or so RLE compressed."""
    generator = numpy_generator(seed, "phantom", number, "series")
    compressed = number == 0 or generator.random() < 0.25
    head_first = bool(generator.random() < 0.5)
    stored = np.clip(np.rint(hu) - RESCALE_INTERCEPT, 0, 4095).astype("<u2")
    image = _encoded(_series_header(placement, identity, stored.shape, seed, number))
    levels = range(stored.shape[2] - 1, -1, -1) if head_first else range(stored.shape[2])
    folder.mkdir(parents=True)
    for instance, level in enumerate(levels, start=1):
        x, y, z = placement.origin_mm
        height = round(z + level * placement.spacing_mm[2], 4)
        image.SOPInstanceUID = invented_uid(seed, number, "instance", instance)
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.InstanceNumber = instance
        image.ImagePositionPatient = [x, y, height]
        image.SliceLocation = height
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        # [X, Y] to rows and columns: x runs along a row.
        image.add_new("PixelData", "OW", stored[:, :, level].T.tobytes())
        if compressed:
            image.compress(RLELossless, generate_instance_uid=False)
        image.save_as(folder / f"IM{instance:04d}.dcm", enforce_file_format=True)


def _encoded(header: Dataset) -> Dataset:
    """The same header with its elements left as bytes, so that writing each slice does not encode them again."""
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


def _series_header(placement: Placement, identity: Identity, shape: tuple[int, ...], seed: int, number: int) -> Dataset:
    """All that the slices of a series share."""
    day, time = identity.examined.strftime("%Y%m%d"), identity.examined.strftime("%H%M%S")
    age = (identity.examined.date() - identity.birth).days // 365
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = CTImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = invented_uid(seed, number, "instance", 1)
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.ImplementationClassUID = invented_uid(0, "implementation")
    image.file_meta.ImplementationVersionName = "MEDSYNTH_PHANTOM"
    image.file_meta.SourceApplicationEntityTitle = "FJORDCT1"
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "InstanceCreationDate": day,
        "InstanceCreationTime": time,
        "SyntheticData": "YES",
        "SOPClassUID": CTImageStorage,
        "StudyDate": day,
        "SeriesDate": day,
        "AcquisitionDate": day,
        "ContentDate": day,
        "StudyTime": time,
        "SeriesTime": time,
        "AcquisitionTime": time,
        "ContentTime": time,
        "AccessionNumber": identity.accession,
        "Modality": "CT",
        "Manufacturer": "Invented Imaging Works",
        "ManufacturerModelName": "Phantom 64",
        "InstitutionName": identity.hospital,
        "InstitutionAddress": identity.hospital_address,
        "InstitutionalDepartmentName": "Thoracic Radiology",
        "ReferringPhysicianName": identity.physician,
        "PerformingPhysicianName": identity.physician,
        "OperatorsName": identity.operator,
        "StationName": "CT-ROOM-2",
        "StudyDescription": "Chest CT, nodule follow-up",
        "SeriesDescription": "Thorax phantom, lung nodule",
        "ProtocolName": "THORAX_LOWDOSE",
        "PatientName": identity.name,
        "PatientID": identity.patient_id,
        "IssuerOfPatientID": identity.hospital,
        "PatientBirthDate": identity.birth.strftime("%Y%m%d"),
        "PatientSex": identity.sex,
        "PatientAge": f"{age:03d}Y",
        "PatientAddress": identity.address,
        "PatientTelephoneNumbers": identity.phone,
        "PatientComments": f"{identity.given} {identity.family} asks to be called on {identity.phone}",
        "AdditionalPatientHistory": f"Known to {identity.physician.replace('^', ' ').strip()}",
        "BodyPartExamined": "CHEST",
        "KVP": 120,
        "SliceThickness": round(placement.spacing_mm[2] * 1.25, 3),
        "DeviceSerialNumber": identity.device,
        "SoftwareVersions": "1.0",
        "ConvolutionKernel": "LUNG",
        "XRayTubeCurrent": 80,
        "ExposureTime": 500,
        "PatientPosition": "HFS",
        "StudyInstanceUID": invented_uid(seed, number, "study"),
        "SeriesInstanceUID": invented_uid(seed, number, "series"),
        "FrameOfReferenceUID": invented_uid(seed, number, "frame"),
        "StudyID": identity.accession[-6:],
        "SeriesNumber": 3,
        "AcquisitionNumber": 1,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PositionReferenceIndicator": "",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": shape[1],
        "Columns": shape[0],
        "PixelSpacing": [placement.spacing_mm[1], placement.spacing_mm[0]],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "WindowCenter": -500,
        "WindowWidth": 1500,
        "RescaleIntercept": RESCALE_INTERCEPT,
        "RescaleSlope": 1,
        "RescaleType": "HU",
    }
    values["SOPInstanceUID"] = image.file_meta.MediaStorageSOPInstanceUID
    for keyword, value in values.items():
        setattr(image, keyword, value)
    image.OtherPatientIDsSequence = [_item(PatientID=f"OLD-{identity.patient_id}", TypeOfPatientID="TEXT")]
    image.RequestAttributesSequence = [
        _item(
            RequestedProcedureDescription=f"CT thorax for {identity.family}",
            ScheduledProcedureStepID=f"S{identity.accession}",
            RequestedProcedureID=identity.accession,
        )
    ]
    private = image.private_block(0x0033, PRIVATE_CREATOR, create=True)
    private.add_new(0x01, "PN", identity.name)
    private.add_new(0x02, "LO", f"worklist entry {identity.patient_id}")
    private.add_new(0x03, "SQ", [_item(PatientName=identity.name, PatientBirthDate=values["PatientBirthDate"])])
    return image


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
