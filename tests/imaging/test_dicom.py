from __future__ import annotations

import itertools
import shutil

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_series import CT, MR, AsItIs, datasets, oblique, stored_values, write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, MediaStorageDirectoryStorage, RLELossless

from medsynth.config.deidentify import Deidentify
from medsynth.errors import DataError, GeometryError, PrivacyError, UnreadableError
from medsynth.imaging.decode import READ_TAGS
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.deidentify.guard import PixelGuard
from medsynth.imaging.deidentify.pixels import clean_pixel_element
from medsynth.imaging.dicom import find_series
from medsynth.imaging.nifti import write_nifti
from medsynth.imaging.read import read_scan
from medsynth.imaging.scan import affine_of, make_scan, spacing_mm, world_mm
from medsynth.imaging.walk import CHARSET, PIXEL_DATA

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(folder, **chosen):
    return read_scan(folder, deidentifier=AsItIs(), **chosen)


def value_to_world(scan):
    """Distinct voxel value -> RAS position, sorted by value: [values, 4]."""
    voxels = np.asarray(scan)[0]
    index = np.stack(np.unravel_index(np.arange(voxels.size), voxels.shape), axis=-1)
    table = np.column_stack([voxels.ravel(), world_mm(affine_of(scan), index)])
    return table[np.argsort(table[:, 0])]


def expected_worlds(stored, paths, rescale=(1.0, -1024.0)):
    """The same, straight from the equation of PS3.3 C.7.6.2.1.1, image by image."""
    rows = []
    for pixels, dataset in zip(stored, datasets(paths), strict=True):
        position = np.array(dataset.ImagePositionPatient, dtype=float)
        along_row, along_column = np.reshape(np.array(dataset.ImageOrientationPatient, dtype=float), (2, 3))
        between_rows, between_columns = map(float, dataset.PixelSpacing)
        for r, c in itertools.product(*map(range, pixels.shape)):
            x, y, z = position + along_row * between_columns * c + along_column * between_rows * r
            rows.append([pixels[r, c] * rescale[0] + rescale[1], -x, -y, z])
    table = np.array(rows)
    return table[np.argsort(table[:, 0])]


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), oblique(0.3, -0.2, 0.5)])
@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]])
def test_every_voxel_lies_where_the_standard_puts_it(tmp_path, orientation, places):
    stored = stored_values()
    paths = write_series(tmp_path, stored, orientation=orientation, places=places)
    scan = read(tmp_path)
    assert np.abs(value_to_world(scan) - expected_worlds(stored, paths)).max() < 1e-6
    assert scan.dtype.is_floating_point is False
    assert dict(scan.meta)["unit"] == "HU"
    assert set(scan.meta) == {"modality", "unit", "affine", "space"}
    assert spacing_mm(scan) == pytest.approx((0.5, 0.8, 2.0))


def test_agrees_with_highdicom(tmp_path):
    paths = write_series(tmp_path, stored_values(), orientation=oblique(0.1, 0.2, -0.3), places=[2, 0, 1, 5, 4, 3])
    scan = read(tmp_path)
    judge = highdicom.get_volume_from_series(datasets(paths), dtype=np.int16)
    judged = make_scan(judge.array, LPS_TO_RAS @ judge.affine, modality="CT", unit="HU")
    assert np.allclose(value_to_world(scan), value_to_world(judged), atol=1e-6)
    assert np.linalg.det(affine_of(scan)) > 0


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_series_read_the_same(tmp_path, syntax):
    stored = stored_values(4, 32, 32, top=4096)
    write_series(tmp_path / "plain", stored)
    write_series(tmp_path / "packed", stored, compress=syntax)
    plain, packed = read(tmp_path / "plain"), read(tmp_path / "packed")
    assert np.array_equal(np.asarray(plain), np.asarray(packed))
    assert np.array_equal(affine_of(plain), affine_of(packed))


def test_slope_and_intercept_of_each_slice_are_its_own(tmp_path):
    stored = stored_values(3)

    def edit(dataset, k):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.25 * (k + 1), -10.0 * k

    write_series(tmp_path, stored, kind=MR, edit=edit)
    scan = np.asarray(read(tmp_path))[0]
    assert scan.dtype == np.float32
    for k in range(3):
        assert np.array_equal(scan[:, :, k], (stored[k].T * (0.25 * (k + 1)) - 10.0 * k).astype(np.float32))


def test_values_beyond_int16_become_exact_float32(tmp_path):
    stored = np.full((3, 4, 4), 7, np.uint16)
    stored[2, 0, 0] = 65535

    def edit(dataset, k):
        dataset.BitsStored, dataset.HighBit = 16, 15

    write_series(tmp_path, stored, kind=MR, rescale=(1.0, 0.0), edit=edit)
    scan = np.asarray(read(tmp_path))[0]
    assert scan.dtype == np.float32
    assert scan.max() == 65535
    assert scan.min() == 7


def test_monochrome1_mirrors_brightness_but_never_hounsfield_units(tmp_path):
    stored = stored_values(3)

    def invert(dataset, k):
        dataset.PhotometricInterpretation = "MONOCHROME1"

    write_series(tmp_path / "ct", stored, edit=invert)
    write_series(tmp_path / "mr", stored, kind=MR, rescale=(1.0, 0.0), edit=invert)
    assert np.array_equal(np.asarray(read(tmp_path / "ct"))[0], stored.transpose(2, 1, 0).astype(np.int16) - 1024)
    assert np.array_equal(np.asarray(read(tmp_path / "mr"))[0], 4095 - stored.transpose(2, 1, 0).astype(np.int16))


def test_signed_pixels_keep_their_sign(tmp_path):
    stored = stored_values(3).astype(np.int16) - 2000

    def signed(dataset, k):
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 16, 15

    write_series(tmp_path, stored, rescale=(1.0, 0.0), edit=signed)
    assert np.array_equal(np.asarray(read(tmp_path))[0], stored.transpose(2, 1, 0))


def test_series_are_grouped_by_uid_wherever_their_files_lie(tmp_path):
    first, second = stored_values(4), stored_values(5)
    one = write_series(tmp_path / "all", first, uid="1.2.1", prefix="a")
    write_series(tmp_path / "all", second, uid="1.2.2", prefix="b", gap=3.0)
    (tmp_path / "all" / "deep").mkdir()
    one[2].rename(tmp_path / "all" / "deep" / "no_suffix")
    (tmp_path / "all" / "notes.txt").write_text("plain words")
    (tmp_path / "all" / "words.dcm").write_text("plain words again")
    found = find_series(tmp_path)
    assert [(series.series_uid, len(series.files)) for series in found.series] == [("1.2.1", 4), ("1.2.2", 5)]
    assert sorted((path.name, reason) for path, reason in found.skipped) == [
        ("notes.txt", "not a DICOM file"),
        ("words.dcm", "not a DICOM file"),
    ]
    assert read(tmp_path, series_uid="1.2.2").shape == (1, 7, 5, 5)
    assert spacing_mm(read(tmp_path, series_uid="1.2.1"))[2] == pytest.approx(2.0)
    with pytest.raises(DataError, match="expected one series, found 2"):
        read(tmp_path)
    with pytest.raises(DataError, match="index the folder again"):
        read(tmp_path, series_uid="1.2.3")


def test_series_without_uid_are_grouped_by_folder(tmp_path):
    write_series(tmp_path / "a", stored_values(4), uid="")
    write_series(tmp_path / "b", stored_values(4), uid="")
    assert [len(series.files) for series in find_series(tmp_path).series] == [4, 4]
    assert read(tmp_path / "a").shape == (1, 7, 5, 4)


def test_a_byte_equal_copy_counts_once_but_another_echo_does_not(tmp_path):
    stored = stored_values(4)
    paths = write_series(tmp_path / "copied", stored)
    shutil.copy(paths[1], tmp_path / "copied" / "copy of slice.dcm")
    assert np.array_equal(np.asarray(read(tmp_path / "copied"))[0], stored.transpose(2, 1, 0).astype(np.int16) - 1024)
    write_series(tmp_path / "echoes", stored, prefix="first")
    write_series(tmp_path / "echoes", stored + 1, prefix="second")
    with pytest.raises(GeometryError, match="found 8 images at 4 positions"):
        read(tmp_path / "echoes")


def test_a_missing_slice_is_refused_with_place_and_gap(tmp_path):
    paths = write_series(tmp_path, stored_values())
    paths[3].unlink()
    with pytest.raises(GeometryError, match=r"2\.00 to 4\.00 mm: 4\.00 mm between slices 3 and 4 of 5"):
        read(tmp_path)


def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path):
    def tilt(dataset, k):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y + k * 2.0 * np.tan(np.radians(12.0)), z]

    write_series(tmp_path, stored_values(), edit=tilt)
    with pytest.raises(GeometryError, match=r"a tilt of 12\.0 degrees"):
        read(tmp_path)


def test_header_rounding_is_not_mistaken_for_irregular_gaps(tmp_path):
    def rounded(dataset, k):
        dataset.ImagePositionPatient = [round(x, 2) for x in dataset.ImagePositionPatient]

    write_series(tmp_path, stored_values(), gap=0.625, orientation=oblique(0.0, 0.0, 0.2), edit=rounded)
    assert spacing_mm(read(tmp_path))[2] == pytest.approx(0.625, abs=0.003)


def test_gaps_that_drift_are_refused_though_each_is_nearly_right(tmp_path):
    gaps = np.where(np.arange(59) < 30, 1.009, 0.991)
    write_series(tmp_path, stored_values(60, 3, 4), places=[0, *np.cumsum(gaps)])
    with pytest.raises(GeometryError, match="add up to"):
        read(tmp_path)


def _spoil(keyword, value, only=None):
    def edit(dataset, k):
        if only is None or k == only:
            setattr(dataset, keyword, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_spoil("ImageOrientationPatient", [0, 1, 0, 0, 0, 1], only=2), "2 orientations"),
        (_spoil("PixelSpacing", [0.8, 0.6], only=2), "one pixel spacing"),
        (_spoil("PixelSpacing", None), "position, orientation and pixel spacing"),
        (_spoil("RescaleSlope", None), "no rescale slope"),
        (_spoil("RescaleSlope", 0.0), "slope is zero"),
        (_spoil("RescaleType", "MGML"), "another unit"),
        (_spoil("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (_spoil("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"), "found Secondary Capture"),
        (_spoil("NumberOfFrames", 3), "do not say where they lie"),
    ],
)
def test_what_is_no_volume_is_refused_with_its_reason(tmp_path, edit, words):
    write_series(tmp_path, stored_values(), edit=edit)
    with pytest.raises(DataError, match=words) as raised:
        read(tmp_path)
    assert "Nora" not in str(raised.value)
    assert "4711" not in str(raised.value)


def test_text_burned_into_pixels_is_refused_by_a_privacy_rule(tmp_path):
    write_series(tmp_path, stored_values(), edit=_spoil("BurnedInAnnotation", "YES", only=3))
    with pytest.raises(PrivacyError, match="burned into the pixels"):
        read(tmp_path)


def test_one_slice_alone_is_no_volume(tmp_path):
    paths = write_series(tmp_path, stored_values(1))
    with pytest.raises(GeometryError, match="give the folder"):
        read(paths[0])


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("compress", [None, JPEG2000Lossless])
def test_a_truncated_file_is_refused_and_never_dropped(tmp_path, recwarn, caplog, share, compress):
    paths = write_series(tmp_path, stored_values(4, 32, 32, top=4096), compress=compress)
    whole = paths[3].read_bytes()
    paths[3].write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match="export"):
        read(tmp_path)
    assert not recwarn.list
    assert not caplog.records


@pytest.mark.parametrize("length", [0, 140, 200, 420])
def test_a_file_cut_in_its_header_spoils_its_folder(tmp_path, length):
    paths = write_series(tmp_path, stored_values(5))
    paths[4].write_bytes(paths[4].read_bytes()[:length])
    with pytest.raises(DataError, match="damaged or empty DICOM file"):
        read(tmp_path)


def test_a_damaged_value_is_refused_without_being_repeated(tmp_path):
    paths = write_series(tmp_path, stored_values(5))
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"-1024", b"NoraX"))
    with pytest.raises(DataError, match="RescaleIntercept is not a list of 1 numbers") as raised:
        read(tmp_path)
    assert "Nora" not in str(raised.value)


def test_nothing_to_read_says_what_was_found(tmp_path):
    with pytest.raises(UnreadableError, match="check the path"):
        read(tmp_path / "missing")
    with pytest.raises(UnreadableError, match="the folder is empty"):
        read(tmp_path)
    (tmp_path / "words.dcm").write_text("no DICOM here")
    with pytest.raises(UnreadableError, match="1 files were passed over: not a DICOM file"):
        read(tmp_path)


def test_a_dicomdir_is_passed_over(tmp_path):
    write_series(tmp_path / "disc", stored_values(4))
    directory = pydicom.dcmread(tmp_path / "disc" / "slice000.dcm", stop_before_pixels=True)
    directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = MediaStorageDirectoryStorage
    directory.save_as(tmp_path / "DICOMDIR")
    assert [reason for _, reason in find_series(tmp_path).skipped] == ["a DICOMDIR: an index, not an image"]
    assert read(tmp_path).shape == (1, 7, 5, 4)


def test_enhanced_multiframe_reads_frame_by_frame(tmp_path):
    stored = stored_values(5)
    write_enhanced(tmp_path / "enhanced.dcm", stored)
    for path in (tmp_path, tmp_path / "enhanced.dcm"):
        scan = read(path)
        slopes = 2.0 + np.arange(5)
        expected = stored.transpose(2, 1, 0) * slopes - 1.0
        voxels = np.asarray(scan)[0]
        ascending = affine_of(scan)[2, 2] > 0
        assert np.array_equal(voxels if ascending else voxels[:, :, ::-1], expected)
        assert spacing_mm(scan) == pytest.approx((0.5, 0.8, 1.5))
        assert scan.meta["modality"] == "MR"


def test_geometry_and_values_come_from_the_deidentified_dataset(tmp_path):
    class Moving(AsItIs):
        def dataset(self, dataset):
            assert "PixelData" in dataset
            dataset.ImagePositionPatient = [x + 100.0 for x in dataset.ImagePositionPatient]
            return dataset

    write_series(tmp_path, stored_values(4))
    moved = read_scan(tmp_path, deidentifier=Moving())
    assert np.allclose(affine_of(moved)[:3, 3] - affine_of(read(tmp_path))[:3, 3], [-100, -100, 100])


def test_the_modality_asked_for_must_be_the_one_found(tmp_path):
    write_series(tmp_path, stored_values(4), kind=CT)
    assert read(tmp_path, modality="CT").meta["modality"] == "CT"
    with pytest.raises(DataError, match="expected a series of MR, found CT"):
        read(tmp_path, modality="MR")


def test_the_patient_is_not_in_a_series_repr(tmp_path):
    write_series(tmp_path, stored_values(4))
    assert "4711" not in repr(find_series(tmp_path))


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
def test_the_real_deidentifier_changes_neither_voxels_nor_places(tmp_path, syntax):
    key_folder = tmp_path / "secrets"
    key_folder.mkdir(mode=0o700)
    deidentifier = Deidentifier(SecretKey.load_or_create(key_folder / "key"))
    stored = stored_values(3, 32, 32, top=4096)
    write_series(tmp_path / "single", stored, orientation=oblique(0.1, 0.2, 0.3), places=[1, 0, 2], compress=syntax)
    write_enhanced(tmp_path / "multi" / "frames.dcm", stored)
    for name in ("single", "multi"):
        clean, raw = (read_scan(tmp_path / name, deidentifier=by) for by in (deidentifier, AsItIs()))
        assert np.array_equal(np.asarray(clean), np.asarray(raw))
        assert np.allclose(affine_of(clean), affine_of(raw), atol=1e-6)
        assert set(clean.meta) == {"modality", "unit", "affine", "space"}


def test_a_file_says_its_modality_only_when_told(tmp_path):
    write_series(tmp_path / "ct", stored_values(4))
    write_nifti(read(tmp_path / "ct"), tmp_path / "ct.nii.gz")
    assert read(tmp_path / "ct.nii.gz").meta["unit"] == ""
    assert read(tmp_path / "ct.nii.gz", modality="CT").meta["unit"] == "HU"
    assert read(tmp_path / "ct.nii.gz", modality="MR").meta["unit"] == "a.u."


class Asked(Dataset):
    """A dataset that remembers which elements it was asked for."""

    def __contains__(self, name):
        self.__dict__.setdefault("asked", set()).add(int(Tag(name)))
        return super().__contains__(name)

    def get_item(self, key, *, keep_deferred=False):
        self.__dict__.setdefault("asked", set()).add(int(Tag(key)))
        return super().get_item(key, keep_deferred=keep_deferred)


@pytest.mark.parametrize("enhanced", [False, True])
def test_privacy_checks_get_every_element_that_they_ask_for(tmp_path, enhanced):
    """Reading leaves most of a header in the file: nothing of that may be what decides whether pixels are refused."""
    if enhanced:
        write_enhanced(tmp_path / "a.dcm", stored_values(3))
    else:
        write_series(tmp_path, stored_values(1))
    source = pydicom.dcmread(next(tmp_path.iterdir()))
    asked = Asked(source)
    asked.file_meta = source.file_meta
    asked.set_original_encoding(False, True, "iso8859")
    PixelGuard(Deidentify(ocr="off")).check(asked)
    clean_pixel_element(asked, Dataset(asked))
    assert {0x00280301, 0x00180015, 0x0008103E, 0x60000010} <= asked.__dict__["asked"]
    assert asked.__dict__["asked"] <= READ_TAGS | {PIXEL_DATA, CHARSET}
