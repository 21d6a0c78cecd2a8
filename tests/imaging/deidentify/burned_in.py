"""Images with text drawn into them, and series of images with a head in them; all identities are invented."""

from __future__ import annotations

import copy
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from planted_headers import file_bytes, plain
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

SIZE = (240, 256)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
NAME = "HOLLENSTEIN"


def letters(text: str, rows: int, columns: int, *, at: tuple[int, int] = (10, 10), height: int = 16) -> np.ndarray:
    """Where ink is [rows, columns]."""
    sheet = Image.new("1", (columns, rows), 0)
    font = ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), height)
    ImageDraw.Draw(sheet).text(at, text, font=font, fill=1)
    return np.asarray(sheet, dtype=bool)


def anatomy(rows: int = SIZE[0], columns: int = SIZE[1], *, seed: int = 0) -> np.ndarray:
    """Something round and noisy, as 12-bit values [rows, columns]."""
    y, x = np.mgrid[:rows, :columns]
    inside = ((y - rows / 2) / (0.42 * rows)) ** 2 + ((x - columns / 2) / (0.42 * columns)) ** 2 < 1
    noise = np.random.default_rng(seed).normal(0, 12, (rows, columns))
    return np.clip(100 + 900 * inside + noise, 0, 1500).astype(np.uint16)


def image(modality: str = "CT", *, text: str = NAME, ink: int = 3000, **attributes: object) -> Dataset:
    """A single-frame image whose pixels hold `text` (none if empty); keyword arguments become attributes."""
    dataset = plain(modality)
    pixels = anatomy()
    if text:
        pixels[letters(text, *SIZE)] = ink
    put(dataset, pixels)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def put(dataset: Dataset, pixels: np.ndarray) -> None:
    """Native pixels [rows, columns] or [frames, rows, columns], as uint16 or uint8."""
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = min(dataset.BitsAllocated, 12)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"


def secondary_capture(*, text: str = NAME, colour: bool = False) -> Dataset:
    """A screen as an object of class Secondary Capture, grey or RGB."""
    dataset = plain("CT")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    dataset.ConversionType, dataset.Modality = "WSD", "OT"
    pixels = np.full(SIZE, 20, dtype=np.uint8)
    pixels[100:140, 40:200] = 90
    if text:
        pixels[letters(text, *SIZE)] = 250
    put(dataset, pixels)
    if colour:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = np.stack([pixels, pixels, pixels // 2], axis=-1).tobytes()
    return dataset


def as_read(dataset: Dataset, syntax: UID = ExplicitVRLittleEndian) -> Dataset:
    """The dataset after writing and reading, compressed or encoded as `syntax` says."""
    if syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
    else:
        if syntax == ExplicitVRBigEndian and dataset.BitsAllocated == 16:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
    return reread(dataset)


def copy_of(source: Dataset) -> Dataset:
    """What stands in for a de-identified dataset where a test is about pixels: another dataset of the same elements."""
    clean = Dataset({tag: source.get_item(tag) for tag in source.keys()})  # noqa: SIM118
    clean.set_original_encoding(*source.original_encoding, source.original_character_set)
    clean.file_meta = copy.deepcopy(source.file_meta)
    return clean


def reread(dataset: Dataset) -> Dataset:
    """The dataset after writing and reading, as it is."""
    return pydicom.dcmread(BytesIO(file_bytes(dataset)))


def write_series(
    folder: Path,
    stored: np.ndarray,
    *,
    modality: str = "CT",
    rescale: tuple[float, float] = (1.0, -1024.0),
    places: list[float] | None = None,
    compress: UID | None = None,
) -> list[Path]:
    """One file per slice of `stored` [slices, rows, columns]; slice k lies `places[k]` times 2 mm up."""
    folder.mkdir()
    paths = []
    for k, pixels in enumerate(stored):
        dataset = plain(modality)
        put(dataset, pixels)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.99.5.{k + 1}"
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-30, 12, 2 * (k if places is None else places[k])]
        dataset.RescaleSlope, dataset.RescaleIntercept = rescale
        if compress is not None:
            dataset.compress(compress, generate_instance_uid=False)
        paths.append(folder / f"{k}.dcm")
        paths[-1].write_bytes(file_bytes(dataset))
    return paths


def write_enhanced(path: Path, stored: np.ndarray, *, gap: float = 2.0) -> None:
    """One enhanced MR object; frame k lies k gaps up and has a slope of k + 2."""
    dataset = plain("MR")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    kept = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    for keyword in (*kept, "BodyPartExamined", "StudyDescription", "SeriesDescription"):
        if keyword in dataset:
            del dataset[keyword]
    put(dataset, stored)
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.8, 0.5], SliceThickness=gap)],
    )
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[1, 2, gap * k])],
            PixelValueTransformationSequence=[item(RescaleSlope=k + 2, RescaleIntercept=-1, RescaleType="US")],
        )
        for k in range(len(stored))
    ]
    path.write_bytes(file_bytes(dataset))


def item(**values: object) -> Dataset:
    """One item of a sequence."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made
