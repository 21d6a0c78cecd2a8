"""A call of the generator with its numbers brought together: one row, one seed and perhaps one mask per volume."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from medsynth.config.grid import Grid
from medsynth.diffusion.geometry import grid_of
from medsynth.errors import ConfigError, DataError
from medsynth.models.conditions import Declaration, Value, encode, mask_name


@dataclass(frozen=True)
class Order:
    """Everything a call asks for, checked; all on one grid."""

    grid: Grid

    rows: list[Mapping[str, Value]]
    seeds: list[int]
    masks: Tensor | None
    encoded: dict[str, Tensor]


def take_order(
    declaration: Declaration,
    geometry: Mapping[str, Any],
    conditions: Mapping[str, Value] | Sequence[Mapping[str, Value]],
    masks: Tensor | None,
    seeds: Sequence[int] | None,
    count: int | None,
) -> Order:
    """What `LatentVolumePipeline.stream` was given; seeds are drawn where there are none.

    Raises ConfigError for a condition or value that the model does not know or numbers that do not agree, DataError for
    masks of another shape than the box.
    """
    rows = [conditions] if isinstance(conditions, Mapping) else list(conditions) or [{}]
    shared = isinstance(conditions, Mapping) or not conditions
    grid = _one_grid(geometry, rows)
    if masks is not None:
        masks = _checked_masks(declaration, grid.box, masks)
    numbers = {"count": count, "seeds": None if seeds is None else len(seeds)}
    numbers["conditions"] = None if shared else len(rows)
    numbers["masks"] = None if masks is None or len(masks) == 1 else len(masks)
    given = {name: number for name, number in numbers.items() if number is not None}
    if len(set(given.values())) > 1:
        told = ", ".join(f"{name} {number}" for name, number in given.items())
        raise ConfigError([f"expected as many conditions, masks and seeds as volumes, found {told}"])
    total = next(iter(given.values()), 1)
    if total < 1:
        raise ConfigError([f"count: expected at least 1 volume, found {total}"])
    rows = rows * total if shared else rows
    if masks is not None and len(masks) == 1:
        masks = masks.expand(total, *masks.shape[1:])
    drawn = [secrets.randbits(53) for _ in range(total)] if seeds is None else [int(seed) for seed in seeds]
    return Order(grid, rows, drawn, masks, encode(declaration, rows, masks))


def _one_grid(geometry: Mapping[str, Any], rows: Sequence[Mapping[str, Value]]) -> Grid:
    grids = sorted({grid_of(geometry, row) for row in rows}, key=str)
    if len(grids) > 1:
        raise ConfigError([f"expected volumes of one grid, found {' and '.join(map(str, grids))}; call once for each"])
    return grids[0]


def _checked_masks(declaration: Declaration, box: Sequence[int], masks: Tensor) -> Tensor:
    if mask_name(declaration) is None:
        raise ConfigError(["masks: expected none, because this model is not conditioned on masks; leave them out"])
    expected = (1, *box)
    if masks.ndim != 5 or tuple(masks.shape[1:]) != expected or masks.is_floating_point() or len(masks) == 0:
        raise DataError(
            f"expected integer masks [N, {', '.join(map(str, expected))}], found {masks.dtype} {list(masks.shape)}; "
            "prepare them on the model's grid"
        )
    return masks.as_subclass(Tensor)
