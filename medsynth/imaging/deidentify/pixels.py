"""What can hide in pixel data beside pixels: bytes after the last sample, and overlays in unused high bits."""

from __future__ import annotations

import numpy as np
import pydicom.uid
from pydicom.dataset import Dataset

from medsynth.errors import PrivacyError
from medsynth.imaging.deidentify.elements import EXPLICIT_LITTLE, encoded, encoding_of, whole_number

OVERLAY_GROUPS = range(0x6000, 0x6020, 2)
PIXEL_DATA, ROWS, COLUMNS, SAMPLES, FRAMES = 0x7FE00010, 0x00280010, 0x00280011, 0x00280002, 0x00280008
BITS_ALLOCATED, HIGH_BIT, SIGNED = 0x00280100, 0x00280102, 0x00280103


def clean_pixel_element(source: Dataset, clean: Dataset) -> None:
    """Cut native pixel data in `clean` to its samples, and clear overlays that `source` embeds in them.

    Pixel values, and the bytes of every image without such extras, stay untouched. Raises PrivacyError for an overlay
    inside samples that cannot be cleared without decoding.
    """
    if PIXEL_DATA not in clean:
        return
    embedded = _has_embedded_overlay(source)
    bits = whole_number(clean, BITS_ALLOCATED, 0)
    if embedded and (_is_compressed(source) or bits != 16):
        raise PrivacyError("expected no graphics in the pixels, found an overlay inside them; leave the image out")
    if _is_compressed(source):
        return
    element = clean.get_item(PIXEL_DATA)
    value = element.value
    if not isinstance(value, bytes):
        return
    length = _sample_bytes(clean, bits)
    changed = value[: length + length % 2] if 0 < length < len(value) - 1 else value
    encoding = encoding_of(clean, encoding_of(source, EXPLICIT_LITTLE))
    if embedded:
        changed = _without_high_bits(changed[: len(changed) // 2 * 2], clean, little=encoding.little)
    if changed is not value:
        clean[PIXEL_DATA] = encoded(PIXEL_DATA, element.VR or "OW", changed, encoding)


def _is_compressed(source: Dataset) -> bool:
    meta = getattr(source, "file_meta", None) or Dataset()
    syntax = str(meta.get("TransferSyntaxUID") or "")
    return bool(syntax) and pydicom.uid.UID(syntax).is_encapsulated


def _has_embedded_overlay(source: Dataset) -> bool:
    """PS3.3-2004 C.9.2: overlay rows without overlay data mean bits of the pixel samples."""
    return any((group, 0x0010) in source and (group, 0x3000) not in source for group in OVERLAY_GROUPS)


def _sample_bytes(clean: Dataset, bits: int) -> int:
    frames = whole_number(clean, FRAMES, 1)
    samples = whole_number(clean, ROWS, 0) * whole_number(clean, COLUMNS, 0) * whole_number(clean, SAMPLES, 1)
    return samples * frames * bits // 8


def _without_high_bits(value: bytes, clean: Dataset, *, little: bool) -> bytes:
    """Sample bits above HighBit set to zero, or to the sign where samples are signed."""
    unused = 15 - min(15, whole_number(clean, HIGH_BIT, 15))
    kind = "i2" if whole_number(clean, SIGNED, 0) == 1 else "u2"
    order = "<" if little else ">"
    raised = (np.frombuffer(value, f"{order}u2").astype("u2") << unused).astype("u2")
    return np.asarray(raised.view(kind) >> unused).view("u2").astype(f"{order}u2").tobytes()
