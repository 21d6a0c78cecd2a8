"""dcm2niix as the judge: shape and spacing, every voxel and its place, over series of every kind that it reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import CT, ENHANCED_CT, MR, AsItIs, oblique, stored_values, write_enhanced, write_series
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from medsynth.imaging.grid import to_ras
from medsynth.imaging.nifti import read_nifti
from medsynth.imaging.read import read_scan
from medsynth.imaging.scan import affine_of, spacing_mm

TOOL = shutil.which("dcm2niix") or shutil.which("dcm2niix", path=str(Path(sys.executable).parent))

pytestmark = pytest.mark.skipif(TOOL is None, reason="dcm2niix is not installed (pip install dcm2niix)")

STORED = stored_values(6, 40, 32, top=7680 * 2)[:, :, :] % 4096


def judged(folder, out):
    out.mkdir()
    subprocess.run([TOOL, "-z", "n", "-b", "n", "-f", "judge", "-o", out, folder], check=True, capture_output=True)
    (found,) = out.glob("judge*.nii")
    return to_ras(read_nifti(found))


def agree(folder, out):
    ours = to_ras(read_scan(folder, deidentifier=AsItIs()))
    judge = judged(folder, out)
    assert ours.shape == judge.shape
    assert spacing_mm(ours) == pytest.approx(spacing_mm(judge), abs=1e-3)
    assert np.array_equal(np.asarray(ours), np.asarray(judge))
    assert np.allclose(affine_of(ours), affine_of(judge), atol=1e-3)


SAGITTAL, CORONAL = (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)


@pytest.mark.parametrize("kind", [CT, MR])
@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), SAGITTAL, CORONAL, oblique(0.3, -0.2, 0.4)])
@pytest.mark.parametrize("places", [range(6), range(5, -1, -1)])
def test_any_orientation_and_direction(tmp_path, kind, orientation, places):
    write_series(tmp_path / "s", STORED, kind=kind, orientation=orientation, places=list(places))
    agree(tmp_path / "s", tmp_path / "out")


def test_shuffled_instance_numbers(tmp_path):
    order = [3, 0, 5, 1, 4, 2]

    def edit(dataset, k):
        dataset.InstanceNumber = order[k] + 1

    write_series(tmp_path / "s", STORED, edit=edit)
    agree(tmp_path / "s", tmp_path / "out")


def test_a_rescale_of_its_own_for_each_slice(tmp_path):
    def edit(dataset, k):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 * (k + 1), -10.0 * k

    write_series(tmp_path / "s", STORED, kind=MR, edit=edit)
    ours = to_ras(read_scan(tmp_path / "s", deidentifier=AsItIs()))
    judge = judged(tmp_path / "s", tmp_path / "out")
    assert np.array_equal(np.asarray(ours), np.asarray(judge))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_pixels(tmp_path, syntax):
    write_series(tmp_path / "s", STORED, compress=syntax, orientation=oblique(0.1, 0.2, 0.3))
    agree(tmp_path / "s", tmp_path / "out")


@pytest.mark.parametrize("signed", [False, True])
def test_signed_pixels_and_monochrome1_of_ct(tmp_path, signed):
    def edit(dataset, k):
        dataset.PhotometricInterpretation = "MONOCHROME1"
        if signed:
            dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 16, 15
            dataset.PixelData = (STORED[k].astype(np.int16) - 2000).tobytes()

    write_series(tmp_path / "s", STORED, edit=edit, rescale=(1.0, 0.0))
    agree(tmp_path / "s", tmp_path / "out")


@pytest.mark.parametrize("kind", [ENHANCED_CT, None])
def test_enhanced_multiframe(tmp_path, kind):
    chosen = {} if kind is None else {"kind": kind}
    write_enhanced(tmp_path / "s" / "a.dcm", STORED, slope=1.0, same_slope=True, **chosen)
    dataset = pydicom.dcmread(tmp_path / "s" / "a.dcm")
    assert dataset.NumberOfFrames == 6
    agree(tmp_path / "s", tmp_path / "out")
