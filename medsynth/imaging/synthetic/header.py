"""What the header of a synthetic image says: that it shows nobody, what made it, and where its pixels lie.

Attributes follow the IODs of PS3.3 A.3 (CT) and A.4 (MR). The patient is invented and can be seen to be; what type 2
allows to be empty and is not known is empty.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from medsynth import __version__
from medsynth.errors import DataError
from medsynth.imaging.scan import Scan, affine_of, modality_of, unit_of
from medsynth.imaging.synthetic.slices import Slices, Stored
from medsynth.imaging.words import HU, SYNTHETIC_MANUFACTURER

DESCRIPTION = "SYNTHETIC - NOT A PATIENT"
IMAGE_CLASS = {"CT": CTImageStorage, "MR": MRImageStorage}
NO_DATE, NO_TIME = "19000101", "000000"
"""Of study and content, where a date must be: valid, and that of no scan."""
IMPLEMENTATION_UID = "2.25.232194270186512937386475310265931466254"
IMPLEMENTATION_NAME = "MEDSYNTH_SCAN"
LONGEST_TEXT = 1024
LONGEST_NAME = 64
_CASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True)
class Origin:
    """How a synthetic scan came about; stands in its header."""

    case: str
    model: str
    seed: int
    sampling: str
    """Sampler, evaluations and guidance in words."""
    conditions: Mapping[str, str | float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Uids:
    """The UIDs of one scan's study, of the form that PS3.5 B.2 makes of a UUID, here one of version 5.

    They follow from the voxels, their place and their origin: the same scan gets the same UIDs whenever and wherever it
    is written, and a scan that differs in anything gets others.
    """

    identity: str

    @classmethod
    def of(cls, scan: Scan, origin: Origin) -> Uids:
        """For a scan. Raises DataError where its case cannot be a patient's ID."""
        if not _CASE.fullmatch(origin.case):
            raise DataError("expected a case of at most 40 letters, digits, dots, dashes and underscores; rename it")
        voxels = np.ascontiguousarray(scan.as_tensor().cpu().numpy())
        facts = [
            [origin.case, origin.model, origin.seed, origin.sampling, dict(origin.conditions)],
            [modality_of(scan), unit_of(scan), str(voxels.dtype), list(voxels.shape), affine_of(scan).tolist()],
            hashlib.sha256(voxels.tobytes()).hexdigest(),
        ]
        return cls(hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest())

    def make(self, *names: str | int) -> str:
        """The UID for a purpose."""
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(['medsynth', self.identity, *names])).int}"


def item(**values: Any) -> Dataset:
    """A dataset with these attributes, for a sequence."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def mark_synthetic(dataset: Dataset, origin: Origin) -> None:
    """Say in every way that DICOM has that this is synthetic, and what made it (PS3.3 C.7.6.1, C.12.1)."""
    dataset.SyntheticData = "YES"
    dataset.StudyDescription = DESCRIPTION
    dataset.SeriesDescription = DESCRIPTION
    dataset.Manufacturer = SYNTHETIC_MANUFACTURER
    dataset.ManufacturerModelName = "medsynth"
    dataset.SoftwareVersions = __version__
    purpose = item(CodeValue="109100", CodingSchemeDesignator="DCM", CodeMeaning="Synthesizing Equipment")
    dataset.ContributingEquipmentSequence = [
        item(
            Manufacturer=SYNTHETIC_MANUFACTURER,
            ManufacturerModelName="medsynth",
            SoftwareVersions=__version__,
            ContributionDescription=_cut(f"model {origin.model}; seed {origin.seed}; {origin.sampling}", LONGEST_TEXT),
            PurposeOfReferenceCodeSequence=[purpose],
        )
    ]


def derivation(origin: Origin, quantised: Stored) -> str:
    """The conditions, and how exactly the intensities are stored."""
    asked = "; ".join(f"{name}={value}" for name, value in origin.conditions.items() if value is not None)
    error = f" Intensities within {quantised.largest_error:g}." if quantised.largest_error else ""
    return _cut(f"Generated, not acquired.{error} Conditions: {asked or 'none'}", LONGEST_TEXT)


def series_header(
    scan: Scan, slices: Slices, quantised: Stored, origin: Origin, uids: Uids, window: tuple[float, float]
) -> Dataset:
    """All that the images of the series share. `window`: the intensities to show as black and as white."""
    modality = modality_of(scan)
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = IMAGE_CLASS[modality]
    header.file_meta.MediaStorageSOPInstanceUID = uids.make("image", 1)
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    header.file_meta.ImplementationVersionName = IMPLEMENTATION_NAME
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL" if modality == "CT" else "OTHER"],
        "SOPClassUID": IMAGE_CLASS[modality],
        "SOPInstanceUID": uids.make("image", 1),
        "StudyDate": NO_DATE,
        "StudyTime": NO_TIME,
        "AccessionNumber": "",
        "Modality": modality,
        "ReferringPhysicianName": "",
        "DerivationDescription": derivation(origin, quantised),
        "PatientName": f"SYNTHETIC^{origin.case}",
        "PatientID": f"SYNTHETIC-{uids.identity[:8].upper()}-{origin.case}",
        "PatientBirthDate": "",
        "PatientSex": "",
        "PatientPosition": "HFS",
        "StudyInstanceUID": uids.make("study"),
        "SeriesInstanceUID": uids.make("series"),
        "FrameOfReferenceUID": uids.make("frame of reference"),
        "StudyID": "SYNTHETIC",
        "SeriesNumber": 1,
        "AcquisitionNumber": None,
        "PositionReferenceIndicator": "",
        "ImageLaterality": "U",
        **_geometry(slices, quantised),
        **(_ct(scan, quantised) if modality == "CT" else _mr(quantised)),
    }
    for keyword, value in values.items():
        setattr(header, keyword, value)
    # Where MR has no rescale, a viewer's window is one of stored values.
    low, high = window if modality == "CT" else [(edge - quantised.intercept) / quantised.slope for edge in window]
    header.WindowCenter, header.WindowWidth = ds((low + high) / 2), ds(max(high - low, 1.0))
    header.WindowCenterWidthExplanation = "range of the generator"
    mark_synthetic(header, origin)
    return header


def _geometry(slices: Slices, quantised: Stored) -> dict[str, Any]:
    """Image Plane (PS3.3 C.7.6.2) and Image Pixel (C.7.6.3)."""
    columns, rows, between = slices.spacing_mm
    signed = quantised.values.dtype.kind == "i"
    return {
        "ImageOrientationPatient": [ds(x) for x in np.ravel(slices.affine[:3, :2] / [columns, rows], order="F")],
        "PixelSpacing": [ds(rows), ds(columns)],
        "SliceThickness": ds(between),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": quantised.values.shape[1],
        "Columns": quantised.values.shape[2],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(signed),
    }


def _ct(scan: Scan, quantised: Stored) -> dict[str, Any]:
    return {
        "KVP": None,
        "RescaleIntercept": ds(quantised.intercept),
        "RescaleSlope": ds(quantised.slope),
        "RescaleType": "HU" if unit_of(scan) == HU else "US",
    }


def _mr(quantised: Stored) -> dict[str, Any]:
    """MR has no rescale in its IOD: where integers are not the intensities, a Real World Value Mapping (C.7.6.1) tells."""
    values: dict[str, Any] = {
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "3D",
        "RepetitionTime": None,
        "EchoTime": None,
        "EchoTrainLength": None,
    }
    if not quantised.identity:
        unit = item(CodeValue="1", CodingSchemeDesignator="UCUM", CodeMeaning="no units")
        mapping = item(
            RealWorldValueIntercept=float(quantised.intercept),
            RealWorldValueSlope=float(quantised.slope),
            LUTExplanation="Intensity of the generator",
            LUTLabel="INTENSITY",
            MeasurementUnitsCodeSequence=[unit],
        )
        vr = "SS" if quantised.values.dtype.kind == "i" else "US"
        mapping.add_new("RealWorldValueFirstValueMapped", vr, int(quantised.values.min()))
        mapping.add_new("RealWorldValueLastValueMapped", vr, int(quantised.values.max()))
        values["RealWorldValueMappingSequence"] = [mapping]
    return values


def ds(number: float) -> str:
    """A decimal string of at most 16 characters."""
    return format_number_as_ds(float(number) + 0.0)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
