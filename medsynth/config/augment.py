"""Settings of augmentation before the encoder, and conditions that it would make false."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations
from typing import Annotated, Literal

from pydantic import Field

from medsynth.config.base import Settings
from medsynth.config.cohort import CategoryCondition, Condition, MaskCondition

Axis = Literal["x", "y", "z"]

SIDES: Mapping[str, frozenset[str]] = {
    "x": frozenset(["left", "right", "l", "r", "side", "laterality"]),
    "y": frozenset(["anterior", "posterior", "front", "back", "ventral", "dorsal"]),
    "z": frozenset(["superior", "inferior", "upper", "lower", "top", "bottom", "cranial", "caudal"]),
}
"""Words in names, values and labels that a mirrored axis turns into their opposite."""


class Augment(Settings):
    """What is encoded of each training scan besides the scan itself."""

    mirror: tuple[Axis, ...] = ()
    """Axes along which a mirrored patient is one that could be: x left to right, y back to front, z bottom to top."""
    turned_copies: Annotated[int, Field(ge=0, le=64, exclude_if=lambda copies: copies == 0)] = 0
    """Copies of each training scan, each turned in its own way; the network is told how, and asked for scans that are not."""
    turn_degrees: Annotated[float, Field(gt=0, le=45, exclude_if=lambda degrees: degrees == 10.0)] = 10.0
    """Largest turn about each axis."""

    def mirrored(self) -> list[tuple[Axis, ...]]:
        """Every set of the axes to mirror along, that of none first."""
        axes = sorted(set(self.mirror))
        return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]

    @property
    def variants(self) -> int:
        """How often each training scan is encoded."""
        return len(self.mirrored()) * (1 + self.turned_copies)


def contradicted(augment: Augment, conditions: Mapping[str, Condition]) -> list[str]:
    """A sentence for each steering condition that tells apart what a mirrored axis swaps, as far as its words show."""
    found = []
    for axis in sorted(set(augment.mirror)):
        for name, condition in conditions.items():
            texts = [name]
            if isinstance(condition, CategoryCondition):
                texts += condition.values
            elif isinstance(condition, MaskCondition):
                texts += condition.labels
            words = {word.lower() for text in texts for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)}
            if condition.steer and words & SIDES[axis]:
                found.append(
                    f"denoiser.augment.mirror: {axis} swaps what the condition {name} tells apart "
                    f"({', '.join(sorted(words & SIDES[axis]))}); leave {axis} out, or set `steer: false` for {name}"
                )
    return found
