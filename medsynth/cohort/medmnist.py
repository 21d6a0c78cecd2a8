"""MedMNIST 3D files as a cohort (Yang 2023, MedMNIST v2: `{train,val,test}_images` and `_labels` in one `.npz`).

The voxels are bytes without a unit, an orientation or a spacing; the file's own split is kept, and as it names no
patients, every volume counts as one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsynth.cohort.table import Mistakes
from medsynth.config.cohort import CategoryCondition, Condition, MedmnistCohort
from medsynth.errors import CohortError, UnreadableError

PARTS = {"train": "train", "val": "validation", "test": "test"}
"""The file's word for a split -> ours."""


@dataclass(frozen=True)
class MedmnistCase:
    """One volume. `row` counts through the splits in the file's order, from 1."""

    row: int
    patient: str
    split: str
    label: str
    voxels: NDArray[np.uint8]
    """[X, Y, Z], taken in the order in which the file stores them."""


def read_medmnist(
    settings: MedmnistCohort, conditions: Mapping[str, Condition] | None = None
) -> Iterator[MedmnistCase]:
    """The volumes of a MedMNIST 3D file; one split is in memory at a time.

    The file is checked before the first volume comes out. Raises UnreadableError where it is no `.npz` of plain arrays,
    CohortError with everything in it that is not MedMNIST 3D or, given `conditions`, not among the label's values.
    """
    path = Path(settings.npz)
    if not path.is_file():
        raise UnreadableError(f"{path}: expected a MedMNIST .npz file, found nothing there; correct cohort.npz")
    labels = _check(path, _headers(path), settings.label, (conditions or {}).get(settings.label))
    return _volumes(path, labels)


def _volumes(path: Path, labels: Mapping[str, list[str]]) -> Iterator[MedmnistCase]:
    row = 0
    for part, split in PARTS.items():
        volumes = _array(path, f"{part}_images")
        for label, voxels in zip(labels[part], volumes, strict=True):
            row += 1
            yield MedmnistCase(row, f"M{row:06d}", split, label, np.asarray(voxels, np.uint8))


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and number type of every array, without reading the arrays."""
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, kind = read(stream)
                headers[name.removesuffix(".npy")] = (shape, kind)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise UnreadableError(
            f"{path}: expected an .npz file of plain arrays, found a damaged or different file; download it again"
        ) from error
    return headers


def _array(path: Path, name: str) -> NDArray[np.generic]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file[name])
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise UnreadableError(f"{path}: the array {name} is damaged; download the file again") from error


def _check(
    path: Path,
    headers: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    label: str,
    condition: Condition | None,
) -> dict[str, list[str]]:
    """The labels of each part as text, once the file has been found to be MedMNIST 3D."""
    mistakes = Mistakes(path.name)
    for name in (f"{part}_{kind}" for part in PARTS for kind in ("images", "labels")):
        if name not in headers:
            mistakes.add(f"expected the array {name}, found {', '.join(sorted(headers)) or 'nothing'}")
    mistakes.raise_any()
    sizes = set()
    for part in PARTS:
        shape, kind = headers[f"{part}_images"]
        spelled = " x ".join(map(str, shape))
        if len(shape) != 4 or shape[-1] in (1, 3):
            mistakes.add(
                f"{part}_images: expected volumes [N, X, Y, Z], found {spelled}; take one of the 3D files, such as "
                "nodulemnist3d.npz"
            )
        elif kind != np.uint8:
            mistakes.add(f"{part}_images: expected bytes (uint8), found {kind}; take the original file")
        sizes.add(shape[1:])
        labels_shape, labels_kind = headers[f"{part}_labels"]
        if labels_shape not in ((shape[0],), (shape[0], 1)) or labels_kind.kind not in "iu":
            mistakes.add(
                f"{part}_labels: expected one whole number for each of {shape[0]} volumes, found "
                f"{' x '.join(map(str, labels_shape))} of {labels_kind}; take a file with one label per volume"
            )
    if len(sizes) > 1 and not mistakes.messages():
        mistakes.add("the volumes of the three parts differ in size; take the original file")
    mistakes.raise_any()

    labels = {part: [str(int(value)) for value in _array(path, f"{part}_labels").ravel()] for part in PARTS}
    found = {value for values in labels.values() for value in values}
    if condition is not None:
        if not isinstance(condition, CategoryCondition):
            raise CohortError(f"conditions.{label}: MedMNIST labels are categories; declare it as kind: category")
        stray, unused = sorted(found - set(condition.values)), sorted(set(condition.values) - found)
        if stray or unused:
            raise CohortError(
                f"conditions.{label}.values: expected the file's labels {sorted(found)}, found {list(condition.values)}; "
                "list exactly the file's labels"
            )
    if len(found) < 2:
        mistakes.add(f"{label}: all volumes hold the same label; a condition needs two")
    mistakes.raise_any()
    return labels
