"""JPEG lossless in a process of its own: that process may die, this one may not."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import pydicom
import pytest
from dicom_series import AsItIs, write_series
from fuzzing import _as_jpeg_lossless
from pydicom.encaps import get_frame

from medsynth.errors import UnreadableError
from medsynth.imaging import apart
from medsynth.imaging.read import read_scan

STORED = (np.add.outer(np.arange(32) * 9, np.arange(24) * 7) + 300).astype(np.uint16)
SHAPE = apart.Image(70, 32, 24, 16, 12, 0)


@pytest.fixture
def codestream(tmp_path):
    (path,) = write_series(tmp_path / "plain", STORED[None])
    packed = tmp_path / "packed.dcm"
    packed.write_bytes(_as_jpeg_lossless(path))
    return get_frame(pydicom.dcmread(packed).PixelData, 0, number_of_frames=1)


@pytest.fixture
def helper():
    one = apart._Helper()
    yield one
    one.stop()


def test_values_come_back_bit_for_bit(helper, codestream):
    assert np.array_equal(helper.decode(codestream, SHAPE), STORED)
    first = helper._process.pid
    assert np.array_equal(helper.decode(codestream, SHAPE), STORED)
    assert helper._process.pid == first


def test_what_cannot_be_decoded_is_said_and_the_helper_lives_on(helper, codestream):
    with pytest.raises(apart.NotDecodedError):
        helper.decode(b"no codestream", SHAPE)
    with pytest.raises(apart.NotDecodedError):
        helper.decode(codestream[:60], SHAPE)
    assert np.array_equal(helper.decode(codestream, SHAPE), STORED)


def test_a_helper_that_was_killed_is_replaced(helper, codestream):
    helper.decode(codestream, SHAPE)
    os.kill(helper._process.pid, signal.SIGSEGV)
    helper._process.wait()
    assert np.array_equal(helper.decode(codestream, SHAPE), STORED)


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 3\n", "#!/bin/sh\nkill -SEGV $$\n", "#!/bin/sh\nsleep 60\n"])
def test_a_helper_that_dies_or_hangs_is_an_image_that_cannot_be_decoded(
    tmp_path, monkeypatch, helper, codestream, script
):
    bad = tmp_path / "bad"
    bad.write_text(script)
    bad.chmod(0o755)
    monkeypatch.setattr(apart, "TIME_LIMIT_S", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(bad))
        with pytest.raises(apart.NotDecodedError):
            helper.decode(codestream, SHAPE)
    monkeypatch.setattr(apart, "TIME_LIMIT_S", 60.0)
    assert np.array_equal(helper.decode(codestream, SHAPE), STORED)


def test_reading_a_damaged_image_says_which_one(tmp_path):
    paths = write_series(tmp_path / "s", np.stack([STORED, STORED + 1, STORED + 2]))
    for path in paths:
        raw = _as_jpeg_lossless(path)
        path.with_suffix(".jpeg").unlink()
        at = raw.index(b"\xff\xda")
        path.write_bytes(raw if path != paths[1] else raw[:at] + bytes(len(raw) - at - 8) + raw[-8:])
    with pytest.raises(UnreadableError, match="the pixels of file 2 of 3"):
        read_scan(tmp_path / "s", deidentifier=AsItIs())
