"""Compressed pixels: every transfer syntax that is read, by encoders that medsynth does not read with where there are some."""

from __future__ import annotations

import shutil
import subprocess

import gdcm
import numpy as np
import pydicom
import pytest
from dicom_series import AsItIs, stored_values, write_enhanced, write_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medsynth.errors import UnreadableError
from medsynth.imaging.dicom import find_series
from medsynth.imaging.read import read_scan
from medsynth.imaging.scan import affine_of

SMOOTH = (np.add.outer(np.arange(6) * 50, np.add.outer(np.arange(64) * 9, np.arange(48) * 7)) + 300).astype(np.uint16)


def read(folder):
    return read_scan(folder, deidentifier=AsItIs())


def by_gdcm(paths, out, syntax):
    """gdcm as the encoder: JPEG lossless and JPEG baseline, which pydicom cannot write."""
    out.mkdir()
    for path in paths:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(out / path.name))
        assert writer.Write()


def by_dcmtk(paths, out, option):
    tool = shutil.which("dcmcjpeg")
    if tool is None:
        pytest.skip("dcmcjpeg is not installed (Debian: dcmtk), so there is no independent encoder of JPEG")
    out.mkdir()
    for path in paths:
        subprocess.run([tool, *option, path, out / path.name], check=True, capture_output=True)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_syntaxes_of_pydicom_are_bit_exact(tmp_path, syntax, signed):
    stored = stored_values(4, 32, 32, top=4096)

    def edit(dataset, k):
        if signed:
            dataset.PixelRepresentation = 1
            dataset.BitsStored, dataset.HighBit = 16, 15
            dataset.PixelData = (stored[k].astype(np.int16) - 2000).tobytes()

    write_series(tmp_path / "plain", stored, edit=edit, rescale=(1.0, 0.0))
    write_series(tmp_path / "packed", stored, edit=edit, rescale=(1.0, 0.0), compress=syntax)
    plain, packed = read(tmp_path / "plain"), read(tmp_path / "packed")
    assert np.array_equal(np.asarray(plain)[0].transpose(2, 1, 0), stored.astype(np.int16) - (2000 if signed else 0))
    assert np.array_equal(np.asarray(plain), np.asarray(packed))
    assert np.array_equal(affine_of(plain), affine_of(packed))


@pytest.mark.parametrize(
    ("kind", "uid"),
    [
        (gdcm.TransferSyntax.JPEGLosslessProcess14, "1.2.840.10008.1.2.4.57"),
        (gdcm.TransferSyntax.JPEGLosslessProcess14_1, "1.2.840.10008.1.2.4.70"),
    ],
)
def test_jpeg_lossless_is_bit_exact(tmp_path, kind, uid):
    paths = write_series(tmp_path / "plain", SMOOTH)
    by_gdcm(paths, tmp_path / "packed", kind)
    assert pydicom.dcmread(tmp_path / "packed" / paths[0].name).file_meta.TransferSyntaxUID == uid
    assert np.array_equal(np.asarray(read(tmp_path / "plain")), np.asarray(read(tmp_path / "packed")))


@pytest.mark.parametrize(("option", "uid"), [(["+el"], "1.2.840.10008.1.2.4.57"), (["+e1"], "1.2.840.10008.1.2.4.70")])
def test_jpeg_lossless_of_dcmtk_is_bit_exact(tmp_path, option, uid):
    stored = stored_values(4, 32, 32, top=4096)
    paths = write_series(tmp_path / "plain", stored)
    by_dcmtk(paths, tmp_path / "packed", option)
    assert pydicom.dcmread(tmp_path / "packed" / paths[0].name).file_meta.TransferSyntaxUID == uid
    assert np.array_equal(np.asarray(read(tmp_path / "plain")), np.asarray(read(tmp_path / "packed")))


def eight_bits(dataset, k):
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = (SMOOTH[k] // 8).astype(np.uint8).tobytes()
    dataset["PixelData"].VR = "OB"


def test_jpeg_baseline_of_eight_bits_is_close(tmp_path):
    paths = write_series(tmp_path / "plain", SMOOTH, edit=eight_bits)
    by_gdcm(paths, tmp_path / "packed", gdcm.TransferSyntax.JPEGBaselineProcess1)
    assert str(pydicom.dcmread(tmp_path / "packed" / paths[0].name).file_meta.TransferSyntaxUID).endswith("4.50")
    difference = np.asarray(read(tmp_path / "plain")).astype(int) - np.asarray(read(tmp_path / "packed"))
    assert np.abs(difference).max() <= 3


def test_jpeg_extended_of_eight_bits_is_close(tmp_path):
    paths = write_series(tmp_path / "plain", SMOOTH, edit=eight_bits)
    by_dcmtk(paths, tmp_path / "packed", ["+ee", "+q", "98"])
    assert str(pydicom.dcmread(tmp_path / "packed" / paths[0].name).file_meta.TransferSyntaxUID).endswith("4.51")
    difference = np.asarray(read(tmp_path / "plain")).astype(int) - np.asarray(read(tmp_path / "packed"))
    assert np.abs(difference).max() <= 3


def test_jpeg_extended_of_twelve_bits_is_refused_because_decoders_get_it_wrong(tmp_path):
    paths = write_series(tmp_path / "plain", SMOOTH)
    by_dcmtk(paths, tmp_path / "packed", ["+ee", "+q", "98"])
    with pytest.raises(UnreadableError, match=r"12 bits.*JPEG lossless"):
        read(tmp_path / "packed")


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_frames_of_an_enhanced_object_keep_their_places(tmp_path, syntax):
    stored = stored_values(4, 32, 32, top=4096)
    write_enhanced(tmp_path / "plain" / "a.dcm", stored)
    dataset = pydicom.dcmread(tmp_path / "plain" / "a.dcm")
    dataset.compress(syntax, generate_instance_uid=False)
    (tmp_path / "packed").mkdir()
    dataset.save_as(tmp_path / "packed" / "a.dcm")
    assert np.array_equal(np.asarray(read(tmp_path / "plain")), np.asarray(read(tmp_path / "packed")))


def test_a_syntax_nobody_decodes_is_refused_by_its_name(tmp_path):
    def mpeg(dataset, k):
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
        dataset.PixelData = pydicom.encaps.encapsulate([b"\0\0"])
        dataset["PixelData"].is_undefined_length = True
        dataset["PixelData"].VR = "OB"

    write_series(tmp_path, stored_values(3), edit=mpeg)
    series = find_series(tmp_path).series[0]
    with pytest.raises(UnreadableError, match="no decoder is installed for MPEG2"):
        series.check()


def test_bits_beyond_those_stored_are_no_part_of_the_value(tmp_path):
    stored = stored_values(3)

    def dirty(dataset, k):
        dataset.PixelData = (stored[k] | 0x8000).tobytes()

    write_series(tmp_path, stored, edit=dirty)
    assert np.array_equal(np.asarray(read(tmp_path))[0].transpose(2, 1, 0), stored.astype(np.int16) - 1024)
