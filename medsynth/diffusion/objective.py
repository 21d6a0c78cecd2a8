"""What a network is trained to predict, and how its prediction becomes the clean latent.

`Objective` owns the target, the way back to the clean latent, the loss weight and the noise levels of training; a network
only maps tensors. With cos and sin those of the noise angle and v that of Salimans 2022:

    kind      target                   clean latent                weight
    flow      v = cos noise - sin x0   cos x - sin v               (cos + sin)^2
    epsilon   noise                    (x - sin noise) / cos       1
    v         v                        cos x - sin v               1
    x0        x0                       x0                          sin and cos, see `weight`
    score     -noise / sin             (x + sin^2 score) / cos     sin^2

The flow's loss is the squared error of its velocity u = noise - x0 (Liu 2022, eq. 1). But u = (sin - cos) x + (cos + sin) v:
the first part is known, and a network that has to pass x on for it learns slower. So it answers v alone, which has unit
variance at every level and, where the latent is white, nothing in common with x (the preconditioning of Karras 2022,
table 1, for data of unit variance); the error of u is (cos + sin) times that of v.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from medsynth.config.base import plain
from medsynth.config.denoiser import DiffusionObjective, FlowObjective
from medsynth.config.denoiser import Objective as ObjectiveSettings
from medsynth.diffusion.angle import NOISE, from_alpha_bar, mix, per_sample, to_alpha_bar

TRAINING_LEVELS = 1000
BASE_VOXELS = 4096
LEAST_SHIFT = 2.0
"""Up to latents of 4 x 4096 voxels times are shifted by 2. With less, samples had grain and no large shapes, since the first
steps from pure noise were hardly trained; with the square root over 1024 pixels of Esser 2024, which gives 3.3 at 20 x 28 x
20, low noise was not, which decides texture (docs/history.md)."""
HIGHEST_RATIO = 5.0
"""Signal-to-noise ratio beyond which a level counts no more (Hang 2023, section 3.4)."""
EPSILON_LIMIT = math.atan(100.0)
"""Beyond this angle x holds less than a hundredth of the clean latent, and noise predictions say nothing about it."""


def alpha_bars(schedule: str, zero_terminal_snr: bool) -> Tensor:
    """Signal powers of a discrete schedule, [1000] float64, falling.

    linear: Ho 2020, section 4. scaled_linear: linear in sqrt(beta), Rombach 2022. cosine: Nichol 2021, eq. 17.
    sigmoid: betas along a logistic curve from -6 to 6, Xu 2022 (GeoDiff). With `zero_terminal_snr`, shifted and scaled
    so that the last is 0 and the first stays (Lin 2023, algorithm 1).
    """
    steps = torch.arange(TRAINING_LEVELS, dtype=torch.float64) / (TRAINING_LEVELS - 1)
    match schedule:
        case "linear":
            betas = 1e-4 + steps * (2e-2 - 1e-4)
        case "scaled_linear":
            low, high = math.sqrt(8.5e-4), math.sqrt(1.2e-2)
            betas = (low + steps * (high - low)) ** 2
        case "cosine":
            edges = torch.arange(TRAINING_LEVELS + 1, dtype=torch.float64) / TRAINING_LEVELS
            powers = torch.cos((edges + 0.008) / 1.008 * NOISE) ** 2
            betas = (1 - powers[1:] / powers[:-1]).clamp_max(0.999)
        case "sigmoid":
            betas = 1e-4 + torch.sigmoid(12 * steps - 6) * (2e-2 - 1e-4)
        case _:
            raise ValueError(f"expected the schedule linear, scaled_linear, cosine or sigmoid, found {schedule!r}")
    powers = torch.cumprod(1 - betas, 0)
    if zero_terminal_snr:
        roots = powers.sqrt()
        powers = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return powers


class Objective:
    """The prediction's meaning, its loss, and the angles it is trained at.

    `settings` are the configuration's, or the plain dict that `to_json` gave. Raises pydantic's ValidationError (a
    ValueError) for a dict that is no objective.
    """

    def __init__(self, settings: FlowObjective | DiffusionObjective | Mapping[str, Any]) -> None:
        if isinstance(settings, Mapping):
            settings = TypeAdapter[FlowObjective | DiffusionObjective](ObjectiveSettings).validate_python(
                dict(settings)
            )
        self.settings = settings
        self.kind = settings.kind
        if isinstance(settings, FlowObjective):
            self._table = np.array([0.0, NOISE])
        else:
            table = from_alpha_bar(alpha_bars(settings.schedule, settings.zero_terminal_snr))
            if settings.kind in ("epsilon", "score"):
                table = table[table <= EPSILON_LIMIT]
            self._table = table.numpy()

    @classmethod
    def from_settings(cls, settings: FlowObjective | DiffusionObjective) -> Objective:
        """The objective that a configuration asks for."""
        return cls(settings)

    @property
    def lowest(self) -> float:
        """Smallest angle that training reaches."""
        return float(self._table[0])

    @property
    def highest(self) -> float:
        """Largest angle that training reaches; pi/2 for flow and for zero terminal SNR."""
        return float(self._table[-1])

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON types; `Objective(objective.to_json())` is the same objective."""
        return plain(self.settings)

    def shift(self, latent_voxels: int) -> float:
        """How far noise levels move toward noise: tan(phi) is multiplied by this.

        Neighbouring voxels of a larger latent tell more about each other, so that the same angle hides less; the
        standard error of a mean over n voxels gives sqrt(n / base) (Esser 2024, section 5.3.2), never below `LEAST_SHIFT`.
        """
        if not isinstance(self.settings, FlowObjective):
            return 1.0
        if self.settings.shift == "auto":
            return max(LEAST_SHIFT, math.sqrt(latent_voxels / BASE_VOXELS))
        return float(self.settings.shift)

    def sample_angles(self, n: int, generator: torch.Generator, latent_voxels: int) -> Tensor:
        """Angles to train at, [n] float32 on the CPU, from a CPU generator.

        Flow: logit-normal times (Esser 2024, eq. 19), whose logit is log tan(phi), plus the shift's logarithm. The others:
        even over the schedule's 1000 levels and between them, so that a sampler may ask for any angle in between. One
        comes from each n-th part of the distribution, in random order: so a small batch sees all levels (Kingma 2021, app. I.1).
        """
        order = torch.randperm(n, generator=generator)
        place = (order + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        if isinstance(self.settings, FlowObjective):
            logit = torch.special.ndtri(place) * self.settings.logit_std
            logit += self.settings.logit_mean + math.log(self.shift(latent_voxels))
            return torch.atan(torch.exp(logit)).float()
        angles = np.interp(place.numpy() * (len(self._table) - 1), np.arange(len(self._table)), self._table)
        return torch.from_numpy(angles).float()

    def clamp(self, angle: Tensor) -> Tensor:
        """The nearest angle that training reached."""
        return angle.clamp(self.lowest, self.highest)

    def target(self, x0: Tensor, noise: Tensor, angle: Tensor) -> Tensor:
        """What the network should answer. x0, noise: [B, ...]; angle: [B]."""
        match self.kind:
            case "epsilon":
                return noise
            case "flow" | "v":
                cos, sin = _cos_sin(angle, x0)
                return cos * noise - sin * x0
            case "x0":
                return x0
            case "score":
                return -noise / _cos_sin(angle, x0)[1]

    def clean(self, prediction: Tensor, x: Tensor, angle: Tensor) -> Tensor:
        """The clean latent from the network's answer at x. prediction, x: [B, ...]; angle: [B] that training reached."""
        cos, sin = _cos_sin(angle, x)
        match self.kind:
            case "epsilon":
                return (x - sin * prediction) / cos
            case "flow" | "v":
                return cos * x - sin * prediction
            case "x0":
                return prediction
            case "score":
                return (x + sin**2 * prediction) / cos

    def weight(self, angle: Tensor) -> Tensor:
        """Weight of the squared error of the prediction, [B].

        Flow: (cos + sin)^2, the error of the velocity. The others by `auto`: 1 for epsilon and v; for the score sin^2,
        with which every level counts alike (Song 2021, eq. 7); for x0 the signal-to-noise ratio kept within 1 (truncated
        SNR, Salimans 2022) and 5: unweighted, fine detail at low noise would hardly count. `min_snr`: the error of the
        clean latent counts as the ratio, but at most 5 (Hang 2023, eq. 8), said in terms of whatever is predicted.
        """
        if isinstance(self.settings, FlowObjective):
            return 1 + torch.sin(2 * angle)
        weighting = self.settings.weighting
        if weighting == "uniform" or (weighting == "auto" and self.kind in ("epsilon", "v")):
            return torch.ones_like(angle)
        power = to_alpha_bar(angle)
        noise_power = (1 - power).clamp_min(1e-8)
        ratio = power / noise_power
        if weighting == "auto":
            return noise_power if self.kind == "score" else ratio.clamp(1.0, HIGHEST_RATIO)
        clipped = ratio.clamp_max(HIGHEST_RATIO)
        match self.kind:
            case "epsilon":
                return clipped / ratio
            case "v":
                return clipped / (ratio + 1)
            case "score":
                return clipped / ratio * noise_power
            case _:
                return clipped


def _cos_sin(angle: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    angle = per_sample(angle, like)
    return torch.cos(angle).to(like.dtype), torch.sin(angle).to(like.dtype)


class Denoiser:
    """A network and its objective: the one contract that samplers and training know."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        self.network = network
        self.objective = objective

    def clean(self, x: Tensor, angle: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The clean latent, given the noisy one, its angle and the conditions.

        x: [B, C, X, Y, Z]; angle: [B] in 0..pi/2; conditions as `models.conditions.encode` gives them. An angle that
        training never reached is treated as the nearest that it did, for the network and for the way back alike.
        Computed in the network's type, returned in the type of x.
        """
        angle = self.objective.clamp(angle)
        prediction = self.network(x.to(_dtype(self.network, x)), angle, conditions)
        return self.objective.clean(prediction.to(x.dtype), x, angle)

    def loss(self, x0: Tensor, conditions: Mapping[str, Tensor], angles: Tensor, noise: Tensor) -> Tensor:
        """Weighted mean squared error per sample, [B] float32. x0, noise: [B, C, X, Y, Z]; angles: [B]."""
        x0, noise, angles = x0.float(), noise.float(), angles.to(x0.device)
        x = mix(x0, noise, angles)
        prediction = self.network(x.to(_dtype(self.network, x)), angles, conditions)
        error = (prediction.float() - self.objective.target(x0, noise, angles)).square().flatten(1).mean(1)
        return self.objective.weight(angles).to(error.device) * error


def _dtype(network: nn.Module, x: Tensor) -> torch.dtype:
    """Type of the network's weights; of x where it has none."""
    weight = next(network.parameters(), None)
    return x.dtype if weight is None else weight.dtype
