"""NRRD and MetaImage volumes, read by SimpleITK where it is installed.

SimpleITK fills what a header leaves out with an identity, so the header's own text is looked at first: what does not
say where the volume lies, in which directions and how large a voxel is, is refused.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsynth.errors import DataError, GeometryError, UnreadableError, UsageError
from medsynth.imaging.nifti import MOST_INFLATION, plain_voxels, unit_for
from medsynth.imaging.scan import Scan, check_affine, make_scan

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
LONGEST_HEADER = 1 << 20
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SPACES = {
    *("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps"),
}
META_NEEDS = (("elementspacing",), ("transformmatrix", "rotation", "orientation"), ("offset", "position", "origin"))
AGAIN = "copy or export the file again"


def is_other_volume(path: Path) -> bool:
    """Whether the name says NRRD or MetaImage."""
    return path.name.lower().endswith(SUFFIXES)


def read_other_volume(path: Path, *, modality: str = "") -> Scan:
    """The volume of an NRRD or MetaImage file as a scan [1, X, Y, Z] in RAS mm.

    Raises UsageError where SimpleITK is missing, UnreadableError (missing, truncated), DataError (several values per
    voxel, several volumes, NaN) or GeometryError (no or no regular place in the world).
    """
    reader, _, affine = _opened(Path(path))
    try:
        image = reader.Execute()
        voxels = _simpleitk().GetArrayFromImage(image)
    except (RuntimeError, MemoryError):
        raise UnreadableError(f"the voxels end too early or are damaged; {AGAIN}") from None
    return make_scan(plain_voxels(voxels.transpose(2, 1, 0)), affine, modality=modality, unit=unit_for(modality))


def other_volume_grid(path: Path) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Voxels along each axis and the RAS affine, by the header alone; raises as `read_other_volume` does."""
    _, shape, affine = _opened(Path(path))
    return shape, affine


def _simpleitk() -> Any:
    if importlib.util.find_spec("SimpleITK") is None:
        raise UsageError(
            "NRRD and MetaImage files are read by SimpleITK, which is not installed; "
            "pip install 'medsynth-diffusion[formats]', or convert them to .nii.gz"
        )
    import SimpleITK

    return SimpleITK


def _opened(path: Path) -> tuple[Any, tuple[int, int, int], NDArray[np.float64]]:
    sitk = _simpleitk()
    if not path.is_file():
        raise UnreadableError(f"expected a volume, found nothing at {path}; check the path")
    held = _check_header(path)
    sitk.ProcessObject.GlobalWarningDisplayOff()  # ITK's warnings quote names of files
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
    try:
        reader.ReadImageInformation()
        shape = tuple(int(size) for size in reader.GetSize())
        directions = np.array(reader.GetDirection())
        spacing, origin = np.array(reader.GetSpacing()), np.array(reader.GetOrigin())
        components = int(reader.GetNumberOfComponents())
        kind = str(sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    except (RuntimeError, MemoryError):
        raise UnreadableError(f"not a volume that SimpleITK can read, or cut short; {AGAIN}") from None
    if components != 1 or "complex" in kind:
        raise DataError("expected one real number per voxel, found several; write one file per component")
    if len(shape) != 3:
        raise DataError(f"expected one 3-D volume, found {len(shape)} axes; write one file per volume")
    if math.prod(shape) > held * MOST_INFLATION or min(shape) < 1:
        raise UnreadableError(f"expected the voxels that the header declares, found a file too short for them; {AGAIN}")
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = directions.reshape(3, 3) * spacing, origin
    return reader, (shape[0], shape[1], shape[2]), check_affine(LPS_TO_RAS @ lps)


def _check_header(path: Path) -> int:
    """Raise where the header's text leaves its place or its data's place open; the bytes that hold header and data."""
    with path.open("rb") as file:
        raw = file.read(LONGEST_HEADER)
    separator = ":" if path.suffix.lower() in (".nrrd", ".nhdr") else "="
    fields: dict[str, str] = {}
    for line in raw.splitlines():
        text = line.decode("latin-1").strip()
        if separator == ":" and not text:
            break
        key, found, value = text.partition(separator)
        if found and not key.startswith("#"):
            fields[key.strip().lower()] = value.lstrip("=").strip()
        if key.strip().lower() == "elementdatafile":
            break
    if separator == ":":
        if not raw.startswith(b"NRRD"):
            raise UnreadableError(f"not an NRRD file, or cut short; {AGAIN}")
        if fields.get("space", "").lower() not in SPACES or "space directions" not in fields:
            raise GeometryError(
                "the NRRD header does not say where left and right are (space, space directions); convert it from DICOM again"
            )
        data = fields.get("data file", fields.get("datafile", ""))
    else:
        if not all(any(name in fields for name in names) for names in META_NEEDS):
            raise GeometryError(
                "the MetaImage header lacks ElementSpacing, TransformMatrix or Offset; convert it from DICOM again"
            )
        data = fields.get("elementdatafile", "")
        data = "" if data.upper() == "LOCAL" else data
    if not data:
        return path.stat().st_size
    detached = path.parent / data
    if Path(data).name != data or not detached.is_file():
        raise UnreadableError("expected the voxels in one file beside the header, found none there; write one file")
    return path.stat().st_size + detached.stat().st_size
