"""De-identification of real CT and MR files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medsynth.config.deidentify import Deidentify
from medsynth.errors import PrivacyError
from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify.folder import deidentify_folder
from medsynth.imaging.deidentify.residual import Identifiers, identifying_values, scan_folder

DATA = Path(os.environ.get("MEDSYNTH_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "dicom"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA.is_dir(), reason="no real DICOM series; MEDSYNTH_DATA names the folder with dicom/"),
]

GEOMETRY = [
    "Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "Modality",
    "PhotometricInterpretation", "InstanceNumber", "ImageType",
]  # fmt: skip
TECHNICAL = {
    "ct_abdomen_j2k": ["KVP", "ConvolutionKernel", "SpiralPitchFactor", "CTDIvol", "Manufacturer", "BodyPartExamined"],
    "ct_head_irregular": ["KVP", "ConvolutionKernel", "GantryDetectorTilt", "Manufacturer", "BodyPartExamined"],
    "mr_t1_head": ["SpacingBetweenSlices", "PatientOrientation"],
}


HEADS = ["ct_head_irregular", "mr_t1_head"]


@pytest.mark.parametrize("series", sorted(TECHNICAL))
def test_real_series_keep_their_science_and_lose_their_identity(series: str, tmp_path: Path) -> None:
    key = SecretKey.load_or_create(tmp_path / "secrets" / "key.hex")
    report = deidentify_folder(DATA / series, tmp_path / "out", key, Deidentify(accept_faces=series in HEADS))
    assert report.patients == 1
    assert report.count("refused") == report.count("withheld") == 0

    values = Identifiers()
    originals = {}
    for path in sorted((DATA / series).iterdir()):
        if path.read_bytes()[128:132] == b"DICM":
            dataset = pydicom.dcmread(path)
            values.update(identifying_values(dataset))
            originals[key.uid(dataset.file_meta.MediaStorageSOPInstanceUID)] = dataset
    assert report.written == len(originals)
    assert scan_folder(values, tmp_path / "out") == []

    for path in (tmp_path / "out").rglob("*.dcm"):
        result = pydicom.dcmread(path)
        original = originals[result.SOPInstanceUID]
        for keyword in (*GEOMETRY, *TECHNICAL[series]):
            assert result[keyword].value == original[keyword].value, keyword
        assert result.PixelData == original.PixelData
        assert result.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
        assert not any(element.tag.is_private for element in result.iterall())
    if series == "ct_abdomen_j2k":
        assert np.array_equal(result.pixel_array, original.pixel_array)


@pytest.mark.parametrize("series", HEADS)
def test_a_real_head_is_refused_unless_it_is_accepted(series: str, tmp_path: Path) -> None:
    key = SecretKey.load_or_create(tmp_path / "secrets" / "key.hex")
    with pytest.raises(PrivacyError, match="found a head"):
        deidentify_folder(DATA / series, tmp_path / "out", key)
    assert not list((tmp_path / "out").rglob("*.dcm"))
