"""A grid that volumes lie on: a box of voxels and their spacing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medsynth.config.base import Positive, Settings, Triple
from medsynth.config.explain import nearest

GRID = "grid"
"""The condition by which a generator of several grids is told which one a volume lies on."""
SAME_SPACING = 1e-4
"""Largest relative difference of two spacings that are one: NIfTI headers keep single precision."""


class Grid(Settings):
    """Written `64x64x48@1x1x2.5`: voxels along x, y and z, then their spacing in millimetres."""

    box: Triple
    spacing_mm: tuple[Positive, Positive, Positive]

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.box))}@{'x'.join(_short(step) for step in self.spacing_mm)}"

    @classmethod
    def parse(cls, text: str) -> Grid:
        """The grid that `text` names. Raises ValueError (pydantic's included) where it names none."""
        box, _, spacing = text.partition("@")
        sizes, steps = box.split("x"), spacing.split("x")
        if len(sizes) != 3 or len(steps) != 3:
            raise ValueError(f"expected a grid such as 64x64x48@1x1x2.5 (voxels@mm), found {text!r}")
        x, y, z = (int(size) for size in sizes)
        a, b, c = (float(step) for step in steps)
        return cls(box=(x, y, z), spacing_mm=(a, b, c))

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Size of the box, from the outer edge of its first voxel to that of its last."""
        x, y, z = (size * step for size, step in zip(self.box, self.spacing_mm, strict=True))
        return x, y, z

    def fits(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> bool:
        """Whether a volume of this shape and spacing lies on this grid."""
        steps = zip(self.spacing_mm, spacing_mm, strict=True)
        return tuple(shape) == self.box and all(abs(theirs / ours - 1) <= SAME_SPACING for ours, theirs in steps)


def find_grid(grids: Iterable[Grid], shape: Sequence[int], spacing_mm: Sequence[float]) -> Grid | None:
    """The one of `grids` that a volume lies on, if any."""
    return next((grid for grid in grids if grid.fits(shape, spacing_mm)), None)


def named_grid(grids: Sequence[Grid], text: str) -> Grid:
    """The one of `grids` that `text` names. Raises ValueError, which lists them, where it names none."""
    known = [str(grid) for grid in grids]
    try:
        asked = Grid.parse(text)
        found = find_grid(grids, asked.box, asked.spacing_mm)
    except ValueError:
        found = None
    if found is None:
        raise ValueError(f"expected one of {', '.join(known)} (voxels@mm), found {text!r}{nearest(text, known)}")
    return found


def _short(step: float) -> str:
    """The fewest digits that read back as the same number."""
    return repr(float(step)).removesuffix(".0")
