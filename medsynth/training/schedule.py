"""The learning rate: a linear warm-up times a half cosine over the run."""

from __future__ import annotations

import math

from medsynth.config.training import Training


def share_done(settings: Training, step: int, seconds: float) -> float:
    """How much of the run lies behind, 0 to 1: by steps, or by time where `max_minutes` is nearer to its end.

    With a time budget the learning rate of a step depends on how fast the machine is, so such a run is not
    reproducible bit for bit; without one it is a function of the step alone.
    """
    by_steps = step / settings.steps
    by_time = seconds / (60 * settings.max_minutes) if settings.max_minutes else 0.0
    return min(1.0, max(by_steps, by_time))


def learning_rate(settings: Training, step: int, share: float) -> float:
    """The rate of the step that comes after `step` done ones (Loshchilov 2017, eq. 5, without restarts)."""
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * share))


def planned_steps(settings: Training, step: int, share: float) -> int:
    """Steps that the run will have when it ends, as far as can be told after `step` of them."""
    if share >= 1 or share <= 0:
        return max(step, 1) if share >= 1 else settings.steps
    return max(step, min(settings.steps, round(step / share)))
