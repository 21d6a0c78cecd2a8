"""The losses of the steps since the last record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from medsynth.training.guard import Guard

GRADIENT = "gradient_norm"


class Window:
    """Collects losses on the device and brings many over in one transfer: a GPU is not stalled at every step."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._names: list[str] = []
        self._batches: list[Tensor] = []
        self._pending: list[tuple[int, Tensor, Tensor]] = []
        self._sums: dict[str, float] = {}
        self._count = 0

    def add_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Take in the losses of one batch of the step at hand."""
        self._names = list(losses)
        self._batches.append(torch.stack([loss.detach().float() for loss in losses.values()]))

    def end_step(self, step: int, gradient_norm: Tensor) -> None:
        """The batches since the last call were those of `step`."""
        self._pending.append((step, torch.stack(self._batches).mean(0), gradient_norm.detach().float()))
        self._batches = []

    def settle(self, guard: Guard) -> None:
        """Bring over what is pending, averaged over the processes, and show it to `guard` step by step."""
        if not self._pending:
            return
        steps = [step for step, _, _ in self._pending]
        table = torch.stack([torch.cat([losses, norm.reshape(1)]) for _, losses, norm in self._pending])
        if self._accelerator.num_processes > 1:
            table = self._accelerator.reduce(table, reduction="mean")
        self._pending = []
        for step, values in zip(steps, table.tolist(), strict=True):
            figures = dict(zip([*self._names, GRADIENT], values, strict=True))
            guard.check(step, figures["loss"], figures[GRADIENT])
            for name, value in figures.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self._count += 1

    def means(self) -> tuple[dict[str, float], float]:
        """Mean of each loss, and of the gradient's norm, over the settled steps; starts the next window."""
        means = {name: total / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means, means.pop(GRADIENT)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON types; everything must be settled."""
        return {"sums": self._sums, "count": self._count}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._sums, self._count = dict(state["sums"]), state["count"]
