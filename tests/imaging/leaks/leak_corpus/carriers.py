"""Five kinds of images that secrets are planted in, each with the technical values that every reader of images needs."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

CT, MR, ENHANCED_CT, ENHANCED_MR, CAPTURE = "CT", "MR", "enhanced CT", "enhanced MR", "secondary capture"
CARRIERS = (CT, MR, ENHANCED_CT, ENHANCED_MR, CAPTURE)
CLASSIC, ENHANCED = frozenset({CT, MR}), frozenset({ENHANCED_CT, ENHANCED_MR})
SOP_CLASSES = {
    CT: "1.2.840.10008.5.1.4.1.1.2",
    MR: "1.2.840.10008.5.1.4.1.1.4",
    ENHANCED_CT: "1.2.840.10008.5.1.4.1.1.2.1",
    ENHANCED_MR: "1.2.840.10008.5.1.4.1.1.4.1",
    CAPTURE: "1.2.840.10008.5.1.4.1.1.7",
}
ROWS, COLUMNS, FRAMES = 40, 32, 2
MARKED_SAMPLES = 4
"""The first samples of every image spell the number of its file, by which a result is matched with its source."""


def marks(number: int) -> list[int]:
    """Stored values, each below 4096, that spell a file's number."""
    return [0x0A5A, number % 64 * 64 + 7, number // 64 % 64 * 64 + 9, 0x05A5]


def number_of(samples: np.ndarray) -> int | None:
    """The file's number in the first samples of an image; None if they spell none."""
    if samples.size < MARKED_SAMPLES or samples[0] & 0xFFF != 0x0A5A or samples[3] & 0xFFF != 0x05A5:
        return None
    low, high = int(samples[1] & 0xFFF), int(samples[2] & 0xFFF)
    return low // 64 + high // 64 * 64 if (low % 64, high % 64) == (7, 9) else None


def samples_of(number: int, frames: int = 1) -> np.ndarray:
    """Stored values [frames * ROWS * COLUMNS] below 2048."""
    samples = (np.arange(frames * ROWS * COLUMNS) * 7 % 2048).astype("<u2")
    samples[:MARKED_SAMPLES] = marks(number)
    return samples


def carrier(kind: str, number: int) -> Dataset:
    """A whole image of one kind; `number` sets its UIDs, patient and first samples."""
    dataset = Dataset()
    dataset.SOPClassUID = SOP_CLASSES[kind]
    dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.98.{number}.1"
    dataset.StudyInstanceUID = f"1.2.826.0.1.3680043.98.{number}.2"
    dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.98.{number}.3"
    dataset.PatientID, dataset.PatientName = f"PID-{number:06d}", "Carrier^Clara"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19130203", "F", "104Y"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20170405", "101112", "1", "A1"
    dataset.ReferringPhysicianName = ""
    dataset.Modality = {CT: "CT", ENHANCED_CT: "CT", CAPTURE: "OT"}.get(kind, "MR")
    dataset.Manufacturer, dataset.SeriesNumber, dataset.InstanceNumber = "SIEMENS", 4, number
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    {CT: _ct, MR: _mr, ENHANCED_CT: _enhanced_ct, ENHANCED_MR: _enhanced_mr, CAPTURE: _capture}[kind](dataset)
    frames = FRAMES if kind in ENHANCED else 1
    dataset.PixelData = samples_of(number, frames).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


PLANE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "PatientPosition",
         "RescaleIntercept", "RescaleSlope", "WindowCenter", "WindowWidth")  # fmt: skip
FRAME_PATHS = (
    *("PixelMeasuresSequence.PixelSpacing", "PixelMeasuresSequence.SliceThickness"),
    *("PlaneOrientationSequence.ImageOrientationPatient", "PlanePositionSequence.ImagePositionPatient"),
    *("PixelValueTransformationSequence.RescaleSlope", "PixelValueTransformationSequence.RescaleIntercept"),
    *("FrameVOILUTSequence.WindowCenter", "FrameContentSequence.DimensionIndexValues", "FrameContentSequence.StackID"),
)
BASIC = ("Modality", "ImageType", "SeriesNumber", "InstanceNumber", "SamplesPerPixel", "PhotometricInterpretation", "Rows",
         "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "Manufacturer")  # fmt: skip
CORE = {
    CT: (*BASIC, *PLANE, "KVP", "RescaleType", "ConvolutionKernel", "GantryDetectorTilt", "XRayTubeCurrent",
         "ExposureTime", "SpiralPitchFactor", "ReconstructionDiameter", "TableHeight", "BodyPartExamined",
         "AcquisitionNumber"),
    MR: (*BASIC, *PLANE, "EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "EchoTrainLength", "EchoNumbers",
         "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "MagneticFieldStrength",
         "SequenceName", "PixelBandwidth", "AcquisitionMatrix", "InPlanePhaseEncodingDirection", "SpacingBetweenSlices",
         "BodyPartExamined", "DiffusionBValue", "AcquisitionNumber"),
    ENHANCED_CT: (*BASIC, "NumberOfFrames", "ContentQualification", "AcquisitionNumber",
                  *(f"frames.{path}" for path in FRAME_PATHS), "frames.CTExposureSequence.XRayTubeCurrentInmA",
                  "frames.CTReconstructionSequence.ConvolutionKernel", "frames.CTXRayDetailsSequence.KVP"),
    ENHANCED_MR: (*BASIC, "NumberOfFrames", "ContentQualification", "AcquisitionNumber", "MagneticFieldStrength",
                  *(f"frames.{path}" for path in FRAME_PATHS), "frames.MREchoSequence.EffectiveEchoTime",
                  "frames.MRTimingAndRelatedParametersSequence.RepetitionTime",
                  "frames.MRDiffusionSequence.DiffusionBValue"),
    CAPTURE: BASIC,
}  # fmt: skip
"""What research cannot do without and the Basic Profile leaves: attributes, or paths within every frame's groups."""


def _plane(dataset: Dataset) -> None:
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = f"{dataset.SeriesInstanceUID}.4", ""
    dataset.AcquisitionNumber, dataset.BodyPartExamined, dataset.PatientPosition = 1, "CHEST", "HFS"
    dataset.ImagePositionPatient = [-125.5, -120.25, 60.125]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0.9483237, -0.3173047]
    dataset.PixelSpacing, dataset.SliceThickness = [0.75, 0.5], 2.5
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.WindowCenter, dataset.WindowWidth = [40, 300], [300, 1500]


def _ct(dataset: Dataset) -> None:
    _plane(dataset)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.KVP, dataset.RescaleType, dataset.ConvolutionKernel, dataset.GantryDetectorTilt = "120", "HU", "Br38f", 0.0
    dataset.XRayTubeCurrent, dataset.ExposureTime, dataset.SpiralPitchFactor = 210, 500, 0.8
    dataset.ReconstructionDiameter, dataset.TableHeight = 350, 151.5


def _mr(dataset: Dataset) -> None:
    _plane(dataset)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.EchoTime, dataset.RepetitionTime, dataset.FlipAngle, dataset.EchoTrainLength = 3.5, 2300, 9, 1
    dataset.InversionTime, dataset.EchoNumbers, dataset.PixelBandwidth, dataset.SpacingBetweenSlices = 900, 1, 240, 2.5
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = ["GR", "IR"], ["SP", "MP"], "PFP"
    dataset.MRAcquisitionType, dataset.MagneticFieldStrength, dataset.SequenceName = "3D", 3, "*tfl3d1_16ns"
    dataset.AcquisitionMatrix, dataset.InPlanePhaseEncodingDirection = [0, 256, 240, 0], "ROW"
    dataset.DiffusionBValue = 1000.0


def _capture(dataset: Dataset) -> None:
    dataset.ImageType, dataset.ConversionType = ["DERIVED", "SECONDARY"], "WSD"


def _enhanced(dataset: Dataset, extra: dict[str, Dataset]) -> None:
    dataset.FrameOfReferenceUID = f"{dataset.SeriesInstanceUID}.4"
    dataset.NumberOfFrames, dataset.AcquisitionNumber = FRAMES, 1
    dataset.ContentQualification, dataset.ContentDate, dataset.ContentTime = "RESEARCH", "20170405", "101113"
    dataset.AcquisitionDateTime, dataset.BurnedInAnnotation, dataset.PresentationLUTShape = (
        "20170405101112",
        "NO",
        "IDENTITY",
    )
    dataset.LossyImageCompression, dataset.InstanceNumber = "00", dataset.InstanceNumber
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([item(PixelSpacing=[0.75, 0.5], SliceThickness=2.5)])
    shared.PlaneOrientationSequence = Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])])
    for keyword, holder in extra.items():
        setattr(shared, keyword, Sequence([holder]))
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for place in range(FRAMES):
        frame = Dataset()
        frame.FrameContentSequence = Sequence(
            [item(StackID="1", InStackPositionNumber=place + 1, DimensionIndexValues=[1, place + 1])]
        )
        frame.PlanePositionSequence = Sequence([item(ImagePositionPatient=[-9.5, 4.25, 2.5 * place])])
        frame.PixelValueTransformationSequence = Sequence(
            [
                item(
                    RescaleIntercept=-1024,
                    RescaleSlope=1 + place,
                    RescaleType="HU" if dataset.Modality == "CT" else "US",
                )
            ]
        )
        frame.FrameVOILUTSequence = Sequence([item(WindowCenter=40 + place, WindowWidth=300)])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)


def _enhanced_ct(dataset: Dataset) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    exposure = item(XRayTubeCurrentInmA=210.0, ExposureTimeInms=500.0)
    reconstruction = item(ConvolutionKernel="Br38f", ReconstructionAlgorithm="FILTER_BACK_PROJ")
    _enhanced(
        dataset,
        {
            "CTExposureSequence": exposure,
            "CTReconstructionSequence": reconstruction,
            "CTXRayDetailsSequence": item(KVP="120"),
        },
    )


def _enhanced_mr(dataset: Dataset) -> None:
    dataset.ImageType, dataset.MagneticFieldStrength = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], 3
    _enhanced(
        dataset,
        {
            "MREchoSequence": item(EffectiveEchoTime=3.5),
            "MRTimingAndRelatedParametersSequence": item(RepetitionTime=2300, FlipAngle=9, EchoTrainLength=1),
            "MRDiffusionSequence": item(DiffusionBValue=1000.0, DiffusionDirectionality="NONE"),
        },
    )


def item(**values: object) -> Dataset:
    """An item of a sequence."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def values_at(dataset: Dataset, path: str) -> list[object]:
    """The values of an attribute, or of `frames.SEQUENCE.ATTRIBUTE` in the shared and every frame's groups."""
    if not path.startswith("frames."):
        return [dataset[path].value] if path in dataset else []
    _, sequence, keyword = path.split(".")
    groups = [
        *(dataset.get("SharedFunctionalGroupsSequence") or ()),
        *(dataset.get("PerFrameFunctionalGroupsSequence") or ()),
    ]
    holders = [holder for group in groups for holder in group.get(sequence) or ()]
    return [holder[keyword].value for holder in holders if keyword in holder]
