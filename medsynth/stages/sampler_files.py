"""The files and the words that a table of samplers becomes."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from medsynth.config.base import plain
from medsynth.config.generate import Sampling
from medsynth.evaluation.evidence import Estimate
from medsynth.evaluation.sampler_choice import RULE, Choice, SamplerTable
from medsynth.evaluation.statistics import Resampling
from medsynth.reporting.sampler_plot import draw_sampler_plot
from medsynth.stages.files import write_bytes, write_json, write_text

TABLE, DATA, PLOT, SNIPPET = "samplers.csv", "samplers.json", "samplers.png", "sampling.yaml"
COLUMNS = (
    "sampler", "evaluations", "network_calls", "seconds_per_volume", "space", "kid", "kid_low", "kid_high", "above_best",
    "above_best_low", "above_best_high", "real_against_real", "real_low", "real_high", "recommended",
)  # fmt: skip


def write_table(
    folder: Path, table: SamplerTable, stated: Sampling, facts: dict[str, Any], resampling: Resampling
) -> None:
    """The table as CSV and JSON, the plot, and the recommended settings as YAML."""
    write_text(folder / TABLE, _csv(table))
    write_json(
        folder / DATA,
        {
            **facts,
            "rule": RULE,
            "confidence": resampling.confidence,
            "resamples": resampling.resamples,
            "guidance": stated.guidance_text,
            "real_against_real": {space: asdict(real) for space, real in table.real.items()},
            "choices": [asdict(choice) for choice in table.choices],
            "recommended": plain(_recommended(table, stated)),
        },
    )
    caption = (
        f"{facts['scans_per_choice']} scans per choice against {facts['held_out_scans']} held-out real scans (validation); "
        f"{100 * resampling.confidence:g} % intervals; seed {facts['seed']}"
    )
    write_bytes(folder / PLOT, draw_sampler_plot(table, caption))
    write_text(folder / SNIPPET, snippet(table, stated))


def summary(table: SamplerTable, stated: Sampling) -> dict[str, Any]:
    """The recommendation and the table in lines."""
    chosen = table.recommended
    return {
        "real_against_real": {space: _told(real) for space, real in table.real.items()},
        "table": [_line(choice) for choice in table.choices],
        "recommended": f"{chosen.sampler}, {chosen.evaluations} evaluations ({chosen.calls} network calls)",
        "why": _why(table),
        "yaml": snippet(table, stated),
    }


def snippet(table: SamplerTable, stated: Sampling) -> str:
    """The recommended settings, to be pasted into a pipeline."""
    return yaml.safe_dump({"generate": {"sampling": plain(_recommended(table, stated))}}, sort_keys=False)


def _recommended(table: SamplerTable, stated: Sampling) -> Sampling:
    chosen = table.recommended
    return stated.model_copy(update={"sampler": chosen.sampler, "evaluations": chosen.evaluations})


def _why(table: SamplerTable) -> str:
    chosen = table.recommended
    apart = "; ".join(f"{space} {_told(judged.above_best)}" for space, judged in chosen.spaces.items())
    good = sum(not choice.short_in for choice in table.choices)
    if good:
        first = (
            f"the cheapest of {good} out of {len(table.choices)} choices shown to be as good as the best in every space"
        )
    else:
        first = (
            "no choice was shown to be as good as the best in every space, the cheapest of those that were in the most; "
            "more scans would narrow the intervals"
        )
    return f"{first}. Its KID above the lowest: {apart}"


def _line(choice: Choice) -> str:
    kids = "; ".join(
        f"{space} {_told(judged.kid)}{' *' if not judged.as_good else ''}" for space, judged in choice.spaces.items()
    )
    return f"{choice.sampler} {choice.evaluations} ({choice.calls} calls, {choice.seconds_per_volume:.3g} s): {kids}"


def _told(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _csv(table: SamplerTable) -> str:
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    for choice in table.choices:
        for space, judged in choice.spaces.items():
            named = [choice.sampler, choice.evaluations, choice.calls, f"{choice.seconds_per_volume:.4g}", space]
            estimates = (judged.kid, judged.above_best, table.real[space])
            figures = [f"{figure:.6g}" for one in estimates for figure in (one.value, one.low, one.high)]
            rows.writerow([*named, *figures, "yes" if choice is table.recommended else "no"])
    return out.getvalue()
