"""A table of every scan in a folder, ready for labels to be filled in."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsynth.errors import DataError, RefusedError, UnreadableError
from medsynth.imaging.dicom import Found, Series, find_series
from medsynth.imaging.nifti import is_nifti, nifti_affine, open_nifti
from medsynth.imaging.scan import column_lengths
from medsynth.progress import Progress

if TYPE_CHECKING:
    from medsynth.imaging.deidentify import Deidentifier

COLUMNS = (
    *("patient", "image", "series", "mask", "split"),
    *("modality", "shape", "spacing_mm", "slices", "usable", "reason"),
)


@dataclass(frozen=True)
class IndexRow:
    """One DICOM series or NIfTI file, judged by its header alone."""

    patient: str
    """Pseudonym; empty where the files do not say whose they are (NIfTI, or no PatientID)."""
    image: Path
    """The NIfTI file, the multi-frame DICOM file, or the innermost folder that holds the series."""
    series: str
    """SeriesInstanceUID; empty for NIfTI."""
    modality: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    slices: int
    usable: bool
    reason: str
    """Why it is not usable."""


def index_folder(
    folder: Path, *, deidentifier: Deidentifier | None = None, progress: Progress | None = None
) -> list[IndexRow]:
    """One row per DICOM series and per NIfTI file in `folder` and below, usable or not, sorted by path.

    Patients get the pseudonyms of `deidentifier`; without one they are numbered as they come, P1, P2, ... Raises
    UnreadableError where the folder is missing or holds no scan at all.
    """
    folder = Path(folder)
    found = find_series(folder, progress=progress)
    niftis = [path for path, _ in found.skipped if is_nifti(path)]
    if not found.series and not niftis:
        raise UnreadableError(f"expected DICOM series or NIfTI files in {folder}, found none; check the path")
    names: dict[str, str] = {}
    rows = []
    for series in found.series:
        if series.patient and series.patient not in names:
            names[series.patient] = deidentifier.patient(series.patient) if deidentifier else f"P{len(names) + 1}"
        rows.append(_series_row(series, found, names.get(series.patient, "")))
    rows += [_nifti_row(path) for path in niftis]
    return sorted(rows, key=lambda row: (row.image, row.series))


def _series_row(series: Series, found: Found, patient: str) -> IndexRow:
    image = series.files[0] if len(series.files) == 1 else series.folder
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    reason = _ambiguity(series, found)
    try:
        stack = series.stack()
        shape, spacing = stack.shape, tuple(float(length) for length in column_lengths(stack.affine))
    except (DataError, RefusedError) as error:
        reason = str(error)
    return IndexRow(
        patient=patient,
        image=image,
        series=series.series_uid,
        modality=series.modality,
        shape=shape,
        spacing_mm=spacing,
        slices=len(series.planes) or len(series.files),
        usable=not reason,
        reason=reason,
    )


def _ambiguity(series: Series, found: Found) -> str:
    """Why a series cannot be found again by folder and UID."""
    if series.series_uid:
        return ""
    rivals = [other for other in found.series if other is not series and other.modality]
    if any(series.folder == file.parent or series.folder in file.parents for other in rivals for file in other.files):
        return "it has no SeriesInstanceUID and shares its folder with another series; move it to a folder of its own"
    return ""


def _nifti_row(path: Path) -> IndexRow:
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    reason = ""
    try:
        image = open_nifti(path)
        shape = tuple(int(size) for size in image.shape[:3])
        spacing = tuple(float(length) for length in column_lengths(nifti_affine(image)))
    except DataError as error:
        reason = str(error)
    return IndexRow("", path, "", "", shape, spacing, shape[2] if shape else 0, not reason, reason)


def write_index(rows: Iterable[IndexRow], path: Path) -> None:
    """Write the rows as CSV, whole or not at all; images relative to its folder where they lie below it.

    `mask` and `split` are left empty for the user, as are the columns of conditions, which the user adds.
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
    image = row.image.resolve()
    return {
        "patient": row.patient,
        "image": image.relative_to(base).as_posix() if image.is_relative_to(base) else image.as_posix(),
        "series": row.series,
        "mask": "",
        "split": "",
        "modality": row.modality,
        "shape": "x".join(map(str, row.shape)),
        "spacing_mm": "x".join(f"{length:.6g}" for length in row.spacing_mm),
        "slices": str(row.slices),
        "usable": "yes" if row.usable else "no",
        "reason": row.reason,
    }
