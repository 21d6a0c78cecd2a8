"""The cohort as it is handed over: who, which scan, which mask, which labels.

Everything that is wrong with a table comes out at once, by row; what a cell says about a patient is never repeated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from medsynth.cohort.split import SPLITS
from medsynth.cohort.table import Mistakes, Row, Table, finite, nearest, read_table
from medsynth.config.cohort import CategoryCondition, Condition, CsvCohort, FolderCohort, MaskCondition, NumberCondition
from medsynth.errors import CohortError, UnreadableError

TABLE_COLUMNS = ("patient", "image", "mask", "series", "split", "usable", "modality")
"""Columns of a cohort's table that have a meaning of their own; `patient` and `image` are required."""

MODALITY = re.compile(r"[A-Z]{2,6}")
NIFTI_SUFFIXES = (".nii.gz", ".nii")

Value = str | float | None
ColumnCondition = CategoryCondition | NumberCondition


@dataclass(frozen=True)
class SourceCase:
    """One scan as the user names it. `row` is the line of the table, or the position in the folder, counted from 1."""

    row: int
    patient: str
    image: Path
    mask: Path | None
    series: str | None
    split: str | None
    conditions: dict[str, Value]
    """Categories and numbers; None for one that is derived later."""
    modality: str | None = None
    """DICOM's code for it, which a NIfTI file cannot say itself."""


def read_sources(cohort: CsvCohort | FolderCohort, conditions: Mapping[str, Condition]) -> list[SourceCase]:
    """The cases of a table or of a folder, in its order.

    Raises UnreadableError where the table or the folder cannot be read, CohortError with every mistake in it.
    """
    return _from_csv(cohort, conditions) if isinstance(cohort, CsvCohort) else _from_folder(cohort, conditions)


def _needs_mask(conditions: Mapping[str, Condition]) -> bool:
    return any(isinstance(c, MaskCondition) or _derived(c) for c in conditions.values())


def _derived(condition: Condition) -> bool:
    return isinstance(condition, CategoryCondition) and condition.derive is not None


def _columns(conditions: Mapping[str, Condition]) -> dict[str, ColumnCondition]:
    """The conditions that are read from a column of their own name."""
    return {
        name: condition
        for name, condition in conditions.items()
        if isinstance(condition, NumberCondition) or (isinstance(condition, CategoryCondition) and not condition.derive)
    }


def _from_csv(cohort: CsvCohort, conditions: Mapping[str, Condition]) -> list[SourceCase]:
    path = Path(cohort.csv)
    root = Path(cohort.root) if cohort.root else path.parent
    columns = _columns(conditions)
    table = read_table(path, (*TABLE_COLUMNS, *columns))
    mistakes = Mistakes(path.name)
    _check_columns(table, columns, _needs_mask(conditions), mistakes)
    mistakes.raise_any()

    cases = []
    for row in table.rows:
        case = _case(row, table, root, conditions, mistakes)
        if case is not None:
            cases.append(case)
    if not cases and not mistakes.messages():
        raise CohortError(f"{path.name}: expected a row for each scan, found no usable row; add the scans")
    _check_cases([case for case in cases if case.image != root], mistakes)
    _check_categories(cases, columns, mistakes)
    mistakes.raise_any()
    return cases


def _check_columns(table: Table, columns: Mapping[str, ColumnCondition], needs_mask: bool, mistakes: Mistakes) -> None:
    required = ["patient", "image", *(["mask"] if needs_mask else []), *columns]
    for name in required:
        if name not in table.columns:
            others = [column for column in table.columns if column not in required]
            mistakes.add(f"column {name} is missing{nearest(name, others)}; add it, or rename the one that holds it")
    for name in columns:
        if name in TABLE_COLUMNS:
            mistakes.add(f"column {name} cannot be a condition, because it has its own meaning; rename the condition")


def _case(
    row: Row, table: Table, root: Path, conditions: Mapping[str, Condition], mistakes: Mistakes
) -> SourceCase | None:
    """The row as a case; None where it is marked as unusable. What is wrong with it is noted in `mistakes`."""
    cells = row.cells
    usable = cells.get("usable", "").casefold()
    if usable in ("no", "false", "0"):
        return None
    if usable not in ("", "yes", "true", "1"):
        mistakes.add("usable: expected yes or no; correct the cell, or leave it empty", row.line)
    if not cells["patient"]:
        mistakes.add("patient: the cell is empty; give each row the patient's identifier", row.line)
    image = _path(cells["image"], root, "image", row.line, mistakes)
    mask = None
    if cells.get("mask"):
        mask = _path(cells["mask"], root, "mask", row.line, mistakes)
    elif _needs_mask(conditions):
        mistakes.add("mask: the cell is empty, but a condition needs the mask; fill it in or drop the row", row.line)
    split = cells.get("split") or None
    if split is not None and split not in SPLITS:
        mistakes.add(f"split: expected {_one_of(SPLITS)}, or an empty cell{nearest(split, SPLITS)}", row.line)
        split = None
    values = {
        name: _value(name, condition, cells[name], table.decimal_comma, row.line, mistakes)
        for name, condition in _columns(conditions).items()
    }
    values |= {name: None for name, condition in conditions.items() if _derived(condition)}
    modality = cells.get("modality", "").upper() or None
    if modality is not None and not MODALITY.fullmatch(modality):
        mistakes.add("modality: expected DICOM's code, such as CT or MR; correct the cell, or leave it empty", row.line)
    series = cells.get("series") or None
    return SourceCase(row.line, cells["patient"], image, mask, series, split, values, modality)


def _path(cell: str, root: Path, column: str, line: int, mistakes: Mistakes) -> Path:
    """The path a cell names, from `root`; a backslash separates folders too, as in tables written on Windows."""
    path = root / Path(PureWindowsPath(cell).as_posix() if "\\" in cell else cell).expanduser()
    if not cell:
        mistakes.add(f"{column}: the cell is empty; name a NIfTI file or a DICOM folder", line)
    elif not path.exists():
        mistakes.add(f"{column}: no such file or folder; paths start at the table's folder, or at `root`", line)
    elif column == "mask" and not path.is_file():
        mistakes.add("mask: expected a NIfTI file, found a folder; name the file", line)
    return path


def _value(
    name: str, condition: ColumnCondition, cell: str, decimal_comma: bool, line: int, mistakes: Mistakes
) -> Value:
    if not cell:
        mistakes.add(f"{name}: the cell is empty; fill it in or drop the row", line)
        return None
    if isinstance(condition, CategoryCondition):
        if cell not in condition.values:
            mistakes.add(
                f"{name}: expected {_one_of(condition.values)}, found another word{nearest(cell, condition.values)}; "
                f"correct it, or add it to conditions.{name}.values",
                line,
            )
            return None
        return cell
    number = finite(cell.replace(",", ".") if decimal_comma else cell)
    low, high = condition.range
    if number is None:
        mistakes.add(f"{name}: expected a number, found something else; correct it or drop the row", line)
        return None
    if not low <= number <= high:
        mistakes.add(
            f"{name}: expected {low:g} to {high:g} {condition.unit}".rstrip()
            + f", found a number outside; correct it, or widen conditions.{name}.range",
            line,
        )
        return None
    return number


def _one_of(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"


def _check_cases(cases: Sequence[SourceCase], mistakes: Mistakes) -> None:
    """No patient in two splits, no scan twice."""
    splits: dict[str, dict[str, list[int]]] = {}
    scans: dict[tuple[Path, str | None, Path | None], list[int]] = {}
    for case in cases:
        if case.patient and case.split:
            splits.setdefault(case.patient, {}).setdefault(case.split, []).append(case.row)
        scans.setdefault((case.image, case.series, case.mask), []).append(case.row)
    for rows_of in splits.values():
        if len(rows_of) > 1:
            rows = [row for rows in rows_of.values() for row in rows]
            mistakes.add(
                f"split: one patient is in {_and(sorted(rows_of))}; give all rows of a patient the same split", *rows
            )
    for rows in scans.values():
        if len(rows) > 1:
            mistakes.add("image: the same scan and mask stand in several rows; keep one of them", *rows)


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _check_categories(cases: Sequence[SourceCase], columns: Mapping[str, ColumnCondition], mistakes: Mistakes) -> None:
    """Every declared value occurs: one that does not can neither be learned nor asked for."""
    for name, condition in columns.items():
        if not isinstance(condition, CategoryCondition):
            continue
        found = {case.conditions[name] for case in cases}
        if None in found:
            continue
        missing = [value for value in condition.values if value not in found]
        if missing:
            single = "all rows hold the same value; a condition needs two" if len(found) == 1 else "some have no case"
            mistakes.add(
                f"{name}: expected cases of {_one_of(condition.values)}, but {single}; add cases of "
                f"{_one_of(missing)}, or remove it from conditions.{name}.values"
            )


def _from_folder(cohort: FolderCohort, conditions: Mapping[str, Condition]) -> list[SourceCase]:
    images = _nifti_files(Path(cohort.images), "cohort.images")
    masks = _nifti_files(Path(cohort.masks), "cohort.masks") if cohort.masks else {}
    mistakes = Mistakes("cohort.images", unit="file")
    for name in _columns(conditions):
        mistakes.add(f"a folder holds no column {name}; use a table (kind: csv), or derive it from the mask")
    if _needs_mask(conditions) and not cohort.masks:
        mistakes.add("a condition needs masks; set cohort.masks to the folder that holds them")
    if len(images) < 1:
        mistakes.add("expected NIfTI files (.nii or .nii.gz) in cohort.images, found none; check the folder")
    cases = []
    for position, (stem, image) in enumerate(images.items(), start=1):
        mask = masks.get(stem)
        if cohort.masks and mask is None and _needs_mask(conditions):
            mistakes.add("image without a mask of the same name; add the mask or move the image away", position)
        values: dict[str, Value] = {name: None for name, condition in conditions.items() if _derived(condition)}
        cases.append(SourceCase(position, stem, image, mask, None, None, values))
    strangers = sorted(set(masks) - set(images))
    if strangers:
        mistakes.add(f"{len(strangers)} masks belong to no image; move them away")
    mistakes.raise_any()
    return cases


def _nifti_files(folder: Path, key: str) -> dict[str, Path]:
    """File stem -> NIfTI file, sorted by name; hidden files are left out.

    Raises UnreadableError where there is no such folder, CohortError where a volume is there both with and without gzip.
    """
    if not folder.is_dir():
        raise UnreadableError(f"{key}: expected a folder at {folder}, found {_kind(folder)}; correct the path")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((s for s in NIFTI_SUFFIXES if path.name.lower().endswith(s)), None)
        if suffix is None or path.name.startswith(".") or not path.is_file():
            continue
        stem = path.name[: -len(suffix)]
        if stem in files:
            raise CohortError(f"{key}: a volume is there as .nii and as .nii.gz; keep one of the two")
        files[stem] = path
    return files


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "nothing"
