"""The pictures of a pipeline's report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medsynth.cohort.grids import common_grid
from medsynth.cohort.manifest import Case
from medsynth.cohort.volumes import VolumeSet
from medsynth.config.pipeline import Pipeline
from medsynth.evaluation.evidence import Evidence
from medsynth.imaging.intensity import IntensityRule
from medsynth.reporting.pictures import Pair, Picture, View, Window, closest_pairs, reconstructions, side_by_side


@dataclass(frozen=True)
class Shown:
    """What pictures are drawn from."""

    real: Mapping[str, VolumeSet]
    synthetic: VolumeSet
    rule: IntensityRule
    pipeline: Pipeline
    evidence: Evidence

    @property
    def window(self) -> Window:
        """The whole range of the intensity rule, in the scans' unit."""
        low, high = self.rule.model_limits()
        return Window(low, high, self.rule.unit)

    def in_unit(self, voxels: torch.Tensor | np.ndarray) -> np.ndarray:
        """Voxels [X, Y, Z] of [-1, 1] in the scans' unit."""
        window = self.window
        return (np.asarray(voxels, np.float32) + 1) / 2 * (window.high - window.low) + window.low

    def view(self, volumes: VolumeSet, place: int) -> View:
        """One case of a set."""
        mask = None if volumes.masks is None else np.asarray(volumes.masks[place, 0])
        if mask is not None and not ((mask > 0) & (mask < 255)).any():
            mask = None
        return View(self.in_unit(volumes.volumes[place, 0]), mask)


def draw_pictures(shown: Shown, reconstructed: Path, folder: Path) -> dict[str, Picture]:
    """Real beside synthetic, reconstructions and the closest pairs; also kept as PNG files in `folder`."""
    pipeline = shown.pipeline
    spacing = common_grid(pipeline.prepare.every_grid()).spacing_mm
    mask = pipeline.mask()
    labels = mask[1].labels if mask else None
    pictures = {
        "examples": side_by_side(_examples(shown), spacing, shown.window, labels),
        "reconstructions": reconstructions(_reconstructions(shown, reconstructed), spacing, shown.window),
    }
    closest = _closest(shown)
    if closest:
        pictures["closest"] = closest_pairs(closest, spacing, shown.window)
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        (folder / f"{name}.png").write_bytes(picture.png)
    return pictures


def _examples(shown: Shown) -> list[Pair]:
    """Synthetic scans in order, each beside a held-out real scan whose conditions are nearest."""
    real, synthetic = shown.real["test"], shown.synthetic
    count = min(shown.pipeline.evaluate.pictures, len(synthetic.cases), len(real.cases))
    left = list(range(len(real.cases)))
    pairs = []
    for place in range(count):
        wanted = synthetic.cases[place]
        match = min(left, key=lambda other: _unlike(wanted, real.cases[other], shown.pipeline))
        left.remove(match)
        pairs.append(Pair(shown.view(real, match), shown.view(synthetic, place), _label(wanted, shown.pipeline)))
    return pairs


def _unlike(one: Case, other: Case, pipeline: Pipeline) -> float:
    """How far two cases' conditions are apart: 1 per differing category, a number by its share of the range."""
    total = 0.0
    for name, condition in pipeline.conditions.items():
        first, second = one.conditions.get(name), other.conditions.get(name)
        if condition.kind == "category":
            total += first != second
        elif condition.kind == "number" and isinstance(first, float) and isinstance(second, float):
            low, high = condition.range
            total += abs(first - second) / (high - low)
    return total


def _label(case: Case, pipeline: Pipeline) -> str:
    parts = []
    for name, condition in pipeline.conditions.items():
        value = case.conditions.get(name)
        if condition.kind != "mask" and value is not None:
            unit = f" {condition.unit}" if condition.kind == "number" and condition.unit else ""
            parts.append(f"{name} {value:g}{unit}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts) or "no conditions"


def _reconstructions(shown: Shown, path: Path) -> list[Pair]:
    arrays = np.load(path, allow_pickle=False)  # [N, 2, X, Y, Z]
    return [
        Pair(View(shown.in_unit(original)), View(shown.in_unit(decoded)), f"validation scan {number}")
        for number, (original, decoded) in enumerate(arrays, start=1)
    ]


def _closest(shown: Shown) -> list[Pair]:
    privacy = shown.evidence.privacy
    if privacy is None:
        return []
    pairs = privacy.closest[: shown.pipeline.evaluate.closest_pairs]
    return [
        Pair(
            shown.view(shown.synthetic, pair.synthetic),
            shown.view(shown.real["train"], pair.training),
            f"{pair.distance / pair.threshold:.2f} x threshold, {pair.space}",
        )
        for pair in pairs
    ]
