"""NIfTI files: read with every doubt raised, written with a fresh header that carries nothing over."""

from __future__ import annotations

import gzip
import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from medsynth.errors import DataError, GeometryError, UnreadableError
from medsynth.imaging.scan import (
    Scan,
    affine_of,
    check_affine,
    column_lengths,
    describe_mm,
    grid_distance_mm,
    make_scan,
)
from medsynth.imaging.words import ARBITRARY, HU

SUFFIXES = (".nii", ".nii.gz")
WRITTEN_TYPES = ("int16", "uint8", "float32")
MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1e3, "micron": 1e-3}
SPACING_AGREEMENT = 0.05
"""Share by which the header's voxel size and its affine may differ."""
FORM_AGREEMENT = 0.25
"""Share of the smallest voxel size by which sform and qform may place the volume's corners apart."""
READ_AT_ONCE = 1 << 24
MOST_INFLATION = 1100
"""gzip makes at most 1032 bytes out of one."""
DESCRIPTION_BYTES = 79
GZIP_LEVEL = 4
"""On CT, a third of the time of level 9 for three percent more bytes."""

VOXEL_ERRORS = (EOFError, zlib.error, OSError, ValueError, OverflowError, MemoryError)
HEADER_ERRORS = (*VOXEL_ERRORS, ImageFileError, HeaderDataError, TypeError, KeyError, struct.error)
AGAIN = "copy or export the file again"


def is_nifti(path: Path) -> bool:
    """Whether the name says NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, *, modality: str = "", unit: str | None = None) -> Scan:
    """The volume of a NIfTI-1 or -2 file as a scan [1, X, Y, Z] in RAS mm; a fourth axis of size 1 is dropped.

    A NIfTI header knows neither modality nor unit; `unit` follows `modality` unless given. Voxels are uint8 or int16
    where the file's are integers and fit, else float32, with the header's scaling applied. Raises UnreadableError
    (missing, truncated), DataError (several volumes, colour or complex voxels, NaN or infinity) or GeometryError.
    """
    image = open_nifti(Path(path))
    affine = nifti_affine(image)
    raw = _scaled(image)
    voxels = plain_voxels(raw.reshape(raw.shape[:3]))
    return make_scan(voxels, affine, modality=modality, unit=unit_for(modality) if unit is None else unit)


def unit_for(modality: str) -> str:
    """Hounsfield units for CT, arbitrary ones for every other modality, empty where the modality is not known."""
    return {"CT": HU, "": ""}.get(modality, ARBITRARY)


def open_nifti(path: Path) -> Any:
    """The nibabel image of one 3-D volume of real numbers, voxels not yet read.

    Raises UnreadableError or DataError, naming what to do.
    """
    if not path.is_file():
        raise UnreadableError(f"expected a NIfTI file, found nothing at {path}; check the path")
    try:
        with _quiet():
            image = nib.load(path)
    except HEADER_ERRORS:
        raise UnreadableError(f"not a NIfTI file, or cut short; {AGAIN}") from None
    if not isinstance(image, Nifti1Image):
        raise UnreadableError("expected NIfTI in one file, found another format; convert it to .nii.gz")
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind not in "iufb":
        name = "colour" if kind.fields is not None else "complex" if kind.kind == "c" else str(kind)
        raise DataError(f"expected one real number per voxel, found {name} voxels; convert them first")
    shape = image.shape
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise DataError(f"expected one 3-D volume, found the shape {shape}; write one file per volume")
    if min(shape) < 1:
        raise DataError(f"expected voxels, found the shape {shape}; export the file again")
    _check_size(path, image)
    return image


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off every log what nibabel reports about a header that it repairs; `_raw_voxel_size` judges that."""
    level = imageglobals.logger.level
    imageglobals.logger.setLevel(logging.CRITICAL + 1)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        imageglobals.logger.setLevel(level)


def _voxel_bytes(image: Any) -> int:
    return math.prod(image.shape) * int(image.get_data_dtype().itemsize)


def _check_size(path: Path, image: Any) -> None:
    """Whether the file can hold the voxels that its header declares, before memory is taken for them."""
    size = path.stat().st_size
    room = size * MOST_INFLATION if path.name.lower().endswith(".gz") else size
    if image.dataobj.offset + _voxel_bytes(image) > room:
        raise UnreadableError(f"expected the voxels that the header declares, found a file too short for them; {AGAIN}")


def _scaled(image: Any) -> NDArray:
    """The voxels with the header's scaling applied, read piece by piece: memory grows only with what is there."""
    count = _voxel_bytes(image)
    data = bytearray()
    try:
        with ImageOpener(image.get_filename()) as file:
            file.seek(image.dataobj.offset)
            while len(data) < count and (part := file.read(min(READ_AT_ONCE, count - len(data)))):
                data += part
        if len(data) < count:
            raise EOFError
        stored = np.frombuffer(data, dtype=image.get_data_dtype()).reshape(image.shape, order="F")
        with np.errstate(all="ignore"):  # what overflows is infinite then, and refused as such
            return np.asanyarray(apply_read_scaling(stored, image.dataobj.slope, image.dataobj.inter))
    except VOXEL_ERRORS:
        raise UnreadableError(f"the voxels end too early or are damaged; {AGAIN}") from None


def nifti_affine(image: Any) -> NDArray[np.float64]:
    """Index -> RAS mm, from the sform, or the qform where there is no sform.

    Raises GeometryError where the file has neither, where its two spacings contradict each other, and for what
    `check_affine` refuses.
    """
    header = image.header
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise GeometryError(
            "the NIfTI header has neither sform nor qform, so left and right are unknown; convert it from DICOM again"
        )
    pixdim = _raw_voxel_size(image)
    if not np.isfinite(pixdim).all() or (pixdim == 0).any():
        raise GeometryError(f"expected positive voxel sizes, found {describe_mm(pixdim)}; set pixdim in the header")
    spacing = column_lengths(image.affine)
    if (np.abs(spacing - pixdim) > SPACING_AGREEMENT * pixdim).any():
        raise GeometryError(
            f"the NIfTI header states two voxel sizes, {describe_mm(pixdim)} and (by its affine) "
            f"{describe_mm(spacing)}; set the right one"
        )
    try:
        scale = MILLIMETRES[header.get_xyzt_units()[0]]
    except KeyError:
        raise GeometryError("the unit of the voxel sizes is none that NIfTI knows; set xyzt_units to mm") from None
    _check_forms(image, spacing)
    return check_affine(np.diag([scale, scale, scale, 1.0]) @ image.affine)


def _check_forms(image: Any, spacing: NDArray) -> None:
    """Raise GeometryError where sform and qform both claim to say where the volume lies, and do not say the same."""
    header = image.header
    if not int(header["sform_code"]) or not int(header["qform_code"]):
        return
    try:
        qform = header.get_qform()
    except HEADER_ERRORS:
        raise GeometryError(
            "the qform of the NIfTI header is no rotation; set qform_code to 0 if the sform is right"
        ) from None
    distance = grid_distance_mm(tuple(image.shape[:3]), header.get_sform(), qform)
    if not distance <= FORM_AGREEMENT * float(spacing.min()):
        raise GeometryError(
            f"sform and qform of the NIfTI header place the volume up to {distance:.3g} mm apart; set the code of the wrong "
            "one to 0"
        )


def _raw_voxel_size(image: Any) -> NDArray[np.float64]:
    """The file's own pixdim, unsigned: nibabel has already put 1 in the place of every 0."""
    with ImageOpener(image.get_filename()) as file:
        raw = type(image.header).from_fileobj(file, check=False)
    return np.abs(np.asarray(raw["pixdim"][1:4], dtype=np.float64))


def plain_voxels(raw: NDArray) -> NDArray:
    """Voxels as uint8 or int16 where they are integers that fit, else float32. Raises DataError for NaN and infinity."""
    if raw.dtype.kind == "f":
        broken = int(raw.size - np.count_nonzero(np.isfinite(raw)))
        if broken:
            raise DataError(f"expected finite voxels, found {broken} that are NaN or infinite; replace them first")
        if np.abs(raw).max() > np.finfo(np.float32).max:
            raise DataError("voxels exceed what float32 can hold; rescale them first")
        return np.ascontiguousarray(raw, dtype=np.float32)
    if raw.dtype in (np.uint8, np.bool_):
        return np.ascontiguousarray(raw, dtype=np.uint8)
    limits = np.iinfo(np.int16)
    if raw.min() >= limits.min and raw.max() <= limits.max:
        return np.ascontiguousarray(raw, dtype=np.int16)
    return np.ascontiguousarray(raw, dtype=np.float32)


def write_nifti(scan: Scan, path: Path, *, description: str = "") -> None:
    """Write a scan of one channel as `.nii` or `.nii.gz`, whole or not at all.

    int16, uint8 or float32, as the voxels are. The header is made new: affine as sform and qform (scanner), mm, and
    `description` (at most 79 ASCII characters); gzip carries neither name nor time, so equal scans give equal bytes.
    Raises DataError for other voxels or names; OSError where the disk refuses.
    """
    path = Path(path)
    if not is_nifti(path):
        raise DataError(f"expected a name ending in .nii or .nii.gz, found {path.name}")
    if scan.shape[0] != 1:
        raise DataError(f"expected one channel, found {scan.shape[0]}; write one file per channel")
    voxels = scan.as_tensor()[0].cpu().numpy()
    if voxels.dtype.name not in WRITTEN_TYPES:
        raise DataError(f"expected voxels of {', '.join(WRITTEN_TYPES)}, found {voxels.dtype}; convert them first")
    text = description.encode("ascii")
    if len(text) > DESCRIPTION_BYTES:
        raise DataError(f"expected a description of at most {DESCRIPTION_BYTES} characters, found {len(text)}")
    affine = affine_of(scan)
    image = Nifti1Image(voxels, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner", strip_shears=True)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = text
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            _stream(image, file, compressed=path.name.lower().endswith(".gz"))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _stream(image: Any, file: BinaryIO, *, compressed: bool) -> None:
    if not compressed:
        image.to_stream(file)
        return
    with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) as packed:
        image.to_stream(packed)
