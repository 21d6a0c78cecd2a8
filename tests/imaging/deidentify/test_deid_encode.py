"""The writer of files: byte for byte what pydicom writes, in every encoding."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
import pytest
from planted_headers import file_bytes, plain, planted
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medsynth.config.deidentify import Deidentify
from medsynth.errors import DataError
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.deidentify.encode import encode

EVERYTHING = Deidentify(
    options=("retain_full_dates", "retain_patient_characteristics", "retain_device_identity", "clean_descriptors"),
    ocr="off",
    accept_faces=True,
)


def read(dataset: Dataset) -> Dataset:
    return pydicom.dcmread(BytesIO(file_bytes(dataset)))


def written_by_pydicom(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("settings", [None, EVERYTHING])
def test_it_writes_what_pydicom_writes(modality: str, syntax: str, settings: Deidentify | None) -> None:
    dataset, _ = planted(modality)
    dataset.file_meta.TransferSyntaxUID = syntax
    source = read(dataset)
    deidentifier = Deidentifier(SecretKey(bytes(32)), settings)
    clean = deidentifier.dataset(source)
    encoded = encode(clean)
    expected = written_by_pydicom(deidentifier.dataset(source))
    if syntax == DeflatedExplicitVRLittleEndian:
        assert_same(encoded.data, expected)
    else:
        assert encoded.data == expected
        assert b"".join([*encoded.meta, *encoded.head, encoded.samples, *encoded.tail]) == expected
    assert b"".join(encoded.pieces) == encoded.data


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm",
                                  "693_J2KI.dcm", "MR_small_bigendian.dcm"])  # fmt: skip
def test_files_of_pydicom_come_out_the_same(name: str) -> None:
    source = pydicom.dcmread(get_testdata_file(name))
    source.SOPClassUID = source.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    deidentifier = Deidentifier(SecretKey(bytes(32)), Deidentify(ocr="off", accept_faces=True))
    clean, again = deidentifier.dataset(source), deidentifier.dataset(source)
    if source.file_meta.TransferSyntaxUID.is_compressed:
        again["PixelData"].VR = "OB"  # PS3.5 A.4 asks for it, whatever the source had
    assert encode(clean).data == written_by_pydicom(again)


def assert_same(data: bytes, expected: bytes) -> None:
    """Equal datasets: deflating has more than one result."""
    one, other = pydicom.dcmread(BytesIO(data)), pydicom.dcmread(BytesIO(expected))
    assert one == other
    assert one.file_meta == other.file_meta
    assert one.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian


def test_elements_decoded_or_added_are_written_too() -> None:
    clean = Deidentifier(SecretKey(bytes(32))).dataset(read(plain("CT")))
    clean.InstanceNumber = 12
    clean.WindowCenter = [40, 41]
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "113102", "DCM", "Clean"
    clean.DeidentificationMethodCodeSequence = [item]
    assert encode(clean).data == written_by_pydicom(clean)


def test_odd_values_become_even() -> None:
    source = read(plain("CT"))
    raw = source.get_item("InstanceNumber")
    source[0x00200013] = raw._replace(value=b"9", length=1)
    clean = Deidentifier(SecretKey(bytes(32))).dataset(source)
    again = pydicom.dcmread(BytesIO(encode(clean).data))
    assert again.get_item("InstanceNumber").value == b"9 "
    assert np.array_equal(again.pixel_array, source.pixel_array)


def test_a_file_needs_an_instance_uid_and_pixels() -> None:
    clean = Deidentifier(SecretKey(bytes(32))).dataset(read(plain("CT")))
    del clean.SOPInstanceUID
    with pytest.raises(DataError, match="SOP Instance UID"):
        encode(clean)
    clean = Deidentifier(SecretKey(bytes(32))).dataset(read(plain("CT")))
    clean.PixelData = b""
    with pytest.raises(DataError, match="pixels"):
        encode(clean)
