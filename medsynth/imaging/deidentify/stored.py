"""Stored values of pixel data, and pixel data of stored values (PS3.3 C.7.6.3, PS3.5 section 8)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_decoder
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from medsynth.errors import UnreadableError
from medsynth.imaging.decode import is_panic, is_plain, lossless_frame
from medsynth.imaging.deidentify.elements import DAMAGE, EXPLICIT_LITTLE, encoding_of
from medsynth.imaging.headers import PLUGINS
from medsynth.imaging.quiet import quiet_pydicom

DECODE_ERRORS = (*DAMAGE, AttributeError, KeyError, IndexError, RuntimeError, MemoryError, ArithmeticError)
UNDECODABLE = "expected pixels that can be decoded, found missing, damaged or unsupported ones; export the file again"
EXTENDED_OFFSETS = (0x7FE00001, 0x7FE00002)
ALWAYS_LOSSY = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
"""JPEG Baseline and Extended. JPEG-LS and JPEG 2000 have syntaxes that may be lossy or not: only their header knows."""

NATIVE = frozenset(
    {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
)
"""Transfer syntaxes without compression of pixels (PS3.5 A.1 to A.3, A.5)."""

SHAPE_KEYWORDS = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)


def syntax_of(dataset: Dataset) -> UID:
    """The transfer syntax; where the file's head does not name one, that of the encoding in which the dataset was read."""
    meta = getattr(dataset, "file_meta", None) or Dataset()
    named = str(meta.get("TransferSyntaxUID") or "")
    if named:
        return UID(named)
    encoding = encoding_of(dataset, EXPLICIT_LITTLE)
    if encoding.implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if encoding.little else ExplicitVRBigEndian


def stored_values(dataset: Dataset, *, pixels: bytes | None = None) -> tuple[NDArray, str]:
    """Stored values [frames, rows, columns, samples], and the photometric interpretation in which they are.

    `pixels` stands in for the dataset's own pixel data. Raises UnreadableError where they cannot be decoded.
    """
    with quiet_pydicom():
        try:
            holder = Dataset()
            holder.file_meta = FileMetaDataset()
            holder.file_meta.TransferSyntaxUID = syntax = syntax_of(dataset)
            for keyword in SHAPE_KEYWORDS:
                if keyword in dataset:
                    holder[keyword] = dataset[keyword]
            holder.set_original_encoding(*encoding_of(dataset, EXPLICIT_LITTLE), "iso8859")
            holder["PixelData"] = dataset["PixelData"]
            if pixels is not None:
                holder["PixelData"] = DataElement(0x7FE00010, dataset["PixelData"].VR, pixels)
            array, photometric = _decoded(holder, syntax)
            rows, columns, samples = int(holder.Rows), int(holder.Columns), int(holder.get("SamplesPerPixel") or 1)
            return array.reshape(-1, rows, columns, samples), photometric
        except DECODE_ERRORS:
            raise UnreadableError(UNDECODABLE) from None
        except BaseException as error:
            if not is_panic(error):
                raise
            raise UnreadableError(UNDECODABLE) from None


def _decoded(holder: Dataset, syntax: UID) -> tuple[NDArray, str]:
    """All frames and their photometric interpretation, by the one decoder that damaged pixels cannot crash.

    RLE by pydicom's own, which minds none of the header's unused offsets: those may hold what has to be cleaned.
    """
    plugin = "pydicom" if syntax == RLELossless else PLUGINS.get(str(syntax), "")
    if syntax in NATIVE:
        array, meta = get_decoder(syntax).as_array(holder, raw=True)
    elif plugin == "gdcm":
        if not is_plain(holder):
            raise ValueError(UNDECODABLE)
        frames = range(int(holder.get("NumberOfFrames") or 1))
        return np.stack([lossless_frame(holder, frame) for frame in frames]), str(holder.PhotometricInterpretation)
    elif plugin:
        array, meta = get_decoder(syntax).as_array(holder, raw=True, decoding_plugin=plugin)
    else:
        raise NotImplementedError(UNDECODABLE)
    return np.asarray(array), str(meta["photometric_interpretation"])


def put_stored_values(clean: Dataset, values: NDArray, photometric: str) -> None:
    """Write `values` [frames, rows, columns, samples] as native pixel data; a compressed dataset becomes Explicit VR
    Little Endian.

    What the pixels went through before stays said: attributes of lossy compression are kept, and added where the
    transfer syntax that goes was the only one to say so.
    """
    syntax = syntax_of(clean)
    if syntax not in NATIVE:
        replace(clean.file_meta, "TransferSyntaxUID", ExplicitVRLittleEndian)
        clean.set_original_encoding(False, True)
        if str(syntax) in ALWAYS_LOSSY:
            replace(clean, "LossyImageCompression", "01")
        for tag in EXTENDED_OFFSETS:
            clean.pop(tag, None)
    bits = int(clean.BitsAllocated)
    if bits == 1:
        data, vr = np.packbits(values.astype(bool).ravel(), bitorder="little").tobytes(), "OB"
    else:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        kind = "i" if int(clean.PixelRepresentation) == 1 else "u"
        data, vr = values.astype(f"{order}{kind}{bits // 8}").tobytes(), "OB" if bits == 8 else "OW"
    if values.shape[-1] > 1:
        replace(clean, "PlanarConfiguration", 0)
    replace(clean, "PhotometricInterpretation", photometric)
    clean["PixelData"] = DataElement(0x7FE00010, vr, data + b"\0" * (len(data) % 2))


def replace(dataset: Dataset, keyword: str, value: Any) -> None:
    """Give an attribute a new element. Setting its value would change the element itself, which the dataset may share
    with the one it was made from."""
    tag = Tag(keyword)
    dataset[tag] = DataElement(tag, dictionary_VR(tag), value)
