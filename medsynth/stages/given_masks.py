"""Masks that a user gives for a model to generate on: files of a folder, or those that a manifest names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medsynth.cohort.table import finite, read_table
from medsynth.config.grid import GRID, Grid, find_grid, named_grid
from medsynth.errors import CohortError, DataError, UsageError
from medsynth.imaging.nifti import SUFFIXES, read_nifti
from medsynth.imaging.scan import describe_mm, spacing_mm
from medsynth.stages.request import MaskSource, Value

Declaration = Mapping[str, Mapping[str, Any]]


KNOWN_COLUMNS = ("case", "origin", "split", "image", "mask", "shape", "spacing_mm", "seed", "sampler", "model")
"""By which the separator of a manifest is found that a spreadsheet has written."""


def given_masks(place: Path | None, declaration: Declaration, say: Callable[[str], None]) -> list[MaskSource]:
    """The masks at `place`, with the conditions of their rows and, where the model has several grids, their grid.

    Of a manifest of real scans only those of the training split are taken: the others are kept for judging. Its masks that
    lie on none of the model's grids are left out too; a file of a folder that does is an error. Raises UsageError for a model
    without a mask condition, CohortError where there are none, DataError.
    """
    if place is None:
        return []
    if not any(entry["kind"] == "mask" for entry in declaration.values()):
        raise UsageError("--masks: this model takes no mask condition; leave the option out")
    grids = known_grids(declaration)
    if place.is_dir():
        found = list(_of_files(sorted(path for path in place.iterdir() if path.name.endswith(SUFFIXES)), grids))
    elif place.name.endswith(SUFFIXES) and place.is_file():
        found = list(_of_files([place], grids))
    elif place.is_file():
        rows = [row for row in manifest_rows(place) if row.get("mask")]
        kept = [row for row in rows if row.get("origin") != "real" or row.get("split") in (None, "", "train")]
        if len(kept) < len(rows):
            say(
                f"{len(rows) - len(kept)} masks of validation and test patients are left aside: scans made for them would "
                "let a classifier know the scans that it is judged on"
            )
        found = list(_of_rows(kept, place.parent, declaration))
    else:
        found = []
    if not found:
        raise CohortError(
            f"{place}: expected mask files (.nii, .nii.gz) or a manifest.csv that names some{_on(grids)}, found none"
        )
    return found


def known_grids(declaration: Declaration) -> tuple[Grid, ...]:
    """The grids between which a model has to be told; none where it has one."""
    entry = declaration.get(GRID)
    if entry is None or entry["kind"] != "geometry":
        return ()
    return tuple(Grid.parse(text) for text in entry["grids"])


def manifest_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a manifest as text, a decimal comma read as a point. Raises UnreadableError or CohortError."""
    table = read_table(path, KNOWN_COLUMNS)
    return [{name: _pointed(cell, table.decimal_comma) for name, cell in row.cells.items()} for row in table.rows]


def _pointed(cell: str, decimal_comma: bool) -> str:
    return re.sub(r"\A(-?\d+),(\d+)\Z", r"\1.\2", cell) if decimal_comma else cell


def row_conditions(row: Mapping[str, str], declaration: Declaration) -> dict[str, Value]:
    """A row's conditions in their types. Its grid, where the model has several, is that of its shape and spacing."""
    found: dict[str, Value] = {}
    for name, entry in declaration.items():
        text = row.get(name, "")
        match entry["kind"]:
            case "mask":
                continue
            case "geometry":
                found[name] = _named(known_grids(declaration), f"{row.get('shape', '')}@{row.get('spacing_mm', '')}")
            case "number":
                found[name] = finite(text) if text else None
                if text and found[name] is None:
                    raise CohortError(
                        f"{name}: expected a number in every row, found something else; correct the manifest"
                    )
            case _:
                found[name] = text or None
    return found


def _named(grids: tuple[Grid, ...], text: str) -> str | None:
    """How the model calls the grid that `text` describes; None where it does not know it."""
    try:
        return str(named_grid(grids, text))
    except ValueError:
        return None


def _of_rows(rows: Iterable[Mapping[str, str]], folder: Path, declaration: Declaration) -> Iterator[MaskSource]:
    several = bool(known_grids(declaration))
    for row in rows:
        conditions = row_conditions(row, declaration)
        if not several or conditions[GRID] is not None:
            yield MaskSource(folder / row["mask"], conditions, row.get("patient") or None)


def _of_files(paths: Iterable[Path], grids: tuple[Grid, ...]) -> Iterator[MaskSource]:
    for number, path in enumerate(paths, start=1):
        yield MaskSource(path, {GRID: str(_grid_of_file(path, number, grids))} if grids else {})


def _grid_of_file(path: Path, number: int, grids: tuple[Grid, ...]) -> Grid:
    """Errors name the file by its place in the folder: it may be called after a patient."""
    try:
        mask = read_nifti(path)
    except DataError as error:
        raise type(error)(f"mask {number}: {error}".replace(path.name, "the file")) from None
    grid = find_grid(grids, mask.shape[1:], spacing_mm(mask))
    if grid is None:
        raise DataError(
            f"mask {number}: expected one{_on(grids)}, found {list(mask.shape[1:])} voxels of {describe_mm(spacing_mm(mask))}; "
            "prepare it with the same settings"
        )
    return grid


def _on(grids: tuple[Grid, ...]) -> str:
    return f" on a grid of the model ({', '.join(map(str, grids))})" if grids else ""
