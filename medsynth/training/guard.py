"""Noticing that a training run has gone wrong."""

from __future__ import annotations

import math
from typing import Any

from medsynth.errors import DivergenceError

MEMORY = 0.98
"""Weight of the past in the running loss: it forgets over some 50 steps."""
MULTIPLE = 5.0
"""A running loss this many times its best one is out of hand ..."""
PATIENCE = 100
"""... once it has been so for this many steps on end."""
SETTLING = 20
"""Steps before the running loss says anything."""
FLOOR = 0.01
"""Share of the running loss at first below which the best one is not taken to fall: near zero, ratios say nothing."""
OUTLIER = 2 * MULTIPLE
"""A single loss counts for no more than so many times the best running one: one bad batch is no divergence."""


class Guard:
    """Watches the loss and the gradient of every optimiser step.

    Raises DivergenceError, naming the step, where either is not finite, or where the running loss stays above
    `MULTIPLE` times its best for `PATIENCE` steps.
    """

    def __init__(self, total: int, learning_rate: float) -> None:
        self.total = total
        self.learning_rate = learning_rate
        self.first: float | None = None
        self.seen = 0
        self.mean = 0.0
        self.best = math.inf
        self.out_of_hand = 0
        self.latest = 0.0

    def check(self, step: int, loss: float, gradient_norm: float) -> None:
        """Take in the figures of `step`."""
        for name, value in (("loss", loss), ("gradient", gradient_norm)):
            if not math.isfinite(value):
                raise self._error(step, f"expected a finite {name}, found {value}")
        self.seen += 1
        self.latest = loss
        self.mean = MEMORY * self.mean + (1 - MEMORY) * min(loss, OUTLIER * self.best)
        running = self.mean / (1 - MEMORY**self.seen)  # as if it had started at the losses' mean (Kingma 2015, eq. 4)
        if self.seen < SETTLING:
            return
        if self.first is None:
            self.first = abs(running)
        self.best = max(min(self.best, running), FLOOR * self.first)
        self.out_of_hand = self.out_of_hand + 1 if running > MULTIPLE * self.best else 0
        if self.out_of_hand >= PATIENCE:
            found = f"expected a running loss near its best of {self.best:.4g}, found {running:.4g}"
            raise self._error(step, f"{found} for {PATIENCE} steps on end")

    @property
    def alarmed(self) -> bool:
        """Whether the loss or its running mean is out of hand now: what the network holds may not be worth keeping."""
        return self.out_of_hand > 0 or self.latest > MULTIPLE * self.best

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON types."""
        return {
            "seen": self.seen,
            "mean": self.mean,
            "first": self.first,
            "best": None if math.isinf(self.best) else self.best,
            "out_of_hand": self.out_of_hand,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.seen = state["seen"]
        self.mean = state["mean"]
        self.first = state["first"]
        self.best = math.inf if state["best"] is None else state["best"]
        self.out_of_hand = state["out_of_hand"]

    def _error(self, step: int, found: str) -> DivergenceError:
        return DivergenceError(
            f"training diverged at step {step} of {self.total}: {found}\n"
            f"lower training.learning_rate (now {self.learning_rate:g}) or raise training.warmup_steps and run again: with other "
            "settings this stage starts anew, what the stages before it made is kept"
        )
