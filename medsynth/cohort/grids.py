"""Which grid a scan goes onto where an experiment has several, and the one grid on which all can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from medsynth.cohort.manifest import Manifest
from medsynth.config.grid import GRID, Grid, find_grid
from medsynth.errors import CohortError


def choose_grid(grids: Sequence[Grid], spacing_mm: Sequence[float], extent_mm: Sequence[float]) -> Grid:
    """The grid that suits a scan of this spacing, of which `extent_mm` is to be seen.

    First the spacing: the one nearest to the scan's own, by the sum over axes of the squared logarithm of their ratio,
    so that twice as fine is as far as twice as coarse. Thick slices are not blown up, fine ones not thrown away. Then
    the box: of the grids with that spacing the one of fewest voxels that holds the extent, else the one of most. What
    is still equal goes to the grid that is listed first.
    """
    nearest = min(grids, key=lambda grid: _apart(grid.spacing_mm, spacing_mm)).spacing_mm
    alike = [grid for grid in grids if grid.spacing_mm == nearest]
    needed = [max(1, math.floor(mm / step + 0.5)) for mm, step in zip(extent_mm, nearest, strict=True)]
    holding = [grid for grid in alike if all(n <= size for n, size in zip(needed, grid.box, strict=True))]
    if holding:
        return min(holding, key=lambda grid: math.prod(grid.box))
    return max(alike, key=lambda grid: math.prod(grid.box))


def common_grid(grids: Sequence[Grid]) -> Grid:
    """The smallest grid on which nothing of any is lost: per axis the finest spacing and the largest extent.

    One grid is its own common grid.
    """
    if len(grids) == 1:
        return grids[0]
    a, b, c = (min(grid.spacing_mm[axis] for grid in grids) for axis in range(3))
    extents = [max(grid.extent_mm[axis] for grid in grids) for axis in range(3)]
    # A rounding error must not add a voxel: 48 * 2.5 / 1 is 120, whatever its last bit says.
    x, y, z = (math.ceil(round(mm / step, 6)) for mm, step in zip(extents, (a, b, c), strict=True))
    return Grid(box=(x, y, z), spacing_mm=(a, b, c))


def with_grids(manifest: Manifest, grids: Sequence[Grid]) -> Manifest:
    """The manifest, its cases' conditions with the grid they lie on where there are several.

    Raises CohortError for a case that lies on none.
    """
    if len(grids) == 1:
        return manifest
    cases = []
    for case in manifest.cases:
        grid = find_grid(grids, case.shape, case.spacing_mm)
        if grid is None:
            raise CohortError(
                f"case {case.case}: expected one of the grids {', '.join(map(str, grids))}, found another; prepare again"
            )
        cases.append(replace(case, conditions={**case.conditions, GRID: str(grid)}))
    return replace(manifest, cases=tuple(cases))


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(math.log(a / b) ** 2 for a, b in zip(one, other, strict=True))
