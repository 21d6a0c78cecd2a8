"""Classifier-free guidance per condition (Ho 2022), as a function of x and the angle.

Write D(c) for the clean latent given the conditions c, D(0) with all of them withheld, D(c - k) with only k withheld.

    one scale w              D(0) + w (D(c) - D(0))
    a scale w_k for some k   D(c) + sum over k of (w_k - 1) (D(c) - D(c - k))

A scale of 1 is the plain conditional model, 0 ignores the condition, above 1 goes further toward it. Conditions without a
scale of their own stay as they were trained. For a model with one condition both forms are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from medsynth.config.explain import nearest
from medsynth.diffusion.objective import Denoiser
from medsynth.diffusion.scheduler_door import Denoise
from medsynth.errors import ConfigError
from medsynth.models.conditions import drop

Scales = float | Mapping[str, float]


def guided(denoiser: Denoiser, conditions: Mapping[str, Tensor], scales: Scales) -> Denoise:
    """The function (x [B, ...], angle [B]) -> clean latent that a sampler takes; one batched network call each.

    `conditions` as `models.conditions.encode` gives them, for the same B. The batch of a call is B times one plus the
    number of withheld variants (scale 1: none). Raises ConfigError for a condition the model does not have, and for a
    scale that is negative or not finite.
    """
    branches = plan(conditions, scales)
    stacked = {name: torch.cat([variant[name] for _, variant in branches]) for name in conditions}
    weights = [weight for weight, _ in branches]

    def denoise(x: Tensor, angle: Tensor) -> Tensor:
        count = len(branches)
        clean = denoiser.clean(x.repeat(count, *[1] * (x.ndim - 1)), angle.repeat(count), stacked)
        if count == 1:
            return clean
        parts = clean.chunk(count)
        total = weights[0] * parts[0]
        for weight, part in zip(weights[1:], parts[1:], strict=True):
            total = total + weight * part
        return total

    return denoise


def plan(conditions: Mapping[str, Tensor], scales: Scales) -> list[tuple[float, dict[str, Tensor]]]:
    """The variants of the conditions to evaluate and their weights, which sum to 1; those of weight 0 are left out."""
    check_scales(conditions, scales)
    names, given = list(conditions), dict(conditions)
    if isinstance(scales, Mapping):
        variants = [(1.0 - scale, drop(given, [name])) for name, scale in scales.items()]
        variants.insert(0, (1.0 - math.fsum(weight for weight, _ in variants), given))
    elif names:
        variants = [(float(scales), given), (1.0 - scales, drop(given, names))]
    else:
        variants = [(1.0, given)]
    return [(weight, variant) for weight, variant in variants if weight != 0]


def check_scales(names: Iterable[str], scales: Scales) -> None:
    """Raise ConfigError for a scale of a condition that is not in `names`, or that is negative or not finite."""
    known = list(names)
    mistakes = []
    for name, scale in scales.items() if isinstance(scales, Mapping) else [("", scales)]:
        if name and name not in known:
            mistakes.append(
                f"guidance: expected one of the conditions {', '.join(known) or '(none)'}, found {name!r}"
                f"{nearest(name, known)}"
            )
        elif not math.isfinite(scale) or scale < 0:
            mistakes.append(f"guidance{name and '.'}{name}: expected a number that is 0 or larger, found {scale}")
    if mistakes:
        raise ConfigError(mistakes)
