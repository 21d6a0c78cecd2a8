"""Several images at one position: copies are dropped and told, volumes of several echoes or times come apart."""

from __future__ import annotations

import csv
import itertools
import shutil

import numpy as np
import pydicom
import pytest
from dicom_series import MR, AsItIs, _item, stored_values, write_enhanced, write_series
from pydicom.uid import RLELossless

from medsynth.errors import DataError, GeometryError
from medsynth.imaging.dicom import find_series
from medsynth.imaging.index import index_folder, write_index
from medsynth.imaging.parts import SAME_BYTES, SAME_IMAGE, SAME_PIXELS
from medsynth.imaging.read import read_scan


def read(folder, uid=None):
    return np.asarray(read_scan(folder, deidentifier=AsItIs(), series_uid=uid))[0].transpose(2, 1, 0)


def reasons(folder):
    return sorted(reason for _, reason in find_series(folder).skipped)


def setting(**values):
    def edit(dataset, k):
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return edit


def test_copies_count_once_and_are_told(tmp_path):
    stored = stored_values(5)
    paths = write_series(tmp_path, stored)
    shutil.copy(paths[0], tmp_path / "byte-equal.dcm")
    other = pydicom.dcmread(paths[1])
    other.ImageComments = "sent again by Nora"
    other.save_as(tmp_path / "same-object.dcm")
    other = pydicom.dcmread(paths[2])
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    other.compress(RLELossless, generate_instance_uid=False)
    other.save_as(tmp_path / "same-pixels.dcm")
    assert reasons(tmp_path) == sorted([SAME_BYTES, SAME_IMAGE, SAME_PIXELS])
    assert np.array_equal(read(tmp_path), stored.astype(np.int16) - 1024)
    (row,) = index_folder(tmp_path)
    assert row.usable
    assert row.notes == "3 files left out that repeat others"


def test_other_pixels_at_the_same_position_are_refused(tmp_path):
    stored = stored_values(5)
    paths = write_series(tmp_path, stored)
    other = pydicom.dcmread(paths[2])
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    other.PixelData = (stored[2] + 1).tobytes()
    other.save_as(tmp_path / "other.dcm")
    with pytest.raises(GeometryError, match="found 6 images at 5 positions"):
        read(tmp_path)


def test_the_same_pixels_with_another_rescale_are_another_image(tmp_path):
    stored = stored_values(5)
    paths = write_series(tmp_path, stored)
    other = pydicom.dcmread(paths[2])
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    other.RescaleIntercept = 0
    other.save_as(tmp_path / "other.dcm")
    with pytest.raises(GeometryError, match="found 6 images at 5 positions"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "order"),
    [
        ("echo", [{"EchoTime": 30.0}, {"EchoTime": 4.6}, {"EchoTime": 110.0}], (1, 0, 2)),
        ("time", [{"TemporalPositionIdentifier": n} for n in (1, 10, 2)], (0, 2, 1)),
        ("clock", [{"AcquisitionTime": t} for t in ("101502", "101500", "101501.5")], (1, 2, 0)),
        ("type", [{"ImageType": ["ORIGINAL", "PRIMARY", kind]} for kind in ("M", "R", "P")], (0, 2, 1)),
        ("diffusion", [{"DiffusionBValue": b} for b in (0.0, 1000.0, 50.0)], (0, 2, 1)),
        (
            "diffusion",
            [{"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": d} for d in ([1, 0, 0], [0, 1, 0], [0, 0, 1])],
            (2, 1, 0),
        ),
        ("acquisition", [{"AcquisitionNumber": n} for n in (3, 1, 2)], (1, 2, 0)),
    ],
)
def test_volumes_of_one_series_come_apart_and_are_read_by_their_address(tmp_path, name, values, order):
    stored = [stored_values(4), stored_values(4) + 1, stored_values(4)[::-1]]
    for number, (pixels, chosen) in enumerate(zip(stored, values, strict=True)):
        write_series(tmp_path / "s", pixels, kind=MR, rescale=(1.0, 0.0), edit=setting(**chosen), prefix=f"{number}-")
    rows = index_folder(tmp_path / "s")
    assert [row.series for row in rows] == [f"1.2.3.4.5#{name}={n}" for n in (1, 2, 3)]
    assert all(row.usable and row.slices == 4 for row in rows)
    found = {row.series: read(row.image, row.series) for row in rows}
    for n, at in enumerate(order, start=1):
        assert np.array_equal(found[f"1.2.3.4.5#{name}={n}"], stored[at].astype(np.int16))
    with pytest.raises(DataError, match="expected one series, found 3"):
        read(tmp_path / "s", "1.2.3.4.5")
    write_index(rows, tmp_path / "cohort.csv")
    with (tmp_path / "cohort.csv").open(newline="") as file:
        assert [row["series"] for row in csv.DictReader(file)] == [row.series for row in rows]


def test_two_traits_together_tell_images_apart(tmp_path):
    for number, (echo, kind) in enumerate(itertools.product((5.0, 10.0), ("M", "P"))):
        edit = setting(EchoTime=echo, ImageType=["ORIGINAL", "PRIMARY", kind])
        write_series(tmp_path, stored_values(4) + number, kind=MR, rescale=(1.0, 0.0), edit=edit, prefix=f"{number}-")
    names = [series.address for series in find_series(tmp_path).series]
    assert names == [f"1.2.3.4.5#echo={e},type={t}" for e in (1, 2) for t in (1, 2)]
    assert np.array_equal(read(tmp_path, names[2]), stored_values(4).astype(np.int16) + 2)


def test_what_leaves_a_part_incomplete_is_not_split(tmp_path):
    write_series(tmp_path, stored_values(4), kind=MR, edit=setting(EchoTime=5.0), prefix="a")
    write_series(tmp_path, stored_values(4) + 1, kind=MR, edit=setting(EchoTime=9.0), prefix="b")[3].unlink()
    (series,) = find_series(tmp_path).series
    assert not series.part
    with pytest.raises(GeometryError, match="found 7 images at 4 positions"):
        series.stack()


def test_empty_slices_of_two_echoes_are_no_copies(tmp_path):
    blank = np.zeros((4, 5, 7), np.uint16)
    write_series(tmp_path, blank, kind=MR, edit=setting(EchoTime=5.0), prefix="a")
    write_series(tmp_path, blank, kind=MR, edit=setting(EchoTime=9.0), prefix="b")
    found = find_series(tmp_path)
    assert [series.part for series in found.series] == ["echo=1", "echo=2"]
    assert not found.skipped


def test_frames_of_one_object_come_apart_too(tmp_path):
    stored = stored_values(4)
    path = tmp_path / "a.dcm"
    write_enhanced(path, stored, slope=1.0)
    dataset = pydicom.dcmread(path)
    frames = list(dataset.PerFrameFunctionalGroupsSequence)
    doubled = []
    for time in (1, 2):
        for frame in frames:
            copy = pydicom.Dataset()
            copy.PlanePositionSequence = frame.PlanePositionSequence
            copy.FrameContentSequence = [_item(TemporalPositionIndex=time)]
            copy.PixelValueTransformationSequence = [_item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")]
            doubled.append(copy)
    dataset.PerFrameFunctionalGroupsSequence = doubled
    dataset.NumberOfFrames = 8
    pixels = np.frombuffer(dataset.PixelData, np.uint16)
    dataset.PixelData = pixels.tobytes() + (pixels + 5).tobytes()
    dataset.save_as(path)
    names = [series.address for series in find_series(tmp_path).series]
    assert names == ["1.2.3.4.6#time=1", "1.2.3.4.6#time=2"]
    first, second = (read(tmp_path, name) for name in names)
    assert np.array_equal(first, stored)
    assert np.array_equal(second, stored + 5)


def test_parts_without_a_series_uid_are_found_by_their_part(tmp_path):
    for number, echo in enumerate((5.0, 10.0)):
        write_series(
            tmp_path / "s", stored_values(4) + number, kind=MR, uid="", rescale=(1.0, 0.0), edit=setting(EchoTime=echo),
            prefix=f"{number}-",
        )  # fmt: skip
    rows = index_folder(tmp_path)
    assert [(row.series, row.usable) for row in rows] == [("#echo=1", True), ("#echo=2", True)]
    assert np.array_equal(read(rows[1].image, rows[1].series), stored_values(4).astype(np.int16) + 1)
