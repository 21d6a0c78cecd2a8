"""Intensities to [-1, 1] and back by a stated rule that travels with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from medsynth.config.cohort import HuWindow, Intensity, Percentiles
from medsynth.errors import DataError, ModelFolderError
from medsynth.imaging.scan import Scan, bare, unit_of
from medsynth.imaging.words import ARBITRARY, HU

Limits = tuple[float, float]


@dataclass(frozen=True)
class IntensityRule:
    """`hu_window`: [low, high] in HU. `percentiles`: between these percentiles of each scan's own voxels.

    Voxels at or below the lower limit become -1, at or above the upper one +1, linear between.
    """

    kind: Literal["hu_window", "percentiles"]
    low: float
    high: float
    unit: str
    """Unit of the restored intensities."""
    reference: Limits | None = None
    """`percentiles` only: the limits that generated scans are restored to."""

    @classmethod
    def from_settings(cls, settings: Intensity) -> IntensityRule:
        """The rule that a configuration asks for."""
        if isinstance(settings, HuWindow):
            return cls("hu_window", settings.low, settings.high, HU)
        if isinstance(settings, Percentiles):
            return cls("percentiles", settings.low, settings.high, ARBITRARY)
        raise TypeError(f"no intensity rule for {type(settings).__name__}")

    def limits(self, scan: Scan) -> Limits:
        """The intensities of `scan` that become -1 and +1.

        Raises DataError for a constant scan, one in another unit than the rule's, and one that the rule would make
        constant.
        """
        voxels = bare(scan)
        lowest, highest = float(voxels.min()), float(voxels.max())
        if not np.isfinite([lowest, highest]).all():
            raise DataError("expected finite voxels, found NaN or infinity; replace them first")
        if lowest == highest:
            raise DataError("expected a scan, found the same value in every voxel; leave it out")
        if self.kind == "hu_window":
            return self._window(scan, lowest, highest)
        low, high = np.percentile(voxels.cpu().numpy(), [self.low, self.high])
        if not low < high:
            raise DataError(
                f"the percentiles {self.low:g} and {self.high:g} of this scan are the same value; widen them under "
                "prepare.intensity, or leave the scan out"
            )
        return float(low), float(high)

    def _window(self, scan: Scan, lowest: float, highest: float) -> Limits:
        if unit_of(scan) not in (HU, ""):
            raise DataError(
                "expected a scan in HU for the intensity rule hu_window, found one in arbitrary units; set "
                "prepare.intensity to kind: percentiles"
            )
        if highest <= self.low or lowest >= self.high:
            raise DataError(
                f"no voxel lies inside the window {self.low:g} to {self.high:g} HU (found {lowest:g} to {highest:g}); "
                "is this scan in HU?"
            )
        return self.low, self.high

    def normalise(self, voxels: torch.Tensor, limits: Limits) -> torch.Tensor:
        """Plain float32 of the same shape in [-1, 1], clipped."""
        low, high = limits
        return ((bare(voxels).to(torch.float32) - low) * (2.0 / (high - low)) - 1.0).clamp_(-1.0, 1.0)

    def restore(self, voxels: torch.Tensor, limits: Limits | None = None) -> torch.Tensor:
        """Float32 intensities in the rule's unit from [-1, 1] (clipped to it); the reverse of `normalise`.

        `limits`: those of `model_limits` unless given.
        """
        low, high = self.model_limits() if limits is None else limits
        return (bare(voxels).to(torch.float32).clamp(-1.0, 1.0) + 1.0) * ((high - low) / 2.0) + low

    def model_limits(self) -> Limits:
        """The intensities that -1 and +1 of a generated scan stand for: the window, or the reference.

        Raises DataError for percentiles without a reference.
        """
        if self.kind == "hu_window":
            return self.low, self.high
        if self.reference is None:
            raise DataError("the percentile rule has no reference limits to restore to; give the limits of one scan")
        return self.reference

    def with_reference(self, limits: Sequence[Limits]) -> IntensityRule:
        """The rule with the median of many scans' limits as its reference; a window needs none and stays as it is."""
        if self.kind == "hu_window":
            return self
        if not limits:
            raise DataError("no scan is left to take reference intensities from")
        low, high = np.median(np.asarray(limits, dtype=np.float64), axis=0)
        return replace(self, reference=(float(low), float(high)))

    def to_json(self) -> dict[str, Any]:
        """JSON types that `from_json` takes."""
        reference = None if self.reference is None else list(self.reference)
        return {"kind": self.kind, "low": self.low, "high": self.high, "unit": self.unit, "reference": reference}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> IntensityRule:
        """The rule from `to_json`. Raises ModelFolderError where the data is not such a rule."""
        try:
            kind = data["kind"]
            if kind not in ("hu_window", "percentiles"):
                raise ModelFolderError("expected an intensity rule hu_window or percentiles; the model may be newer")
            reference = data["reference"]
            return cls(
                kind=kind,
                low=float(data["low"]),
                high=float(data["high"]),
                unit=str(data["unit"]),
                reference=None if reference is None else (float(reference[0]), float(reference[1])),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelFolderError(
                "the intensity rule is incomplete (kind, low, high, unit, reference); copy the model again"
            ) from error
