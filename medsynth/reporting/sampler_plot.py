"""Evaluations against quality as a picture: a panel per feature space, a line per sampler."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from medsynth.evaluation.sampler_choice import SamplerTable

DOTS_PER_INCH = 120
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a7a00", "#555555")
"""Okabe and Ito 2008: told apart by those who do not see all colours."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def draw_sampler_plot(table: SamplerTable, caption: str) -> bytes:
    """A PNG. The grey band is what real scans reach against real scans; the ring marks the recommended choice."""
    spaces = list(table.real)
    samplers = list(dict.fromkeys(choice.sampler for choice in table.choices))
    figure = Figure(figsize=(5.2 * len(spaces), 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(spaces), squeeze=False)[0]
    for axes, space in zip(panels, spaces, strict=True):
        real = table.real[space]
        axes.axhspan(real.low, real.high, color="#00000018", label="real against real, 95 %", linewidth=0)
        axes.axhline(real.value, color="#00000080", linewidth=1)
        for number, sampler in enumerate(samplers):
            _draw_line(axes, table, space, sampler, number, len(samplers))
        chosen = table.recommended
        place = chosen.calls * _beside(samplers.index(chosen.sampler), len(samplers))
        axes.plot(
            [place], [chosen.spaces[space].kid.value], "o", markersize=15, fillstyle="none", color="black",
            label="recommended",
        )  # fmt: skip
        ticks = sorted({choice.evaluations for choice in table.choices})
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_yscale("symlog", linthresh=_linear_up_to(table, space))
        axes.set_xlabel("network evaluations per volume")
        axes.set_ylabel("KID to held-out real scans (lower is better)")
        axes.set_title(space)
        axes.grid(visible=True, color="#00000014")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle(caption, fontsize=9)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return out.getvalue()


def _draw_line(axes: Any, table: SamplerTable, space: str, sampler: str, number: int, count: int) -> None:
    rows = sorted((one for one in table.choices if one.sampler == sampler), key=lambda one: one.calls)
    kids = [row.spaces[space].kid for row in rows]
    beside = _beside(number, count)
    axes.errorbar(
        [row.calls * beside for row in rows],
        [kid.value for kid in kids],
        [[kid.value - kid.low for kid in kids], [kid.high - kid.value for kid in kids]],
        color=COLOURS[number % len(COLOURS)],
        marker=MARKS[number % len(MARKS)],
        linestyle="-" if number < len(COLOURS) else "--",
        linewidth=1.2,
        markersize=5,
        elinewidth=0.7,
        capsize=2,
        label=sampler,
    )


def _beside(number: int, count: int) -> float:
    """How far a sampler's marks are moved, so that bars of equal calls do not cover each other."""
    return 1 + 0.03 * (number - (count - 1) / 2)


def _linear_up_to(table: SamplerTable, space: str) -> float:
    """KID is zero on average for equal distributions, and may be negative: the axis is linear up to here."""
    real = table.real[space]
    return max(abs(real.low), abs(real.high), 1e-6)
