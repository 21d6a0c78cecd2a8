"""A table of every scan in a folder, ready for labels to be filled in."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medsynth.errors import DataError, RefusedError, UnreadableError, UsageError
from medsynth.imaging.dicom import SYNTHETIC, Found, Series, find_series
from medsynth.imaging.formats import is_other_volume, other_volume_grid
from medsynth.imaging.masks import images_of, looks_like_mask
from medsynth.imaging.nifti import is_nifti, nifti_affine, open_nifti
from medsynth.imaging.scan import column_lengths
from medsynth.progress import Progress

if TYPE_CHECKING:
    from medsynth.imaging.deidentify import Deidentifier

COLUMNS = (
    *("patient", "image", "series", "mask", "split"),
    *("modality", "description", "shape", "spacing_mm", "slices", "usable", "reason", "notes"),
)
LONE_MASK = "it looks like a mask, and no single image has its name; put it into the column `mask` of its image"
OTHER_GRID = (
    "it looks like a mask, but has another size than the image of its name; put it into the column `mask` of its image"
)


@dataclass(frozen=True)
class IndexRow:
    """One DICOM series, one volume of a series, or one file with a volume, judged by its header alone."""

    patient: str
    """Pseudonym; empty where the files do not say whose they are (NIfTI, or no PatientID)."""
    image: Path
    """The NIfTI file, the multi-frame DICOM file, or the innermost folder that holds the series."""
    series: str
    """SeriesInstanceUID, and after a `#` the part where a series holds several volumes; empty for other files."""
    modality: str
    description: str
    """Class of scan by the words of a DICOM header, one of `describe.NAMES`, or `mixed`; empty for other files."""
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    slices: int
    usable: bool
    reason: str
    """Why it is not usable."""
    notes: str = ""
    """What else to know: files left out because they repeat others."""
    mask: Path | None = None
    """The mask that goes with it by name."""


def index_folder(
    folder: Path, *, deidentifier: Deidentifier | None = None, progress: Progress | None = None
) -> list[IndexRow]:
    """One row per DICOM series and per volume in another file in `folder` and below, usable or not, sorted by path.

    A file whose name says mask is put beside the image of its name, or is a row that is not usable.

    Patients get the pseudonyms of `deidentifier`; without one they are numbered as they come, P1, P2, ... Raises
    UnreadableError where the folder is missing or holds no scan at all.
    """
    folder = Path(folder)
    found = find_series(folder, progress=progress)
    files = [path for path, _ in found.skipped if is_nifti(path) or is_other_volume(path)]
    if not found.series and not files:
        raise UnreadableError(f"expected DICOM series or NIfTI files in {folder}, found none; check the path")
    names: dict[str, str] = {}
    rows = []
    for series in found.series:
        if series.patient and series.patient not in names:
            names[series.patient] = deidentifier.patient(series.patient) if deidentifier else f"P{len(names) + 1}"
        rows.append(_series_row(series, found, names.get(series.patient, "")))
    rows += [_file_row(path) for path in files]
    return sorted(_with_masks(rows), key=lambda row: (row.image, row.series))


def _with_masks(rows: list[IndexRow]) -> list[IndexRow]:
    """The rows of images with their masks; rows of masks only where they have no image."""
    masks = {row.image: row for row in rows if not row.series and not row.modality and looks_like_mask(row.image)}
    others = [row for row in rows if row.image not in masks]
    alone = Counter(row.image for row in others)
    partners = images_of(masks, [row.image for row in others if alone[row.image] == 1])
    wanted = Counter(image for image in partners.values() if image is not None)
    by_image = {row.image: row for row in others}
    chosen: dict[Path, Path] = {}
    result = []
    for path, row in masks.items():
        image = partners[path]
        if not row.usable:
            result.append(row)
        elif image is None or wanted[image] > 1:
            result.append(replace(row, usable=False, reason=LONE_MASK))
        elif sorted(by_image[image].shape) not in ([], sorted(row.shape)):  # its axes may run in another order
            result.append(replace(row, usable=False, reason=OTHER_GRID))
        else:
            chosen[image] = path
    return [replace(row, mask=chosen.get(row.image)) for row in others] + result


def _series_row(series: Series, found: Found, patient: str) -> IndexRow:
    image = series.files[0] if len(series.files) == 1 else series.folder
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    reason = SYNTHETIC if series.synthetic else _ambiguity(series, found)
    try:
        stack = series.stack()
        shape, spacing = stack.shape, tuple(float(length) for length in column_lengths(stack.affine))
    except (DataError, RefusedError) as error:
        reason = str(error)
    return IndexRow(
        patient=patient,
        image=image,
        series=series.address,
        modality=series.modality,
        description=series.description,
        shape=shape,
        spacing_mm=spacing,
        slices=len(series.planes) or len(series.files),
        usable=not reason,
        reason=reason,
        notes=f"{series.copies} files left out that repeat others" if series.copies else "",
    )


def _ambiguity(series: Series, found: Found) -> str:
    """Why a series cannot be found again by folder and UID."""
    if series.series_uid:
        return ""
    rivals = [
        other
        for other in found.series
        if other is not series and other.modality and other.address in ("", series.address or other.address)
    ]
    if any(series.folder == file.parent or series.folder in file.parents for other in rivals for file in other.files):
        return "it has no SeriesInstanceUID and shares its folder with another series; move it to a folder of its own"
    return ""


def _file_row(path: Path) -> IndexRow:
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    reason = ""
    try:
        if is_nifti(path):
            image = open_nifti(path)
            shape, affine = tuple(int(size) for size in image.shape[:3]), nifti_affine(image)
        else:
            shape, affine = other_volume_grid(path)
        spacing = tuple(float(length) for length in column_lengths(affine))
    except (DataError, UsageError) as error:
        reason = str(error)
    slices = shape[2] if shape else 0
    return IndexRow("", path, "", "", "", shape, spacing, slices, usable=not reason, reason=reason)


def write_index(rows: Iterable[IndexRow], path: Path) -> None:
    """Write the rows as CSV, whole or not at all; images relative to its folder where they lie below it.

    `split` is left empty for the user, and so is `mask` where no file has the image's name; the columns of conditions
    are the user's to add.
    """
    path = Path(path)
    base = path.parent.resolve()
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(_cells(row, base) for row in rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _cells(row: IndexRow, base: Path) -> dict[str, str]:
    return {
        "patient": row.patient,
        "image": _relative(row.image, base),
        "series": row.series,
        "mask": "" if row.mask is None else _relative(row.mask, base),
        "split": "",
        "modality": row.modality,
        "description": row.description,
        "shape": "x".join(map(str, row.shape)),
        "spacing_mm": "x".join(f"{length:.6g}" for length in row.spacing_mm),
        "slices": str(row.slices),
        "usable": "yes" if row.usable else "no",
        "reason": row.reason,
        "notes": row.notes,
    }


def _relative(path: Path, base: Path) -> str:
    found = path.resolve()
    return found.relative_to(base).as_posix() if found.is_relative_to(base) else found.as_posix()
