"""Nothing hides in pixel data beside pixels, and no pixel changes."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pydicom
import pytest
from burned_in import anatomy, as_read, copy_of, put
from planted_headers import file_bytes, plain
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medsynth.errors import PrivacyError, UnreadableError
from medsynth.imaging.deidentify.pixels import clean_pixel_element

SECRET = b"HOLLENSTEIN BIRGITTA"
COMPRESSED = [RLELossless, JPEG2000Lossless, JPEGLSLossless]
JPEG = "SC_rgb_jpeg_dcmtk.dcm"
JPEG_LS = "SC_rgb_jls_lossy_line.dcm"


def ct(frames: int = 1) -> Dataset:
    dataset = plain("CT")
    put(dataset, np.stack([anatomy(72, 68, seed=k) for k in range(frames)]) if frames > 1 else anatomy(72, 68))
    return dataset


def bundled(name: str) -> Dataset:
    return pydicom.dcmread(str(get_testdata_file(name)))


def with_pixels(source: Dataset, value: bytes) -> Dataset:
    """The same file with other bytes as pixel data."""
    source.PixelData = value
    source["PixelData"].is_undefined_length = source.file_meta.TransferSyntaxUID.is_encapsulated
    return pydicom.dcmread(BytesIO(file_bytes(source)))


def cleaned(source: Dataset) -> Dataset:
    clean = copy_of(source)
    clean_pixel_element(source, clean)
    return pydicom.dcmread(BytesIO(file_bytes(clean)))


def frames_of(dataset: Dataset) -> list[bytes]:
    return list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1)))


@pytest.mark.parametrize("syntax", [*COMPRESSED, ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("frames", [1, 3])
def test_an_image_without_extras_keeps_every_byte(syntax: UID, frames: int) -> None:
    source = as_read(ct(frames), syntax)
    assert cleaned(source).PixelData == source.PixelData


@pytest.mark.parametrize("name", [JPEG, JPEG_LS, "JPEG2000.dcm", "693_J2KI.dcm", "SC_rgb_rle_16bit_2frame.dcm"])
def test_files_of_other_encoders_keep_every_byte(name: str) -> None:
    source = bundled(name)
    assert cleaned(source).PixelData == source.PixelData


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("kind", ["u1", "u2", "u4"])
@pytest.mark.parametrize("columns", [20, 21])
def test_native_bytes_after_the_last_sample_go(syntax: UID, kind: str, columns: int) -> None:
    dataset = plain("CT")
    put(dataset, anatomy(23, columns).astype(kind))
    dataset.BitsStored, dataset.HighBit = 8 * np.dtype(kind).itemsize, 8 * np.dtype(kind).itemsize - 1
    if syntax == ExplicitVRBigEndian:
        if kind == "u4":
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u4").astype(">u4").tobytes()
        dataset["PixelData"].VR = "OB" if kind == "u1" else "OW"
    true = as_read(dataset, syntax)
    source = with_pixels(as_read(dataset, syntax), bytes(true.PixelData) + SECRET)
    result = cleaned(source)
    assert SECRET not in result.PixelData
    assert len(result.PixelData) == len(true.PixelData)
    assert np.array_equal(result.pixel_array, true.pixel_array)


def test_padding_of_an_odd_number_of_bytes_is_zero() -> None:
    dataset = plain("CT")
    put(dataset, np.full((3, 3), 7, dtype=np.uint8))
    source = with_pixels(as_read(dataset), bytes([7] * 9) + b"X")
    assert cleaned(source).PixelData == bytes([7] * 9) + b"\0"


def test_the_padding_of_swapped_bytes_stands_before_the_last_sample() -> None:
    source = bundled("SC_rgb_small_odd_big_endian.dcm")
    before = source.pixel_array
    assert np.array_equal(cleaned(source).pixel_array, before)


def test_samples_of_one_bit_end_within_a_byte() -> None:
    dataset = plain("CT")
    put(dataset, np.zeros((3, 5), dtype=np.uint8))
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = 0
    source = with_pixels(as_read(dataset), b"\xff\xff" + SECRET)
    assert cleaned(source).PixelData == b"\xff\x7f"


def test_halved_colour_is_two_bytes_per_pixel() -> None:
    source = bundled("SC_ybr_full_422_uncompressed.dcm")
    value = bytes(source.PixelData)
    assert len(value) == 2 * source.Rows * source.Columns
    assert cleaned(with_pixels(source, value + SECRET * 40)).PixelData == value


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i2"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("declared", [True, False])
def test_graphics_in_unused_bits_are_cleared(kind: str, syntax: UID, declared: bool) -> None:
    dataset = plain("CT")
    bits = 8 * np.dtype(kind).itemsize
    used = bits - 3
    truth = np.random.default_rng(1).integers(0, 1 << used - 1, (8, 6)).astype(kind)
    if kind == "i2":
        truth -= 100
    drawn = truth ^ np.array(1 << used + 1).astype(kind) * (np.indices((8, 6)).sum(axis=0) % 3 == 0)
    put(dataset, drawn)
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = used, used - 1, int(kind[0] == "i")
    if declared:
        dataset.add_new(0x60000010, "US", 8)
        dataset.add_new(0x60000011, "US", 6)
    if syntax == ExplicitVRBigEndian and kind == "u4":
        dataset.PixelData = drawn.astype(">u4").tobytes()
    if syntax == ExplicitVRBigEndian and kind == "u1":
        dataset["PixelData"].VR = "OB"
    source = as_read(dataset, syntax)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    assert np.array_equal(np.frombuffer(cleaned(source).PixelData, f"{order}{kind}").reshape(8, 6), truth)


@pytest.mark.parametrize("padding", [None, 4096 + 8])
def test_a_padding_value_out_of_range_stays(padding: int | None) -> None:
    dataset = ct()
    pixels = anatomy(72, 68)
    pixels[:4] = 0xF830 if padding is None else padding
    put(dataset, pixels)
    if padding is not None:
        dataset.add_new(0x00280120, "US", padding)
    source = as_read(dataset)
    assert cleaned(source).PixelData == source.PixelData


def test_a_single_bit_over_an_even_background_is_no_padding() -> None:
    dataset = ct()
    pixels = np.zeros((72, 68), dtype=np.uint16)
    pixels[4:8] |= 1 << 13
    put(dataset, pixels)
    assert not np.any(cleaned(as_read(dataset)).pixel_array)


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("frames", [1, 3])
def test_bytes_after_the_code_are_zeroed(syntax: UID, frames: int) -> None:
    source = as_read(ct(frames), syntax)
    before = source.pixel_array
    value = encapsulate([frame + SECRET for frame in frames_of(source)])
    result = cleaned(with_pixels(source, value))
    assert SECRET not in result.PixelData
    assert np.array_equal(result.pixel_array, before)


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("has_table", [True, False])
def test_items_after_the_last_frame_go(syntax: UID, frames: int, has_table: bool) -> None:
    source = as_read(ct(frames), syntax)
    before = source.pixel_array
    value = encapsulate(frames_of(source), has_bot=has_table)
    extra = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(SECRET)) + SECRET
    result = cleaned(with_pixels(source, value + extra))
    assert result.PixelData == value
    assert np.array_equal(result.pixel_array, before)


def test_a_frame_in_several_fragments_is_followed_to_its_end() -> None:
    source = as_read(ct(2), JPEG2000Lossless)
    before = source.pixel_array
    value = encapsulate(frames_of(source), fragments_per_frame=3, has_bot=False)
    assert cleaned(with_pixels(source, value)).PixelData == value
    extra = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(SECRET)) + SECRET
    result = cleaned(with_pixels(source, value + extra))
    assert result.PixelData == value
    assert np.array_equal(result.pixel_array, before)


def test_an_offset_table_that_lies_is_cut_off() -> None:
    source = as_read(ct(2), RLELossless)
    value = encapsulate(frames_of(source))
    assert value[4:8] == struct.pack("<I", 8)
    lying = value[:8] + b"BIRGITTA" + value[16:]
    result = cleaned(with_pixels(source, lying))
    assert result.PixelData == value[:4] + bytes(4) + value[16:]


@pytest.mark.parametrize("lies", [False, True])
def test_an_extended_offset_table_stays_only_if_it_is_true(lies: bool) -> None:
    source = as_read(ct(3), JPEGLSLossless)
    before = source.pixel_array
    value, offsets, lengths = encapsulate_extended(frames_of(source))
    source.add_new(0x7FE00001, "OV", SECRET.ljust(24) if lies else offsets)
    source.add_new(0x7FE00002, "OV", lengths)
    result = cleaned(with_pixels(source, value))
    assert ("ExtendedOffsetTable" in result) is not lies
    assert result.get("ExtendedOffsetTableLengths") == (None if lies else lengths)
    assert np.array_equal(result.pixel_array, before)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize(
    "planted",
    [
        segment(0xFE, SECRET),
        segment(0xE1, b"Exif\0\0" + SECRET),
        segment(0xED, SECRET),
        segment(0xE0, b"JFXX\0" + SECRET),
    ],
    ids=["COM", "Exif", "APP13", "JFXX"],
)
@pytest.mark.parametrize("name", [JPEG, "JPEGLSNearLossless_16.dcm", "SC_rgb_jpeg_gdcm.dcm"])
def test_text_in_jpeg_segments_is_zeroed_and_pixels_stay(name: str, planted: bytes) -> None:
    source = bundled(name)
    before = source.pixel_array
    (frame,) = frames_of(source)
    result = cleaned(with_pixels(source, encapsulate([frame[:2] + planted + frame[2:]])))
    assert SECRET not in result.PixelData
    assert np.array_equal(result.pixel_array, before)


def test_a_thumbnail_in_jfif_is_zeroed() -> None:
    source = bundled("SC_rgb_dcmtk_+eb+cy+n1.dcm")
    before = source.pixel_array
    (frame,) = frames_of(source)
    assert frame[2:4] == b"\xff\xe0"
    head = frame[4:18] + bytes([2, 3]) + b"THUMBNAIL OF A FACE"[:18]
    assert len(head) == 34
    jfif = b"\xff\xe0" + struct.pack(">H", 34) + frame[6:18] + bytes([2, 3]) + b"THUMBNAIL OF A FAC"
    result = cleaned(with_pixels(source, encapsulate([frame[:2] + jfif + frame[20:]])))
    assert b"THUMB" not in result.PixelData
    assert b"JFIF" in result.PixelData
    assert np.array_equal(result.pixel_array, before)


def test_an_encoder_may_name_itself_in_a_comment_and_nobody_else() -> None:
    source = as_read(ct(), JPEG2000Lossless)
    before = source.pixel_array
    (frame,) = frames_of(source)
    place = frame.index(b"\xff\x90")
    for comment, stays in [(b"Kakadu-v7.10.7", True), (SECRET, False), (b"Kakadu-v7 " + SECRET, False)]:
        planted = segment(0x64, b"\0\x01" + comment)
        result = cleaned(with_pixels(source, encapsulate([frame[:place] + planted + frame[place:]])))
        assert (comment in result.PixelData) is stays
        assert np.array_equal(result.pixel_array, before)


def test_boxes_around_a_jpeg_2000_codestream_are_zeroed() -> None:
    source = bundled("GDCMJ2K_TextGBR.dcm")
    before = source.pixel_array
    (frame,) = frames_of(source)
    place = frame.index(b"jp2c") - 4
    box = struct.pack(">I", 8 + len(SECRET)) + b"xml " + SECRET
    result = cleaned(with_pixels(source, encapsulate([frame[:place] + box + frame[place:]])))
    assert SECRET not in result.PixelData
    assert np.array_equal(result.pixel_array, before)


def test_unused_offsets_of_rle_are_zeroed() -> None:
    source = as_read(ct(), RLELossless)
    before = source.pixel_array
    (frame,) = frames_of(source)
    planted = frame[:12] + SECRET + frame[12 + len(SECRET) :]
    result = cleaned(with_pixels(source, encapsulate([planted])))
    assert SECRET not in result.PixelData
    assert np.array_equal(result.pixel_array, before)


def test_bytes_between_rle_segments_are_zeroed() -> None:
    source = as_read(ct(), RLELossless)
    before = source.pixel_array
    (frame,) = frames_of(source)
    second = int.from_bytes(frame[8:12], "little")
    planted = frame[:8] + struct.pack("<I", second + 20) + frame[12:second] + SECRET + frame[second:]
    result = cleaned(with_pixels(source, encapsulate([planted])))
    assert SECRET not in result.PixelData
    assert np.array_equal(result.pixel_array, before)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_code_that_is_cut_short_is_refused(syntax: UID) -> None:
    source = as_read(ct(), syntax)
    (frame,) = frames_of(source)
    short = with_pixels(source, encapsulate([frame[: len(frame) // 2 // 2 * 2]]))
    with pytest.raises(UnreadableError, match="export the file again"):
        cleaned(short)


def test_a_compression_that_cannot_be_searched_is_refused() -> None:
    source = as_read(ct(), RLELossless)
    source.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.110")  # JPEG XL
    with pytest.raises(PrivacyError, match="export the file uncompressed"):
        clean_pixel_element(source, copy_of(source))


def test_an_overlay_inside_compressed_samples_is_refused() -> None:
    dataset = ct()
    dataset.add_new(0x60000010, "US", 72)
    source = as_read(dataset, RLELossless)
    with pytest.raises(PrivacyError, match="overlay"):
        cleaned(source)
