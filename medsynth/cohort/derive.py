"""Labels that are measured instead of given: small or large, by the volume of the mask."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from medsynth.config.cohort import CategoryCondition, Condition
from medsynth.errors import CohortError


def mask_volume_mm3(
    mask: torch.Tensor | NDArray[np.integer], spacing_mm: Sequence[float], labels: Sequence[int] | None = None
) -> float:
    """Volume of the labelled voxels of [X, Y, Z] or [1, X, Y, Z]; of all that are not background unless `labels` says."""
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    inside = array > 0 if labels is None else np.isin(array, labels)
    return float(np.count_nonzero(inside)) * float(np.prod(np.asarray(spacing_mm, np.float64)))


def split_at_training_median(
    volumes_mm3: Sequence[float], splits: Sequence[str], values: tuple[str, str]
) -> tuple[list[str], float]:
    """`values[0]` below and `values[1]` at or above the median of the training volumes, for every case; and that median.

    Only the training split decides where the line is. Raises CohortError where it holds no case, or all its volumes lie
    on one side.
    """
    training = [volume for volume, split in zip(volumes_mm3, splits, strict=True) if split == "train"]
    if not training:
        raise CohortError("expected training cases to take the median mask volume from, found none")
    median = float(statistics.median(training))
    if min(training) == median:
        raise CohortError(
            f"expected mask volumes on both sides of their training median, found none below {median:.1f} mm3; "
            "check the masks, or give the label in a column"
        )
    return [values[0] if volume < median else values[1] for volume in volumes_mm3], median


def derive_conditions(
    conditions: Mapping[str, Condition], volumes_mm3: Sequence[float], splits: Sequence[str]
) -> list[dict[str, str]]:
    """The derived categories of every case, from the volumes of the masks and the splits of the cases."""
    derived: list[dict[str, str]] = [{} for _ in volumes_mm3]
    for name, condition in conditions.items():
        if isinstance(condition, CategoryCondition) and condition.derive == "mask_volume":
            small, large = condition.values
            labels, _ = split_at_training_median(volumes_mm3, splits, (small, large))
            for row, label in zip(derived, labels, strict=True):
                row[name] = label
    return derived
