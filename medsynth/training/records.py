"""What a training loop says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """One report of a training loop; figures are means over the optimiser steps since the report before."""

    step: int
    """Optimiser steps done, counted from 1."""
    total: int
    """Optimiser steps planned; where a time budget will end the run earlier, the estimate at this moment."""
    seconds: float
    """Time in the loop so far: validation and checkpoints included, and what was done before an interruption too."""
    losses: dict[str, float]
    """Terms of the loss; `loss` is what is minimised."""
    learning_rate: float
    validation: dict[str, float] | None
    """Figures on the validation split with the averaged weights, at the steps that take them."""
    waiting: float
    """Share of the time that the loop spent waiting for its data, 0 to 1."""
    gradient_norm: float = 0.0
    """Norm of the whole gradient before clipping."""
    watch: dict[str, float] | None = None
    """Figures of a look at the network's work (see `Task.look`), at the steps that take one."""

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """The record that `to_json` wrote."""
        return cls(**data)
