"""What is to be exported: the cases of a synthetic dataset, of a prepared cohort, or of both."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsynth.cohort.manifest import AFTER_CONDITIONS, BEFORE_CONDITIONS, FILE_NAME, Case, Manifest
from medsynth.config.cohort import CategoryCondition, Condition, NumberCondition
from medsynth.config.yaml12 import YamlError, parse
from medsynth.errors import CohortError, DataError, UsageError
from medsynth.imaging.nifti import is_nifti, read_nifti
from medsynth.stages.files import read_json

NUMBER_MARKS = frozenset(".e")
"""A manifest writes numbers as Python does, so one of these is in each; a category called `1` has neither."""


@dataclass(frozen=True)
class Entry:
    """One case, where its files are, and what it is called outside its dataset."""

    case: Case
    image: Path
    mask: Path | None

    @property
    def synthetic(self) -> bool:
        return self.case.origin == "synthetic"

    @property
    def name(self) -> str:
        """Says of a synthetic case that it is one."""
        return f"{self.case.case}_synthetic" if self.synthetic else self.case.case


@dataclass(frozen=True)
class Dataset:
    """One folder with a manifest."""

    folder: Path
    entries: tuple[Entry, ...]
    labels: Mapping[str, int]
    """Names and values of what the masks hold; empty where there are no masks."""

    @property
    def synthetic(self) -> bool:
        return self.entries[0].synthetic


def read_dataset(folder: Path) -> Dataset:
    """The dataset in `folder`, every file checked against the manifest.

    Raises UsageError where there is no manifest, CohortError where it is not one, DataError where a file is missing or
    altered.
    """
    place = folder / FILE_NAME
    if not place.is_file():
        raise UsageError(
            f"{folder}: expected a dataset with {FILE_NAME}, found none; name a synthetic or prepared folder"
        )
    manifest = Manifest.read(place, condition_columns(place))
    entries = tuple(Entry(case, manifest.image_path(case), manifest.mask_path(case)) for case in manifest.cases)
    if any(not is_nifti(entry.image) for entry in entries):
        raise DataError(
            "expected a dataset of NIfTI files, found one of DICOM alone; generate it with --format nifti or both"
        )
    manifest.verify()
    return Dataset(folder, entries, _labels(folder, entries))


def collect(dataset: Path, real: Path | None) -> list[Dataset]:
    """The datasets to export, synthetic ones first. Raises what `read_dataset` does, UsageError for two of a kind."""
    found = [read_dataset(dataset)]
    if real is None:
        return found
    found.append(read_dataset(real))
    if not found[0].synthetic or found[1].synthetic:
        raise UsageError("export: expected a synthetic dataset, and a prepared one for --real; check the two folders")
    first, second = ({entry.case.modality for entry in one.entries} for one in found)
    if first != second:
        raise DataError("expected real and synthetic scans of one modality, found two; export them apart")
    both = [one.labels for one in found if one.labels]
    if len(both) == 2 and dict(both[0]) != dict(both[1]):
        raise DataError("expected real and synthetic masks with the same labels, found others; export them apart")
    return found


def entries_of(datasets: Sequence[Dataset]) -> list[Entry]:
    """All cases."""
    return [entry for dataset in datasets for entry in dataset.entries]


def labels_of(datasets: Sequence[Dataset]) -> dict[str, int]:
    """The labels of all masks, by value."""
    named = next((dataset.labels for dataset in datasets if dataset.labels), {})
    return dict(sorted(named.items(), key=lambda pair: pair[1]))


def condition_columns(place: Path) -> dict[str, Condition]:
    """The manifest's condition columns, with kinds and limits taken from their cells. Raises CohortError."""
    with place.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    columns = list(rows[0]) if rows else []
    first, behind = len(BEFORE_CONDITIONS), AFTER_CONDITIONS[0]
    if tuple(columns[:first]) != BEFORE_CONDITIONS or behind not in columns:
        raise CohortError(f"{place.name}: expected the rows of a manifest, found none; name a dataset that is finished")
    names = columns[first : columns.index(behind)]
    return {name: _condition([row[name] for row in rows if row[name]]) for name in names}


def _condition(cells: list[str]) -> Condition:
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        numbers = []
    if numbers and all(NUMBER_MARKS & set(cell) for cell in cells):
        return NumberCondition(kind="number", range=(min(numbers) - 1, max(numbers) + 1))
    return CategoryCondition(kind="category", values=tuple(sorted(set(cells))) or ("unknown",))


def _labels(folder: Path, entries: Sequence[Entry]) -> dict[str, int]:
    """What the masks' values are called: by the dataset, by the pipeline that prepared it, else by their number."""
    masks = [entry.mask for entry in entries if entry.mask is not None]
    if not masks:
        return {}
    described = folder / "dataset.json"
    if described.is_file():
        named = {name: int(value) for name, value in read_json(described)["labels"].items() if int(value)}
        if named:
            return named
    pipeline = folder.parent / "pipeline.yaml"
    if pipeline.is_file():
        for condition in _conditions(pipeline).values():
            if condition.get("kind") == "mask":
                return {name: int(value) for name, value in condition["labels"].items()}
    values: set[int] = set()
    for mask in masks:
        values |= {int(value) for value in np.unique(read_nifti(mask).as_tensor().numpy())}
    return {f"label_{value}": value for value in sorted(values - {0})}


def _conditions(pipeline: Path) -> dict[str, Any]:
    try:
        found, _ = parse(pipeline.read_text(encoding="utf-8"))
    except YamlError:
        raise DataError(
            "expected the pipeline.yaml of a workspace, found a damaged one; run the pipeline again"
        ) from None
    return dict(found.get("conditions") or {})
