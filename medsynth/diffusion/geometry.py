"""What a model says of the grids that it generates on: `geometry.json`.

    {"spacing_mm": [1, 1, 1], "box": [64, 64, 64], "modality": "CT", "unit": "HU", "orientation": "RAS"}

A model of several grids has, in the place of the first two, {"grids": [{"spacing_mm": ..., "box": ...}, ...]}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsynth.config.base import plain
from medsynth.config.grid import GRID, Grid, named_grid
from medsynth.errors import ConfigError, ModelFolderError


def geometry_json(grids: Sequence[Grid], *, modality: str, unit: str) -> dict[str, Any]:
    """The content of `geometry.json`."""
    only = {"spacing_mm": list(grids[0].spacing_mm), "box": list(grids[0].box)}
    several = {"grids": [plain(grid) for grid in grids]}
    return {**(only if len(grids) == 1 else several), "modality": modality, "unit": unit, "orientation": "RAS"}


def grids_of(geometry: Mapping[str, Any]) -> tuple[Grid, ...]:
    """The grids of a model. Raises ModelFolderError where its geometry names none."""
    try:
        entries = geometry.get("grids", [geometry])
        return tuple(Grid.model_validate(_lengths(entry)) for entry in entries)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFolderError(
            "geometry.json: expected a box and its spacing_mm; copy the whole folder again"
        ) from error


def _lengths(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"box": tuple(entry["box"]), "spacing_mm": tuple(float(step) for step in entry["spacing_mm"])}


def grid_of(geometry: Mapping[str, Any], conditions: Mapping[str, Any]) -> Grid:
    """The grid that a volume of these conditions lies on: the only one, or the one that they name.

    Raises ConfigError, which lists the known ones, where a model of several is asked for none of them.
    """
    grids = grids_of(geometry)
    if len(grids) == 1:
        return grids[0]
    try:
        return named_grid(grids, str(conditions.get(GRID) or "none"))
    except ValueError as error:
        raise ConfigError([f"condition {GRID}: {error}"]) from None


def naming(geometry: Mapping[str, Any], grid: Grid) -> dict[str, str]:
    """The condition by which a volume is asked for on `grid`: none where the model has only that one."""
    return {GRID: str(grid)} if len(grids_of(geometry)) > 1 else {}


def centred_affine(grid: Grid) -> NDArray[np.float64]:
    """Index to RAS millimetres, the centre of the box at the origin of the world."""
    spacing = np.asarray(grid.spacing_mm)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.asarray(grid.box) - 1) / 2
    return affine
