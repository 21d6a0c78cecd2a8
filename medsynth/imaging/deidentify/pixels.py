"""What can hide in pixel data beside pixels: bytes after the last sample, overlays in unused high bits, and comments and
other extras of compressed images."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medsynth.errors import PrivacyError, UnreadableError
from medsynth.imaging.deidentify.elements import EXPLICIT_LITTLE, encoded, encoding_of, whole_number
from medsynth.imaging.deidentify.encapsulated import Cleaned, clean_encapsulated
from medsynth.imaging.deidentify.stored import EXTENDED_OFFSETS, NATIVE, stored_values, syntax_of
from medsynth.imaging.deidentify.suspicion import text_values

OVERLAY_GROUPS = range(0x6000, 0x6020, 2)
PIXEL_DATA, ROWS, COLUMNS, SAMPLES, FRAMES = 0x7FE00010, 0x00280010, 0x00280011, 0x00280002, 0x00280008
BITS_ALLOCATED, BITS_STORED, HIGH_BIT, SIGNED, PHOTOMETRIC = 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280004
PADDING = 0x00280120
HALF_COLOUR = {"YBR_FULL_422": 2, "YBR_PARTIAL_422": 2, "YBR_PARTIAL_420": 1.5}
"""Samples per pixel on average where neighbours share their colour (PS3.3 C.7.6.3.1.2)."""


def clean_pixel_element(source: Dataset, clean: Dataset) -> None:
    """Rid the pixel data in `clean` of what are no pixels. Pixel values stay as they are, and so does every byte of an
    image without such extras.

    Native: bytes after the last sample are cut off, and bits above the high bit cleared where they are more than the sign
    or one value of padding. Compressed: comments, application data, bytes after a frame's end and items after the
    last frame. Raises PrivacyError for an overlay inside compressed samples and for a compression that cannot be searched,
    UnreadableError for damaged pixel data.
    """
    if PIXEL_DATA not in clean:
        return
    element = clean.get_item(PIXEL_DATA)
    value = element.value
    if not isinstance(value, bytes):
        raise UnreadableError("expected pixel data as bytes, found another form; read the file again")
    if syntax_of(source) not in NATIVE:
        if _has_embedded_overlay(source):
            raise PrivacyError(
                "expected no graphics in the pixels, found an overlay inside compressed ones; export the file uncompressed"
            )
        _clean_compressed(source, clean, value)
        return
    bits = whole_number(clean, BITS_ALLOCATED, 0)
    encoding = encoding_of(clean, encoding_of(source, EXPLICIT_LITTLE))
    length = _sample_bytes(clean, bits)
    if length <= 0:
        raise UnreadableError("expected the size of the image in its header, found none; export the file again")
    changed = value
    if length <= len(value):
        last_bits = (whole_number(clean, ROWS, 0) * whole_number(clean, COLUMNS, 0) * _frames(clean)) % 8
        swapped = bits == 8 and not encoding.little and element.VR != "OB"
        changed = _cut(value, length, last_bits if bits == 1 else 0, swapped=swapped)
    if bits in (8, 16, 32):
        changed = _without_high_bits(
            changed, clean, bits, embedded=_has_embedded_overlay(source), little=encoding.little
        )
    elif bits != 1 and _has_embedded_overlay(source):
        raise PrivacyError("expected no graphics in the pixels, found an overlay inside them; leave the image out")
    if changed != value:
        clean[PIXEL_DATA] = encoded(PIXEL_DATA, element.VR or "OW", changed, encoding)


def _clean_compressed(source: Dataset, clean: Dataset, value: bytes) -> None:
    plane = whole_number(clean, ROWS, 0) * whole_number(clean, COLUMNS, 0)
    result = clean_encapsulated(value, syntax_of(source), _frames(clean), plane)
    if result.changed:
        if result.touches_code:
            before, after = stored_values(source, pixels=value)[0], stored_values(source, pixels=result.value)[0]
            if not np.array_equal(before, after):
                raise PrivacyError(
                    "expected comments inside a compressed image that can be cleared, found other pixels"
                )
        element = clean.get_item(PIXEL_DATA)
        clean[PIXEL_DATA] = encoded(
            PIXEL_DATA, element.VR or "OB", result.value, encoding_of(clean, EXPLICIT_LITTLE)
        )._replace(length=0xFFFFFFFF)
    if any(tag in clean for tag in EXTENDED_OFFSETS) and not _has_true_offsets(clean, result):
        for tag in EXTENDED_OFFSETS:
            clean.pop(tag, None)


def _has_true_offsets(clean: Dataset, result: Cleaned) -> bool:
    """Whether the extended offset table says where the frames are: eight bytes per frame could say anything."""
    if not all(tag in clean for tag in EXTENDED_OFFSETS):
        return False
    offsets, lengths = (clean.get_item(tag).value for tag in EXTENDED_OFFSETS)
    form = f"<{len(result.offsets)}Q"
    unpadded = tuple(length - 1 for length in result.lengths)
    return offsets == struct.pack(form, *result.offsets) and all(
        found in (whole, short)
        for found, whole, short in zip(_numbers(lengths, form), result.lengths, unpadded, strict=True)
    )


def _numbers(value: object, form: str) -> tuple[int, ...]:
    fits = isinstance(value, bytes) and len(value) == struct.calcsize(form)
    return struct.unpack(form, value) if fits and isinstance(value, bytes) else (-1,) * (struct.calcsize(form) // 8)


def _has_embedded_overlay(source: Dataset) -> bool:
    """PS3.3-2004 C.9.2: overlay rows without overlay data mean bits of the pixel samples."""
    return any((group, 0x0010) in source and (group, 0x3000) not in source for group in OVERLAY_GROUPS)


def _frames(clean: Dataset) -> int:
    return max(1, whole_number(clean, FRAMES, 1))


def _sample_bytes(clean: Dataset, bits: int) -> int:
    """Bytes that the samples take up; samples of one bit follow each other without gaps, also from frame to frame."""
    photometric = "".join(text_values(clean, PHOTOMETRIC))
    samples = HALF_COLOUR.get(photometric, whole_number(clean, SAMPLES, 1))
    pixels = whole_number(clean, ROWS, 0) * whole_number(clean, COLUMNS, 0) * _frames(clean)
    return -int(-pixels * samples * bits // 8)


def _cut(value: bytes, length: int, last_bits: int, *, swapped: bool) -> bytes:
    """The first `length` bytes and a zero for padding; of the last byte only `last_bits`, unless 0.

    swapped: bytes stand in big endian words, so that the padding comes before the last sample.
    """
    if length == len(value):
        kept = value
    elif swapped and length % 2:
        return value[: length - 1] + b"\0" + value[length : length + 1]
    else:
        kept = value[:length]
    if last_bits:
        kept = kept[:-1] + bytes([kept[-1] & ((1 << last_bits) - 1)])
    return kept + b"\0" * (length % 2)


def _without_high_bits(value: bytes, clean: Dataset, bits: int, *, embedded: bool, little: bool) -> bytes:
    """Bits above the high bit, and below the lowest bit that is used, set to zero, or to the sign where samples are signed.

    Without an overlay in the header they stay where they are the sign already, and where they are a padding value out of
    range, as old equipment writes it: the one that the header names, or a single one with more than one such bit.
    """
    high = whole_number(clean, HIGH_BIT, bits - 1)
    unused, low = bits - 1 - min(bits - 1, high), max(0, high + 1 - whole_number(clean, BITS_STORED, high + 1))
    if not unused and not (embedded and low):
        return value
    order = ("<" if little else ">") if bits > 8 else "|"
    size = bits // 8
    stored = np.frombuffer(value[: len(value) // size * size], f"{order}u{size}")
    kind = "i" if whole_number(clean, SIGNED, 0) == 1 else "u"
    if not embedded and stored.size and _in_range(stored.view(f"{order}{kind}{size}"), bits - unused, kind):
        return value
    raised = (stored.astype(f"u{size}") << unused).astype(f"u{size}")
    cleared: NDArray = np.asarray(raised.view(f"{kind}{size}") >> unused).view(f"u{size}")
    if not embedded:
        outside = stored[cleared != stored]
        if not outside.size or _is_padding(outside, clean, bits, unused):
            return value
    elif low:
        cleared = cleared >> low << low
    return cleared.astype(f"{order}u{size}").tobytes() + value[len(stored) * size :]


def _is_padding(outside: NDArray, clean: Dataset, bits: int, unused: int) -> bool:
    first = int(outside[0])
    if (outside != first).any():
        return False
    named = whole_number(clean, PADDING, -1) & ((1 << bits) - 1) if PADDING in clean else -1
    return first == named or (first >> (bits - unused)).bit_count() > 1


def _in_range(samples: NDArray, used: int, kind: str) -> bool:
    """Whether all samples fit their used bits: the quick answer for nearly every image."""
    lowest, highest = (-(1 << used - 1), (1 << used - 1) - 1) if kind == "i" else (0, (1 << used) - 1)
    return bool(samples.min() >= lowest and samples.max() <= highest)
