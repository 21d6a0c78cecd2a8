"""The walk over a file's bytes against pydicom, element by element."""

from __future__ import annotations

import zlib
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from dicom_series import stored_values, write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from medsynth.imaging import walk
from medsynth.imaging.decode import READ_TAGS
from medsynth.imaging.headers import HEADER_TAGS
from medsynth.imaging.quiet import quiet_pydicom

BUNDLED = sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*"))


def both(path, pixels):
    """What the walk finds and what pydicom finds, or the kind of error; as comparable values."""
    wanted = READ_TAGS if pixels else HEADER_TAGS
    results = []
    for read in (
        lambda: walk.read_elements(path, wanted, pixels=pixels),
        lambda: pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=[*wanted, walk.PIXEL_DATA]),
    ):
        try:
            dataset = read()
            results.append(plain(dataset))
        except InvalidDicomError:
            results.append("not DICOM")
        except walk.READ_ERRORS:
            results.append("damaged")
    return results


def plain(dataset):
    found = {}
    for tag in dataset.keys():  # noqa: SIM118  a dataset's iterator would read every element
        if tag == 0x00080005:
            continue
        try:
            element = dataset[tag]
            found[int(tag)] = (element.VR, repr(element.value) if element.VR == "SQ" else element.value)
        except walk.READ_ERRORS:
            found[int(tag)] = "damaged"
    return found, str(dataset.file_meta.get("TransferSyntaxUID")), dataset.original_encoding


@pytest.mark.parametrize("pixels", [False, True])
def test_every_file_of_pydicom_reads_as_pydicom_reads_it(pixels):
    compared = 0
    with quiet_pydicom():
        for path in BUNDLED:
            if path.is_file() and path.stat().st_size:
                ours, theirs = both(path, pixels)
                assert ours == theirs, path.name
                compared += 1
    assert compared > 150


def giving_up(monkeypatch):
    """Count how often pydicom was asked."""
    asked = []
    real = pydicom.dcmread
    monkeypatch.setattr(walk.pydicom, "dcmread", lambda *given, **named: (asked.append(1), real(*given, **named))[1])
    return asked


@pytest.mark.parametrize("syntax", [None, JPEG2000Lossless, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_plain_files_need_no_help(tmp_path, monkeypatch, syntax):
    path = write_series(tmp_path, stored_values(1, 32, 32, top=4096), compress=syntax)[0]
    theirs = plain(pydicom.dcmread(path, specific_tags=[*READ_TAGS, walk.PIXEL_DATA]))
    asked = giving_up(monkeypatch)
    assert plain(walk.read_elements(path, READ_TAGS, pixels=True)) == theirs
    assert not asked


def test_big_endian_is_left_to_pydicom(tmp_path, monkeypatch):
    path = write_series(tmp_path, stored_values(1))[0]
    dataset = pydicom.dcmread(path)
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False)
    theirs = plain(pydicom.dcmread(path, specific_tags=[*READ_TAGS, walk.PIXEL_DATA]))
    asked = giving_up(monkeypatch)
    assert plain(walk.read_elements(path, READ_TAGS, pixels=True)) == theirs
    assert asked


@pytest.mark.parametrize("implicit", [False, True])
def test_nested_sequences_of_undefined_length_are_stepped_over(tmp_path, monkeypatch, implicit):
    path = write_series(tmp_path, stored_values(1))[0]
    dataset = pydicom.dcmread(path)
    inner = Dataset()
    inner.PatientID = "INVENTED-1"
    for depth in range(5):
        outer = Dataset()
        outer.ReferencedImageSequence = Sequence([inner, inner])
        outer["ReferencedImageSequence"].is_undefined_length = depth % 2 == 0
        inner.is_undefined_length_sequence_item = depth % 3 != 0
        outer.Rows = 7
        inner = outer
    dataset.ReferencedStudySequence = Sequence([inner])
    dataset["ReferencedStudySequence"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else dataset.file_meta.TransferSyntaxUID
    pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=True)
    wanted = HEADER_TAGS | {0x00081110}
    theirs = plain(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*wanted]))
    asked = giving_up(monkeypatch)
    assert plain(walk.read_elements(path, wanted, pixels=False)) == theirs
    assert not asked


def test_a_header_longer_than_the_first_look_is_read_to_its_end(tmp_path, monkeypatch):
    path = write_series(tmp_path, stored_values(1))[0]
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00090010, "LO", "INVENTED")
    dataset.add_new(0x00091001, "OB", bytes(300_000))
    dataset.save_as(path)
    asked = giving_up(monkeypatch)
    assert walk.read_elements(path, HEADER_TAGS, pixels=False).Rows == dataset.Rows
    assert not asked


def test_frames_of_an_enhanced_object_come_with_their_groups(tmp_path):
    write_enhanced(tmp_path / "a.dcm", stored_values(4))
    ours = walk.read_elements(tmp_path / "a.dcm", HEADER_TAGS, pixels=False)
    theirs = pydicom.dcmread(tmp_path / "a.dcm", stop_before_pixels=True)
    assert ours.PerFrameFunctionalGroupsSequence == theirs.PerFrameFunctionalGroupsSequence


def test_a_deflated_file_cannot_inflate_without_bounds(tmp_path, monkeypatch):
    path = write_series(tmp_path, stored_values(1), compress=DeflatedExplicitVRLittleEndian)[0]
    raw = path.read_bytes()
    start = raw.index(b"1.2.840.10008.1.2.1.99")
    meta = pydicom.dcmread(path).file_meta
    begin = 128 + 4 + 12 + meta.FileMetaInformationGroupLength
    assert begin > start
    packer = zlib.compressobj(wbits=-15)
    path.write_bytes(raw[:begin] + packer.compress(bytes(1 << 22)) + packer.flush())
    monkeypatch.setattr(walk, "LARGEST_INFLATED", 1 << 20)
    with pytest.raises(ValueError, match="larger than any image"):
        walk.read_elements(path, HEADER_TAGS, pixels=False)


def test_a_length_that_lies_takes_no_memory(tmp_path, monkeypatch):
    path = write_series(tmp_path, stored_values(1))[0]
    raw = path.read_bytes()
    at = raw.index(b"\xe0\x7f\x10\x00OW\0\0") + 8
    path.write_bytes(raw[:at] + b"\xfe\xff\xff\xff" + raw[at + 4 :])
    asked = []
    monkeypatch.setattr(walk._Bounded, "read", lambda self, count=-1: asked.append(count))
    walk.read_elements(path, READ_TAGS, pixels=True)
    assert not asked  # the file is at hand as a whole
