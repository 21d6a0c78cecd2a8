"""Pixels of DICOM objects: read whole, and decoded to stored values frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels import iter_pixels, pixel_array

from medsynth.errors import UnreadableError
from medsynth.imaging.apart import Image, decode_apart
from medsynth.imaging.fields import text, whole
from medsynth.imaging.headers import PLUGINS
from medsynth.imaging.planes import GEOMETRY_TAGS
from medsynth.imaging.walk import DEFLATED, IMPLICIT, PIXEL_DATA, READ_ERRORS, read_elements

DECODE_ERRORS = (*READ_ERRORS, RuntimeError)
LARGEST_SIDE = 1 << 14
"""Rows or columns of an image: four times what any detector has."""

ROWS, COLUMNS, FRAMES, SAMPLES, SYNTAX = 0x00280010, 0x00280011, 0x00280008, 0x00280002, 0x00020010
BITS_ALLOCATED, BITS_STORED, HIGH_BIT, SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
DESCRIBED = (ROWS, COLUMNS, BITS_ALLOCATED, BITS_STORED, SIGNED, SAMPLES)
NATIVE = {IMPLICIT, "1.2.840.10008.1.2.1", DEFLATED}

READ_TAGS = GEOMETRY_TAGS | {
    *(0x00080008, 0x00080016, 0x00080018, 0x00080060, 0x00080064),  # kind of object
    *(0x00080070, 0x00081090),  # device: rules say where it burns in text
    *(0x00081030, 0x0008103E, 0x00321060, 0x00180015, 0x00181030, 0x00082218, 0x00280301, 0x00280302),  # what is shown
    *(0x00100010, 0x00100020, 0x00100030, 0x0020000D, 0x0020000E, 0x00200052),  # whose it is: for the pseudonym
    *(0x00280002, 0x00280006, 0x00280102, 0x00280120, 0x7FE00001, 0x7FE00002),  # how pixels are stored
    *(group << 16 | element for group in range(0x6000, 0x6020, 2) for element in (0x0010, 0x3000)),  # overlays
}
"""All that reading takes from a file: de-identification has nothing else to remove, and its checks see what they need."""


def read_whole(path: Path, which: str) -> Dataset:
    """The elements of `READ_TAGS` and the pixels of a file that messages call `which`. Raises UnreadableError."""
    try:
        dataset = read_elements(path, READ_TAGS, pixels=True)
        # pydicom takes the end of the file for the end of the dataset, wherever that is.
        if PIXEL_DATA not in dataset:
            raise UnreadableError(f"{which} ends before its pixels do; export the series again")
        if max(whole(dataset, ROWS, 0), whole(dataset, COLUMNS, 0)) > LARGEST_SIDE:
            raise UnreadableError(f"{which} claims more rows or columns than any image has; export the series again")
    except (InvalidDicomError, *READ_ERRORS):
        raise UnreadableError(f"{which} cannot be read; export the series again") from None
    return dataset


def stored_frames(dataset: Dataset, frames: Iterable[int], which: str) -> Iterator[NDArray]:
    """Stored values [rows, columns] of the frames, one after the other. Raises UnreadableError."""
    wanted = list(frames)
    plugin = PLUGINS.get(text(dataset.file_meta, SYNTAX), "")
    damaged = UnreadableError(f"the pixels of {which} are missing, cut short or damaged; export the series again")
    try:
        native = _native(dataset)
        if native is not None:
            yield from native[wanted] if len(native) > 1 else native
        elif plugin and not (is_plain(dataset) and whole(dataset, SAMPLES, 1) == 1):
            raise damaged
        elif plugin == "gdcm":
            for frame in wanted:
                yield lossless_frame(dataset, frame)
        elif len(wanted) == 1:
            yield np.asarray(pixel_array(dataset, index=wanted[0], raw=True, decoding_plugin=plugin))
        else:
            yield from iter_pixels(dataset, raw=True, indices=wanted, decoding_plugin=plugin)
    except DECODE_ERRORS:
        raise damaged from None
    except BaseException as error:
        if not is_panic(error):
            raise
        raise damaged from None


def is_panic(error: BaseException) -> bool:
    """Whether the RLE decoder gave up: it is written in Rust and ends in a panic, which has no name to import."""
    return type(error).__module__ == "pyo3_runtime"


def lossless_frame(dataset: Dataset, frame: int) -> NDArray:
    """One frame of JPEG lossless [rows, columns], [rows, columns, 3] in colour, decoded in a process apart.

    Raises NotDecodedError and `DECODE_ERRORS`.
    """
    codestream = get_frame(dataset[PIXEL_DATA].value, frame, number_of_frames=whole(dataset, FRAMES, 1))
    process = int(text(dataset.file_meta, SYNTAX).rpartition(".")[2])
    described = [whole(dataset, tag, 1 if tag == SAMPLES else 0) for tag in DESCRIBED]
    return decode_apart(codestream, Image(process, *described))


def is_plain(dataset: Dataset) -> bool:
    """Whether pixels are described as decoders expect: some end the process where they are not."""
    bits, stored, high = (whole(dataset, tag, 0) for tag in (BITS_ALLOCATED, BITS_STORED, HIGH_BIT))
    sign, samples = whole(dataset, SIGNED, 0), whole(dataset, SAMPLES, 1)
    return bits in (8, 16) and 0 < stored <= bits and high == stored - 1 and sign in (0, 1) and samples in (1, 3)


def _native(dataset: Dataset) -> NDArray | None:
    """Uncompressed frames [frames, rows, columns] where they lie; None where pydicom must decode or correct them."""
    value = dataset[PIXEL_DATA].value
    bits, stored = whole(dataset, BITS_ALLOCATED, 0), whole(dataset, BITS_STORED, 0)
    if text(dataset.file_meta, SYNTAX) not in NATIVE or not isinstance(value, bytes):
        return None
    if bits not in (8, 16) or not 0 < stored <= bits or whole(dataset, SAMPLES, 1) != 1:
        return None
    shape = whole(dataset, FRAMES, 1), whole(dataset, ROWS, 0), whole(dataset, COLUMNS, 0)
    count = shape[0] * shape[1] * shape[2]
    if not 0 < count * bits // 8 <= len(value):
        return None
    signed = whole(dataset, SIGNED, 0) == 1
    frames = np.frombuffer(value, f"<{'i' if signed else 'u'}{bits // 8}", count).reshape(shape)
    if stored < bits:
        low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
        if frames.min() < low or frames.max() > high:
            return None
    return frames
