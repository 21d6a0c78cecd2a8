"""Classifier-free guidance per condition (Ho 2022), as a function of x and the angle.

Write D(c) for the clean latent given the conditions c, D(0) with all of them withheld, D(c - k) with only k withheld.

    one scale w              D(0) + w (D(c) - D(0))
    a scale w_k for some k   D(c) + sum over k of (w_k - 1) (D(c) - D(c - k))

A scale of 1 is the plain conditional model, 0 ignores the condition, above 1 goes further toward it. Conditions without a
scale of their own stay as they were trained. For a model with one condition both forms are the same.

At high noise guidance narrows the variety and at low noise it does nothing good: an interval of noise levels keeps it to
where it helps (Kynkaanniemi 2024). It also widens the range of values; rescaling takes the standard deviation of each
sample back toward that of D(c) (Lin 2023, eq. 15 and 16, on the clean latent).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medsynth.config.explain import nearest
from medsynth.config.generate import Sampling
from medsynth.diffusion.angle import Denoise, from_flow_time, per_sample
from medsynth.diffusion.objective import Denoiser
from medsynth.errors import ConfigError
from medsynth.models.conditions import drop, has_null

Scales = float | Mapping[str, float]


@dataclass(frozen=True)
class Guidance:
    """How a sampler is steered.

    `scales`: one number, or one per condition. `interval`: the flow times t from which to which guidance acts, both
    included; the paper's sigma is t / (1 - t). `rescale`: phi of Lin 2023, eq. 16.
    """

    scales: Scales = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    @classmethod
    def of(cls, sampling: Sampling) -> Guidance:
        """As settings have it."""
        return cls(sampling.guidance, sampling.guidance_interval, sampling.guidance_rescale)

    def only(self, names: Collection[str]) -> Guidance:
        """Without the scales of conditions that are not in `names`."""
        if not isinstance(self.scales, Mapping):
            return self
        kept = {name: scale for name, scale in self.scales.items() if name in names}
        return Guidance(kept, self.interval, self.rescale)

    @property
    def always(self) -> bool:
        """Whether guidance acts at every noise level."""
        return tuple(self.interval) == (0.0, 1.0)

    def acts_at(self, angle: Tensor) -> Tensor:
        """Whether each angle lies in the interval, [B] bool."""
        low, high = from_flow_time(torch.tensor(self.interval, dtype=angle.dtype))
        return (low <= angle) & (angle <= high)

    def check(self, names: Iterable[str], never_withheld: Iterable[str] = ()) -> None:
        """Raise ConfigError for a scale of a condition not in `names`, for guidance by one that training never withheld, and
        for numbers out of their range.
        """
        known = list(names)
        scales = self.scales if isinstance(self.scales, Mapping) else dict.fromkeys(known, self.scales)
        unable = [name for name in never_withheld if scales.get(name, 1) != 1]
        mistakes = []
        if unable:
            mistakes.append(
                f"guidance: expected conditions that training withheld at times, found {', '.join(unable)} with dropout 0; "
                "guide by the others, {NAME: SCALE}, or train with a dropout"
            )
        for name, scale in self.scales.items() if isinstance(self.scales, Mapping) else [("", self.scales)]:
            if name and name not in known:
                mistakes.append(
                    f"guidance: expected one of the conditions {', '.join(known) or '(none)'}, found {name!r}"
                    f"{nearest(name, known)}"
                )
            elif not math.isfinite(scale) or scale < 0:
                mistakes.append(f"guidance{name and '.'}{name}: expected a number that is 0 or larger, found {scale}")
        ends = list(self.interval)
        if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 1:
            mistakes.append(f"guidance_interval: expected two rising numbers from 0 to 1, found {ends}")
        if not 0 <= self.rescale <= 1:
            mistakes.append(f"guidance_rescale: expected a number from 0 to 1, found {self.rescale}")
        if mistakes:
            raise ConfigError(mistakes)


def guided(denoiser: Denoiser, conditions: Mapping[str, Tensor], guidance: Guidance) -> Denoise:
    """The function (x [B, ...], angle [B]) -> clean latent that a sampler takes; one batched network call each.

    `conditions` as `models.conditions.encode` gives them, for the same B. The batch of a call is B times one plus the
    number of withheld variants, and B alone where guidance does not act. Raises ConfigError for a condition the model
    does not have and for numbers out of their range.
    """
    guidance.check(name for name, value in conditions.items() if has_null(value))
    branches = plan(conditions, guidance)

    stacked = {name: torch.cat([variant[name] for _, variant in branches]) for name in conditions}
    weights = [weight for weight, _ in branches]

    def plain(x: Tensor, angle: Tensor) -> Tensor:
        return denoiser.clean(x, angle, conditions)

    def steered(x: Tensor, angle: Tensor) -> Tensor:
        count = len(branches)
        clean = denoiser.clean(x.repeat(count, *[1] * (x.ndim - 1)), angle.repeat(count), stacked)
        if count == 1:
            return clean
        parts = clean.chunk(count)
        total = weights[0] * parts[0]
        for weight, part in zip(weights[1:], parts[1:], strict=True):
            total = total + weight * part
        return rescaled(total, parts[0], guidance.rescale) if guidance.rescale else total

    def denoise(x: Tensor, angle: Tensor) -> Tensor:
        if guidance.always:  # asking the angles would wait for the device
            return steered(x, angle)
        acts = guidance.acts_at(angle)
        if acts.all():
            return steered(x, angle)
        if not acts.any():
            return plain(x, angle)
        return torch.where(per_sample(acts, x), steered(x, angle), plain(x, angle))

    return denoise


def plan(conditions: Mapping[str, Tensor], guidance: Guidance) -> list[tuple[float, dict[str, Tensor]]]:
    """The variants of the conditions to evaluate and their weights, which sum to 1.

    Those of weight 0 are left out, except that of all conditions where it is the measure for rescaling; that is the first.
    """
    scales, given = guidance.scales, dict(conditions)
    names = [name for name, value in given.items() if has_null(value)]
    if isinstance(scales, Mapping):
        variants = [(1.0 - scale, drop(given, [name])) for name, scale in scales.items()]
        variants.insert(0, (1.0 - math.fsum(weight for weight, _ in variants), given))
    elif names:
        variants = [(float(scales), given), (1.0 - scales, drop(given, names))]
    else:
        variants = [(1.0, given)]
    first, *others = variants
    kept = [(weight, variant) for weight, variant in others if weight != 0]
    return [first, *kept] if first[0] != 0 or guidance.rescale else kept


def rescaled(guided: Tensor, plain: Tensor, share: float) -> Tensor:
    """`guided` [B, ...] with each sample's standard deviation taken toward that of `plain` (Lin 2023, eq. 15 and 16)."""
    axes = list(range(1, guided.ndim))
    wanted, found = plain.std(axes, keepdim=True), guided.std(axes, keepdim=True)
    gain = torch.where(found > 0, wanted / found, 1)
    return (share * gain + (1 - share)) * guided
