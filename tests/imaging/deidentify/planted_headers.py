"""Images with a secret in every kind of place where one has been seen to survive de-identification.

Four kinds: CT, MR, SC (secondary capture) and ENHANCED (multi-frame MR).
"""

from __future__ import annotations

from io import BytesIO
from itertools import count

import numpy as np
import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
)

SHAPE = (16, 12)
SOP_CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "SC": SecondaryCaptureImageStorage,
    "ENHANCED": EnhancedMRImageStorage,
}


class Planter:
    """Hands out secrets, each unlike any other text, and remembers them."""

    def __init__(self) -> None:
        self.secrets: dict[str, bytes] = {}
        self._numbers = count(1)

    def word(self, place: str) -> str:
        """An upper-case word that would pass for a code string."""
        text = f"ZQ{next(self._numbers):03d}LEAK"
        self.secrets[place] = text.encode()
        return text

    def uid(self, place: str) -> str:
        text = f"1.2.826.0.1.3680043.99.{next(self._numbers)}.7777"
        self.secrets[place] = text.encode()
        return text

    def date(self, place: str) -> str:
        text = f"19{60 + next(self._numbers) % 40:02d}0{next(self._numbers) % 9 + 1}17"
        self.secrets[place] = text.encode()
        return text

    def name(self, place: str, family: str) -> str:
        self.secrets[place] = family.encode("utf-8")
        return family


def plain(modality: str) -> Dataset:
    """A valid image with every technical value that must stay."""
    dataset = Dataset()
    dataset.SOPClassUID = SOP_CLASSES[modality]
    dataset.SOPInstanceUID = "1.2.826.0.1.3680043.99.1.1"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.99.1.2"
    dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.99.1.3"
    dataset.FrameOfReferenceUID = "1.2.826.0.1.3680043.99.1.4"
    dataset.PatientID = "PID-ORIGINAL-1"
    dataset.PatientName = "ORIGINAL^ANNA"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.StudyDate, dataset.StudyTime = (
        "19610203",
        "F",
        "20190405",
        "0101",
    )
    dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.StudyID = "ACC-1", "DOC^TOR", "S-1"
    dataset.Modality, dataset.Manufacturer = {"SC": "OT", "ENHANCED": "MR"}.get(modality, modality), "SIEMENS"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.SeriesNumber, dataset.AcquisitionNumber, dataset.InstanceNumber = 4, 1, 9
    dataset.ImagePositionPatient = [-125.5, -120.25, 60.125]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0.9483237, -0.3173047]
    dataset.PixelSpacing, dataset.SliceThickness, dataset.SliceLocation = [0.75, 0.5], 2.5, 60.125
    dataset.PatientPosition, dataset.BodyPartExamined = "HFS", "CHEST"
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.WindowCenter, dataset.WindowWidth = [40, 300], [300, 1500]
    if modality == "SC":
        dataset.ConversionType = "WSD"
    elif modality == "CT":
        dataset.KVP, dataset.RescaleType, dataset.ConvolutionKernel = "120", "HU", "Br38f"
        dataset.GantryDetectorTilt, dataset.XRayTubeCurrent, dataset.SpiralPitchFactor = 18.5, 210, 0.8
    else:
        dataset.EchoTime, dataset.RepetitionTime, dataset.FlipAngle, dataset.EchoTrainLength = 3.5, 2300, 9, 1
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = ["GR", "IR"], ["SP", "MP"], "PFP"
        dataset.MRAcquisitionType, dataset.MagneticFieldStrength, dataset.SequenceName = "3D", 3, "*tfl3d1_16ns"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = SHAPE
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = np.arange(np.prod(SHAPE), dtype="<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    if modality == "ENHANCED":
        dataset.NumberOfFrames, dataset.PixelData = 2, dataset.PixelData * 2
        dataset.PerFrameFunctionalGroupsSequence = [_frame(0), _frame(1)]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _frame(place: int) -> Dataset:
    position, content, frame = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = [0, 0, 2.5 * place]
    content.FrameAcquisitionDateTime, content.StackID, content.DimensionIndexValues = (
        "20190405101500",
        "1",
        [1, place + 1],
    )
    frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
    return frame


KEPT = {
    "SC": ["ConversionType"],
    "ENHANCED": ["EchoTrainLength", "MagneticFieldStrength", "NumberOfFrames"],
    "CT": ["KVP", "RescaleType", "ConvolutionKernel", "GantryDetectorTilt", "XRayTubeCurrent", "SpiralPitchFactor"],
    "MR": ["EchoTime", "RepetitionTime", "FlipAngle", "EchoTrainLength", "ScanningSequence", "SequenceVariant",
           "ScanOptions", "MRAcquisitionType", "MagneticFieldStrength", "SequenceName"],
    "both": ["Modality", "Manufacturer", "ImageType", "SeriesNumber", "AcquisitionNumber", "InstanceNumber",
             "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SliceLocation",
             "PatientPosition", "BodyPartExamined", "RescaleIntercept", "RescaleSlope", "WindowCenter", "WindowWidth",
             "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
             "PixelRepresentation", "PixelData"],
}  # fmt: skip


def planted(modality: str) -> tuple[Dataset, dict[str, bytes]]:
    """`plain`, and secrets in at least fifty places; where a place already has a known value, a secret is added."""
    plant, dataset = Planter(), plain(modality)
    _names_and_ids(dataset, plant)
    _free_text(dataset, plant)
    _codes(dataset, plant)
    _nested(dataset, plant)
    _private(dataset, plant)
    _unknown(dataset, plant)
    _graphics(dataset, plant)
    _by_option(dataset, plant)
    _every_text_vr_deep(dataset, plant)
    if modality == "ENHANCED":
        _in_frames(dataset, plant)
    dataset.file_meta.SourceApplicationEntityTitle = plant.word("file meta AE title")
    dataset.file_meta.ImplementationVersionName = plant.word("file meta implementation")
    dataset.file_meta.PrivateInformationCreatorUID = plant.uid("file meta private creator")
    dataset.file_meta.PrivateInformation = plant.word("file meta private information").encode()
    return dataset, plant.secrets


def _names_and_ids(dataset: Dataset, plant: Planter) -> None:
    dataset.SpecificCharacterSet = "ISO_IR 192"
    family = plant.name("PatientName family", "Zvyagintseva")
    ideographic = plant.name("PatientName ideographic", "山田竹")
    phonetic = plant.name("PatientName phonetic", "やまだたけ")
    dataset.PatientName = f"{family}^Ximena={ideographic}^太郎={phonetic}^たろう"
    dataset.PatientID = plant.word("PatientID")
    dataset.OtherPatientNames = plant.word("OtherPatientNames") + "^A"
    dataset.ReferringPhysicianName = plant.word("ReferringPhysicianName")
    dataset.OperatorsName = [plant.word("OperatorsName 1"), plant.word("OperatorsName 2")]
    dataset.AccessionNumber = plant.word("AccessionNumber")
    dataset.StudyID = plant.word("StudyID")
    dataset.InstitutionName = plant.word("InstitutionName")
    dataset.InstitutionAddress = plant.word("InstitutionAddress")
    dataset.StationName = plant.word("StationName")
    dataset.DeviceSerialNumber = plant.word("DeviceSerialNumber")
    dataset.PatientBirthDate = plant.date("PatientBirthDate")
    dataset.StudyDate = plant.date("StudyDate")
    dataset.ContentDate = plant.date("ContentDate")
    dataset.AcquisitionDateTime = plant.date("AcquisitionDateTime") + "121314.5"
    dataset.SOPInstanceUID = plant.uid("SOPInstanceUID")
    dataset.StudyInstanceUID = plant.uid("StudyInstanceUID")
    dataset.SeriesInstanceUID = plant.uid("SeriesInstanceUID")
    dataset.FrameOfReferenceUID = plant.uid("FrameOfReferenceUID")
    dataset.IrradiationEventUID = plant.uid("IrradiationEventUID")
    dataset.RelatedGeneralSOPClassUID = plant.uid("RelatedGeneralSOPClassUID, not in table E.1-1")


def _free_text(dataset: Dataset, plant: Planter) -> None:
    dataset.StudyDescription = plant.word("LO StudyDescription")
    dataset.SeriesDescription = plant.word("LO SeriesDescription")
    dataset.ProtocolName = plant.word("LO ProtocolName")
    dataset.ImageComments = plant.word("LT ImageComments")
    dataset.DerivationDescription = plant.word("ST DerivationDescription")
    dataset.add_new(0x0040A160, "UT", plant.word("UT TextValue"))
    dataset.add_new(0x00189803, "ST", plant.word("ST unlisted"))
    dataset.add_new(0x00287FE0, "UR", "https://" + plant.word("UR PixelDataProviderURL"))
    dataset.add_new(0x00100212, "UC", plant.word("UC StrainDescription"))
    dataset.add_new(0x00080055, "AE", plant.word("AE StationAETitle"))
    dataset.ContrastBolusAgent = plant.word("LO ContrastBolusAgent")
    dataset.Manufacturer = "SIEMENS"
    dataset.ManufacturerModelName = plant.word("LO ManufacturerModelName")
    dataset.SoftwareVersions = plant.word("LO SoftwareVersions")
    dataset.FilterType = plant.word("SH FilterType, kept if known")
    dataset.ReceiveCoilName = plant.word("SH ReceiveCoilName, kept if known")
    dataset.PositionReferenceIndicator = plant.word("LO PositionReferenceIndicator, type 2")
    dataset.DeidentificationMethod = [
        "Basic Application Confidentiality Profile",
        plant.word("LO DeidentificationMethod"),
    ]
    dataset.Laterality = plant.word("CS Laterality, kept if known")
    dataset.ImageType = [*dataset.ImageType, plant.word("CS ImageType")]
    dataset.WindowCenterWidthExplanation = ["WINDOW1", plant.word("LO WindowCenterWidthExplanation")]
    number = DataElement(0x00181041, "LO", plant.word("text under a number's tag, ContrastBolusVolume"))
    dataset[0x00181041] = number


def _by_option(dataset: Dataset, plant: Planter) -> None:
    """What one of the profile's options keeps or cleans."""
    dataset.EthnicGroup = plant.word("SH EthnicGroup")
    dataset.Allergies = plant.word("LO Allergies")
    dataset.PatientState = plant.word("LO PatientState")
    dataset.AdditionalPatientHistory = plant.word("LT AdditionalPatientHistory")
    dataset.Occupation = plant.word("SH Occupation")
    dataset.SmokingStatus = plant.word("CS SmokingStatus, kept if known")
    dataset.PerformedStationAETitle = plant.word("AE PerformedStationAETitle")
    dataset.DetectorID = plant.word("SH DetectorID, in no module of the image")
    device = Dataset()
    device.UniqueDeviceIdentifier = plant.word("UT UniqueDeviceIdentifier")
    device.DeviceDescription = plant.word("LO DeviceDescription")
    device.ImageComments = plant.word("comment inside a device's item")
    dataset.UDISequence = [device]
    dataset.DeviceUID = plant.uid("DeviceUID")
    dataset.InstitutionalDepartmentName = plant.word("LO InstitutionalDepartmentName")
    dataset.ClinicalTrialSiteName = plant.word("LO ClinicalTrialSiteName")
    site = _code(plant.word("site code"), "99SITES", plant.word("meaning of a site code"))
    site.ImageComments = plant.word("comment inside a site code")
    dataset.InstitutionCodeSequence = [site]
    dataset.SeriesDate = plant.date("SeriesDate")
    dataset.InstanceCreationDate = plant.date("InstanceCreationDate, newer than the option columns")
    dataset.DateOfLastCalibration = [plant.date("DateOfLastCalibration 1"), plant.date("DateOfLastCalibration 2")]
    dataset.PatientBirthTime = "031415"
    _add_bytes(dataset, 0x00080032, "TM", plant.word("words under a time").encode() + b" ")
    _add_bytes(dataset, 0x00080024, "DA", plant.word("words under a date, OverlayDate").encode() + b" ")
    heard, named = Dataset(), Dataset()
    heard.ValueType, heard.TextValue = "TEXT", plant.word("text of a content item")
    heard.ConceptNameCodeSequence = [_code("364075005", "SCT", plant.word("meaning of a concept"))]
    named.ValueType, named.PersonName = "PNAME", plant.word("name in a content item")
    named.ConceptNameCodeSequence = [_code("109054", "DCM", "Patient State")]
    dataset.AcquisitionContextSequence = [heard, named]
    safe = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    safe.add_new(0x0C, "LO", plant.word("text under a safe private number"))
    safe.add_new(0x0D, "CS", plant.word("unknown term of a safe private attribute"))
    safe.add_new(0x27, "UN", plant.word("bytes under a safe private number").encode()[:8])
    safe.add_new(0x50, "LO", plant.word("private text beside safe ones"))
    plant.secrets["bytes under a safe private number"] = safe[0x27].value[:8]


TEXT_VRS = {
    "AE": 0x00080055, "CS": 0x00281300, "LO": 0x00400007, "LT": 0x00204000, "PN": 0x00081050, "SH": 0x00401001,
    "ST": 0x00080081, "UC": 0x00100212, "UI": 0x00083010, "UR": 0x00080120, "UT": 0x0040A160,
}  # fmt: skip
"""An attribute of each VR that can hold words."""


def _every_text_vr_deep(dataset: Dataset, plant: Planter) -> None:
    """One, two and three sequences deep, in sequences that the profile cleans, keeps, or has never heard of."""
    outer = dataset.RequestAttributesSequence[0]
    middle = outer.ReferencedStudySequence[0]
    places = {
        "one deep": outer,
        "two deep": middle,
        "three deep": middle.RequestAttributesSequence[0],
        "in contributing equipment": dataset.ContributingEquipmentSequence[0],
    }
    for place, item in places.items():
        for vr, tag in TEXT_VRS.items():
            item.add_new(tag, vr, plant.uid(f"{vr} {place}") if vr == "UI" else plant.word(f"{vr} {place}"))
        item.add_new(0x60000022, "LO", plant.word(f"overlay description {place}"))
        block = item.private_block(0x0033, plant.word(f"private creator {place}"), create=True)
        block.add_new(0x01, "LO", plant.word(f"private text {place}"))


def _in_frames(dataset: Dataset, plant: Planter) -> None:
    frame = dataset.PerFrameFunctionalGroupsSequence[1]
    frame.FrameContentSequence[0].FrameComments = plant.word("LT FrameComments")
    frame.FrameContentSequence[0].FrameLabel = plant.word("LO FrameLabel")
    frame.FrameContentSequence[0].FrameReferenceDateTime = plant.date("FrameReferenceDateTime") + "101112"
    frame.private_block(0x0021, plant.word("private creator in a frame"), create=True).add_new(
        0x01, "LO", plant.word("private text in a frame")
    )
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = MRImageStorage, plant.uid("UID in a frame")
    reference.PurposeOfReferenceCodeSequence = [_code("121311", "DCM", plant.word("meaning in a frame"))]
    frame.ReferencedImageSequence = [reference]


def _add_bytes(dataset: Dataset, number: int, vr: str, value: bytes) -> None:
    """As a file has it that was not written by pydicom, which would decode or refuse it."""
    tag = BaseTag(number)
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, is_implicit_VR=False, is_little_endian=True)


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _codes(dataset: Dataset, plant: Planter) -> None:
    known = _code("69536005", "SCT", plant.word("meaning of a known code"))
    known.CodingSchemeVersion = plant.word("CodingSchemeVersion")
    unknown = _code(plant.word("unknown code value"), "99LOCAL", plant.word("meaning of an unknown code"))
    dataset.AnatomicRegionSequence = [known, unknown]
    dataset.ProcedureCodeSequence = [_code("P1", "99X", plant.word("procedure code"))]
    dataset.DeidentificationMethodCodeSequence = [_code("113101", "DCM", plant.word("meaning of a method code"))]
    earlier = Dataset()
    earlier.Manufacturer = "SIEMENS"
    earlier.InstitutionName = plant.word("institution of contributing equipment")
    earlier.OperatorsName = plant.word("operator of contributing equipment")
    earlier.ContributionDescription = plant.word("description of contributing equipment")
    earlier.DeviceSerialNumber = plant.word("serial number of contributing equipment")
    earlier.PurposeOfReferenceCodeSequence = [_code("109101", "DCM", plant.word("purpose of contributing equipment"))]
    nameless = Dataset()
    nameless.Manufacturer = plant.word("unknown manufacturer of contributing equipment")
    dataset.ContributingEquipmentSequence = [earlier, nameless]


def _nested(dataset: Dataset, plant: Planter) -> None:
    deep = Dataset()
    deep.PatientName = plant.word("name three sequences deep")
    deep.ReferencedSOPInstanceUID = plant.uid("UID three sequences deep")
    middle = Dataset()
    middle.RequestAttributesSequence = [deep]
    middle.RequestedProcedureDescription = plant.word("text two deep")
    outer = Dataset()
    outer.ReferencedStudySequence = [middle]
    dataset.RequestAttributesSequence = [outer]
    inner = Dataset()
    inner.add_new(0x00091001, "LO", plant.word("private inside a kept sequence"))
    inner.ReferencedSOPClassUID = CTImageStorage
    inner.ReferencedSOPInstanceUID = plant.uid("UID in a referenced image")
    inner.PurposeOfReferenceCodeSequence = [_code("121311", "DCM", plant.word("meaning of purpose of reference"))]
    inner.ImageComments = plant.word("comment inside a referenced image")
    dataset.ReferencedImageSequence = [inner]
    unlisted = Dataset()
    unlisted.LongCodeValue = plant.word("inside an unlisted sequence")
    dataset.SeriesDescriptionCodeSequence = [unlisted]
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [2, 0, 16], "HU"
    lut.LUTExplanation = plant.word("LUTExplanation")
    lut.LUTData = [0, 1]
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    dataset.ModalityLUTSequence = [lut]
    original = Dataset()
    before = Dataset()
    before.PatientID = plant.word("OriginalAttributesSequence")
    original.ModifiedAttributesSequence = [before]
    dataset.OriginalAttributesSequence = [original]
    icon = Dataset()
    icon.Rows, icon.Columns, icon.PixelData = 4, 4, plant.word("icon pixels").encode().ljust(16, b"\0")
    icon["PixelData"].VR = "OB"
    dataset.IconImageSequence = [icon]
    signature = Dataset()
    signature.CertificateOfSigner = plant.word("signature").encode()
    dataset.DigitalSignaturesSequence = [signature]


def _private(dataset: Dataset, plant: Planter) -> None:
    block = dataset.private_block(0x0029, plant.word("private creator"), create=True)
    block.add_new(0x01, "LO", plant.word("private text"))
    block.add_new(0x02, "OB", plant.word("private bytes").encode())
    block.add_new(0x03, "UN", plant.word("private UN").encode())
    item = Dataset()
    item.PatientID = plant.word("inside a private sequence")
    block.add_new(0x04, "SQ", Sequence([item]))
    dataset.add_new(0x00311020, "LO", plant.word("private without a creator"))


def _unknown(dataset: Dataset, plant: Planter) -> None:
    dataset.add_new(0x00105555, "UN", plant.word("unknown public tag").encode())
    dataset.add_new(0x00285559, "LO", plant.word("unknown public tag with a VR"))
    dataset.add_new(0x00181008, "UN", plant.word("UN under a known tag, GantryID").encode())
    dataset.add_new(0x00181004, "UN", plant.word("UN under a known tag, PlateID").encode())
    secret = plant.uid("in a known sequence of VR UN").encode().ljust(36, b"\0")
    item = b"\x08\0\x55\x11" + len(secret).to_bytes(4, "little") + secret
    item = b"\xfe\xff\0\xe0" + len(item).to_bytes(4, "little") + item
    _add_bytes(dataset, 0x00081111, "UN", item)
    dataset.add_new(0xFFFCFFFC, "OB", plant.word("trailing padding").encode())


def _graphics(dataset: Dataset, plant: Planter) -> None:
    dataset.add_new(0x60000010, "US", 8)
    dataset.add_new(0x60000011, "US", 8)
    dataset.add_new(0x60000022, "LO", plant.word("overlay description"))
    dataset.add_new(0x60001500, "LO", plant.word("overlay label"))
    dataset.add_new(0x60003000, "OB", plant.word("overlay data").encode())
    dataset.add_new(0x60040010, "US", 8)
    dataset.add_new(0x60043000, "OB", plant.word("second overlay").encode())
    dataset.add_new(0x50000022, "LO", plant.word("curve label"))
    dataset.add_new(0x50003000, "OB", plant.word("curve data").encode())
    secret = plant.word("bytes after the last pixel").encode()
    dataset.PixelData = dataset.PixelData + secret + b"\0" * (len(secret) % 2)


def file_bytes(dataset: Dataset, preamble: bytes = b"\0" * 128) -> bytes:
    """The dataset as a file."""
    buffer = BytesIO()
    dataset.preamble = preamble
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
