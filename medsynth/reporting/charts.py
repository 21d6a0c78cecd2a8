"""Charts as SVG that takes its colours from the page, so that they follow light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from medsynth.evaluation.evidence import Estimate

WIDTH = 760
CURVE_WIDTH = 460
_STYLES = ("one", "two", "three", "four", "five")
_MOST_DOTS = 300


@dataclass(frozen=True)
class ForestRow:
    """One line of a forest plot."""

    label: str
    estimate: Estimate
    kind: str = "plain"
    """Class of the mark: `real`, `synthetic` or `plain`."""
    text: str = ""


def forest(title: str, rows: Sequence[ForestRow], reference: float, axis: str, band: float = 0.0) -> Markup:
    """Estimates with intervals, a line at `reference` and a grey band of +-`band` around it (no difference)."""
    low = min([reference - band, *(row.estimate.low for row in rows)])
    high = max([reference + band, *(row.estimate.high for row in rows)])
    pad = (high - low or 1.0) * 0.06
    low, high = low - pad, high + pad
    left, right, top, step = 230, 190, 12, 30
    bottom = top + step * len(rows)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - right)

    parts = []
    if band:
        parts.append(
            f'<rect class="band" x="{x(reference - band):.1f}" y="{top}" '
            f'width="{x(reference + band) - x(reference - band):.1f}" height="{bottom - top}"/>'
        )
    parts += [_vertical(x(value), top, bottom, _short(value)) for value in ticks(low, high, 5)]
    parts.append(f'<line class="reference" x1="{x(reference):.1f}" x2="{x(reference):.1f}" y1="{top}" y2="{bottom}"/>')
    for i, row in enumerate(rows):
        y, e = top + step * (i + 0.5), row.estimate
        parts.append(
            f'<text class="label" x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(row.label)}</text>'
        )
        parts.append(
            f'<line class="interval {row.kind}" x1="{x(e.low):.1f}" x2="{x(e.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<circle class="mark {row.kind}" cx="{x(e.value):.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(f'<text class="figure" x="{WIDTH - right + 12}" y="{y + 4:.1f}">{escape(row.text)}</text>')
    parts.append(_axis_name(axis, (left + WIDTH - right) / 2, bottom + 36))
    told = "; ".join(f"{row.label}: {row.text}" for row in rows)
    return _svg(title, told, bottom + 44, parts)


def curves(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], axis: str) -> Markup:
    """Lines over optimiser steps; the value axis is logarithmic where all values are positive and span a decade."""
    points = [p for line in lines.values() for p in line if math.isfinite(p[1])]
    if not points:
        return Markup("")
    values = [value for _, value in points]
    logarithmic = min(values) > 0 and max(values) / min(values) > 10
    scale = math.log10 if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    pad = (high - low or 1.0) * 0.05
    low, high, last = low - pad, high + pad, max(step for step, _ in points) or 1
    left, right = 54, 22
    entries = _legend(list(lines), left, CURVE_WIDTH)
    top = 16 + 18 * (1 + entries[-1][1])
    bottom = top + 186

    def at(step: float, value: float) -> str:
        y = bottom - (scale(value) - low) / (high - low) * (bottom - top)
        return f"{left + step / last * (CURVE_WIDTH - left - right):.1f},{y:.1f}"

    parts = []
    for tick in _log_ticks(low, high) if logarithmic else ticks(low, high, 5):
        y = at(0, tick).split(",")[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{CURVE_WIDTH - right}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
        )
    for tick in ticks(0, last, 5):
        across = float(at(tick, values[0]).split(",")[0])
        parts.append(
            f'<text class="tick" x="{across:.1f}" y="{bottom + 18}" text-anchor="middle">{_short(tick)}</text>'
        )
    for style, (name, line), (across, row) in zip(_cycled(len(lines)), lines.items(), entries, strict=True):
        path = " ".join(at(step, value) for step, value in line if math.isfinite(value))
        down = 16 + 18 * row
        parts.append(f'<polyline class="curve {style}" points="{path}"/>')
        parts.append(f'<line class="curve {style}" x1="{across}" x2="{across + 22}" y1="{down}" y2="{down}"/>')
        parts.append(f'<text class="label" x="{across + 28}" y="{down + 4}">{escape(name)}</text>')
    parts.append(_axis_name(axis, (left + CURVE_WIDTH - right) / 2, bottom + 38))
    told = "; ".join(
        f"{name}: from {_short(line[0][1])} to {_short(line[-1][1])}" for name, line in lines.items() if line
    )
    return _svg(title, told, bottom + 46, parts, CURVE_WIDTH)


def _legend(names: Sequence[str], left: float, right: float) -> list[tuple[float, int]]:
    """Where each entry begins, and in which line."""
    places: list[tuple[float, int]] = []
    across, row = left, 0
    for name in names:
        width = 48 + 7.2 * len(name)
        if places and across + width > right:
            across, row = left, row + 1
        places.append((across, row))
        across += width
    return places


def distances(title: str, rows: Mapping[str, Sequence[float]], threshold: float, axis: str) -> Markup:
    """One strip of dots per row and a line at `threshold`; what lies to its left is nearer than it should be."""
    values = [value for row in rows.values() for value in row] + [threshold]
    low, high = min(values), max(values)
    pad = (high - low or 1.0) * 0.05
    low, high = low - pad, high + pad
    left, right, top, step = 170, 20, 24, 56
    bottom = top + step * len(rows)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - right)

    parts = [_vertical(x(value), top, bottom, _short(value)) for value in ticks(low, high, 6)]
    for i, (name, row) in enumerate(rows.items()):
        middle, kind = top + step * (i + 0.5), "synthetic" if name.startswith("synthetic") else "real"
        parts.append(
            f'<text class="label" x="{left - 12}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        for j, value in enumerate(_thinned(row, threshold)):
            y = middle + 16 * ((j * 0.618034) % 1 - 0.5) * 2  # golden ratio: spread evenly, the same every time
            parts.append(f'<circle class="dot {kind}" cx="{x(value):.1f}" cy="{y:.1f}" r="3"/>')
    parts.append(
        f'<line class="threshold" x1="{x(threshold):.1f}" x2="{x(threshold):.1f}" y1="{top - 6}" y2="{bottom}"/>'
    )
    parts.append(f'<text class="tick" x="{x(threshold):.1f}" y="{top - 10}" text-anchor="middle">threshold</text>')
    parts.append(_axis_name(axis, (left + WIDTH - right) / 2, bottom + 36))
    told = "; ".join(f"{n}: {sum(v < threshold for v in row)} of {len(row)} below" for n, row in rows.items())
    return _svg(title, f"Threshold {_short(threshold)}. {told}", bottom + 44, parts)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between `low` and `high`, some `about` of them."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    every = [nice * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for nice in (1, 2, 5)]
    inside = [value for value in every if low <= math.log10(value) <= high]
    whole = [value for value in inside if math.log10(value).is_integer()]
    return whole if len(whole) > 3 else inside


def _thinned(values: Sequence[float], threshold: float) -> list[float]:
    """All that lie below the threshold and at most some hundred others, evenly by rank."""
    ranked = sorted(values)
    below = [value for value in ranked if value < threshold]
    rest = ranked[len(below) :]
    stride = max(1, math.ceil(len(rest) / _MOST_DOTS))
    return below + rest[::stride]


def _cycled(count: int) -> list[str]:
    return [_STYLES[i % len(_STYLES)] for i in range(count)]


def _short(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"


def _vertical(x: float, top: float, bottom: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>'
    )


def _axis_name(text: str, x: float, y: float) -> str:
    return f'<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _svg(title: str, told: str, height: float, parts: Sequence[str], width: int = WIDTH) -> Markup:
    label = escape(f"{title}. {told}")
    return Markup(  # noqa: S704 - every text that enters is escaped where it enters
        f'<svg role="img" viewBox="0 0 {width} {height:.0f}" aria-label="{label}">{"".join(parts)}</svg>'
    )
