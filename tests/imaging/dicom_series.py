"""Small DICOM series written for tests, with invented identities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
Edit = Callable[[Dataset, int], None]


class AsItIs:
    """Stands in for the de-identifier where a test is about geometry: hands back what it got."""

    def dataset(self, dataset: Dataset) -> Dataset:
        return dataset

    def patient(self, raw: str) -> str:
        return f"P-{len(raw)}"


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Rotation by angles in radians about x, then y, then z."""
    cx, sx, cy, sy, cz, sz = np.cos(x), np.sin(x), np.cos(y), np.sin(y), np.cos(z), np.sin(z)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return rz @ ry @ rx


def oblique(x: float, y: float, z: float) -> tuple[float, ...]:
    """ImageOrientationPatient of slices turned by these angles."""
    turned = rotation(x, y, z)
    return (*turned[:, 0], *turned[:, 1])


def stored_values(slices: int = 6, rows: int = 5, columns: int = 7, top: int = 4000) -> np.ndarray:
    """Distinct values [slices, rows, columns] uint16."""
    order = np.random.default_rng(7).permutation(top)[: slices * rows * columns]
    return order.reshape(slices, rows, columns).astype(np.uint16)


def header(kind: str, modality: str, rows: int, columns: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = kind
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = modality
    dataset.PatientID = "INVENTED-4711"
    dataset.PatientName = "Nobody^Nora"
    dataset.StudyInstanceUID = "1.2.3.4"
    dataset.FrameOfReferenceUID = "1.2.3.4.9"
    dataset.SeriesNumber = 3
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200229", "101112", "S-4711"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    return dataset


def write_series(
    folder: Path,
    stored: np.ndarray,
    *,
    kind: str = CT,
    uid: str = "1.2.3.4.5",
    origin: Sequence[float] = (-30.0, 12.0, 100.0),
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float] = (0.8, 0.5),
    gap: float = 2.0,
    places: Sequence[float] | None = None,
    rescale: tuple[float, float] = (1.0, -1024.0),
    compress: str | None = None,
    edit: Edit | None = None,
    prefix: str = "slice",
) -> list[Path]:
    """One file per slice of `stored` [slices, rows, columns]; slice k lies `places[k]` gaps along the normal."""
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    steps = np.arange(len(stored)) if places is None else places
    paths = []
    for k, (pixels, step) in enumerate(zip(stored, steps, strict=True)):
        dataset = header(kind, "CT" if kind == CT else "MR", *pixels.shape)
        dataset.SeriesInstanceUID = uid
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = [round(float(x), 8) for x in np.asarray(origin) + normal * gap * step]
        dataset.ImageOrientationPatient = [round(float(x), 12) for x in orientation]
        dataset.PixelSpacing = list(spacing)
        dataset.RescaleSlope, dataset.RescaleIntercept = rescale
        if kind == CT:
            dataset.RescaleType = "HU"
        dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
        if edit is not None:
            edit(dataset, k)
        if compress in (DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian):
            dataset.file_meta.TransferSyntaxUID = compress
        elif compress is not None:
            dataset.compress(compress, generate_instance_uid=False)
        path = folder / f"{prefix}{k:03d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_enhanced(
    path: Path,
    stored: np.ndarray,
    *,
    gap: float = 1.5,
    slope: float = 2.0,
    same_slope: bool = False,
    kind: str = ENHANCED_MR,
) -> None:
    """One enhanced object with a frame per slice, frames in a shuffled order and (unless `same_slope`) a slope each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = header(kind, "MR" if kind == ENHANCED_MR else "CT", *stored.shape[1:])
    dataset.SeriesInstanceUID = "1.2.3.4.6"
    dataset.NumberOfFrames = len(stored)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared = Dataset()
    shared.PlaneOrientationSequence = Items([_item(ImageOrientationPatient=list(AXIAL))])
    shared.PixelMeasuresSequence = Items([_item(PixelSpacing=[0.8, 0.5], SliceThickness=gap)])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    dataset.DimensionIndexSequence = Items(
        [_item(DimensionIndexPointer=0x00209057, FunctionalGroupPointer=0x00209111)]  # in-stack position number
    )
    order = np.random.default_rng(3).permutation(len(stored))
    frames = []
    for k in order:
        frame = Dataset()
        frame.FrameContentSequence = Items(
            [_item(StackID="1", InStackPositionNumber=int(k) + 1, DimensionIndexValues=[int(k) + 1])]
        )
        frame.PlanePositionSequence = Items([_item(ImagePositionPatient=[1.0, 2.0, float(gap * k)])])
        own = slope + (0 if same_slope else int(k))
        unit = "HU" if kind == ENHANCED_CT else "US"
        frame.PixelValueTransformationSequence = Items(
            [_item(RescaleSlope=own, RescaleIntercept=-1.0, RescaleType=unit)]
        )
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    dataset.PixelData = np.ascontiguousarray(stored[order]).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def datasets(paths: Sequence[Path]) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in paths]
