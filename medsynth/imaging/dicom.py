"""DICOM series: found by their headers, de-identified in memory, read as one regular volume.

Nothing is read with pydicom's `force`, which would turn any text into a dataset. Messages name a file by its place in
the series and never repeat a header's value.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medsynth.errors import DataError, GeometryError, MedsynthError, UnreadableError
from medsynth.imaging.decode import read_whole, stored_frames
from medsynth.imaging.headers import DAMAGED_BESIDE, IMAGE_CLASSES, Fault, Group, Header, read_header
from medsynth.imaging.parts import parts_of, without_copies
from medsynth.imaging.planes import Plane, planes_of
from medsynth.imaging.quiet import quiet_pydicom
from medsynth.imaging.regular import order_of, regular_grid
from medsynth.imaging.scan import Scan, make_scan
from medsynth.imaging.stack import Stack, stack_planes
from medsynth.imaging.volume import Volume, physical
from medsynth.imaging.words import ARBITRARY, HU
from medsynth.progress import Progress, Silent

if TYPE_CHECKING:
    from medsynth.imaging.deidentify import Deidentifier

Irregular = Literal["refuse", "resample"]
SYNTHETIC = "expected scans of patients, found synthetic ones made by medsynth; keep them in a folder of their own"
CHANGED = "the files have changed since their headers were read; index the folder again"


@dataclass(frozen=True)
class Series:
    """The files of one series, or of one volume in it, sorted by path, and what their headers say about it."""

    files: tuple[Path, ...]
    modality: str
    """CT or MR by the SOP class; empty where the objects are not such images."""
    series_uid: str
    """SeriesInstanceUID; empty where the files have none."""
    patient: str = field(repr=False)
    """PatientID as received: for pseudonyms only, never to be shown or written."""
    planes: tuple[Plane, ...] = field(repr=False)
    images: tuple[tuple[int, int], ...] = field(repr=False)
    """For each plane its file's place in `files` and its frame."""
    part: str = ""
    """Which of several volumes of the series this is: `echo=2`; empty where there is one."""
    description: str = ""
    """Class of scan, see `describe`."""
    synthetic: bool = False
    """Made by medsynth, and so nothing to train on."""
    copies: int = 0
    """Files left out because they repeat one of these."""
    fault: str = ""
    """Why it cannot be used, geometry apart; empty if nothing in the headers speaks against it."""
    fault_kind: type[MedsynthError] = DataError

    @property
    def address(self) -> str:
        """What the column `series` of a table calls it: its UID, and its part after a `#`."""
        return f"{self.series_uid}#{self.part}" if self.part else self.series_uid

    @property
    def folder(self) -> Path:
        """The innermost folder that holds all its files."""
        return Path(os.path.commonpath([file.parent for file in self.files]))

    def check(self) -> None:
        """Raise the fault, if there is one."""
        if self.fault:
            raise self.fault_kind(self.fault)

    def stack(self) -> Stack:
        """Geometry by the headers; raises what `check` does, and GeometryError where this is no regular volume."""
        self.check()
        return stack_planes(self.planes)


@dataclass(frozen=True)
class Found:
    """What a folder holds: its series, and the files that belong to none, each with the reason."""

    series: list[Series]
    skipped: list[tuple[Path, str]]


def find_series(folder: Path, *, progress: Progress | None = None) -> Found:
    """DICOM series in `folder` and everything below it, by header alone; `folder` may also be one DICOM file.

    Grouped by SeriesInstanceUID wherever the files lie; files without one by folder, study and series number. Copies
    of one image count once. Where a series has several images at each position, and echo, time or kind tell them
    apart, each volume is a series of its own with a `part`. A damaged file makes every series that shares its folder
    unusable, because it may be the slice that is missing. Raises UnreadableError where the folder cannot be listed.
    """
    paths = list(_files(Path(folder)))
    groups: dict[Group, list[Header]] = {}
    skipped: list[tuple[Path, str]] = []
    damaged: set[Path] = set()
    with quiet_pydicom(), (progress or Silent()).task("reading headers", len(paths)) as advance:
        for path in paths:
            header = read_header(path)
            if isinstance(header, Header):
                groups.setdefault(header.group, []).append(header)
            else:
                reason, is_damaged = header
                skipped.append((path, reason))
                if is_damaged:
                    damaged.add(path.parent)
            advance(1)
        series = []
        while groups:
            _, headers = groups.popitem()
            distinct, copies = without_copies(headers)
            skipped += copies
            series += _series(distinct, len(copies), damaged=any(header.path.parent in damaged for header in distinct))
    return Found(sorted(series, key=lambda one: (one.files, one.part)), sorted(skipped))


def read_series(series: Series, deidentifier: Deidentifier, *, irregular: Irregular = "refuse") -> Scan:
    """The series as one scan [1, columns, rows, slices] with its RAS affine: CT in HU, MR in arbitrary units.

    Each dataset is de-identified in memory before anything else, and geometry and values are taken from the result.
    Rescale or lookup table are applied slice by slice; voxels are int16 where that is exact, else float32. With
    `irregular="resample"` a tilted gantry and unequal gaps are brought to a regular grid, and the scan's meta says
    under `resampled` what was done. Raises UnreadableError where a file is damaged or compressed in a way that cannot
    be decoded, GeometryError where there is no regular volume, PrivacyError where the pixels may name the patient.
    """
    series.check()
    order = _order(series.planes, irregular)
    planes = list(series.planes)
    total = len(series.files)
    wanted: dict[int, list[tuple[int, int]]] = {}
    for k, number in enumerate(order):
        file, frame = series.images[number]
        wanted.setdefault(file, []).append((frame, k))
    volume = Volume(len(order))
    with quiet_pydicom():
        for file, frames in wanted.items():
            which = f"file {file + 1} of {total} of the series"
            dataset = deidentifier.dataset(read_whole(series.files[file], which))
            found = planes_of(dataset)
            if max(frame for frame, _ in frames) >= len(found):
                raise UnreadableError(CHANGED)
            decoded = stored_frames(dataset, [frame for frame, _ in frames], which)
            for (frame, k), stored in zip(frames, decoded, strict=True):
                if not _means_the_same(found[frame], series.planes[order[k]]):
                    raise UnreadableError(CHANGED)
                planes[k] = found[frame]
                invert = found[frame].inverted and series.modality != "CT"
                volume.put(k, physical(stored, dataset, found[frame], which, invert=invert), which)
    unit = HU if series.modality == "CT" else ARBITRARY
    if _order(planes, irregular) != tuple(range(len(planes))):
        raise UnreadableError(CHANGED)
    try:
        affine = stack_planes(planes).affine
    except GeometryError:
        if irregular == "refuse":
            raise
        voxels, affine, done = regular_grid(volume.array, planes)
        return make_scan(voxels, affine, modality=series.modality, unit=unit, resampled=done)
    return make_scan(volume.array.transpose(2, 1, 0), affine, modality=series.modality, unit=unit)


def _means_the_same(plane: Plane, announced: Plane) -> bool:
    """Whether de-identification, or whoever wrote the file since, left the meaning of stored values as it was."""
    tables = [None if one.table is None else (one.table.first, one.table.entries) for one in (plane, announced)]
    values = [(one.slope, one.intercept, one.rescaled, one.inverted) for one in (plane, announced)]
    return tables[0] == tables[1] and values[0] == values[1]


def _order(planes: Sequence[Plane], irregular: Irregular) -> tuple[int, ...]:
    """The planes' places from the first slice to the last; raises GeometryError as `stack_planes` does."""
    if irregular == "refuse":
        return stack_planes(planes).order
    return order_of(planes)


def _files(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise UnreadableError("a folder cannot be listed; check that it exists and may be read") from error

    if folder.is_file():
        yield folder
        return
    if not folder.is_dir():
        raise UnreadableError(f"expected a folder or a DICOM file, found nothing at {folder}; check the path")
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))


def _series(headers: list[Header], copies: int, *, damaged: bool) -> list[Series]:
    """One series, or one for each of its volumes."""
    first = headers[0]
    faults = [header.fault for header in headers if header.fault is not None]
    if damaged:
        faults.append(DAMAGED_BESIDE)
    patients = len({header.patient for header in headers})
    if patients > 1:
        words = f"expected one patient in a series, found {patients} patients by their IDs; export it again, or correct the headers"
        faults.append(Fault(0, DataError, words))
    fault: Fault | None = min(faults, key=lambda one: one.rank, default=None)
    planes = [] if fault else [plane for header in headers for plane in header.planes]
    images = [] if fault else [(at, frame) for at, header in enumerate(headers) for frame in range(len(header.planes))]
    kinds = {header.description for header in headers}
    result = []
    for part, places in parts_of(planes) if planes else [("", ())]:
        used = sorted({images[place][0] for place in places}) if part else range(len(headers))
        renumbered = {at: number for number, at in enumerate(used)}
        members = [headers[at] for at in used]
        result.append(
            Series(
                files=tuple(header.path for header in members),
                modality=IMAGE_CLASSES.get(first.sop_class, ""),
                series_uid=first.group.series_uid,
                patient=first.patient,
                planes=tuple(planes[place] for place in places),
                images=tuple((renumbered[images[place][0]], images[place][1]) for place in places),
                part=part,
                description=_common({header.description for header in members} if part else kinds),
                synthetic=any(header.synthetic for header in members),
                copies=copies,
                fault="" if fault is None else fault.words,
                fault_kind=DataError if fault is None else fault.kind,
            )
        )
    return result


def _common(kinds: set[str]) -> str:
    return kinds.pop() if len(kinds) == 1 else "mixed"
