"""Arranges cuts into one picture, to scale, and writes it as a PNG with the same bytes for the same input."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from medsynth.reporting.planes import EDGES, Cut

LABEL_COLOURS = ("#4cc9f0", "#f9c74f", "#f3722c", "#90be6d", "#f28482", "#b79ced")
_BACKGROUND, _INK, _FAINT = "#0d1117", "#e6edf3", "#8b949e"
_PIXELS_PER_INCH = 100
_GAP, _BREAK, _HEAD, _LABEL = (
    6,
    14,
    26,
    22,
)  # pixels between tiles, between groups of columns, above columns, above rows


@dataclass(frozen=True)
class Tile:
    """A cut, how its values become grey (or colour), and what stands in its corner."""

    cut: Cut
    low: float
    high: float
    colours: str = "gray"
    note: str = ""


@dataclass(frozen=True)
class Row:
    """Tiles side by side under one label; None leaves a place empty."""

    label: str
    tiles: tuple[Tile | None, ...]


def draw(
    rows: Sequence[Row], heads: Sequence[str], *, group: int, width: int = 1200, tallest: int = 6000
) -> tuple[bytes, int, int]:
    """PNG bytes, width and height in pixels. Every tile has the same scale, so lengths compare across the picture.

    group: columns that belong together; between groups there is a wider gap.
    """
    widths = [max((t.cut.width_mm for t in column if t), default=1.0) for column in _columns(rows)]
    heights = [max((t.cut.height_mm for t in row.tiles if t), default=1.0) for row in rows]
    breaks = [_BREAK if i and i % group == 0 else 0 for i in range(len(widths))]
    across, down = width - _GAP * (len(widths) + 1) - sum(breaks), tallest - _HEAD - (_LABEL + _GAP) * len(heights)
    scale = min(across / sum(widths), down / sum(heights))  # pixels per mm
    height = round(_HEAD + sum(h * scale + _LABEL + _GAP for h in heights))
    figure = Figure(figsize=(width / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH), dpi=_PIXELS_PER_INCH)
    figure.patch.set_facecolor(_BACKGROUND)
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, va="top", **{"color": _INK, "fontsize": 9, **style})

    # What a wide canvas leaves over is spread between the columns.
    step = [w * scale + _GAP + max(0.0, across - sum(widths) * scale) / len(widths) for w in widths]
    left = [_GAP + sum(step[:i]) + sum(breaks[: i + 1]) for i in range(len(widths))]
    for x, head, w in zip(left, heads, widths, strict=True):
        write(x + w * scale / 2, 7, head, ha="center", weight="bold")
    top = float(_HEAD)
    for row, tall in zip(rows, heights, strict=True):
        write(_GAP, top + 4, row.label, color=_FAINT)
        top += _LABEL
        for x, w, tile in zip(left, widths, row.tiles, strict=True):
            if tile is not None:
                box = (w * scale, tall * scale)
                _place(figure, tile, x, top, box, scale, width, height)
        top += tall * scale + _GAP
    return _png(figure), width, height


def _columns(rows: Sequence[Row]) -> list[list[Tile | None]]:
    return [list(column) for column in zip(*(row.tiles for row in rows), strict=True)]


def _place(
    figure: Figure, tile: Tile, x: float, y: float, box: tuple[float, float], scale: float, width: int, height: int
) -> None:
    """Draw a tile in the middle of its box, whose top left corner is at (x, y) pixels."""
    wide, tall = tile.cut.width_mm * scale, tile.cut.height_mm * scale
    x, y = x + (box[0] - wide) / 2, y + (box[1] - tall) / 2
    axes = figure.add_axes((x / width, 1 - (y + tall) / height, wide / width, tall / height))
    axes.set_axis_off()
    rows, columns = tile.cut.pixels.shape
    axes.imshow(
        tile.cut.pixels, cmap=tile.colours, vmin=tile.low, vmax=tile.high, aspect="auto", interpolation="bilinear"
    )
    if tile.cut.mask is not None:
        for label in np.unique(tile.cut.mask[tile.cut.mask > 0]):
            inside = (tile.cut.mask == label).astype(float)
            if inside.min() < inside.max():
                colour = LABEL_COLOURS[(int(label) - 1) % len(LABEL_COLOURS)]
                axes.contour(inside, levels=[0.5], colors=[colour], linewidths=1.1)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    outline = [withStroke(linewidth=1.6, foreground=_BACKGROUND)]  # readable on air and on bone
    style: dict[str, Any] = {"color": _INK, "fontsize": 7, "transform": axes.transAxes, "path_effects": outline}
    at_left, at_top = EDGES[tile.cut.plane]
    axes.text(0.02, 0.5, at_left, ha="left", va="center", **style)
    axes.text(0.5, 0.98, at_top, ha="center", va="top", **style)
    if tile.note:
        axes.text(0.02, 0.02, tile.note, ha="left", va="bottom", **style)


def _png(figure: Figure) -> bytes:
    """256 colours hold a grey picture with a few coloured lines, in a third of the bytes."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    out = io.BytesIO()
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()
