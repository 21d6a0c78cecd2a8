"""The report's pictures of scans: real beside synthetic, reconstructions, closest pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsynth.errors import DataError
from medsynth.reporting.montage import LABEL_COLOURS, Row, Tile, draw
from medsynth.reporting.planes import CONVENTION, PLANES, centre, cut

_COLOUR_NAMES = ("blue", "yellow", "orange", "green", "pink", "violet")


@dataclass(frozen=True)
class Window:
    """The intensities shown from black to white."""

    low: float
    high: float
    unit: str

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g} {self.unit}".rstrip()


@dataclass(frozen=True)
class View:
    """A volume [X, Y, Z] in RAS, and its mask of the same shape if there is one."""

    voxels: NDArray[Any]
    mask: NDArray[Any] | None = None


@dataclass(frozen=True)
class Pair:
    """Two volumes to look at together. `label` says what they have in common or how far apart they are."""

    first: View
    second: View
    label: str


@dataclass(frozen=True)
class Picture:
    """A PNG, what it shows in words for who cannot see it, and the caption below it."""

    png: bytes
    width: int
    height: int
    alt: str
    caption: str


def three_planes(
    views: Sequence[View],
    labels: Sequence[str],
    spacing_mm: tuple[float, float, float],
    window: Window,
    mask_labels: Mapping[str, int] | None = None,
) -> Picture:
    """Each volume as one row of axial, coronal and sagittal cut."""
    rows = [Row(label, _cuts(view, spacing_mm, window)) for view, label in zip(views, labels, strict=True)]
    png, width, height = draw(rows, PLANES, group=3, width=900)
    alt = f"{len(views)} scans, each in axial, coronal and sagittal cut: {'; '.join(labels)}."
    return Picture(png, width, height, alt, _caption(spacing_mm, window, mask_labels))


def side_by_side(
    pairs: Sequence[Pair],
    spacing_mm: tuple[float, float, float],
    window: Window,
    mask_labels: Mapping[str, int] | None = None,
) -> Picture:
    """Real (first) beside synthetic (second), each pair asked for with the same conditions, in three planes."""
    _some(pairs)
    rows = [
        Row(pair.label, _cuts(pair.first, spacing_mm, window) + _cuts(pair.second, spacing_mm, window))
        for pair in pairs
    ]
    heads = [f"real, {p}" for p in PLANES] + [f"synthetic, {p}" for p in PLANES]
    png, width, height = draw(rows, heads, group=3)
    alt = (
        f"{len(pairs)} rows. Each shows a real scan on the left and a synthetic scan of the same conditions on the "
        f"right, in axial, coronal and sagittal cut: {'; '.join(pair.label for pair in pairs)}."
    )
    return Picture(png, width, height, alt, _caption(spacing_mm, window, mask_labels))


def reconstructions(
    pairs: Sequence[Pair], spacing_mm: tuple[float, float, float], window: Window, *, spread: float | None = None
) -> Picture:
    """Original (first), the autoencoder's reconstruction (second) and their difference, axial and coronal.

    spread: difference shown in full colour; a fifth of the window unless given.
    """
    _some(pairs)
    spread = spread or (window.high - window.low) / 5
    rows = []
    for pair in pairs:
        at = centre(pair.first.voxels, pair.first.mask)
        difference = np.asarray(pair.second.voxels, float) - np.asarray(pair.first.voxels, float)
        tiles: list[Tile] = []
        for plane in ("axial", "coronal"):
            tiles += [
                Tile(cut(pair.first.voxels, spacing_mm, plane, at), window.low, window.high),
                Tile(cut(pair.second.voxels, spacing_mm, plane, at), window.low, window.high),
                Tile(cut(difference, spacing_mm, plane, at), -spread, spread, "RdBu_r"),
            ]
        rows.append(Row(pair.label, tuple(tiles)))
    heads = [
        f"{what}, {plane}" for plane in ("axial", "coronal") for what in ("original", "reconstructed", "difference")
    ]
    png, width, height = draw(rows, heads, group=3)
    alt = (
        f"{len(pairs)} held-out scans: original, what the autoencoder makes of it, and the difference, in axial and "
        f"coronal cut: {'; '.join(pair.label for pair in pairs)}."
    )
    caption = (
        f"{_caption(spacing_mm, window, None)} Difference: red where the reconstruction is brighter, blue where it is "
        f"darker, in full colour at {spread:g} {window.unit}".rstrip()
        + "."
    )
    return Picture(png, width, height, alt, caption)


def closest_pairs(
    pairs: Sequence[Pair], spacing_mm: tuple[float, float, float], window: Window, *, columns: int = 4
) -> Picture:
    """Synthetic scans (first) beside the training scan nearest to each (second), axial, nearest pair first."""
    _some(pairs)
    columns = min(columns, len(pairs))
    rows = []
    for start in range(0, len(pairs), columns):
        tiles: list[Tile | None] = []
        for rank, pair in enumerate(pairs[start : start + columns], start + 1):
            for view, note in ((pair.first, f"{rank}. {pair.label}"), (pair.second, "")):
                at = centre(view.voxels, view.mask)
                tiles.append(Tile(cut(view.voxels, spacing_mm, "axial", at), window.low, window.high, note=note))
        tiles += [None] * (2 * columns - len(tiles))
        rows.append(Row(f"pairs {start + 1} to {min(start + columns, len(pairs))}", tuple(tiles)))
    png, width, height = draw(rows, ["synthetic", "nearest real"] * columns, group=2)
    alt = (
        f"The {len(pairs)} synthetic scans that lie nearest to a training scan, each beside that training scan, in "
        f"axial cut: {'; '.join(f'{i}. {pair.label}' for i, pair in enumerate(pairs, 1))}."
    )
    return Picture(png, width, height, alt, _caption(spacing_mm, window, None))


def _cuts(view: View, spacing_mm: tuple[float, float, float], window: Window) -> tuple[Tile, ...]:
    at = centre(view.voxels, view.mask)
    return tuple(Tile(cut(view.voxels, spacing_mm, p, at, view.mask), window.low, window.high) for p in PLANES)


def _caption(spacing_mm: tuple[float, float, float], window: Window, mask_labels: Mapping[str, int] | None) -> str:
    spacing = " x ".join(f"{s:g}" for s in spacing_mm)
    text = f"Window {window}; voxels of {spacing} mm, drawn to scale. {CONVENTION}"
    if mask_labels:
        named = (f"{name} {_COLOUR_NAMES[(value - 1) % len(LABEL_COLOURS)]}" for name, value in mask_labels.items())
        text += f" Outlines: {', '.join(named)}."
    return text


def _some(pairs: Sequence[Pair]) -> None:
    if not pairs:
        raise DataError("picture: expected at least one pair of scans, found none")
